"""The kernels that add up the parts of long rows, one for each kernel that splits them."""

from __future__ import annotations

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.codegen.blocks import Kernel, SoftmaxState, StoreRows, Zeros
from spdsl.codegen.expressions import truncated
from spdsl.codegen.forward import SUMS, forward_end, forward_results, softmax_state
from spdsl.codegen.frame import Frame
from spdsl.codegen.gathered import empty_dq, entry_arguments, is_gathered, lower_together, together
from spdsl.codegen.picked_parts import lower_picked_combine
from spdsl.codegen.results import Partial, dkdv_end, dkdv_sums, dq_end, dq_sums, partials, result_arguments, zeros
from spdsl.codegen.split import lower_combine, sliced


def lower_forward_combine(plan: Plan) -> Kernel | None:
    """The kernel that adds up the parts of long rows, or puts picks together, or None where there is no such thing."""
    picks = plan.forward.picks
    if picks is not None and is_gathered(plan.forward):
        rows = together(plan, plan.forward)
        sink = None if plan.sink_logit is None else rows.hoist.place(truncated(plan.sink_logit), 1)
        start = (*rows.hoist.take(0), *rows.hoist.take(1), *softmax_state(rows, sink))
        kept = entry_arguments(Frame(plan=plan, kernel=plan.forward, by="query"))
        return lower_together(rows, picks.heads, start, forward_end(rows), forward_results(rows), kept)
    if not plan.forward.splits:
        return None
    frame = Frame(plan=plan, kernel=plan.forward, by="query")
    last = forward_end(sliced(frame))
    return lower_combine("forward", frame, SUMS, (SoftmaxState(sink=None),), last, forward_results(frame))


def lower_dq_combine(plan: Plan) -> Kernel | None:
    """The kernel that adds up the parts of long rows of queries, or their picks, or None where nothing is in parts."""
    picks = plan.dq.picks
    if picks is not None and is_gathered(plan.dq):
        tile = together(plan, plan.dq)
        kept = entry_arguments(Frame(plan=plan, kernel=plan.dq, by="query"))
        results = result_arguments(tile, ("dQ",), ())
        return lower_together(tile, picks.heads, (empty_dq(),), dq_end(tile, ()), results, kept)
    if not plan.dq.splits:
        return None
    frame = Frame(plan=plan, kernel=plan.dq, by="query")
    rows = _row_sums(frame, ("none", "query"))
    start = (*((frame.row_base(),) if rows else ()), Zeros(name="dq", shape=("BLOCK_Q", "HEAD_DIM")), *zeros(rows))
    return lower_combine(
        "dq", frame, dq_sums(rows), start, dq_end(sliced(frame), rows), result_arguments(frame, ("dQ",), rows)
    )


def lower_dkdv_combine(plan: Plan) -> Kernel | None:
    """The kernel that adds up the parts of long rows of keys, or None where none are split."""
    return _by_key(plan, plan.dkdv, ("key",))


def lower_fused_combine(plan: Plan) -> Kernel | None:
    """As `lower_dkdv_combine`, for the fused kernel."""
    return _by_key(plan, plan.fused, ())


def _by_key(plan: Plan, kernel: KernelPlan | None, sums: tuple[str, ...]) -> Kernel | None:
    if kernel is None or not (kernel.splits or kernel.picks):
        return None
    frame = Frame(plan=plan, kernel=kernel, by="key")
    rows = _row_sums(frame, sums)
    start = (
        Zeros(name="dk", shape=("BLOCK_K", "HEAD_DIM")),
        Zeros(name="dv", shape=("BLOCK_K", "VALUE_DIM")),
        *zeros(rows),
    )
    stores = tuple(StoreRows(value=each.name, pointer=each.pointer, side="k") for each in rows)
    last = dkdv_end(sliced(frame), stores)
    if kernel.picks is not None:
        return lower_picked_combine(frame, dkdv_sums(rows), start, last, result_arguments(frame, ("dK", "dV"), rows))
    return lower_combine(kernel.kind, frame, dkdv_sums(rows), start, last, result_arguments(frame, ("dK", "dV"), rows))


def _row_sums(frame: Frame, by: tuple[str, ...]) -> tuple[Partial, ...]:
    """The sums that a kernel leaves for rows of its own."""
    found = partials(frame, "bias", by)
    return tuple(Partial(number=position, gradient=each, factor=each.factor) for position, each in found)
