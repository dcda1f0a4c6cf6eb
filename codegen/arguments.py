"""What kernels take besides tensors: lengths, lists of tiles, free parameters and tables."""

from __future__ import annotations

from collections.abc import Iterable

from spdsl.analysis.tiles import DistanceWalk, ListWalk, PickWalk
from spdsl.codegen.blocks import Argument, Block, Gather
from spdsl.codegen.contents import every, expressions_in
from spdsl.codegen.frame import Frame
from spdsl.semantics.rewrite import walk

GATHERED = (
    Argument(name="item_rows", type="*i32", note="[items], blocks of keys over heads and sequences"),
    Argument(name="item_first", type="*i32", note="[items], where its queries begin"),
    Argument(name="item_last", type="*i32", note="[items], and end"),
    Argument(name="list_tiles", type="*i32", note="queries by the blocks that they have picked"),
    Argument(name="blocks", type="i32", note="blocks of keys of a head"),
)

PLACES = (
    Argument(name="places_stride", type="i32"),
    Argument(name="cache_rows", type="i32", note="rows of keys of a sequence, with those that are not in use"),
)

PAGES = (Argument(name="page_count", type="i32", note="pages of all sequences"),)

MARKS = (
    Argument(name="marks", type="*i32", note="[batch or 1, groups or 1, marked rows], ascending"),
    Argument(name="marks_stride_b", type="i32"),
    Argument(name="marks_stride_g", type="i32"),
    Argument(name="marked_rows", type="i32", note="how many there are"),
)


def length_arguments(frame: Frame) -> tuple[Argument, ...]:
    """Run-time lengths and positions, and which rows are marked."""
    return (*_lengths(frame), *(() if frame.kernel.marked is None else MARKS))


def _lengths(frame: Frame) -> tuple[Argument, ...]:
    count = Argument(name="nq", type="i32", note="query rows")
    match frame.plan.problem.shape:
        case "square":
            return count, Argument(name="n", type="i32", note="keys")
        case "origin" | "offset":
            return (
                count,
                Argument(name="n", type="i32", note="keys"),
                Argument(name="q_start", type="i32", note="position of the first query row"),
            )
        case "batched":
            paged = frame.plan.problem.page > 0
            note = f"[batch, places_stride]: q_start, k_start, k_len{', pages' if paged else ''}"
            return count, Argument(name="places", type="*i32", note=note), *PLACES, *(PAGES if paged else ())


def list_arguments(frame: Frame, *, turns: bool = False) -> tuple[Argument, ...]:
    """Tile lists, where the walk is one, with the order of ``turns`` in them, or lists of distances."""
    if isinstance(frame.kernel.walk, PickWalk):
        return _picked_lists(frame)
    if not isinstance(frame.kernel.walk, ListWalk | DistanceWalk):
        return ()
    rows = "rows" if isinstance(frame.kernel.walk, ListWalk) else "kinds of rows"
    batched = frame.plan.problem.shape == "batched"
    reach = Argument(name="list_reach", type="i32", note="distances further back are not listed")
    names = ("list_begin", "list_middle", "list_end")
    bounds = (Argument(name=name, type="*i32", note=f"[batch or 1, heads or 1, {rows}]") for name in names)
    return (
        *bounds,
        Argument(name="list_tiles", type="*i32"),
        *(
            (Argument(name="list_turns", type="*i32", note="places among tiles"),)
            if turns and isinstance(frame.kernel.walk, ListWalk) and frame.kernel.turned is None
            else ()
        ),
        *((Argument(name="list_bits", type="*i32", note="blocks of each tile"),) if frame.held > 1 else ()),
        Argument(name="list_stride_b", type="i32"),
        Argument(name="list_stride_h", type="i32"),
        *(() if isinstance(frame.kernel.walk, ListWalk) or not batched else (reach,)),
    )


def _picked_lists(frame: Frame) -> tuple[Argument, ...]:
    """The blocks that queries have picked; a kernel by key is given its lists by `spdsl.codegen.picked_parts`."""
    picks = frame.kernel.picks
    assert picks is not None
    if frame.by == "key":
        return ()
    if picks.order == "gathered":
        return GATHERED
    bounds: tuple[str, ...] = ("list_begin", "list_end")
    rows = "rows"
    if picks.where is not None:
        bounds, rows = ("list_begin",), "n + 1: where the keys from each on stand"
    return (
        *(Argument(name=name, type="*i32", note=f"[batch or 1, lists of heads or 1, {rows}]") for name in bounds),
        Argument(name="list_tiles", type="*i32"),
        *((Argument(name="list_bits", type="*i32", note="queries of each block"),) if picks.order == "union" else ()),
        Argument(name="list_stride_b", type="i32"),
        Argument(name="list_stride_h", type="i32"),
    )


def parameter_arguments(frame: Frame, body: Iterable[Block]) -> tuple[Argument, ...]:
    """The free parameters of the pattern that ``body`` reads."""
    read = {node for block in every(body) for expr in expressions_in(block) for node in walk(expr)}
    return tuple(
        Argument(name=each.variable, type="i32", note=f"parameter {each.name}")
        for each in frame.plan.problem.pattern.free
        if each in read
    )


def table_arguments(frame: Frame, body: Iterable[Block]) -> tuple[Argument, ...]:
    """The arguments of the tables that ``body`` reads."""
    return frame.tables.arguments(block for block in every(body) if isinstance(block, Gather))
