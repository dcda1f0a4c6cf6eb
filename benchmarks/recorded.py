"""Rows for the cost model from results that are there already: ``python -m benchmarks.recorded --out rows.json``.

The suite and the lengths that were measured on an H200, and kernels with other tiles on an H100.  Times of calls
include their host where that is slower, so only calls are taken whose kernels take longer.  Each is a row as
`benchmarks.calibrate` makes them; a backward pass of several kernels is one row with all of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spdsl
from benchmarks.cases import CASES, Case, documents
from benchmarks.scaling import COMPOSED
from spdsl.analysis.plan import plan as make_plan
from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.costs import work
from spdsl.kernels import plan_like
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_call
from spdsl.runtime.operator import with_batch
from spdsl.runtime.parts import parts_of

_SIZES = ("block_q", "block_k", "warps", "stages")

RESULTS = Path(__file__).parent / "results"

MACHINE = {
    "name": "NVIDIA H200",
    "multiprocessors": 132,
    "matrix_rate": 679e12,
    "copy_rate": 4.0e12,
    "launch": 4e-6,
    "dense": [
        {"head_dim": 128, "forward": 566e12, "backward": 528e12},
        {"head_dim": 64, "forward": 443e12, "backward": 415e12},
    ],
    "about": "forward with four choices of tiles and fused backward from runs of 2026-11-28 on an H200, others from "
    "kernels of the same structure on an H100 (benchmarks/results); dense from cuDNN, head dim 128 on the H200, 64 on "
    "the H100",
}
"""The rate of an 8192³ product in the run of the suite; the copy rate is taken from memory's data sheet."""

BY_NAME = {case.name: case for case in CASES}
MORE = (
    replace(BY_NAME["causal"], name="causal_d64", dim=64),
    replace(BY_NAME["swa1024"], name="swa_d64", dim=64),
    replace(BY_NAME["causal"], name="causal_gqa", heads=32, groups=8, n=16384),
    replace(BY_NAME["causal"], name="causal_8k_b4", batch=4, n=8192),
    replace(BY_NAME["causal"], name="causal_d256", dim=256, heads=8, groups=8, n=16384),
)
"""Other head dims, head counts and batches."""

CHECK = (
    "swa_d64",
    "causal_gqa",
    "causal_8k_b4",
    "prefix8192",
    "documents10",
    "dilated4096x4",
    "na2d_192_k25",
    "composed",
)
"""Masks on which nothing is fitted."""

MEASURED_LENGTHS = (1024, 2048, 4096, 512, 8192, 3072, 5120, 1536, 6144, 1024)
"""The documents of that run; those of the suite have other lengths since."""

Row = dict[str, Any]


def call_of(
    pattern: str,
    parameters: dict[str, Any],
    inputs: dict[str, Tensor],
    counts: tuple[int, int, int],
    n: int,
    dim: int,
) -> Call:
    """A call on tensors that take no memory; ``counts`` are those of sequences, query heads and key heads."""
    batch, heads, groups = counts
    loaded = spdsl.loads(pattern) if "{" in pattern else spdsl.load(pattern)
    attention = spdsl.compile(loaded, **parameters)
    q = torch.zeros((), dtype=torch.bfloat16).expand(batch, heads, n, dim)
    k = q[:, :groups]
    chosen = plan_like(attention._key, q, k, k, "sm_90")  # noqa: SLF001  # the study looks inside
    given = {table.name: with_batch(table, inputs[table.name]) for table in chosen.plan.problem.pattern.tables}
    return check_call(Call(plan=chosen.plan, q=q, k=k, v=k, tables=given, parameters=chosen.variables))


def rows_of(name: str, call: Call, direction: str, seconds: float) -> Row:
    """One time and the kernels behind it, of all parts of a union."""
    works = []
    for part in parts_of(call, lambda _: ()):
        kinds: tuple[Kind, ...] = ("forward",)
        if direction == "bwd":
            kinds = ("fused",) if part.plan.fused is not None else ("dq", "dkdv")
        works += [asdict(work(part, getattr(part.plan, kind))) for kind in kinds]
    return {"subject": name, "role": "check" if name in CHECK else "fit", "works": works, "seconds": seconds}


