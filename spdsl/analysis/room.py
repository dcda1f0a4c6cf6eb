"""How large the values of free parameters may be, so that the ints of kernels stay within 32 bits.

From a plan to a bound of magnitudes.  Bounds of tiles hold multiples of parameters: ``q.blk - k.blk < w`` is a bound
of ``w`` times the block, ``q - k < w * h`` one of ``w`` times the heads.  What does not fit whatever the parameters
are is refused where no parameter is to blame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import PickWalk, SlotWalk
from spdsl.diagnostics import error
from spdsl.semantics.bounds import Facts, Range, ranges
from spdsl.semantics.free import LARGEST
from spdsl.semantics.nodes import Apply, Const, Expr, FreeParam, Index
from spdsl.semantics.rewrite import children, walk

POSITIONS = 1 << 26
"""Positions and lengths up to which sums with parameters have to fit."""

_BATCH = 1 << 12
_CLASSES = 1 << 12


def room_for_parameters(plan: Plan) -> int:
    """The largest power of two up to `LARGEST` that free parameters may reach in magnitude; 0 if no value is safe."""
    if not plan.problem.pattern.free:
        return LARGEST
    parts = [(expr, facts) for part in plan.every for expr, facts in _expressions(part) if _has_parameter(expr)]
    # What does not fit for the least values either is no matter of the parameters.
    always = [_too_large(expr, facts, 1) for expr, facts in parts]
    most = LARGEST
    while most and any(_too_large(expr, facts, most) - old for (expr, facts), old in zip(parts, always, strict=True)):
        most >>= 1
    return most


def refuse_large_numbers(plan: Plan) -> None:
    """Refuse products of constants and head numbers that kernels would compute wrongly.

    Raises:
        SpatError: a part of the pattern, the same for all positions, exceeds 32 bits (SP406).
    """
    facts = _facts(plan, plan.forward)
    for expr in (plan.keep, plan.bias, plan.sink_logit):
        if expr is None:
            continue
        found = ranges(expr, facts)
        for node in walk(expr):
            if isinstance(node, Apply) and node.dtype == "int" and _of_heads(node) and not _fits(found[id(node)]):
                raise error(
                    "SP406",
                    f"a part of `{plan.problem.pattern.name}` reaches {_extreme(found[id(node)])}, but kernels compute "
                    "in ints of 32 bits",
                    node.span or expr.span,
                    help='use smaller numbers: no position is as large; or `backend="cpu"`, which has 64 bits',
                )


def _expressions(plan: Plan) -> Iterator[tuple[Expr, Facts]]:
    facts = _facts(plan, plan.forward)
    yield from ((expr, facts) for expr in (plan.keep, plan.bias, plan.sink_logit) if expr is not None)
    for kernel in plan.kernels:
        facts = _facts(plan, kernel)
        gathered = kernel.residues or kernel.boxes or kernel.marked or kernel.picks
        if gathered is not None:
            yield gathered.keep, facts
        match kernel.walk:
            case SlotWalk() as walked:
                yield from ((bound, facts) for bound in _bounds(walked))
            case PickWalk(bounds=slot):
                yield from ((bound, facts) for bound in _bounds(SlotWalk(slots=(slot,))))
            case _:
                pass


def _bounds(walked: SlotWalk) -> Iterator[Expr]:
    for slot in walked.slots:
        for interval in (slot.touched, slot.full):
            yield from () if interval is None else (interval.lo, interval.hi)
        yield from (part for part in (slot.phase, slot.filter) if part is not None)
    for cut in () if walked.cuts is None else walked.cuts.cuts:
        yield from (cut.value, cut.mark)


def _facts(plan: Plan, kernel: KernelPlan) -> Facts:
    pattern = plan.problem.pattern
    positions = {"q": (-POSITIONS, POSITIONS), "k": (0, POSITIONS)}
    tiles = {"i": (0, POSITIONS // kernel.queries), "j": (0, POSITIONS // kernel.block_k)}
    outer = {"h": (0, pattern.heads - 1), "g": (0, pattern.groups - 1), "b": (0, _BATCH)}
    classes = dict.fromkeys(("q_class", "k_class"), (0, _CLASSES))
    lengths = {"n": (0, POSITIONS), "nq": (0, POSITIONS), "q_start": (-POSITIONS, POSITIONS)}
    declared = {table.name: (table.bounds.low, table.bounds.high) for table in plan.tables if table.bounds is not None}
    return Facts(indices=positions | tiles | outer | classes, extents=lengths, tables=declared)


def _too_large(expr: Expr, facts: Facts, most: int) -> frozenset[int]:
    """The parts with parameters that may exceed 32 bits where these reach ``most``, by their place in the walk."""
    found = ranges(expr, replace(facts, largest=most))
    open_ = set[int]()
    wrong = set[int]()
    for place, node in enumerate(walk(expr)):
        if isinstance(node, FreeParam) or any(id(part) in open_ for part in children(node)):
            open_.add(id(node))
            if node.dtype == "int" and not _fits(found[id(node)]):
                wrong.add(place)
    return frozenset(wrong)


def _fits(found: Range) -> bool:
    return all(end is None or abs(end) < 1 << 31 for end in found)


def _extreme(found: Range) -> int | float:
    return max((end for end in found if end is not None), key=abs)


def _of_heads(expr: Expr) -> bool:
    """Whether the value is the same for all positions, sequences and calls."""
    leaves = (node for node in walk(expr) if not children(node))
    return all(isinstance(leaf, Const) or (isinstance(leaf, Index) and leaf.name in ("h", "g")) for leaf in leaves)


def _has_parameter(expr: Expr) -> bool:
    return any(isinstance(node, FreeParam) for node in walk(expr))
