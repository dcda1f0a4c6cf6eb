"""Blocks of keys that many queries have picked, in parts: where a program by key leaves its sums, and the kernel that
adds them up in order, so that results repeat bitwise.

Which blocks are cut, and where, is told by lists that the run time makes on the device.
"""

from __future__ import annotations

from spdsl.analysis.tiles import Picks
from spdsl.codegen.arguments import length_arguments
from spdsl.codegen.arith import add, compare, index, mul, number
from spdsl.codegen.blocks import AddPart, Argument, Block, Define, If, Kernel, LoadPart, Loop, PickedRow, StorePart
from spdsl.codegen.frame import Frame
from spdsl.codegen.picks import tiles_of_block
from spdsl.codegen.programs import positions
from spdsl.codegen.split import Sums, sliced
from spdsl.semantics.nodes import Param


def picked_end(sums: Sums, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The end of a program by key: ``blocks``, or for one of several parts of a block its sums as they are."""
    stores = tuple(StorePart(name=name, shape=shape, waits=False) for name, shape in sums.accumulators)
    slot = Param(name="slot", dtype="int")
    whole = If(condition=compare("eq", slot, number(-1)), body=blocks)
    return (If(condition=compare("ge", slot, number(0)), body=stores, otherwise=(whole,)),)


ITEMS = (
    Argument(name="item_rows", type="*i32", note="[items], blocks of keys over heads and sequences"),
    Argument(name="item_first", type="*i32", note="[items], where its queries begin"),
    Argument(name="item_last", type="*i32", note="[items], and end"),
    Argument(name="item_slots", type="*i32", note="[items], where parts are kept; -1: alone, -2: none"),
    Argument(name="list_tiles", type="*i32", note="runs of queries by the blocks that they have picked"),
)

ROWS = (
    Argument(name="row_slots", type="*i32", note="[blocks], where the parts of each begin"),
    Argument(name="row_parts", type="*i32", note="[blocks], how many there are; 1: none are kept"),
)

BLOCKS = Argument(name="blocks", type="i32", note="blocks of keys of a head")


ENDS = Argument(name="list_ends", type="*i32", note="of pieces of runs, whose first queries are listed")

BITS = Argument(name="list_bits", type="*i64", note="keys of the tile that each has picked")


def picked_arguments(picks: Picks, sums: Sums) -> tuple[Argument, ...]:
    """The lists of a kernel by key, and the memory for parts."""
    bits, ends = (BITS,) if picks.fine else (), (ENDS,) if picks.runs else ()
    return (*ITEMS, *bits, *ends, BLOCKS, *_memory(sums))


def _memory(sums: Sums) -> tuple[Argument, ...]:
    return tuple(
        Argument(name=f"Part_{name}", type="*fp32", note=f"[parts, {', '.join(shape)}]")
        for name, shape in sums.accumulators
    )


def picked_sizes(frame: Frame, sums: Sums) -> tuple[tuple[str, int], ...]:
    """The memory of each accumulator for a part, in numbers."""
    sizes = dict(frame.constants())
    found = []
    for name, shape in sums.accumulators:
        size = tiles_of_block(frame.kernel)
        for each in shape:
            size *= sizes[each]
        found.append((f"Part_{name}", size))
    return tuple(found)


def lower_picked_combine(
    frame: Frame, sums: Sums, start: tuple[Block, ...], last: tuple[Block, ...], results: tuple[Argument, ...]
) -> Kernel:
    """The kernel that adds up the parts of blocks that many queries have picked: each program takes some keys."""
    picks = frame.kernel.picks
    assert picks is not None
    cut = sliced(frame)
    pieces = frame.own_block // cut.own_block
    begin = PickedRow(
        heads=picks.heads,
        ratio=frame.ratio,
        owners=frame.plan.problem.pattern.heads // picks.heads,
        parts=tiles_of_block(frame.kernel),
        pieces=pieces,
        shape=frame.plan.problem.shape,
    )
    first, step = Param(name="first_slot", dtype="int"), tiles_of_block(frame.kernel) * pieces
    loop = Loop(
        variable="p",
        low=number(0),
        high=Param(name="count", dtype="int"),
        body=(
            Define(name="item", value=add(mul(add(first, index("p")), number(step)), index("piece"))),
            *(LoadPart(name=each, shape=shape) for each, shape in sums.accumulators),
            *(AddPart(name=each) for each, _ in sums.accumulators),
        ),
        note="parts of the block, in order",
    )
    several = If(condition=compare("gt", Param(name="count", dtype="int"), number(1)), body=(*start, loop, *last))
    return Kernel(
        name=f"{frame.kernel.kind}_combine",
        doc="The parts of blocks that many queries have picked, added up: each program owns some keys.",
        arguments=(*results, *length_arguments(frame), *ROWS, BLOCKS, *_memory(sums)),
        constants=cut.constants(),
        body=(begin, positions(cut, frame.own_side, "own"), several),
        block=cut.own_block,
        warps=4,
        stages=1,
    )
