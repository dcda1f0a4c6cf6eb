"""Pairs kept over pairs computed, for the masks of the suite: ``python -m benchmarks.coverage``.

Writes docs/coverage.md.  Nothing is timed and no GPU is needed: the tiles of spdsl's kernels for sm_90 are counted, and
the 128 × 128 blocks that FlexAttention visits.  All counts are exact.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

import spdsl
from benchmarks.cases import CASES, Case
from spdsl.analysis.box_tiles import Boxes
from spdsl.explain import Report, call_like, explain
from spdsl.runtime.calls import Call
from spdsl.runtime.evaluate import evaluate
from spdsl.runtime.lists import tile_lists
from spdsl.runtime.visits import list_visits
from spdsl.semantics.nodes import Apply, Const

KINDS = ("forward", "dq", "dkdv", "fused")

BLOCK = 128
"""The default of FlexAttention's `create_block_mask`, on both sides, for forward and backward."""

PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"

HEAD = """\
# Pairs kept over pairs computed

Written by `python -m benchmarks.coverage`; every figure is an exact count, made without a GPU. Masks and sizes are
those of [the benchmarks](../benchmarks/README.md): 32,768 tokens, on grids 36,864 and 115,200; head dim 128, bf16,
sm_90.

*Kept* is the share of all pairs that a mask keeps. The other shares are the kept ones among the pairs that are
computed: by spdsl's kernels at their default tiles, and by FlexAttention at its blocks of 128 × 128, of which it
computes each that holds a kept pair. *dq* and *dkdv* run where not all gradients are wanted, and where there is
no *fused* kernel, which does both. Where a program of it owns two tiles that are no neighbours (*s2_strided*),
what each of them asks for is counted; the two walk what either does. The last column says how many times fewer pairs
the forward kernel, and in brackets the fused one, computes than FlexAttention does.

| mask | kept | forward | dq | dkdv | fused | FlexAttention | fewer |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Pairs of one mask over the heads that are counted: all, kept, computed by each kernel, and in touched blocks;
    and the shares of the kept ones by direction, for the kernels that run by default."""

    case: Case
    total: int
    kept: int
    computed: dict[str, int]
    blocks: int
    useful: dict[str, float]

    def line(self) -> str:
        """A row of the table."""
        shares = [f"{self.kept / self.computed[kind]:.1%}" if kind in self.computed else "–" for kind in KINDS]
        fewer = [f"{self.blocks / self.computed[kind]:.2f}" for kind in ("forward", "fused") if kind in self.computed]
        times = f"{fewer[0]} ×" + (f" ({fewer[1]} ×)" if len(fewer) > 1 else "")
        cells = (self.case.name, f"{self.kept / self.total:.2%}", *shares, f"{self.kept / self.blocks:.1%}", times)
        return f"| {' | '.join(cells)} |"


def coverage(case: Case, target: str = "sm_90") -> Coverage:
    """Count a case with the kernels for ``target``; one head stands for all where heads do not differ."""
    device = torch.device("cpu")
    heads = case.heads if case.per_head else 1
    rows: Tensor = torch.zeros((), dtype=case.dtype).expand(case.batch, heads, case.n, case.dim)
    pattern = spdsl.loads(case.pattern) if "\n" in case.pattern else case.pattern
    key = spdsl.compile(pattern, **case.parameters)._key  # noqa: SLF001  # what the command takes from its words
    inputs = case.inputs(device)
    report = explain(key, rows, rows, rows, inputs, target)
    call = call_like(key, rows, rows, rows, inputs, target)
    return Coverage(
        case=case,
        total=case.batch * heads * case.n**2,
        kept=report.pairs,
        computed=computed_by(report),
        blocks=touched_blocks(call) * BLOCK**2,
        useful={"fwd": report.useful("fwd"), "bwd": report.useful("bwd")},
    )


def computed_by(report: Report) -> dict[str, int]:
    """The pairs that kernels of each kind compute, over the sets of a union; where the first has a fused kernel, the
    others have `dkdv`."""
    parts = {kernel.part for kernel in report.kernels}
    by_place = {(kernel.part, kernel.kind): kernel.computed for kernel in report.kernels}
    kinds = {kernel.kind for kernel in report.kernels}
    return {kind: sum(by_place.get((part, kind), by_place[part, "dkdv"]) for part in parts) for kind in kinds}


def touched_blocks(call: Call) -> int:
    """How many blocks of 128 × 128 hold a kept pair, over batch and heads."""
    boxes = call.plan.forward.boxes
    if boxes is not None:
        return _blocks_on_grid(boxes)
    whole = reduce(lambda a, b: Apply(op="or", args=(a, b), dtype="bool"), [part.keep for part in call.plan.parts])
    call = replace(call, plan=replace(call.plan, keep=whole))
    lists = tile_lists(call, by="query", block_q=BLOCK, block_k=BLOCK, exact=True)
    return list_visits(lists, call.q.shape[0], call.q.shape[1]).touched


def _blocks_on_grid(boxes: Boxes) -> int:
    """As `touched_blocks` of one head, for a mask that is a product over the axes of a grid."""
    axes = on_axes(boxes)
    return sum(blocks_of_row(axes, boxes, start) for start in range(0, boxes.places, BLOCK))


def on_axes(boxes: Boxes) -> list[Tensor]:
    """What the mask keeps along each axis: 1.0 or 0.0, ``[extent, extent]`` for coordinates of queries and keys."""
    assert boxes.rest == Const(value=True)
    axes = []
    for number, axis in enumerate(boxes.axes):
        at = torch.arange(axis.extent)
        axes.append(torch.as_tensor(evaluate(axis.keep, {f"q{number}": at[:, None], f"k{number}": at}, {})).float())
    return axes


def blocks_of_row(axes: list[Tensor], boxes: Boxes, start: int) -> int:
    """The touched blocks of the queries from ``start`` on."""
    queries = torch.arange(start, min(start + BLOCK, boxes.places))
    places = torch.unravel_index(queries, boxes.extents)
    *outer, last = (keep[place] for keep, place in zip(axes, places, strict=True))  # each [queries, extent]
    rows = reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).flatten(1), outer)
    keys = (rows.T @ last).flatten() > 0
    return int(torch.nn.functional.pad(keys, (0, -len(keys) % BLOCK)).view(-1, BLOCK).any(1).sum())


def main() -> None:
    """Count all masks and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    out = parser.parse_args().out
    lines = [coverage(case).line() for case in CASES]
    out.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
