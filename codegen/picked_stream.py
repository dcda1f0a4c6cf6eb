"""dK and dV of picked blocks on Hopper: one warp copies the queries that have picked a block, four warps compute.

From a plan to the blocks of both kinds of warps.  A tile of queries is put together from the heads of one query each,
which the copy engine takes from wherever they stand, so that no addresses take registers and two programs share an SM.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.plans import GROUP_ROWS, Plan
from spdsl.codegen.arguments import length_arguments, parameter_arguments
from spdsl.codegen.backward import STATISTICS
from spdsl.codegen.blocks import (
    Block,
    FetchPicks,
    Kernel,
    Loop,
    Mask,
    PicksBegin,
    PicksEnd,
    PicksGradients,
    PicksScores,
    SentRows,
    ToldQueries,
)
from spdsl.codegen.corners import corner, described
from spdsl.codegen.frame import COLUMNS, LOG2E, Frame
from spdsl.codegen.picked_parts import picked_arguments, picked_end, picked_sizes
from spdsl.codegen.picks import packed_program
from spdsl.codegen.programs import masked, positions
from spdsl.codegen.results import dkdv_sums
from spdsl.codegen.streamed import REGISTERS, THREADS
from spdsl.codegen.walks import Walker, lower_walk

SUMS = dkdv_sums(())


def lower_picked_stream(plan: Plan) -> Kernel:
    """The kernel of dK and dV, whose plan has specialised warps."""
    tiles, problem = plan.dkdv, plan.problem
    dim = problem.pattern.head_dim
    picks = tiles.picks
    assert picks is not None
    frame = Frame(plan=plan, kernel=tiles, by="key")
    # What a program works on is the same for both kinds of warps; how rows lie in a tile is not that of other kernels.
    begin, _ = packed_program(tiles, problem.pattern, reverse=False, shape=problem.shape)
    setup, (loop,) = _walk(frame)
    assert isinstance(loop, Loop)
    keys, values = (corner(frame, name, "k", shared=False) for name in ("K", "V"))
    halves = dim // COLUMNS
    fetch: tuple[Block, ...] = (
        begin,
        *frame.hoist.take(0),
        *setup,
        FetchPicks(
            keys=keys,
            values=values,
            positions=picks.positions,
            heads=picks.heads,
            rows=picks.rows,
            halves=halves,
            shape=problem.shape,
        ),
    )
    body = _compute(plan, begin)
    queries = [
        replace(described(frame, name, "q", dim, shared=False), block=(1, picks.heads, 1, COLUMNS))
        for name in ("Q", "dO")
    ]
    return Kernel(
        name="dkdv",
        doc="dK and dV: each program owns a tile of keys and walks the queries that have picked its block.",
        arguments=(
            queries[0],
            described(frame, "K", "k", dim, shared=False),
            described(frame, "V", "k", dim, shared=False),
            queries[1],
            *STATISTICS,
            described(frame, "dK", "k", dim, shared=False),
            described(frame, "dV", "k", dim, shared=False),
            *length_arguments(frame),
            *picked_arguments(picks, SUMS),
            *parameter_arguments(frame, (*fetch, *body)),
        ),
        constants=(
            *frame.constants(),
            ("ROWS", GROUP_ROWS),
            ("POSITIONS", picks.positions),
            ("OF_LIST", picks.heads),
            ("COLUMNS", COLUMNS),
            ("HALVES", halves),
            ("RING", tiles.stages),
            ("NUMBERS", 2),
        ),
        body=body,
        fetch=fetch,
        block=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        # Two programs share an SM; the copying warp counts as a group.
        registers=REGISTERS // (4 * THREADS),
        parts=picked_sizes(frame, SUMS),
    )


def _compute(plan: Plan, begin: Block) -> tuple[Block, ...]:
    """The blocks of the computing warps."""
    frame = Frame(plan=plan, kernel=plan.dkdv, by="key")
    keep = frame.keep()
    frame.hoist.share((keep,))
    keep_blocks, keep = frame.place_keep(keep)
    mask = Mask(target="p", keep=keep, span=plan.keep.span)
    tested = masked("either", (SentRows(), positions(frame, "q", "walked"), *keep_blocks), mask)
    setup, (loop,) = _walk(
        frame,
        (
            PicksScores(factor=plan.scale * LOG2E),
            *tested,
            PicksGradients(dtype=plan.problem.dtype),
        ),
    )
    keys, values = (corner(frame, name, "k", shared=False) for name in ("dK", "dV"))
    last = PicksEnd(dtype=plan.problem.dtype, scale=plan.scale, keys=keys, values=values, added=plan.place > 0)
    return (
        begin,
        *frame.hoist.take(0),
        positions(frame, "k", "own"),
        *frame.hoist.take(1),
        PicksBegin(),
        *setup,
        loop,
        *picked_end(SUMS, (last,)),
    )


def _walk(frame: Frame, body: tuple[Block, ...] = ()) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The bounds of the program's block, and the loop over its queries, which the copying warp has read."""
    tiles = frame.kernel
    walker = Walker(
        by="key",
        shape=frame.plan.problem.shape,
        spans=(1, tiles.block_k),
        separate=0,
        place=lambda expr: frame.hoist.place(expr, 0),
        place_tile=frame.place_tile,
        body=lambda _: body,
        picks=tiles.picks,
    )
    setup, (loop,) = lower_walk(tiles.walk, walker)
    assert isinstance(loop, Loop)
    _, *rest = loop.body
    return setup, (replace(loop, body=(ToldQueries(), *rest)),)
