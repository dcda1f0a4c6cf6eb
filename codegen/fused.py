"""The fused backward kernel for Hopper: dQ, dK and dV in one walk by key, with five products a tile instead of seven.

From a plan to the blocks of its two kinds of warps: one that copies tiles, and those that compute.  The skeleton that
holds them is a template; `spdsl.codegen.gluon` writes it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from math import prod

from spdsl.analysis.plans import GROUP_ROWS, KernelPlan, Plan
from spdsl.analysis.tiles import BoxWalk, SlotWalk, Walk, depends_on_head
from spdsl.codegen import split
from spdsl.codegen.arguments import length_arguments, list_arguments, parameter_arguments, table_arguments
from spdsl.codegen.arith import add, choose, compare, either, index, maximum, mul, number, sub
from spdsl.codegen.blocks import (
    AddBegin,
    AddInTurn,
    Argument,
    Block,
    BlockBits,
    BoxLanes,
    Corner,
    Define,
    FetchedTiles,
    FetchEnd,
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
    RowNumber,
    ScaleSums,
    ToldTiles,
    Touch,
)
from spdsl.codegen.boxes import box_of, number_of
from spdsl.codegen.corners import corner, described
from spdsl.codegen.frame import COLUMNS, LOG2E, Frame
from spdsl.codegen.pairing import FIRST, SECOND, for_both, own_pair
from spdsl.codegen.programs import masked, positions, program
from spdsl.codegen.results import dkdv_sums
from spdsl.codegen.selected import GROUP
from spdsl.codegen.streamed import REGISTERS, THREADS
from spdsl.codegen.walks import FLAGS, Mode, Walker, downwards, lower_walk, mode_of
from spdsl.semantics.nodes import Expr, Extent

SUMS = dkdv_sums(())


TURNS = (
    Argument(name="Turns", type="*i32", note="[batch, heads, tiles of queries, 1 + words]: turns, then bits of rows"),
    Argument(name="q_tiles", type="i32", note="tiles of queries of a head"),
    Argument(name="words", type="i32", note="32 rows of keys each"),
)
"""In which order tiles of dQ are added up: how many rows have added, and which rows do."""


def lower_fused(plan: Plan) -> Kernel | None:
    """The kernel, or None where the plan has none."""
    return None if plan.fused is None else _lower(plan, plan.fused, ordered=False)


def lower_ordered(plan: Plan) -> Kernel | None:
    """The kernel whose sums of dQ have one order: a warp of its own adds, and waits for its turn at every tile."""
    return None if plan.fused is None else _lower(plan, plan.fused, ordered=True)


def lower_touched(plan: Plan) -> Kernel | None:
    """The kernel that notes which rows of keys add to which tiles of dQ: it walks as the fused kernel does."""
    tiles = plan.fused
    if tiles is None:
        return None
    frame = Frame(plan=plan, kernel=tiles, by="key")
    pair, touch = _pair(frame), (*_numbered(frame), Touch(classes=frame.classes))
    setup, loops = lower_walk(_walk(tiles), _walker(frame, tiles, lambda _: touch))
    by_head = depends_on_head(tiles.walk)
    body = (
        *_program(frame),
        RowNumber(splits=tiles.splits),
        *pair,
        *frame.hoist.take(0),
        *(() if by_head else setup),
        *_for_each_head(frame, (*(setup if by_head else ()), *split.share(frame, loops))),
    )
    return Kernel(
        name="touched",
        doc="Which rows of keys add to which tiles of dQ.",
        arguments=(
            *TURNS,
            *length_arguments(frame),
            *list_arguments(frame),
            *split.split_arguments(frame, split.NO_SUMS),
            *parameter_arguments(frame, body),
            *table_arguments(frame, body),
        ),
        constants=frame.constants(),
        body=body,
        block=tiles.block_k,
        warps=1,
        stages=1,
        classes=frame.classes,
        boxes=frame.boxes,
        pairs=tiles.pairs,
    )


def lower_scaled(plan: Plan) -> Kernel | None:
    """The kernel that makes dQ of its sums."""
    if plan.fused is None:
        return None
    return Kernel(
        name="scaled",
        doc="dQ from its sums, which may have more rows.",
        arguments=(
            Argument(name="Sums", type="*fp32", note="[batch, heads, rows, width]"),
            Argument(name="dQ", type=f"*{plan.problem.dtype}", note="[batch, heads, nq, width]"),
            Argument(name="count", type="i32", note="eights of numbers of dQ of a head"),
            Argument(name="sums_of_head", type="i32", note="eights of numbers"),
        ),
        constants=(("SIZE", SIZE), ("HEADS", plan.problem.pattern.heads)),
        body=(ScaleSums(dtype=plan.problem.dtype, scale=plan.scale, added=plan.place > 0),),
        block=SIZE,
        warps=4,
        stages=1,
    )


def _lower(plan: Plan, tiles: KernelPlan, *, ordered: bool) -> Kernel:
    computing = Frame(plan=plan, kernel=tiles, by="key")
    fetch, mode = _fetch(plan, tiles, ordered=ordered)
    compute = _compute(computing, mode, ordered=ordered)
    add = _add(Frame(plan=plan, kernel=tiles, by="key")) if ordered else None
    dim, value_dim = plan.problem.pattern.head_dim, plan.problem.value_dim
    return Kernel(
        name="ordered" if ordered else "fused",
        doc="dQ, dK and dV: each program owns a tile of keys and walks the tiles of queries.",
        arguments=(
            described(computing, "Q", "q", dim, shared=False),
            described(computing, "K", "k", dim, shared=True),
            described(computing, "V", "k", value_dim, shared=True),
            described(computing, "dO", "q", value_dim, shared=False),
            *(Argument(name=name, type="*fp32", note="[batch * heads * nq]", block=(tiles.block_q,)) for name in ROWS),
            replace(described(computing, "dQ", "q", dim, shared=_by_rows(tiles), columns=COLUMNS), type="*fp32"),
            described(computing, "dK", "k", dim, shared=True),
            described(computing, "dV", "k", value_dim, shared=True),
            *(TURNS if ordered else ()),
            *length_arguments(computing),
            *list_arguments(computing, turns=ordered),
            *split.split_arguments(computing, SUMS),
            *parameter_arguments(computing, (*fetch, *compute)),
            *table_arguments(computing, (*fetch, *compute)),
        ),
        constants=(
            *computing.constants(),
            ("GROUPS", tiles.groups),
            ("ROWS", GROUP_ROWS),
            ("COLUMNS", COLUMNS),
            ("RING", tiles.stages),
            ("NUMBERS", 1 + (mode == "either") + (computing.held > 1)),
        ),
        body=compute,
        fetch=fetch,
        add=add,
        block=tiles.block_k,
        warps=tiles.warps,
        stages=tiles.stages,
        parts=split.part_sizes(computing, SUMS),
        heads_first=True,
        registers=REGISTERS // (4 * THREADS) if tiles.groups == 1 else None,
        classes=computing.classes,
        boxes=computing.boxes,
        pairs=tiles.pairs,
    )


ROWS = ("LSE2", "Delta")

SIZE = 4096
"""Numbers of dQ that a program scales."""


def _fetch(plan: Plan, tiles: KernelPlan, *, ordered: bool) -> tuple[tuple[Block, ...], Mode]:
    """The blocks of the copying warp, and whether tiles are all masked, all full, or either."""
    frame = Frame(plan=plan, kernel=tiles, by="key")
    trial = Frame(plan=plan, kernel=tiles, by="key")
    _pair(trial)
    only = mode_of(_walk(tiles), _walker(trial, tiles, ()))

    def body(mode: Mode) -> tuple[Block, ...]:
        flag = FLAGS[mode] if only == "either" else None
        queries, outputs = (corner(frame, name, "q", shared=False) for name in ("Q", "dO"))
        return *_numbered(frame), FetchTile(masked=flag, bits=_bits(frame, only), queries=queries, outputs=outputs)

    pair = _pair(frame)
    down = _walks_down(tiles, ordered=ordered)
    walker = replace(_walker(frame, tiles, body), down=down)
    setup, loops = lower_walk(_walk(tiles), walker)
    loops = split.share(frame, loops)
    by_head = depends_on_head(tiles.walk)
    inner: tuple[Block, ...] = (
        *(setup if by_head else ()),
        RowBase(copied=True, classes=frame.classes, boxes=_boxes_of_queries(frame)),
        *(downwards(loops) if down and isinstance(tiles.walk, SlotWalk | BoxWalk) else loops),
        FetchEnd(),
    )
    heads = _for_each_head(frame, inner)
    keys, values = (corner(frame, name, "k", shared=True) for name in ("K", "V"))
    if pair:
        halves = f"({SECOND.name} if group else {FIRST.name})"
        keys, values = replace(keys, tile=halves), replace(values, tile=halves)
    return (
        *_program(frame),
        *pair,
        FetchOwn(keys=keys, values=values),
        *frame.hoist.take(0),
        *(() if by_head else setup),
        *heads,
    ), only


def _bits(frame: Frame, mode: Mode) -> int | None:
    """Which of the numbers that are told of a tile are the bits of its blocks, if it has several."""
    return None if frame.held == 1 else 1 + (mode == "either")


def _walks_down(tiles: KernelPlan, *, ordered: bool) -> bool:
    """Whether programs walk from the last tile of queries to the first.

    Where sums have an order those that start later then come to a tile later.  Windows walked upwards find more of
    what they read in the cache: rows of residue classes, of which few programs share tiles, are.  Pairs of long tiles,
    which start together, read the same tiles at a time if they begin with the last.
    """
    return tiles.pairs is not None or (ordered and tiles.residues is None)


def _add(frame: Frame) -> tuple[Block, ...]:
    """The blocks of the warp that adds to dQ."""
    add = AddInTurn(sums=_sums(frame), classes=frame.classes)
    return (
        *_program(frame),
        RowNumber(splits=frame.kernel.splits),
        AddBegin(),
        *_for_each_head(frame, (ToldTiles(body=(*_placed(frame), add)),)),
    )


def _compute(frame: Frame, mode: Mode, *, ordered: bool) -> tuple[Block, ...]:
    """The blocks of a computing group."""
    plan = frame.plan
    # A tile past the last query holds rows of the next head, and keys that do not exist are zeros: their weights may be
    # anything, also infinite, and dQ is summed over them.
    end_of_row = choose(compare("lt", index("k"), Extent(name="n")), _end(frame), number(0))
    exist = None if frame.is_whole("q") and frame.is_whole("k") else compare("lt", index("q"), end_of_row)
    keep: Expr = frame.keep(exist)
    frame.hoist.share((keep,))
    keep_blocks, keep = frame.place_tile(keep)
    at = _bits(frame, mode)
    if at is not None:
        assert frame.kernel.turned is not None
        keep_blocks = (BlockBits(block=frame.kernel.turned.block, at=at), *keep_blocks)
    mask = Mask(target="p", keep=keep, span=plan.keep.span)
    body = (
        *_placed(frame),
        positions(frame, "q", "walked"),
        FusedScores(factor=plan.scale * LOG2E),
        *masked(mode, keep_blocks, mask),
        FusedGradients(
            dtype=plan.problem.dtype,
            sums=_sums(frame),
            ordered=ordered,
            alone=frame.kernel.groups == 1,
        ),
    )
    heads = _for_each_head(frame, (FetchedTiles(flagged=mode == "either", body=body),))
    keys, values = (corner(frame, name, "k", shared=True) for name in ("dK", "dV"))
    last = FusedEnd(dtype=plan.problem.dtype, scale=plan.scale, keys=keys, values=values, added=plan.place > 0)
    end = split.end(frame, SUMS, (last,))
    pairs = frame.kernel.pairs
    return (
        *program(frame, reverse=False),
        *(() if pairs is None else own_pair(pairs, frame.hoist, GROUP)),
        *frame.hoist.take(0),
        positions(frame, "k", "own"),
        *frame.hoist.take(1),
        FusedBegin(),
        *heads,
        *end,
    )


def _program(frame: Frame) -> tuple[Block, ...]:
    """What a program works on, for warps that need no places in a box."""
    return tuple(block for block in program(frame, reverse=False) if not isinstance(block, BoxLanes))


def _pair(frame: Frame) -> tuple[Block, ...]:
    """The tiles of keys that the program owns, where it has two."""
    pairs = frame.kernel.pairs
    return () if pairs is None else own_pair(pairs, frame.hoist)


def _walk(tiles: KernelPlan) -> Walk:
    return tiles.walk if tiles.pairs is None else for_both(tiles.walk)


def _numbered(frame: Frame) -> tuple[Block, ...]:
    """The number ``i`` of a box, where tiles are boxes."""
    boxes = frame.kernel.boxes
    return () if boxes is None else (number_of(boxes, "q"),)


def _placed(frame: Frame) -> tuple[Block, ...]:
    """Where the box ``i`` lies, where tiles are boxes."""
    boxes = frame.kernel.boxes
    return () if boxes is None else box_of(boxes, "q")


def _boxes_of_queries(frame: Frame) -> int | None:
    boxes = frame.kernel.boxes
    return None if boxes is None else prod(boxes.counts("q"))


def _by_rows(tiles: KernelPlan) -> bool:
    """Whether each group sums half of the rows of dQ, not of its columns."""
    return tiles.block_q > GROUP_ROWS


def _sums(frame: Frame) -> Corner:
    by_rows = _by_rows(frame.kernel)
    return corner(frame, "dQ", "q", shared=by_rows, by_columns=not by_rows)


def _for_each_head(frame: Frame, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks for every query head of the program's group."""
    if not frame.loops_over_heads:
        return blocks
    name = Define(name="h", value=add(mul(index("g"), number(frame.ratio)), index("r")), note="query head")
    body = (name, *frame.hoist.take(2), *blocks)
    return (Loop(variable="r", low=number(0), high=number(frame.ratio), body=body, note="heads of the group"),)


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
        boxes=frame.kernel.boxes,
        ragged=_ragged(frame),
    )


def _ragged(frame: Frame) -> Expr | None:
    """Whether the program's tile has rows past the last key; None where none has."""
    boxes = frame.kernel.boxes
    if boxes is not None:
        ends = [
            compare("gt", mul(add(index(f"j{at}"), number(1)), number(boxes.box("k")[at])), number(boxes.extents[at]))
            for at in boxes.ragged("k")
        ]
        return reduce(either, ends) if ends else None
    last = index("j") if frame.kernel.pairs is None else maximum(FIRST, SECOND)
    end = mul(add(last, number(1)), number(frame.kernel.block_k))
    if frame.classes is not None:
        # The row after the last of its class.
        end = add(mul(end, number(frame.classes)), sub(index("k_class"), number(frame.classes - 1)))
    return compare("gt", end, Extent(name="n"))
