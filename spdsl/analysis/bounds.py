"""Pieces → one closed form: bounds are guessed from the pieces' constraints, proved by isl, and then shortened.

What is returned is proved.  Shortening stops early when the budget ends; guessing raises `TooComplexError` when no
guess is proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from spdsl.analysis.budget import BudgetSpentError
from spdsl.analysis.linear import Linear, number
from spdsl.analysis.pieces import Piece, TooComplexError
from spdsl.analysis.rows import Branch, ClosedForm, Lattice, Row

Guarding: TypeAlias = Literal["none", "folded", "highs", "both"]

Proof: TypeAlias = Callable[[ClosedForm], bool]

_ORDER: tuple[Guarding, ...] = ("none", "folded", "highs", "both")


def closed_form(
    members: Sequence[Piece],
    row: Row,
    proof: Proof,
    *,
    lattice: Lattice,
    filters: tuple[tuple[Linear, ...], ...] = (),
    may_open: bool = False,
) -> ClosedForm:
    """The shortest form found that ``proof`` accepts, with the given lattice and filters.  Raises `TooComplexError`.

    With ``may_open`` a side may lose all its bounds.
    """
    for form in _guesses(members, row):
        candidate = replace(form, lattice=lattice, filters=filters)
        if proof(candidate):
            return _shorten(_widened(candidate, row, proof), proof, may_open)
    raise TooComplexError("no bounds of this form describe the tiles")


def _widened(form: ClosedForm, row: Row, proof: Proof) -> ClosedForm:
    """Begin at tile 0 or end at the last one where the lattice and the tests say the rest."""
    first, last = (Branch(terms=(number(0),)),), (Branch(terms=(row.count.shifted(-1),)),)
    try:
        for wider in (replace(form, lows=first), replace(form, highs=last)):
            if wider != form and proof(wider):
                form = wider
    except BudgetSpentError:
        pass
    return form


def _guesses(members: Sequence[Piece], row: Row) -> Iterator[ClosedForm]:
    tried: set[tuple[tuple[Branch, ...], tuple[Branch, ...]]] = set()
    for inside in (False, True):
        for guarding in _ORDER:
            form = _guess(members, guarding, row if inside else None)
            key = (form.lows, form.highs)
            if key not in tried:
                tried.add(key)
                yield form


def _guess(members: Sequence[Piece], guarding: Guarding, inside: Row | None) -> ClosedForm:
    """Bounds of all members; with ``inside``, also the first and the last tile that exist."""
    lows: dict[Branch, None] = {}
    highs: dict[Branch, None] = {}
    for piece in members:
        low, high = piece.lows, piece.highs
        if inside is not None:
            low = tuple(dict.fromkeys((*low, number(0))))
            high = tuple(dict.fromkeys((*high, inside.count.shifted(-1))))
        if guarding == "folded" and piece.guards and piece.is_single:
            # one tile t where g >= 0, else none: the upper bound min(t, t + g) falls below t
            high = tuple(dict.fromkeys((*high, *(piece.lows[0].plus(g) for g in piece.guards))))
        lows[Branch(terms=low, guards=piece.guards if guarding == "both" else ())] = None
        highs[Branch(terms=high, guards=piece.guards if guarding in ("highs", "both") else ())] = None
    return ClosedForm(lows=tuple(lows), highs=tuple(highs))


def _shorten(form: ClosedForm, proof: Proof, may_open: bool) -> ClosedForm:
    """Drop branches, guards and terms for as long as ``proof`` holds."""
    try:
        shorter = True
        while shorter:
            shorter = False
            for candidate in _shorter(form, may_open):
                if proof(candidate):
                    form, shorter = candidate, True
                    break
    except BudgetSpentError:
        pass  # what is proved so far is right, only longer than it need be
    return form


def _shorter(form: ClosedForm, may_open: bool) -> Iterator[ClosedForm]:
    for lows in _shorter_side(form.lows, may_open):
        yield replace(form, lows=lows)
    for highs in _shorter_side(form.highs, may_open):
        yield replace(form, highs=highs)


def _shorter_side(side: tuple[Branch, ...], may_open: bool) -> Iterator[tuple[Branch, ...]]:
    if len(side) > 1 or may_open:
        for at in range(len(side)):
            yield side[:at] + side[at + 1 :]
    for at, branch in enumerate(side):
        for smaller in _shorter_branch(branch):
            yield (*side[:at], smaller, *side[at + 1 :])


def _shorter_branch(branch: Branch) -> Iterator[Branch]:
    for at in range(len(branch.guards)):
        yield replace(branch, guards=branch.guards[:at] + branch.guards[at + 1 :])
    if len(branch.terms) > 1:
        for at in range(len(branch.terms)):
            yield replace(branch, terms=branch.terms[:at] + branch.terms[at + 1 :])
