"""Claims about the pairs that patterns keep, proved or refuted by isl for every length.

From `Subject`s to `Answer`s.  A claim is *proven* for all lengths, all inputs within their declared ranges, all random
draws, and all parameters that are left free; or *refuted* by an example that can come about; or neither, with the
reason.  Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import islpy as isl
from islpy import dim_type
from typing_extensions import assert_never

from spdsl.analysis.affine import is_program_constant
from spdsl.analysis.atoms import Atom
from spdsl.analysis.budget import BudgetSpentError, limited
from spdsl.analysis.examples import Example, smallest
from spdsl.analysis.pairs import Pairs, Subject, tables_of
from spdsl.analysis.wording import describe
from spdsl.diagnostics import SpatError
from spdsl.semantics import build
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Const, Expr, Load, Noise, Table, Top
from spdsl.semantics.rewrite import transform, walk

Claim: TypeAlias = Literal["nonempty", "causal", "within", "equals", "disjoint"]
Verdict: TypeAlias = Literal["proven", "refuted", "undecided"]

SECONDS = 2.0
"""Wall-clock time for one attempt at a claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is known of a claim: an ``example`` if it is refuted, a ``reason`` if it is undecided."""

    verdict: Verdict
    example: Example | None = None
    reason: str = ""


def decide(claim: Claim, subjects: Sequence[Subject]) -> Answer:
    """The answer for one subject, or for two (``within``, ``equals``, ``disjoint``)."""
    try:
        with limited(seconds=SECONDS):
            pairs = Pairs.of(subjects)
            certain, possible = _against(claim, pairs)
            if possible.is_empty():
                return Answer(verdict="proven")
            example = _example(claim, certain, pairs, subjects)
            if example is not None:
                return Answer(verdict="refuted", example=example)
    except BudgetSpentError:
        return Answer(verdict="undecided", reason="the search for a proof took too long")
    return _in_some_world(claim, subjects) or Answer(verdict="undecided", reason=_reason(pairs))


def _against(claim: Claim, pairs: Pairs) -> tuple[isl.Set, isl.Set]:
    """The points at which a claim is false whatever the atoms are, and those at which it may be."""
    if claim == "nonempty":
        rows = pairs.somehow(pairs.exist).project_out(dim_type.set, 1, 1)
        kept = pairs.kept[0]
        some, sure = pairs.somehow(kept), pairs.always(kept)
        missing = [rows.subtract(each.project_out(dim_type.set, 1, 1)).coalesce() for each in (some, sure)]
        return missing[0], missing[1]
    false = _false(claim, pairs).coalesce()
    return pairs.always(false), pairs.somehow(false)


def _false(claim: Claim, pairs: Pairs) -> isl.Set:
    kept = pairs.kept[0]
    match claim:
        case "causal":
            local = isl.LocalSpace.from_space(kept.get_space())
            q, k = (isl.Aff.var_on_domain(local, dim_type.set, side) for side in (0, 1))
            return kept.intersect(k.gt_set(q))
        case "within":
            return kept.subtract(pairs.kept[1])
        case "equals":
            return kept.subtract(pairs.kept[1]).union(pairs.kept[1].subtract(kept))
        case "disjoint":
            return kept.intersect(pairs.kept[1])
        case "nonempty":
            raise AssertionError("a claim about rows, not pairs")
        case _:
            assert_never(claim)


def _example(
    claim: Claim, points: isl.Set, pairs: Pairs, subjects: Sequence[Subject], inputs: str = ""
) -> Example | None:
    if points.is_empty():
        return None
    if claim == "equals":
        # which of the two keeps the pair is part of the answer
        for kept, other, by in ((0, 1, 0), (1, 0, 1)):
            only = pairs.always(pairs.kept[kept].subtract(pairs.kept[other]))
            if not only.is_empty():
                found = smallest(only, pairs.symbols, inputs=inputs, note=_only(subjects, by))
                if found is not None:
                    return found
        return None
    note = {
        "nonempty": "keeps nothing",
        "causal": "a later key is kept",
        "within": _only(subjects, 0) if claim == "within" else "",
        "disjoint": "both keep the pair",
    }[claim]
    return smallest(points, pairs.symbols, inputs=inputs, note=note)


def _only(subjects: Sequence[Subject], by: int) -> str:
    return f"kept by the {('first', 'second')[by]}, `{subjects[by].pattern.name}`, alone"


# ---------------------------------------------------------------- inputs that refute


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """A rule that gives the tables that are read by position their values, and how to say it of a table."""

    element: Callable[[Table, Expr], Expr | None]
    text: str


def _lowest(table: Table, place: Expr) -> Expr | None:
    del place
    return Const(value=False) if table.dtype == "bool" else Const(value=_low(table))


def _by_place(table: Table, place: Expr) -> Expr | None:
    if table.dtype == "bool":
        return build.apply("eq", build.mod(place, 2), 0)
    bounded = table.bounds is not None and table.bounds.high is not None
    return None if bounded else build.add(place, _low(table))


def _highest(table: Table, place: Expr) -> Expr | None:
    del place
    if table.dtype == "bool":
        return Const(value=True)
    high = None if table.bounds is None else table.bounds.high
    return Const(value=int(high) if high is not None else _low(table) + 1)


def _low(table: Table) -> int:
    if table.bounds is None:
        return 0
    low, high = table.bounds.low, table.bounds.high
    return int(low) if low is not None else min(0, int(high)) if high is not None else 0


_WORLDS = (
    _World(element=_lowest, text="{name} is {value} everywhere"),
    _World(element=_highest, text="{name} is {value} everywhere"),
    _World(element=_by_place, text="{name}[{place}] is {value}"),
)


def _in_some_world(claim: Claim, subjects: Sequence[Subject]) -> Answer | None:
    """A refutation by simple values of the inputs, if one is found."""
    tables = [table for table in tables_of(subjects) if table.dtype != "float" and _is_read_by_place(table, subjects)]
    if not tables:
        return None
    for world in _WORLDS:
        try:
            placed = tuple(_placed(subject, world, tables) for subject in subjects)
            if any(each is None for each in placed):
                continue
            there = [each for each in placed if each is not None]
            with limited(seconds=SECONDS):
                pairs = Pairs.of(there)
                certain, _ = _against(claim, pairs)
                example = _example(claim, certain, pairs, there, _told(world, tables))
        except (BudgetSpentError, SpatError):  # SpatError: arithmetic that has no value in this world
            continue
        if example is not None:
            return Answer(verdict="refuted", example=example)
    return None


def _is_read_by_place(table: Table, subjects: Sequence[Subject]) -> bool:
    return any(
        isinstance(node, Load) and node.table == table.name and not is_program_constant(node)
        for subject in subjects
        for node in walk(subject.keep)
    )


def _placed(subject: Subject, world: _World, tables: Sequence[Table]) -> Subject | None:
    by_name = {table.name: table for table in tables}
    failed = False

    def rewrite(node: Expr) -> Expr | None:
        nonlocal failed
        if not isinstance(node, Load) or node.table not in by_name:
            return None
        value = world.element(by_name[node.table], node.indices[-1])
        failed |= value is None
        return value

    keep = fold(transform(subject.keep, rewrite))
    return None if failed else replace(subject, keep=keep)


def _told(world: _World, tables: Sequence[Table]) -> str:
    told = []
    for table in tables:
        value = world.element(table, Load(table="i", dtype="int"))
        if value is not None:
            shown = "true at even i" if table.dtype == "bool" and world.element is _by_place else describe(fold(value))
            place = "i" if len(table.axes) == 1 else "…, i"
            told.append(world.text.format(name=table.name, value=shown, place=place))
    return " and ".join(told)


# ---------------------------------------------------------------- reasons


def _reason(pairs: Pairs) -> str:
    """Why nothing is known, from the atoms that stand in the way."""
    inputs = sorted({name for atom in pairs.atoms for name in _inputs(atom)})
    if inputs:
        plural = "s" if len(inputs) > 1 else ""
        return f"it depends on the input{plural} {', '.join(f'`{name}`' for name in inputs)}"
    if any(isinstance(node, Noise | Top) for atom in pairs.atoms for node in walk(atom.clause)):
        return "it depends on a random choice"
    if pairs.atoms:
        return f"it needs {pairs.atoms[0].why}"
    return "the parameters are related in a way that isl does not know"


def _inputs(atom: Atom) -> set[str]:
    return {node.table for node in walk(atom.clause) if isinstance(node, Load)}
