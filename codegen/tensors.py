"""The tensors of kernels: how they are given, and how their tiles are found, loaded and stored."""

from __future__ import annotations

from dataclasses import replace

from spdsl.codegen.blocks import Argument, Block, LoadTile, PageOf, Pointers, StoreTile
from spdsl.codegen.frame import Frame, head_of, padded, prefix_of
from spdsl.semantics.nodes import Side


def plain_tensor(frame: Frame, name: str, side: str, width: int, element: str | None = None) -> tuple[Argument, ...]:
    """A tensor of four dimensions with its strides."""
    heads, rows = ("heads", "nq") if side == "q" else ("groups", "n")
    prefix = prefix_of(name)
    return (
        Argument(name=name, type=f"*{element or frame.plan.problem.dtype}", note=f"[batch, {heads}, {rows}, {width}]"),
        *(Argument(name=f"{prefix}_stride_{axis}", type="i32", fixed=True) for axis in ("b", "h", "n")),
    )


def read_tensor(frame: Frame, name: str, side: Side, columns: str) -> tuple[Argument, ...]:
    """A tensor whose tiles are loaded: its descriptor, or its address with strides."""
    problem = frame.plan.problem
    width = problem.pattern.head_dim if columns == "HEAD_DIM" else problem.value_dim
    plain = plain_tensor(frame, name, side, width)
    if not frame.is_copied(side):
        return plain
    boxes = frame.kernel.boxes
    if boxes is None:
        picks = frame.kernel.picks
        rows = frame.kernel.block_q if side == "q" else frame.kernel.block_k
        heads, rows = (picks.lanes, picks.positions) if picks is not None and side == "q" else (1, rows)
        block = (1, heads, rows, padded(width))
        return (replace(plain[0], block=block),)
    lead = (1,) if joined_heads(frame, side) else (1, 1)
    return (replace(plain[0], block=(*lead, *boxes.box(side), padded(width)), extents=boxes.extents),)


def joined_heads(frame: Frame, side: Side) -> int | None:
    """How many heads are joined with the batch, so that descriptors of a grid have five dimensions at most."""
    pattern, boxes = frame.plan.problem.pattern, frame.kernel.boxes
    if boxes is None or len(boxes.extents) <= 2:
        return None
    return pattern.heads if side == "q" else pattern.groups


def addresses(frame: Frame, tensor: str, side: Side, columns: str) -> tuple[Block, ...]:
    """What has to be named before tiles of ``tensor`` are loaded."""
    return () if frame.is_copied(side) else (pointers(frame, tensor, side, columns),)


def load_tile(frame: Frame, tensor: str, side: Side, columns: str, *, guarded: bool) -> LoadTile:
    """Load the tile of ``tensor`` that the kernel's ``i`` or ``j`` names."""
    prefix = prefix_of(tensor)
    return LoadTile(
        name=f"{prefix}_tile",
        tensor=tensor,
        prefix=prefix,
        side=side,
        columns=columns,
        head=head_of(side),
        guarded=guarded and not frame.is_whole(side),
        padded=frame.is_padded(columns),
        descriptor=frame.is_copied(side),
        box=() if frame.kernel.boxes is None else frame.kernel.boxes.box(side),
        heads=joined_heads(frame, side) if frame.is_copied(side) else None,
        scattered=frame.is_scattered(side),
        packed=frame.kernel.picks.positions if frame.kernel.picks is not None and side == "q" else None,
        paged=side == "k" and frame.plan.problem.page > 0,
    )


def page_of(frame: Frame) -> tuple[Block, ...]:
    """Where the keys of a tile lie, if they lie in pages."""
    page = frame.plan.problem.page
    return (PageOf(page=page, block=frame.kernel.block_k, classes=frame.classes),) if page else ()


def store_tile(
    frame: Frame, value: str, tensor: str, side: Side, columns: str, factor: float | None = None, *, added: bool = False
) -> StoreTile:
    """Store ``value`` as the tile of ``tensor`` that the kernel's ``i`` or ``j`` names; ``added`` where it is a
    sum over pairs, to which every part of a union adds."""
    return StoreTile(
        value=value,
        prefix=prefix_of(tensor),
        side=side,
        columns=columns,
        padded=frame.is_padded(columns),
        dtype=frame.plan.problem.dtype,
        factor=factor,
        boxes=frame.boxes is not None,
        scattered=frame.is_scattered(side),
        packed=frame.is_packed(side),
        added=added and frame.plan.place > 0,
    )


def pointers(frame: Frame, tensor: str, side: Side, columns: str) -> Pointers:
    """The addresses of a tensor's tiles."""
    return Pointers(
        tensor=tensor,
        prefix=prefix_of(tensor),
        side=side,
        columns=columns,
        head=head_of(side),
        shape=frame.plan.problem.shape,
        classes=frame.classes,
        boxes=frame.boxes is not None,
        scattered=frame.is_scattered(side),
        packed=frame.is_packed(side),
        paged=side == "k" and frame.plan.problem.page > 0,
    )
