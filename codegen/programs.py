"""What a program works on, where its rows stand, and which tiles meet their mask."""

from __future__ import annotations

from spdsl.codegen.arith import add, index, mod, number, sub
from spdsl.codegen.blocks import (
    Block,
    BoxPositions,
    Define,
    GatheredKeys,
    If,
    ListedPositions,
    Mask,
    PackedPositions,
    Part,
    Positions,
    Program,
    WorkItem,
)
from spdsl.codegen.boxes import flag_of, own_box
from spdsl.codegen.expressions import truncated
from spdsl.codegen.frame import Frame
from spdsl.codegen.picks import packed_program
from spdsl.codegen.walks import MASKED, Mode
from spdsl.semantics.nodes import Const, Extent, Side


def masked(mode: Mode, definitions: tuple[Block, ...], mask: Mask) -> tuple[Block, ...]:
    """The mask of a tile: none for full ones, behind the flag where a loop has both kinds."""
    match mode:
        case _ if mask.keep == Const(value=True):
            return ()
        case "full":
            return ()
        case "masked":
            return (*definitions, mask)
        case _:
            return (If(condition=MASKED, body=(*definitions, mask)),)


def program(frame: Frame, *, reverse: bool) -> tuple[Block, ...]:
    """What a program works on."""
    shape = frame.plan.problem.shape
    if frame.kernel.picks is not None:
        return packed_program(frame.kernel, frame.plan.problem.pattern, reverse=reverse, shape=shape)
    begin: Block = Program(
        by=frame.by,
        ratio=frame.ratio,
        reverse=reverse,
        shape=shape,
        classes=frame.classes,
        counted=frame.kernel.counted,
        looped=frame.kernel.persistent,
        heads_first=frame.spans,
    )
    if frame.kernel.splits:
        begin = WorkItem(
            by=frame.by,
            ratio=frame.ratio,
            heads=frame.own_heads,
            reverse=reverse,
            shape=shape,
            listed=frame.listed,
            heads_first=frame.heads_first,
            classes=frame.classes,
            packed=frame.packed,
            looped=frame.kernel.persistent,
        )
    if frame.kernel.boxes is not None:
        return (begin, *own_box(frame.kernel.boxes, frame.kernel, frame.by))
    return (begin, *_other_class(frame))


def _other_class(frame: Frame) -> tuple[Block, ...]:
    """The residue class of the walked rows, which follows from that of the program's own."""
    residues = frame.kernel.residues
    if residues is None:
        return ()
    start = number(0) if frame.plan.problem.shape == "square" else Extent(name="q_start")
    shift, modulus = residues.shift, number(residues.modulus)
    if frame.by == "query":
        other = mod(add(add(index("q_class"), start), number(-shift % residues.modulus)), modulus)
    else:
        other = mod(sub(add(index("k_class"), number(shift)), start), modulus)
    if start == number(0) and shift == 0:
        other = index("q_class" if frame.by == "query" else "k_class")
    name, note = ("k_class", "keys") if frame.by == "query" else ("q_class", "queries")
    return (Define(name=name, value=truncated(other), note=f"residue class of the {note} that these rows meet"),)


def positions(
    frame: Frame, side: Side, part: Part
) -> Positions | BoxPositions | PackedPositions | ListedPositions | GatheredKeys:
    """The positions of a side."""
    picks = frame.kernel.picks
    if picks is not None and side == "q":
        if picks.order == "gathered":
            return ListedPositions(shape=frame.plan.problem.shape, part=part)
        return PackedPositions(
            shape=frame.plan.problem.shape,
            positions=picks.positions,
            heads=picks.heads,
            padded=picks.lanes != picks.heads,
        )
    if frame.gathers_keys:
        return GatheredKeys()
    boxes = frame.kernel.boxes
    if boxes is not None:
        return BoxPositions(
            side=side,
            part=part,
            sizes=boxes.box(side),
            extents=boxes.extents,
            steps=boxes.steps,
            ragged=boxes.ragged(side),
            flag=flag_of(part) if boxes.tail else None,
        )
    shape, marked = frame.plan.problem.shape, frame.kernel.gathers(side)
    packed = frame.packed if side == "q" else None
    ratio = frame.ratio if packed else 0
    return Positions(
        side=side, part=part, shape=shape, classes=frame.classes, marked=marked, packed=packed, ratio=ratio
    )
