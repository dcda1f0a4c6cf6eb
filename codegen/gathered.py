"""Queries gathered by the block that they have picked: what a program leaves for each, and the kernels that put it
together, for every query in the order of its picks, so that results repeat bitwise.

Memory is that of a row of output for each pick and head.
"""

from __future__ import annotations

from dataclasses import replace

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.codegen.arguments import length_arguments, parameter_arguments, table_arguments
from spdsl.codegen.blocks import (
    AddPart,
    Argument,
    Block,
    Define,
    EntryAt,
    Kernel,
    LoadEntries,
    Loop,
    MergeSoftmax,
    SoftmaxEnd,
    StoreEntries,
    Zeros,
)
from spdsl.codegen.frame import LOG2E, Frame
from spdsl.codegen.programs import positions, program
from spdsl.semantics.nodes import Apply, Const, Param

ROWS = 16
"""Rows of a program that puts together: the smaller, the more of them wait for what they read at a time."""


def is_gathered(kernel: KernelPlan) -> bool:
    """Whether a program by query owns queries that have picked one block."""
    return kernel.by == "query" and kernel.picks is not None and kernel.picks.order == "gathered"


def forward_entries(frame: Frame) -> tuple[Block, ...]:
    """From the state of the softmax to what is kept of each query: output and LSE over the block alone."""
    return SoftmaxEnd(), _store(frame, "acc", "VALUE_DIM"), _store(frame, "lse", "")


def dq_entries(frame: Frame) -> tuple[Block, ...]:
    """From the sum of dQ over the block to what is kept of it."""
    return (_store(frame, "dq", "HEAD_DIM"),)


def _store(frame: Frame, value: str, columns: str) -> StoreEntries:
    picks = frame.kernel.picks
    assert picks is not None
    return StoreEntries(
        value=value,
        pointer=f"Part_{value}",
        columns=columns,
        heads=picks.heads,
        positions=picks.positions,
        dtype=frame.plan.problem.dtype,
    )


def entry_arguments(frame: Frame) -> tuple[Argument, ...]:
    """The memory for what is kept."""
    dtype = frame.plan.problem.dtype
    if frame.kernel.kind == "dq":
        return (Argument(name="Part_dq", type=f"*{dtype}", note="[entries, heads of a list, HEAD_DIM]"),)
    return (
        Argument(name="Part_acc", type=f"*{dtype}", note="[entries, heads of a list, VALUE_DIM]"),
        Argument(name="Part_lse", type="*fp32", note="[entries, heads of a list]"),
    )


def entry_sizes(frame: Frame) -> tuple[tuple[str, int], ...]:
    """How many numbers are kept of each entry."""
    picks, sizes = frame.kernel.picks, dict(frame.constants())
    assert picks is not None
    if frame.kernel.kind == "dq":
        return (("Part_dq", picks.heads * sizes["HEAD_DIM"]),)
    return ("Part_acc", picks.heads * sizes["VALUE_DIM"]), ("Part_lse", picks.heads)


ENTRIES = (
    Argument(name="list_entries", type="*i32", note="[batch, lists, queries, most], where each pick is kept; -1: none"),
    Argument(name="most", type="i32", note="picks of a query"),
)


def together(plan: Plan, kernel: KernelPlan) -> Frame:
    """The frame of a kernel that puts together: tiles of neighbouring queries of a head."""
    tiles = replace(kernel, picks=None, block_q=ROWS, warps=4, stages=1, descriptors=False)
    return Frame(plan=plan, kernel=tiles, by="query")


def lower_together(
    frame: Frame,
    heads: int,
    start: tuple[Block, ...],
    last: tuple[Block, ...],
    results: tuple[Argument, ...],
    kept: tuple[Argument, ...],
) -> Kernel:
    """The kernel that goes through the picks of every query, from ``start`` to ``last``."""
    if frame.kernel.kind == "dq":
        merged: tuple[Block, ...] = (
            LoadEntries(name="dq_part", pointer="Part_dq", columns="HEAD_DIM", other=0.0),
            AddPart(name="dq"),
        )
    else:
        lse, nothing = Param(name="lse_part", dtype="float"), Const(value=float("-inf"))
        scaled = Apply(op="mul", args=(lse, Const(value=LOG2E)), dtype="float")
        empty = Apply(op="eq", args=(lse, nothing), dtype="bool")
        weight = Apply(op="where", args=(empty, Const(value=0.0), Const(value=1.0)), dtype="float")
        merged = (
            LoadEntries(name="lse_part", pointer="Part_lse", columns="", other=float("-inf")),
            LoadEntries(name="acc_part", pointer="Part_acc", columns="VALUE_DIM", other=0.0),
            Define(name="m_part", value=scaled),
            Define(name="l_part", value=weight),
            MergeSoftmax(),
        )
    loop = Loop(
        variable="p",
        low=Const(value=0),
        high=Param(name="most", dtype="int"),
        body=(EntryAt(heads=heads), *merged),
        note="what each query has picked, in order",
    )
    blocks = (*program(frame, reverse=False), positions(frame, "q", "own"), *frame.hoist.take(0), *start, loop, *last)
    return Kernel(
        name=f"{frame.kernel.kind}_combine",
        doc="What belongs to each of the picks of a query, put together.",
        arguments=(
            *results,
            *length_arguments(frame),
            *parameter_arguments(frame, blocks),
            *ENTRIES,
            *kept,
            *table_arguments(frame, blocks),
        ),
        constants=frame.constants(),
        body=blocks,
        block=ROWS,
        warps=frame.kernel.warps,
        stages=1,
    )


def empty_dq() -> Zeros:
    """The sum of dQ before the first pick."""
    return Zeros(name="dq", shape=("BLOCK_Q", "HEAD_DIM"))
