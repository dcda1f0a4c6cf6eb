"""The kernel that sums gradients of tables indexed by ``q - k``: every program owns a few distances.

A tile of queries meets, at the distances that a program owns, a band of keys twice as wide; the diagonals of that tile
are aligned by a gather and added up over the query tiles in order.  Memory is that of the distances, the order is
fixed.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.plans import Plan
from spdsl.codegen.arith import both, compare, index, number
from spdsl.codegen.backward import STATISTICS, Step
from spdsl.codegen.blocks import (
    Block,
    DistancePositions,
    DistanceProgram,
    Kernel,
    LoadRows,
    Loop,
    RowBase,
    ScoreGradient,
    Statistics,
    StoreDistances,
    SumDiagonals,
    Zeros,
)
from spdsl.codegen.frame import Frame
from spdsl.codegen.results import KEY_ROWS, partials
from spdsl.codegen.tensors import pointers
from spdsl.semantics.nodes import Param, Side

BLOCK = 32
"""Queries of a tile, and distances of a program."""

TENSORS: tuple[tuple[str, Side, str], ...] = (
    ("Q", "q", "HEAD_DIM"),
    ("dO", "q", "VALUE_DIM"),
    ("K", "k", "HEAD_DIM"),
    ("V", "k", "VALUE_DIM"),
)


def lower_distances(plan: Plan) -> Kernel | None:
    """The kernel, or None where no gradient goes by distance."""
    tiles = replace(plan.dq, block_q=BLOCK, block_k=2 * BLOCK, warps=4, stages=1)
    tiles = replace(tiles, residues=None, boxes=None, marked=None, descriptors=False, splits=False)
    frame = Frame(plan=plan, kernel=tiles, by="query")
    found = partials(frame, "bias", ("distance",))
    if not found:
        return None
    step = Step.of(frame, found)
    # Program and tile are one scope with the query tile: every tile has its own rows here.
    inside = (*frame.hoist.take(0), *frame.hoist.take(1))
    step = replace(step, keep=both(step.keep, compare("ge", index("k"), number(0))) or step.keep)
    shape = plan.problem.shape
    body: tuple[Block, ...] = (
        DistancePositions(shape=shape),
        *inside,
        *(
            LoadRows(
                name=f"{tensor.lower()}_tile",
                prefix=tensor.lower(),
                side=side,
                columns=columns,
                padded=frame.is_padded(columns),
            )
            for tensor, side, columns in TENSORS
        ),
        Statistics(part="own"),
        step.dot("scores", "q_tile", "k_tile", transpose=True),
        step.dot("dp", "do_tile", "v_tile", transpose=True),
        *step.weights("masked", "own"),
        ScoreGradient(part="own", capped=False),
        *step.sum_blocks,
        *(SumDiagonals(name=each.name, factor=each.factor) for each in step.sums),
    )
    blocks: tuple[Block, ...] = (
        DistanceProgram(ratio=frame.ratio, shape=shape),
        RowBase(),
        *(pointers(frame, tensor, side, columns) for tensor, side, columns in TENSORS),
        *(Zeros(name=each.name, shape=("BLOCK_D",)) for each in step.sums),
        Loop(
            variable="i",
            low=Param(name="lo", dtype="int"),
            high=Param(name="hi", dtype="int"),
            body=body,
            note="tiles of queries with pairs at these distances",
        ),
        *(StoreDistances(value=each.name, pointer=each.pointer) for each in step.sums),
    )
    doc = "Sums of the gradients of logits by distance: each program owns a few distances."
    kernel = step.kernel("distances", doc, (), blocks, BLOCK)
    assert KEY_ROWS not in kernel.arguments
    at = kernel.arguments.index(STATISTICS[1]) + 1
    arguments = (
        *kernel.arguments[:at],
        KEY_ROWS,
        *(a for a in kernel.arguments[at:] if not a.name.startswith("list_")),
    )
    return replace(kernel, arguments=arguments, constants=(*kernel.constants, ("BLOCK_D", BLOCK)))
