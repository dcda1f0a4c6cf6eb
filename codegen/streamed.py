"""The forward kernel for Hopper: one warp walks the tiles and copies them, groups of four warps compute on what comes.

From a plan to the blocks of both kinds of warps.  Only the copying warp knows the walk: with every tile it sends the
coordinates and whether it needs its mask.  The skeleton that holds the blocks is a template; `spdsl.codegen.gluon`
writes it.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.plans import GROUP_ROWS, KernelPlan, Plan
from spdsl.analysis.tiles import PickWalk
from spdsl.codegen import split
from spdsl.codegen.arguments import length_arguments, list_arguments, parameter_arguments, table_arguments
from spdsl.codegen.blocks import (
    Argument,
    Block,
    BoxLanes,
    CopyOut,
    EachItem,
    EachTold,
    FetchQueries,
    If,
    Kernel,
    Logits,
    Mask,
    SendEnd,
    SendTile,
    Speaks,
    StoreRows,
    Stream,
    StreamBegin,
    StreamEnd,
    WriteOut,
)
from spdsl.codegen.contents import every
from spdsl.codegen.corners import corner, described
from spdsl.codegen.expressions import truncated
from spdsl.codegen.forward import SUMS
from spdsl.codegen.frame import Frame
from spdsl.codegen.picked_tiles import blocks_told, listed_by, of_blocks, picked_begin, send_blocks, sizes_of_blocks
from spdsl.codegen.picks import MEETS_TILES
from spdsl.codegen.programs import masked, positions, program
from spdsl.codegen.silent import KIND, kinds, quiet_mask, silence
from spdsl.codegen.tensors import plain_tensor
from spdsl.codegen.walks import FLAGS, Mode, Walker, lower_walk, mode_of
from spdsl.semantics.nodes import Const, Expr

THREADS = 128
"""Of a group of four warps."""

REGISTERS = 1 << 16
"""Of an SM."""

SHARED = 233_472
"""Bytes of shared memory of an SM."""

SPARE = 2_048
"""Bytes that a program takes beside its tiles."""

COUNTED = (
    Argument(name="tiles", type="i32", note="tiles of queries of a head"),
    Argument(name="together", type="i32", note="heads that take turns, tile by tile"),
)
ROUNDS = (
    Argument(name="all_items", type="i32", note="tiles of all heads and sequences, or their parts"),
    Argument(name="queue", type="*i32", note="[1], items that were taken, beside the first of each program"),
    Argument(name="queued", type="i32", note="whether items are taken from there, or every so many-th"),
)
"""How a program that does several items finds the next."""


def lower_streamed(plan: Plan) -> Kernel:
    """The blocks of the forward kernel, whose plan has specialised warps."""
    tiles = plan.forward
    frame = Frame(plan=plan, kernel=tiles, by="query")
    fetch, mode = _fetch(plan)
    flagged = mode == "either" or any(isinstance(block, Speaks) for block in every(fetch))
    shares_output = _shares_output(frame)
    compute = _compute(frame, mode, queries_back=not shares_output)
    body = (*fetch, *compute)
    dim, value_dim = plan.problem.pattern.head_dim, plan.problem.value_dim
    by_address = _by_address(frame)
    out = (
        plain_tensor(frame, "O", "q", value_dim)
        if by_address
        else (described(frame, "O", "q", value_dim, shared=True),)
    )
    return Kernel(
        name="forward",
        doc="Output and LSE: each program owns a tile of queries and walks the tiles of keys that its rows touch.",
        arguments=(
            described(frame, "Q", "q", dim, shared=True),
            of_blocks(frame, described(frame, "K", "k", dim, shared=False)),
            of_blocks(frame, described(frame, "V", "k", value_dim, shared=False)),
            *out,
            Argument(name="LSE", type="*fp32", note="[batch, heads, nq], natural logarithm"),
            *length_arguments(frame),
            *parameter_arguments(frame, body),
            *list_arguments(frame),
            *split.split_arguments(frame, SUMS),
            *(COUNTED if tiles.counted else ()),
            *(ROUNDS if tiles.persistent else ()),
            *table_arguments(frame, body),
        ),
        constants=(
            *frame.constants(),
            ("GROUPS", tiles.groups),
            ("ROWS", GROUP_ROWS),
            ("RING", tiles.stages),
            ("NUMBERS", len(_names(tiles)) + flagged + blocks_told(frame)),
            *sizes_of_blocks(frame),
        ),
        body=(_each_told(compute, late=shares_output),) if tiles.persistent else compute,
        fetch=(EachItem(filled="q_filled", freed="q_freed", body=fetch),) if tiles.persistent else fetch,
        persistent=tiles.persistent,
        shares_output=shares_output,
        counted=tiles.counted,
        block=tiles.block_q,
        warps=tiles.warps,
        stages=tiles.stages,
        # Two programs of one group each share an SM; the copying warp counts as a group.
        registers=REGISTERS // (4 * THREADS) if tiles.groups == 1 else None,
        classes=frame.classes,
        boxes=frame.boxes,
        after=frame.after,
        parts=split.part_sizes(frame, SUMS),
    )


def _each_told(body: tuple[Block, ...], *, late: bool) -> EachTold:
    """What groups do with all items; ``late`` if queries are given back when the output has been read."""
    return EachTold(filled="q_filled", freed="q_freed", body=body, gives_back=late)


def _shares_output(frame: Frame) -> bool:
    """Whether the output lies where the queries do: where there is one tile for each program, and where programs that
    share an SM would not have the memory for both."""
    tiles, sizes = frame.kernel, dict(frame.constants())
    if sizes["HEAD_DIM"] != sizes["VALUE_DIM"]:
        return False
    rings = tiles.stages * tiles.block_k * 2
    programs = 2 if tiles.groups == 1 else 1
    held = 2 * sizes["HEAD_DIM"] * (2 * tiles.block_q + rings) + SPARE
    return not tiles.persistent or programs * held > SHARED


def _fetch(plan: Plan) -> tuple[tuple[Block, ...], Mode]:
    """The blocks of the copying warp, and whether tiles are all masked, all full, or either."""
    tiles = plan.forward
    frame = Frame(plan=plan, kernel=tiles, by="query")
    only = mode_of(tiles.walk, _walker(Frame(plan=plan, kernel=tiles, by="query"), ()))
    quiet = None if only == "full" or not _may_be_quiet(tiles) else silence(frame, frame.keep())

    def body(mode: Mode) -> tuple[Block, ...]:
        told = FLAGS[mode] if only == "either" else None
        return (
            *(() if quiet is None else kinds(frame, mode, quiet.speaks)),
            SendTile(
                names=_names(tiles),
                masked=told if quiet is None else KIND,
                keys=corner(frame, "K", "k", shared=False),
                values=corner(frame, "V", "k", shared=False),
            ),
        )

    setup, loops = lower_walk(tiles.walk, _walker(frame, body))
    loops = send_blocks(frame, loops) if frame.gathers_keys else split.share(frame, loops)
    queries = (FetchQueries(corner=corner(frame, "Q", "q", shared=True), again=tiles.persistent),)
    begin = tuple(block for block in _begin(frame) if not isinstance(block, BoxLanes))
    if not tiles.persistent:
        return (*begin, *queries, *frame.hoist.take(0), *setup, *loops, SendEnd()), only
    # Queries may have to wait for those before: what else there is to find out comes first.
    item: tuple[Block, ...] = (*queries, *loops, SendEnd())
    if plan.place > 0 and isinstance(tiles.walk, PickWalk) and not frame.gathers_keys:
        # What there is of queries that have picked nothing stays as it is.
        item = (If(condition=MEETS_TILES, body=item),)
    return (*begin, *frame.hoist.take(0), *setup, *item), only


def _compute(frame: Frame, mode: Mode, *, queries_back: bool) -> tuple[Block, ...]:
    """The blocks of a computing group."""
    plan = frame.plan
    keep, bias = frame.keep(), frame.bias
    quiet = None if mode == "full" or not _may_be_quiet(frame.kernel) else silence(frame, keep)
    frame.hoist.share((keep,) if bias is None else (keep, bias))
    sink = None if plan.sink_logit is None else frame.hoist.place(truncated(plan.sink_logit), 1)
    bias_blocks, bias = ((), None) if bias is None else frame.place_tile(bias)
    quiet_blocks: tuple[Block, ...] = ()
    if quiet is not None:
        quiet_blocks, quiet_keep = frame.place_keep(quiet.keep)
    keep_blocks, keep = frame.place_keep(keep)
    logits = Logits(scale=plan.scale, softcap=plan.softcap, bias=bias, folded=frame.folded, keep_slope=False)
    mask = Mask(target="scores", keep=keep, span=plan.keep.span)
    mask_blocks = masked(mode, keep_blocks, mask)
    if quiet is not None:
        mask_blocks = quiet_mask(mode, (quiet_blocks, replace(mask, keep=quiet_keep)), (keep_blocks, mask))
    needed = bias is not None or keep != Const(value=True)
    places: tuple[Block, ...] = (positions(frame, "k", "walked"),) if needed else ()
    body: tuple[Block, ...] = (
        *places,
        *bias_blocks,
        *(() if frame.folded else (logits,)),
        *mask_blocks,
    )
    dtype = plan.problem.dtype
    out: Block = CopyOut(corner=corner(frame, "O", "q", shared=True), dtype=dtype)
    if _by_address(frame):
        out = WriteOut(dtype=dtype, padded=frame.is_padded("VALUE_DIM"))
    end = (StreamEnd(), out, frame.row_base(), StoreRows(value="lse", pointer="LSE", side="q"))
    return (
        *_begin(frame),
        positions(frame, "q", "own"),
        *frame.hoist.take(0),
        *frame.hoist.take(1),
        *_state(frame, sink),
        Stream(
            names=_names(frame.kernel),
            flagged=mode == "either" or quiet is not None,
            kinds=quiet is not None,
            factor=frame.factor,
            dtype=dtype,
            body=body,
            again=frame.kernel.persistent,
            queries_back=queries_back,
            resumed=plan.place > 0,
            listed=listed_by(frame, every=bias is not None),
        ),
        *split.end(frame, SUMS, end),
    )


def _may_be_quiet(kernel: KernelPlan) -> bool:
    """Whether it is asked what tables say of a tile: of picked blocks where most need no mask but for that."""
    return not isinstance(kernel.walk, PickWalk) or kernel.walk.speaks


def _begin(frame: Frame) -> tuple[Block, ...]:
    """What a program works on."""
    return program(frame, reverse=True) if frame.kernel.picks is None else picked_begin(frame)


def _by_address(frame: Frame) -> bool:
    """Whether the output is not described to the copy engine: it is read too, or its rows may not fill all classes."""
    return frame.classes is not None or frame.plan.place > 0


def _state(frame: Frame, sink: Expr | None) -> tuple[Block, ...]:
    """What the softmax begins with."""
    if not frame.plan.place:
        return (StreamBegin(sink=split.once(frame, sink), again=frame.kernel.persistent),)
    padded_columns = frame.is_padded("VALUE_DIM")
    return frame.row_base(), StreamBegin(
        sink=None, again=frame.kernel.persistent, resumed=True, first=split.first(frame), padded=padded_columns
    )


def _walker(frame: Frame, body: object) -> Walker:
    return Walker(
        by="query",
        shape=frame.plan.problem.shape,
        spans=frame.kernel.spans,
        separate=0,
        place=lambda expr: frame.hoist.place(expr, 0),
        place_tile=frame.place_tile,
        body=body,  # type: ignore[arg-type]
        boxes=frame.kernel.boxes,
        picks=frame.kernel.picks,
    )


def _names(kernel: KernelPlan) -> tuple[str, ...]:
    """What tells where a tile of keys lies."""
    if kernel.picks is not None and kernel.picks.fine:
        return ("t",)
    return ("j",) if kernel.boxes is None else (*(f"j{axis}" for axis in range(len(kernel.boxes.axes))), "k_first")
