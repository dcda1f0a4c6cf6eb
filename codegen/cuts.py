"""The kernels that find the intervals of cuts: every program owns a few tiles of one side and searches the other.

From the cuts of a plan's walks to blocks.  A tile takes the least and the greatest of its values and halves the
positions of the other side until it knows where both are reached; four ints for each tile are all that the walks read.
They are made again in every call, on the stream of the kernels that follow, so that they cannot be out of date.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.cuts import tables_in
from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import FAR_ROW, Cut, Cuts
from spdsl.codegen.arguments import length_arguments, parameter_arguments
from spdsl.codegen.arith import number
from spdsl.codegen.blocks import (
    Argument,
    Block,
    Gather,
    IntervalProgram,
    Kernel,
    Loop,
    SearchBegin,
    SearchEnd,
    SearchMiddle,
    SearchStep,
    StoreIntervals,
)
from spdsl.codegen.contents import every
from spdsl.codegen.expressions import truncated
from spdsl.codegen.frame import Frame
from spdsl.codegen.hoist import Hoist
from spdsl.codegen.tables import INTERVALS, Tables
from spdsl.semantics.nodes import Expr, Load, Param, Side

TILES = 16
"""Tiles of a program."""

ROWS = Argument(name="interval_rows", type="i32", note="tiles of all programs")


def interval_kernel(kernel: KernelPlan) -> str:
    """The name of the kernel that finds the intervals of ``kernel``; kernels with equal tiles share one."""
    side, block = ("k", kernel.block_k) if kernel.by == "key" else ("q", kernel.block_q)
    return f"{INTERVALS}_{side}{block}"


def lower_intervals(plan: Plan) -> tuple[Kernel, ...]:
    """The kernels that have to run before others of the plan."""
    found: dict[str, Kernel] = {}
    for kernel in plan.kernels:
        cuts = kernel.cuts
        name = interval_kernel(kernel)
        # Those of gathered rows come with the list of these.
        if cuts is not None and kernel.marked is None and name not in found:
            found[name] = _lower(plan, kernel, cuts, name)
    return tuple(found.values())


def _lower(plan: Plan, kernel: KernelPlan, cuts: Cuts, name: str) -> Kernel:
    frame = Frame(plan=plan, kernel=kernel, by=cuts.by)
    own: Side = "q" if cuts.by == "query" else "k"
    shape = plan.problem.shape
    begin = IntervalProgram(
        side=own, ratio=frame.ratio, heads=cuts.heads, shape=shape, far=FAR_ROW, classes=frame.classes
    )
    searches = tuple(block for cut in cuts.cuts for block in _search(plan, cut, own))
    body: tuple[Block, ...] = (begin, *searches, StoreIntervals(pointer=INTERVALS, heads=cuts.heads))
    heads = {None: "", "h": "heads, ", "g": "groups, "}[cuts.heads]
    result = Argument(name=INTERVALS, type="*i32", note=f"[batch or 1, {heads}interval_rows, 4]")
    gathers = (block for block in every(body) if isinstance(block, Gather))
    return Kernel(
        name=name,
        doc=f"Which rows the tiles of {cuts.block} {'queries' if own == 'q' else 'keys'} have to walk.",
        arguments=(
            result,
            ROWS,
            *length_arguments(frame),
            *parameter_arguments(frame, body),
            *Tables(plan).arguments(gathers),
        ),
        constants=(("TILES", TILES), ("BLOCK_Q" if own == "q" else "BLOCK_K", cuts.block)),
        body=body,
        block=TILES,
        warps=4,
        stages=1,
    )


def _search(plan: Plan, cut: Cut, own: Side) -> tuple[Block, ...]:
    """The blocks that narrow the intervals to those of one cut.

    Names are those of this search alone: the next one reads its tables at other positions.
    """
    walked: Side = "k" if own == "q" else "q"
    program = frozenset({"b", "h", "g"})
    tables = Tables(plan)

    def gather(name: str, load: Load, indices: tuple[Expr, ...]) -> Gather:
        # A table is sorted as it is given; cut to 32 bits it need not be.
        return replace(tables.gather(name, load, indices), long=tables.is_long(load.table))

    long = any(tables.is_long(name) for name in tables_in(cut))
    values = Hoist((program, program | {own}), gather)
    value = values.place(truncated(cut.value))
    marks = Hoist((program, program | {walked}), gather)
    mark = marks.place(truncated(cut.mark))
    steps = Loop(
        variable="step",
        low=number(0),
        high=Param(name="steps", dtype="int"),
        body=(
            SearchMiddle(side=walked),
            *marks.take(1),
            SearchStep(side=walked, mark=mark, start=cut.start, end=cut.end),
        ),
        note="halve the positions until one is left",
    )
    end = SearchEnd(side=walked, shape=plan.problem.shape, far=FAR_ROW, start=cut.start, end=cut.end)
    return (*values.take(0), *values.take(1), SearchBegin(value=value, long=long), *marks.take(0), steps, end)
