"""The time of the host for calls of patterns with stages: ``python -m benchmarks.staged_host --out f.json``.

For every pattern of the library that selects, reduces or routes: microseconds until the first call returns, and until
later ones do, each on an idle device, of the forward alone and of forward and backward together; beside them the
milliseconds that the device takes, the host being far ahead.  ``steps`` says how many steps of the forward and of the
backward are repeated; None where a call is carried out anew each time.  ``--prepare`` compiles beforehand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

import spdsl

Row = dict[str, object]
Inputs = dict[str, Tensor]

ROUNDS = 20
AHEAD = 12_000_000
"""Cycles of the device in which the host gives it all of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pattern of the library at one shape, and how its inputs are made."""

    pattern: str
    parameters: dict[str, object] = field(default_factory=dict)
    heads: int = 8
    groups: int = 2
    n: int = 4096
    dim: int = 64
    inputs: Callable[[Case], Inputs] = lambda case: {}


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda")


def _gates(case: Case) -> Inputs:
    return {"gate": torch.rand(3, case.heads, case.n, device="cuda")}


def _indexer(case: Case) -> Inputs:
    make = {"QI": _numbers(64, case.n, 128).bfloat16(), "KI": _numbers(case.n, 128).bfloat16()}
    return make | {"wt": torch.rand(64, case.n, device="cuda")}


def _pooled(case: Case) -> Inputs:
    return {name: _numbers(case.heads, case.n // 64, 128) for name in ("GQ", "GK")}


def _pieces(case: Case) -> Inputs:
    return {"cut": (torch.rand(case.n, device="cuda") < 1 / 64).cumsum(0).int().sub(1).clamp(min=0)}


CASES = (
    Case(pattern="llsa", groups=8),
    Case(pattern="hip", n=8192),
    Case(pattern="moba", groups=8, n=8192),
    Case(pattern="nsa", heads=32, inputs=_gates),
    Case(pattern="infllm_v2", heads=32, n=8192, dim=128),
    Case(pattern="quest"),
    Case(pattern="kinetics"),
    Case(pattern="minference_blocks", heads=6),
    Case(pattern="flashprefill", heads=6),
    Case(pattern="flexprefill", heads=6, n=8192),
    Case(pattern="vertical_slash", n=8192),
    Case(pattern="xattention"),
    Case(pattern="seer_attention", inputs=_pooled),
    Case(pattern="dsa", heads=16, groups=1, inputs=_indexer),
    Case(pattern="dma", inputs=lambda case: {"delta": _numbers(case.groups, case.n)}),
    Case(
        pattern="vsa",
        parameters={"frames": 8, "height": 16, "width": 32},
        inputs=lambda case: {"gate": _numbers(case.heads, case.n, case.dim).bfloat16()},
    ),
    Case(pattern="snapkv"),
    Case(pattern="ada_snapkv"),
    Case(pattern="sparge"),
    Case(pattern="dhsa", inputs=_pieces),
    Case(pattern="superlinear", inputs=lambda case: {"Q1": _numbers(case.heads, case.n, case.dim).bfloat16()}),
    Case(
        pattern="routing",
        parameters={"clusters": 16},
        inputs=lambda case: {"mu": _numbers(case.heads, 16, case.dim)},
    ),
)


def main() -> None:
    """Measure the patterns named on the command line, or all, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.staged_host", description=__doc__)
    parser.add_argument("patterns", nargs="*", help="names of patterns")
    parser.add_argument("--out", type=Path, default=Path("staged_host.json"), help="the JSON file to write")
    parser.add_argument("--prepare", action="store_true", help="call each pattern a few times, and time nothing")
    given = parser.parse_args()
    rows: list[Row] = []
    for case in CASES:
        if given.patterns and case.pattern not in given.patterns:
            continue
        rows.append(measured(case, timed=not given.prepare))
        print(json.dumps(rows[-1]), flush=True)
        given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(case: Case, *, timed: bool = True) -> Row:
    """Times of a case, of the forward and of both ways."""
    torch.manual_seed(0)
    shapes = (case.heads, case.groups, case.groups)
    q, k, v = (_numbers(1, heads, case.n, case.dim).bfloat16() for heads in shapes)
    inputs, d_out = case.inputs(case), torch.randn_like(q)
    attn = spdsl.compile(case.pattern, **case.parameters)  # type: ignore[arg-type]
    leaves = [each.clone().requires_grad_() for each in (q, k, v)]

    def forward() -> object:
        with torch.no_grad():
            return attn(q, k, v, **inputs)

    def both() -> object:
        out = attn(*leaves, **inputs)
        assert isinstance(out, Tensor)
        return torch.autograd.grad(out, leaves, d_out)

    row: Row = {
        "pattern": case.pattern,
        "parameters": case.parameters,
        "shape": f"1x{case.heads}/{case.groups}x{case.n}x{case.dim}",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    for name, run in (("forward", forward), ("both", both)):
        row[f"{name}_first_us"] = round(host(run))
        for _ in range(4):  # the second is watched
            run()
        if timed:
            row[f"{name}_us"] = round(median(host(run) for _ in range(ROUNDS)))
            row[f"{name}_device_ms"] = round(median(device(run) for _ in range(5)), 3)
    row["steps"] = steps(attn)
    return row


def steps(attn: spdsl.Attention) -> dict[str, list[int] | None]:
    """How many steps are repeated in each way, of calls with gradients and without."""
    found: dict[str, list[int] | None] = {}
    for kind in attn._direct._whole.values():  # noqa: SLF001
        ways = None if kind.ways is None else kind.ways[0]
        both = [] if ways is None else [way for way in (ways.forward, ways.backward) if way is not None]
        found["both" if kind.trained else "forward"] = [len(way.tape.flat) for way in both] or None
    return found


def host(run: Callable[[], object]) -> float:
    """Microseconds until a call returns on an idle device."""
    torch.cuda.synchronize()
    begin = perf_counter()
    run()
    found = (perf_counter() - begin) * 1e6
    torch.cuda.synchronize()
    return found


def device(run: Callable[[], object]) -> float:
    """Milliseconds of the device for a call, which it begins when the host is done with it."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(AHEAD)  # noqa: SLF001  # torch has no public name for it
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


if __name__ == "__main__":
    main()
