"""From a plan to the block graph of its kernels.  What depends on the pattern is decided here; no text is written."""

from __future__ import annotations

from spdsl.analysis.cuts import tables_of
from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import BoxWalk, DistanceWalk, ListWalk, PickWalk, SlotWalk
from spdsl.codegen.backward import lower_delta, lower_dkdv, lower_dq
from spdsl.codegen.blocks import BlockGraph, Kernel
from spdsl.codegen.combine import (
    lower_dkdv_combine,
    lower_dq_combine,
    lower_forward_combine,
    lower_fused_combine,
)
from spdsl.codegen.cuts import lower_intervals
from spdsl.codegen.distances import lower_distances
from spdsl.codegen.forward import lower_forward
from spdsl.codegen.fused import lower_fused, lower_ordered, lower_scaled, lower_touched
from spdsl.codegen.picked_stream import lower_picked_stream
from spdsl.codegen.streamed import lower_streamed


def _forward(plan: Plan) -> Kernel:
    return lower_streamed(plan) if plan.forward.specialised else lower_forward(plan)


def _dkdv(plan: Plan) -> Kernel:
    return lower_picked_stream(plan) if plan.dkdv.specialised else lower_dkdv(plan)


LOWERINGS = (
    _forward,
    lower_delta,
    lower_dq,
    _dkdv,
    lower_fused,
    lower_touched,
    lower_ordered,
    lower_scaled,
    lower_distances,
    lower_forward_combine,
    lower_dq_combine,
    lower_dkdv_combine,
    lower_fused_combine,
)


def lower(plan: Plan) -> BlockGraph:
    """The kernels of ``plan``: forward and backward."""
    return BlockGraph(
        name=plan.name,
        dtype=plan.problem.dtype,
        notes=_notes(plan),
        kernels=(
            *lower_intervals(plan),
            *(kernel for lower_kernel in LOWERINGS if (kernel := lower_kernel(plan)) is not None),
        ),
    )


def _notes(plan: Plan) -> tuple[str, ...]:
    problem = plan.problem
    pattern = problem.pattern
    return (
        f"{problem.dtype}, {pattern.heads} query heads on {pattern.groups} key heads, shape {problem.shape}.",
        *(
            f"{kernel.kind}: tiles of {kernel.block_q} queries and {kernel.block_k} keys, {_walk(kernel)}."
            for kernel in plan.kernels
        ),
    )


def _walk(kernel: KernelPlan) -> str:
    match kernel.walk:
        case ListWalk():
            return "tiles from lists"
        case PickWalk():
            assert kernel.picks is not None
            if kernel.picks.order == "gathered":
                return f"queries gathered by what they have picked, {kernel.picks.heads} heads of each to a tile"
            return f"those picked, {kernel.picks.heads} heads of {kernel.picks.positions} queries to a tile"
        case BoxWalk():
            assert kernel.boxes is not None
            queries, keys = (" × ".join(map(str, sizes)) for sizes in (kernel.boxes.box("q"), kernel.boxes.box("k")))
            return f"boxes of {queries} queries and {keys} keys of the grid"
        case DistanceWalk(classes=classes):
            kinds = "all rows" if classes == 1 else f"{classes} kinds of rows"
            return f"tiles at listed distances from {kinds}"
        case SlotWalk(slots=slots, cuts=cuts):
            cut = "" if cuts is None else f" within intervals of {', '.join(tables_of(cuts))}"
            if kernel.marked is not None and kernel.marked.alike:
                return f"keys with like intervals gathered{cut}"
            if kernel.marked is not None:
                return f"marked {'queries' if kernel.marked.side == 'q' else 'keys'} gathered, and all others"
            apart = "" if kernel.residues is None else f", rows of {kernel.classes} residue classes apart"
            return f"tiles in closed form, {len(slots)} run{'' if len(slots) == 1 else 's'}{cut}{apart}"
