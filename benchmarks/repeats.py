"""What gradients that repeat cost: ``python -m benchmarks.repeats``, for the masks of the suite or those named.

The backward pass as it is by default and with ``deterministic=True``, in interleaved rounds on the same tensors.  The
second is run twice and compared bit by bit, and both are compared with each other, before anything is timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
import triton
from torch import Tensor

import spdsl
from benchmarks.cases import CASES, SUITE, Case

ROUNDS = 3
APART = 5e-3
"""The largest relative distance of gradients whose sums have another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds of a backward pass by default, and where it repeats; ``slower`` is their quotient less one."""

    case: str
    default: float
    repeats: float
    slower: float
    gpu: str


def main() -> None:
    """Measure, print, and write after each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeats", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help="cases of the suite; by default its masks")
    parser.add_argument("--prepare", action="store_true", help="only compile what will be measured")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args()
    cases = [case for case in SUITE if case.name in given.cases] if given.cases else CASES
    found: list[Cost] = []
    for case in cases:
        backward = [_backward(case, deterministic) for deterministic in (False, True)]
        if given.prepare:
            for run in backward:
                run()
            continue
        found.append(_cost(case, *backward))
        print(
            f"{case.name:26} {found[-1].default:9.3f} ms {found[-1].repeats:9.3f} ms {found[-1].slower:+7.1%}",
            flush=True,
        )
        if given.out is not None:
            given.out.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


def _backward(case: Case, deterministic: bool) -> Callable[[], tuple[Tensor, ...]]:
    """A backward pass of a case, after its forward."""
    torch.manual_seed(0)
    shapes = [(case.batch, heads, case.n, case.dim) for heads in (case.heads, case.groups, case.groups)]
    leaves = [torch.randn(shape, device="cuda", dtype=case.dtype, requires_grad=True) for shape in shapes]
    d_out = torch.randn_like(leaves[0])
    pattern = spdsl.loads(case.pattern) if "{" in case.pattern else spdsl.load(case.pattern)
    attention = spdsl.compile(pattern, deterministic=deterministic, **case.parameters)
    out = attention(*leaves, **case.inputs(torch.device("cuda")))
    return partial(torch.autograd.grad, out, leaves, d_out, retain_graph=True)


def _cost(case: Case, default: Callable[[], tuple[Tensor, ...]], repeats: Callable[[], tuple[Tensor, ...]]) -> Cost:
    first, again, other = repeats(), repeats(), default()
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b), f"the gradients of {case.name} do not repeat"
        assert float((a.double() - c).norm() / c.double().norm()) < APART, f"those of {case.name} differ"
    del first, again, other
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for each, run in zip(times, (default, repeats), strict=True):
            each.append(float(triton.testing.do_bench(run, warmup=20, rep=80, return_mode="median")))
    plain, ordered = (median(each) for each in times)
    return Cost(
        case=case.name,
        default=round(plain, 4),
        repeats=round(ordered, 4),
        slower=round(ordered / plain - 1, 4),
        gpu=torch.cuda.get_device_name(),
    )


if __name__ == "__main__":
    main()
