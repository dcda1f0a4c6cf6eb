"""The fused backward kernel for Hopper: dQ, dK and dV in one walk by key, with five products a tile instead of seven.

From a plan to the blocks of its two kinds of warps: one that copies tiles, and those that compute.  The skeleton that
holds them is a template; `spdsl.codegen.gluon` writes it.
"""

from __future__ import annotations

from spdsl.analysis.plans import GROUP_ROWS, KernelPlan, Plan
from spdsl.codegen import split
from spdsl.codegen.arith import add, both, compare, index, mul, number
from spdsl.codegen.blocks import (
    Argument,
    Block,
    Define,
    FetchOwn,
    FetchTile,
    FusedBegin,
    FusedEnd,
    FusedGradients,
    FusedScores,
    Kernel,
    Loop,
    Mask,
    RowBase,
)
from spdsl.codegen.frame import Frame, masked, positions, program
from spdsl.codegen.results import dkdv_sums
from spdsl.codegen.walks import Mode, Walker, depends_on_head, lower_walk
from spdsl.semantics.nodes import Expr, Extent

SUMS = dkdv_sums(())


def lower_fused(plan: Plan) -> Kernel | None:
    """The kernel, or None where the plan has none."""
    tiles = plan.fused
    if tiles is None:
        return None
    fetching, computing = (Frame(plan=plan, kernel=tiles, by="key") for _ in range(2))
    fetch, compute = _fetch(fetching, tiles), _compute(computing, tiles)
    dim = plan.problem.pattern.head_dim
    return Kernel(
        name="fused",
        doc="dQ, dK and dV: each program owns a tile of keys and walks the tiles of queries.",
        arguments=(
            *computing.source("Q", "q", "HEAD_DIM"),
            *_halves(computing, "K", dim),
            *_halves(computing, "V", dim),
            *computing.source("dO", "q", "VALUE_DIM"),
            *(Argument(name=name, type="*fp32", note="[batch * heads * nq]", block=(tiles.block_q,)) for name in ROWS),
            Argument(
                name="dQ", type="*fp32", note=f"[batch, heads, nq, {dim}], summed", block=(1, 1, tiles.block_q, 64)
            ),
            *_halves(computing, "dK", dim),
            *_halves(computing, "dV", dim),
            *computing.lengths(),
            *computing.lists(),
            *split.split_arguments(computing, SUMS),
            *computing.parameters((*fetch, *compute)),
            *computing.table_arguments((*fetch, *compute)),
        ),
        constants=(*computing.constants(), ("ROWS", GROUP_ROWS), ("COLUMNS", 64), ("RING", tiles.stages)),
        body=compute,
        fetch=fetch,
        block=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        parts=split.part_sizes(computing, SUMS),
        heads_first=True,
    )


ROWS = ("LSE2", "Delta")


def _halves(frame: Frame, name: str, width: int) -> tuple[Argument, ...]:
    (argument, *_) = frame.tensor(name, "k", width)
    return (Argument(name=name, type=argument.type, note=argument.note, block=(1, 1, GROUP_ROWS, width)),)


def _fetch(frame: Frame, tiles: KernelPlan) -> tuple[Block, ...]:
    setup, loops = lower_walk(tiles.walk, _walker(frame, tiles, lambda _: (FetchTile(),)))
    return _around(frame, tiles, setup, (RowBase(copied=True),), loops, begin=(FetchOwn(),), end=())


def _compute(frame: Frame, tiles: KernelPlan) -> tuple[Block, ...]:
    plan = frame.plan
    keep: Expr = frame.keep()
    frame.hoist.share((keep,))
    keep_blocks, keep = frame.place_tile(keep)
    # A tile past the last query holds rows of the next head, and keys that do not exist are zeros: their weights may be
    # anything, also infinite, and dQ is summed over them.
    exists = both(compare("lt", index("k"), Extent(name="n")), compare("lt", index("q"), _end(frame)))
    mask = Mask(target="p", keep=both(keep, exists) or keep, span=plan.keep.span)

    def body(mode: Mode) -> tuple[Block, ...]:
        return (
            positions(frame, "q", "walked"),
            FusedScores(factor=frame.factor),
            *masked(mode, keep_blocks, mask),
            FusedGradients(dtype=plan.problem.dtype),
        )

    setup, loops = lower_walk(tiles.walk, _walker(frame, tiles, body))
    own = (positions(frame, "k", "own"), *frame.hoist.take(1))
    end = split.end(frame, SUMS, (FusedEnd(dtype=plan.problem.dtype, scale=plan.scale),))
    return _around(frame, tiles, setup, (), loops, begin=(*own, FusedBegin()), end=end)


def _end(frame: Frame) -> Expr:
    """The position after that of the last query row."""
    length = Extent(name="nq")
    return length if frame.plan.problem.shape == "square" else add(Extent(name="q_start"), length)


def _walker(frame: Frame, tiles: KernelPlan, body: object) -> Walker:
    scope = 2 if frame.loops_over_heads and depends_on_head(tiles.walk) else 0
    return Walker(
        by="key",
        shape=frame.plan.problem.shape,
        spans=tiles.spans,
        separate=0,
        place=lambda expr: frame.hoist.place(expr, scope),
        place_tile=frame.place_tile,
        body=body,  # type: ignore[arg-type]
        ragged=compare("gt", mul(add(index("j"), number(1)), number(tiles.block_k)), Extent(name="n")),
    )


def _around(
    frame: Frame,
    tiles: KernelPlan,
    setup: tuple[Block, ...],
    rows: tuple[Block, ...],
    loops: tuple[Block, ...],
    *,
    begin: tuple[Block, ...],
    end: tuple[Block, ...],
) -> tuple[Block, ...]:
    """The blocks of a warp: what the program works on, bounds of the walk, and its loops for every head."""
    by_head = depends_on_head(tiles.walk)
    inner: tuple[Block, ...] = (*(setup if by_head else ()), *rows, *split.share(frame, loops))
    if frame.loops_over_heads:
        name = Define(name="h", value=add(mul(index("g"), number(frame.ratio)), index("r")), note="query head")
        inner = (
            Loop(
                variable="r",
                low=number(0),
                high=number(frame.ratio),
                body=(name, *frame.hoist.take(2), *inner),
                note="heads of the group",
            ),
        )
    return (
        *program(frame, reverse=False),
        *frame.hoist.take(0),
        *begin,
        *(() if by_head else setup),
        *inner,
        *end,
    )
