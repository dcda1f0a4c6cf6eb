"""The fused backward kernel for Hopper: dQ, dK and dV in one walk by key, with five products a tile instead of seven.

From a plan to the blocks of its two kinds of warps: one that copies tiles, and those that compute.  The skeleton that
holds them is a template; `spdsl.codegen.gluon` writes it.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.plans import GROUP_ROWS, KernelPlan, Plan
from spdsl.analysis.tiles import depends_on_head
from spdsl.codegen import split
from spdsl.codegen.arith import add, both, compare, index, mul, number, sub
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
from spdsl.codegen.walks import Mode, Walker, lower_walk
from spdsl.semantics.nodes import Expr, Extent, Side

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
            _described(computing, "Q", "q", tiles.block_q, dim),
            _described(computing, "K", "k", GROUP_ROWS, dim),
            _described(computing, "V", "k", GROUP_ROWS, dim),
            _described(computing, "dO", "q", tiles.block_q, dim),
            *(Argument(name=name, type="*fp32", note="[batch * heads * nq]", block=(tiles.block_q,)) for name in ROWS),
            replace(_described(computing, "dQ", "q", tiles.block_q, COLUMNS), type="*fp32"),
            _described(computing, "dK", "k", GROUP_ROWS, dim),
            _described(computing, "dV", "k", GROUP_ROWS, dim),
            *computing.lengths(),
            *computing.lists(),
            *split.split_arguments(computing, SUMS),
            *computing.parameters((*fetch, *compute)),
            *computing.table_arguments((*fetch, *compute)),
        ),
        constants=(*computing.constants(), ("ROWS", GROUP_ROWS), ("COLUMNS", COLUMNS), ("RING", tiles.stages)),
        body=compute,
        fetch=fetch,
        block=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        parts=split.part_sizes(computing, SUMS),
        heads_first=True,
        classes=computing.classes,
    )


ROWS = ("LSE2", "Delta")

COLUMNS = 64
"""Columns of dQ of a group."""


def _described(frame: Frame, name: str, side: Side, rows: int, columns: int) -> Argument:
    """A tensor of which the copy engine moves so many rows and columns at once."""
    (argument, *_) = frame.tensor(name, side, frame.plan.problem.pattern.head_dim)
    middle = (rows,) if frame.classes is None else (rows, 1)
    return replace(argument, block=(1, 1, *middle, columns), classes=frame.classes)


def _fetch(frame: Frame, tiles: KernelPlan) -> tuple[Block, ...]:
    setup, loops = lower_walk(tiles.walk, _walker(frame, tiles, lambda _: (FetchTile(classes=frame.classes),)))
    return _around(
        frame,
        tiles,
        setup,
        (RowBase(copied=True, classes=frame.classes),),
        loops,
        begin=(FetchOwn(classes=frame.classes),),
        end=(),
    )


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
            FusedGradients(dtype=plan.problem.dtype, classes=frame.classes),
        )

    setup, loops = lower_walk(tiles.walk, _walker(frame, tiles, body))
    own = (positions(frame, "k", "own"), *frame.hoist.take(1))
    end = split.end(frame, SUMS, (FusedEnd(dtype=plan.problem.dtype, scale=plan.scale, classes=frame.classes),))
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
        ragged=_ragged(frame),
    )


def _ragged(frame: Frame) -> Expr:
    """Whether the program's tile has rows past the last key."""
    end = mul(add(index("j"), number(1)), number(frame.kernel.block_k))
    if frame.classes is not None:
        # The row after the last of its class.
        end = add(mul(end, number(frame.classes)), sub(index("k_class"), number(frame.classes - 1)))
    return compare("gt", end, Extent(name="n"))


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
