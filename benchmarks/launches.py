"""What each kernel of a forward pass takes: ``python -m benchmarks.launches --out f.json``, or some cases by name.

For every case the device time of each kernel by its name, of the selections alone and of whole calls.  To these the
rates of `spdsl.selection_costs` were fitted, by the least mean of the absolute logarithms of predicted over measured
times.
``--prepare`` makes the first call of each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import spdsl
from benchmarks.selections import CASES as SELECTIONS
from benchmarks.selections import Case, machine, selection, tensors, time
from spdsl.samples import Sizes, sample_inputs

_BY_NAME = {case.name: case for case in SELECTIONS if "{" not in case.pattern}
_SMALL: dict[str, Any] = {"heads": 6, "groups": 2, "n": 131072, "dim": 64}

CASES = (
    *(case for case in _BY_NAME.values() if case.name not in ("infllm_v2_524k", "nsa_8k_alike")),
    Case(name="hip_131k", pattern="hip", heads=16, groups=4),
    Case(name="llsa_65k", pattern="llsa", heads=16, groups=16, n=65536, dim=64, full=True),
    *(Case(name=f"{each}_131k", pattern=each, **_SMALL) for each in ("flashprefill", "minference_blocks")),
    Case(name="flexprefill_131k", pattern="flexprefill", parameters={"mass": 0.98, "tau": 0.3}, **_SMALL),
    Case(name="moba_8k", pattern="moba", heads=8, groups=8, n=8192, dim=64),
    replace(_BY_NAME["nsa_8k_32_16"], name="nsa_32k", heads=8, groups=8, n=32768, dim=64, smooth=64),
    replace(_BY_NAME["nsa_8k_32_16"], name="nsa_65k", n=65536, smooth=64),
    Case(name="infllm_v2_32k", pattern="infllm_v2", n=32768),
    Case(name="quest_8k", pattern="quest", heads=16, groups=16, n=8192, dim=64),
    Case(name="quest_131k", pattern="quest", heads=8, groups=2),
    replace(_BY_NAME["dsa_32k"], name="dsa_8k", n=8192),
    replace(_BY_NAME["seer_attention_32k"], name="seer_131k", heads=8, groups=2, n=131072),
    Case(name="xattention_16k", pattern="xattention", heads=8, groups=8, n=16384, dim=64),
    Case(name="vertical_slash_131k", pattern="vertical_slash", heads=8, groups=2),
    Case(name="hip_32k", pattern="hip", heads=8, groups=2, n=32768),
    Case(name="llsa_131k", pattern="llsa", heads=16, groups=16, dim=64, full=True),
    *(Case(name=f"{each}_32k", pattern=each, groups=8, n=32768) for each in ("flashprefill", "minference_blocks")),
    Case(name="flexprefill_32k", pattern="flexprefill", groups=8, n=32768),
)


def main() -> None:
    """Measure the cases named on the command line, or all, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases")
    parser.add_argument("--out", type=Path, default=Path("launches.json"), help="the JSON file to write")
    parser.add_argument("--prepare", action="store_true", help="only make the first call of each")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if given.cases and case.name not in given.cases:
            continue
        row = measured(case, timed=not given.prepare)
        if not given.prepare:
            rows.append(row)
            given.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


@torch.no_grad()
def measured(case: Case, *, timed: bool) -> dict[str, Any]:
    """The times of a case in milliseconds; of kernels how often they ran, and how long they took together."""
    q, k, v, inputs = tensors(case)
    if not inputs:
        pattern = spdsl.load(case.pattern).checked
        sizes = Sizes(batch=1, heads=case.heads, groups=case.groups, nq=case.n, n=case.n, head_dim=case.dim)
        made = sample_inputs(pattern, dict(case.parameters), sizes)  # type: ignore[arg-type]
        inputs = {name: each.cuda() for name, each in made.items()}
    attn = spdsl.compile(case.pattern, **case.parameters)  # type: ignore[arg-type]
    run: Callable[[], Tensor | tuple[Tensor, ...]] = lambda: attn(q, k, v, **inputs)  # noqa: E731
    select = selection(attn, q, k, v, inputs)
    for _ in range(3 if timed else 1):
        run()
        select()
    if not timed:
        return {}
    sizes_of = {"heads": case.heads, "groups": case.groups, "n": case.n, "dim": case.dim, "smooth": case.smooth}
    row: dict[str, Any] = {"case": case.name, "pattern": case.pattern, "parameters": case.parameters, **sizes_of}
    row |= {"selection_ms": time(select, 5), "forward_ms": time(run, 5)}
    return row | {"forward": _kernels(run), "selection": _kernels(select), **machine()}


def _kernels(run: Callable[[], object]) -> dict[str, list[float]]:
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in seen.events() or ():
        if event.device_type.name == "CUDA":
            times = found.setdefault(event.name[:48], [0, 0.0])
            times[0] += 1
            times[1] = round(times[1] + event.device_time / 1e3, 5)
    return found


if __name__ == "__main__":
    main()