def suite() -> Iterator[Row]:
    """The backward passes of the suite, as calls, and its forward kernels alone with several tiles."""
    times = json.loads((RESULTS / "h200-2026-11-28-cost.json").read_text())
    for case in (*(case for case in CASES if case.name in times["forward_ms"]), *MORE):
        if case.name == "documents10":
            case = replace(case, inputs=lambda device: {"doc": documents(device, MEASURED_LENGTHS)})
        call, now = _of_case(case), times["now"].get(case.name, {})
        back = now.get("backward_ms", times["backward_ms"].get(case.name))
        if back is not None:
            yield rows_of(case.name, call, "bwd", back * 1e-3)
        if now:
            yield rows_of(case.name, call, "fwd", now["forward_ms"] * 1e-3) | {"now": True}
        for tiles, ms in times["forward_ms"].get(case.name, {}).items():
            plan = _with_tiles(call.plan, "forward", tiles)
            if plan is not None:
                row = rows_of(case.name, replace(call, plan=plan), "fwd", ms * 1e-3)
                row["works"][0]["even"] = False  # these were timed before there was such a thing
                yield row | {"default": plan.forward.tiles == call.plan.forward.tiles}
        for kind, each in times["separate"].items() if case.name == "swa1024" else ():
            plan = _with_tiles(call.plan, kind, each["tiles"])
            assert plan is not None
            done = asdict(work(replace(call, plan=plan), getattr(plan, kind)))
            yield {"subject": case.name, "role": "fit", "works": [done], "seconds": each["ms"] * 1e-3, "bare": True}


def _with_tiles(plan: Plan, kind: Kind, tiles: str) -> Plan | None:
    """The plan with tiles written ``block_q,block_k,warps,stages,specialised``; None if it cannot have them."""
    *sizes, special = map(int, tiles.split(","))
    wanted = Tiles(**dict(zip(_SIZES, sizes, strict=True)), specialised=bool(special))
    found = make_plan(replace(plan.problem, tiles=((kind, wanted),)), "sm_90")
    return found if getattr(found, kind).tiles == wanted else None


def _of_case(case: Case) -> Call:
    counts = (case.batch, case.heads, case.groups)
    return call_of(case.pattern, dict(case.parameters), case.inputs(torch.device("cpu")), counts, case.n, case.dim)


def lengths() -> Iterator[Row]:
    """Windows, sinks and composed masks at long lengths."""
    made = {
        "window": ("sliding_window", {"window": 1024}),
        "sinks_window": ("streaming", {"window": 1024, "sinks": 64}),
        "composed": (COMPOSED, {}),
    }
    for each in json.loads((RESULTS / "h200-2026-11-28-cost.json").read_text())["lengths"]:
        if each["ms"] < 2 * each["host_ms"]:
            continue  # bound by its host
        pattern, parameters = made[each["case"]]
        inputs = {"doc": torch.arange(each["n"]) // 10_000} if each["case"] == "composed" else {}
        call = call_of(pattern, parameters, inputs, (1, 8, 8), each["n"], 128)
        yield rows_of(each["case"], call, each["direction"], each["ms"] * 1e-3)


def tiles() -> Iterator[Row]:
    """Kernels with other tiles than the default ones."""
    operations = {"forward": 4, "dq": 6, "dkdv": 8}
    for each in json.loads((RESULTS / "h100-tiles.json").read_text())["rows"]:
        kind: Kind = each["kind"]
        for mask, n, pattern, parameters in (
            ("causal", 32768 if kind == "forward" or each["dim"] == 64 else 16384, "causal", {}),
            ("window", 32768, "sliding_window", {"window": 1024}),
        ):
            if each[mask] is None:
                continue
            call = call_of(pattern, dict(parameters), {}, (1, 16, 16), n, each["dim"])
            wanted = Tiles(**dict(zip(_SIZES, each["tiles"], strict=True)))
            plan = make_plan(replace(call.plan.problem, tiles=((kind, wanted),)), "sm_90")
            found = work(replace(call, plan=plan), getattr(plan, kind))
            kept = n * (n + 1) // 2 if mask == "causal" else 1024 * n - 1024 * 1023 // 2
            seconds = operations[kind] * each["dim"] * kept * 16 / (each[mask] * 1e12)
            yield {
                "subject": f"tiles_{mask}",
                "role": "fit",
                "works": [asdict(found)],
                "seconds": seconds,
                "bare": True,
            }


def main() -> None:
    """Write all rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorded", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("recorded.json"))
    out = parser.parse_args().out
    rows = [*suite(), *lengths(), *tiles()]
    out.write_text(json.dumps({"machine": MACHINE, "rows": rows}) + "\n")
    print(f"{len(rows)} rows")


if __name__ == "__main__":
    main()
