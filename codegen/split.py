"""Long rows cut into parts: each loop's share of a part, where a part leaves its sums, and the kernel that adds them.

From the loops and accumulators of a kernel to those of one part, and to a second kernel that goes through the parts of
a row in order, so that results repeat bitwise.  Which rows are long, and in how many parts, is said at the launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from spdsl.codegen.arguments import length_arguments
from spdsl.codegen.arith import add, compare, index, maximum, minimum, mul, number, sub
from spdsl.codegen.blocks import (
    AddPart,
    Argument,
    Block,
    Define,
    If,
    Kernel,
    LoadPart,
    Loop,
    MergeSoftmax,
    StorePart,
    WholeRow,
)
from spdsl.codegen.frame import Frame
from spdsl.codegen.programs import positions
from spdsl.semantics.nodes import Apply, Const, Expr, Param

SLICE = 16
"""Rows of a tile that one program of a combining kernel adds up."""

SHARES = Param(name="shares", dtype="int")
PART = Param(name="part", dtype="int")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The accumulators of a program, by name with their shapes; ``softmax`` for those of the online softmax."""

    accumulators: tuple[tuple[str, tuple[str, ...]], ...]
    softmax: bool = False


NO_SUMS = Sums(accumulators=())


def share(frame: Frame, loops: tuple[Block, ...]) -> tuple[Block, ...]:
    """Loops over the turns of a part: runs of equal length, ``part`` of ``shares``.

    Loops of which each begins where the one before ends are cut as one, so that the parts of such a run are alike.
    """
    if not frame.kernel.splits:
        return loops
    chains: list[list[Loop]] = []
    for loop in loops:
        assert isinstance(loop, Loop)
        if chains and chains[-1][-1].high == loop.low:
            chains[-1].append(loop)
        else:
            chains.append([loop])
    suffixes = [""] if len(chains) == 1 else [f"_{position}" for position in range(len(chains))]
    return tuple(block for chain, suffix in zip(chains, suffixes, strict=True) for block in _shared(chain, suffix))


def _shared(chain: list[Loop], suffix: str) -> Iterator[Block]:
    low, high = chain[0].low, chain[-1].high
    turns, first, last = (Param(name=f"{name}{suffix}", dtype="int") for name in ("turns", "first", "last"))
    length = Apply(
        op="quotient", args=(sub(add(maximum(sub(high, low), number(0)), SHARES), number(1)), SHARES), dtype="int"
    )
    yield Define(name=turns.name, value=length, note="of this part")
    yield Define(name=first.name, value=add(low, mul(PART, turns)))
    yield Define(name=last.name, value=minimum(add(first, turns), high))
    start: Expr = first
    for position, loop in enumerate(chain):
        end: Expr = last
        if position + 1 < len(chain):
            end = Param(name=f"cut{suffix}_{position}", dtype="int")
            yield Define(name=end.name, value=minimum(maximum(loop.high, first), last))
        yield replace(loop, low=start, high=end)
        start = end


def once(frame: Frame, sink: Expr | None) -> Expr | None:
    """A sink's logit for the first part of a row alone."""
    alone = first(frame)
    if sink is None or alone is None:
        return sink
    return Apply(op="where", args=(alone, sink, Const(value=float("-inf"))), dtype="float")


def first(frame: Frame) -> Expr | None:
    """Whether a program is the first of its row; None where there is no other."""
    return compare("eq", PART, number(0)) if frame.kernel.splits else None


def end(frame: Frame, sums: Sums, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The end of a program: ``blocks``, or for one of several parts its sums as they are."""
    if not frame.kernel.splits:
        return blocks
    stores = tuple(StorePart(name=name, shape=shape) for name, shape in sums.accumulators)
    return (If(condition=compare("gt", SHARES, number(1)), body=stores, otherwise=blocks),)


def split_arguments(frame: Frame, sums: Sums) -> tuple[Argument, ...]:
    """How the rows of a call are split, and the memory for parts."""
    if not frame.kernel.splits:
        return ()
    own = "h" if frame.by == "query" else "g"
    place: tuple[Argument, ...] = (Argument(name="first_long", type="i32", note="the first of them"),)
    if frame.listed:
        place = (
            Argument(name="row_order", type="*i32", note=f"[batch or 1, {own} or 1, rows], the long rows first"),
            Argument(name="order_stride_b", type="i32"),
            Argument(name="order_stride_h", type="i32"),
        )
    return (
        Argument(name="items", type="i32", note="parts of all long rows"),
        Argument(name="parts", type="i32", note="of each long row"),
        Argument(name="long_rows", type="i32", note="long rows of a head"),
        Argument(name="other_rows", type="i32"),
        *place,
        *(
            Argument(name=f"Part_{name}", type="*fp32", note=f"[items, {', '.join(shape)}]")
            for name, shape in sums.accumulators
        ),
    )


_UNREAD = ("items", "other_rows")  # by the kernels that add up


def part_sizes(frame: Frame, sums: Sums) -> tuple[tuple[str, int], ...]:
    """The memory of each accumulator for one program, in numbers."""
    if not frame.kernel.splits:
        return ()
    sizes = dict(frame.constants())
    found = []
    for name, shape in sums.accumulators:
        size = 1
        for each in shape:
            size *= sizes[each]
        found.append((f"Part_{name}", size))
    return tuple(found)


def lower_combine(
    name: str,
    frame: Frame,
    sums: Sums,
    start: tuple[Block, ...],
    last: tuple[Block, ...],
    results: tuple[Argument, ...],
) -> Kernel:
    """The kernel that adds up the parts of long rows: each program takes some rows of a tile.

    ``start`` begins with empty accumulators and ``last`` ends as a program of a whole row does, for the tiles of
    `sliced(frame)`; ``results`` are what it writes.
    """
    cut = sliced(frame)
    pieces = frame.own_block // cut.own_block
    begin = WholeRow(
        by=frame.by,
        ratio=frame.ratio,
        heads=frame.own_heads,
        shape=frame.plan.problem.shape,
        listed=frame.listed,
        heads_first=frame.heads_first,
        pieces=pieces,
        classes=frame.classes,
        packed=frame.packed,
    )
    item = mul(add(Param(name="first_item", dtype="int"), index("p")), number(pieces))
    adds: tuple[Block, ...] = tuple(AddPart(name=each) for each, _ in sums.accumulators)
    loop = Loop(
        variable="p",
        low=number(0),
        high=Param(name="parts", dtype="int"),
        body=(
            Define(name="item", value=add(item, index("piece"))),
            *(LoadPart(name=each, shape=shape) for each, shape in sums.accumulators),
            *((MergeSoftmax(),) if sums.softmax else adds),
        ),
        note="parts of the row, in order",
    )
    return Kernel(
        name=f"{name}_combine",
        doc="The parts of long rows added up: each program owns some rows of a tile.",
        arguments=(
            *results,
            *length_arguments(frame),
            *(each for each in split_arguments(frame, sums) if each.name not in _UNREAD),
        ),
        constants=cut.constants(),
        body=(begin, positions(cut, frame.own_side, "own"), *start, loop, *last),
        block=cut.own_block,
        warps=4,
        stages=1,
        classes=frame.classes,
    )


def sliced(frame: Frame) -> Frame:
    """The frame of a combining kernel."""
    kernel = frame.kernel
    rows = min(max(1, SLICE // kernel.packed), frame.own_block)
    tiles = replace(kernel, block_q=rows) if frame.by == "query" else replace(kernel, block_k=rows)
    return Frame(plan=frame.plan, kernel=replace(tiles, descriptors=False), by=frame.by)
