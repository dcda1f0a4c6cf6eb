"""Closed forms → expressions of `spdsl.semantics.nodes` for kernels, with floor semantics and exact run-time lengths.

Names become what they stand for; rounded lengths become divisions of the exact ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from spdsl.analysis.full import ClosedSlot
from spdsl.analysis.linear import Linear
from spdsl.analysis.rows import Branch, ClosedForm
from spdsl.analysis.tiles import FAR, Interval, Slot
from spdsl.analysis.writing import Writer, apply
from spdsl.semantics.nodes import Apply, Const, Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """How a walk is written.

    ``count`` is the number of walked tiles as it occurs in terms (rounded), ``exact_count`` the expression of the
    number that exist.  With ``rounded`` the first may be larger, and walks must not go that far.  With ``promised``
    bounds rest on declared ranges of inputs, which may be broken until a check reports it: they stay in range then too.
    """

    writer: Writer
    count: Linear
    exact_count: Expr
    rounded: bool
    promised: bool

    def slot(self, slot: ClosedSlot) -> Slot:
        """The slot as kernels and the CPU back end read it."""
        touched = self.interval(slot.touched)
        full = None
        if slot.full is not None:
            lo = self._low(slot.full.lows) if slot.full.lows else touched.lo
            hi = self._high(slot.full.highs) if slot.full.highs else touched.hi
            full = Interval(lo=lo, hi=hi)
        lattice = slot.touched.lattice
        return Slot(
            touched=touched,
            full=full,
            step=lattice.step,
            run=lattice.run,
            phase=self.writer.term(lattice.phase) if lattice.step > 1 else None,
            filter=self.writer.any_of(slot.touched.filters) if slot.touched.filters else None,
        )

    def interval(self, form: ClosedForm) -> Interval:
        """The tiles between the bounds of a form, its lattice and tests left out."""
        lo, hi = self._low(form.lows), self._high(form.highs)
        if (self.rounded or self.promised) and not self._all_have(form.highs, 1, self.exact_count):
            hi = apply("min", hi, self.exact_count)
        if self.promised and not self._all_have(form.lows, 0, Const(value=0)):
            lo = apply("max", lo, Const(value=0))
        return Interval(lo=lo, hi=hi)

    def _all_have(self, branches: tuple[Branch, ...], shift: int, end: Expr) -> bool:
        return all(any(self.writer.term(t.shifted(shift)) == end for t in branch.terms) for branch in branches)

    def _low(self, lows: tuple[Branch, ...]) -> Expr:
        return self._bound(lows, shift=0, within="max", across="min", missing=FAR)

    def _high(self, highs: tuple[Branch, ...]) -> Expr:
        # closed forms include their upper bound, intervals do not
        return self._bound(highs, shift=1, within="min", across="max", missing=-FAR)

    def _bound(self, branches: tuple[Branch, ...], *, shift: int, within: str, across: str, missing: int) -> Expr:
        """The bound of all branches; one with guards takes part where they hold."""

        def value(branch: Branch) -> Expr:
            terms = [self.writer.term(t.shifted(shift)) for t in sorted(branch.terms, key=_length_then_text)]
            return reduce(lambda a, b: apply(within, a, b), terms)

        chosen, others = _either_or(_in_order(branches))
        parts = [_choice(self.writer.all_of(one.guards), value(one), value(other)) for one, other in chosen]
        parts += [value(branch) for branch in others if not branch.guards]
        total = reduce(lambda a, b: apply(across, a, b), parts) if parts else None
        for branch in others:
            if not branch.guards:
                continue
            here, holds = value(branch), self.writer.all_of(branch.guards)
            # not 0: a lower bound may be negative, and [lo, 0) would not be empty
            alone = _choice(holds, here, Const(value=missing))
            if total is None:
                total = alone
            else:
                joined = apply(across, total, here)
                repeats = isinstance(joined, Apply) and joined.op == across and total in joined.args
                total = apply(across, total, alone) if repeats else _choice(holds, joined, total)
        assert total is not None
        return total


def _choice(condition: Expr, value: Expr, other: Expr) -> Expr:
    return Apply(op="where", args=(condition, value, other), dtype="int")


def _either_or(branches: list[Branch]) -> tuple[list[tuple[Branch, Branch]], list[Branch]]:
    """Pairs of branches of which always exactly one takes part, and the other branches."""
    pairs: list[tuple[Branch, Branch]] = []
    left = list(branches)
    for one in branches:
        other = next((each for each in left if _opposite(one, each)), None)
        if one in left and other is not None:
            left.remove(one)
            left.remove(other)
            pairs.append((one, other))
    return pairs, left


def _opposite(one: Branch, other: Branch) -> bool:
    return len(one.guards) == len(other.guards) == 1 and one.guards[0].scaled(-1).shifted(-1) == other.guards[0]


def _length_then_text(term: Linear) -> tuple[int, str]:
    return len(term.terms), str(term)


def _in_order(branches: tuple[Branch, ...]) -> list[Branch]:
    """An order that does not depend on isl's."""
    return sorted(branches, key=lambda b: (len(b.guards), [str(t) for t in (*b.terms, *b.guards)]))
