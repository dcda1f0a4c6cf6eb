"""Which tokens reach which through several layers, and the fewest layers through which all do, for every length.

In each layer a query takes from the keys that some head keeps, and from itself, by the residual connection.  Layers
compose; of one repeated pattern isl knows all powers at once, and so the fewest layers as a formula of n.  Where it
does not, single tokens are followed at one length.  What is kept whatever the inputs hold proves, what may be kept
refutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

import islpy as isl
import networkx as nx
from islpy import dim_type

from spdsl.analysis.budget import BudgetSpentError, as_int, limited, operations_end_as_spent
from spdsl.analysis.claims import Answer, decide
from spdsl.analysis.examples import Example, smallest
from spdsl.analysis.layers import Layers, closure, composed, identity_over, layers_of, points_of, step
from spdsl.analysis.pairs import Subject

TOKENS = 96
"""The length at which single tokens are followed where there is no formula."""

_LARGEST = 2 * TOKENS  # the largest grid whose tokens are followed one by one
_TRIED = 12  # layers, one after the other
_SECONDS = 3.0

Goal: TypeAlias = Literal["every earlier token", "every token"]

T = TypeVar("T")

_INPUTS = "it depends on the inputs or on a random choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The fewest layers through which every query takes from the whole goal.

    ``layers`` is a number or a formula of n, empty if there is none; ``reason`` then says why, with an ``example`` of a
    pair that no number of layers joins.  With ``at_most`` fewer may do for some inputs.  ``length`` is the one length
    for which the answer is known, None for all.
    """

    goal: Goal
    layers: str = ""
    at_most: bool = False
    length: int | None = None
    reason: str = ""
    example: Example | None = None


def through(subjects: Sequence[Subject]) -> tuple[Goal, Answer]:
    """Whether the layers, first to last, let every query take from the whole goal."""
    goal = _goal(subjects)
    try:
        with limited(seconds=_SECONDS):
            layers = layers_of(subjects)
            wanted = _wanted(layers, goal)
            return goal, _attempt(lambda: _composed(layers, wanted)) or _followed(layers, wanted)
    except BudgetSpentError:
        return goal, Answer(verdict="undecided", reason="the composition took too long")


def depth(subjects: Sequence[Subject]) -> Depth:
    """The fewest layers for one pattern, or for several in turn."""
    goal = _goal(subjects)
    try:
        with limited(seconds=_SECONDS):
            layers = layers_of(subjects)
            wanted = _wanted(layers, goal)
            found = _attempt(lambda: _never(layers, wanted, goal))
            if found is None and len(subjects) == 1:
                found = _attempt(lambda: _by_power(layers, wanted, goal))
            found = found or _attempt(lambda: _by_steps(layers, wanted, goal))
            if found is None and len(subjects) == 1:
                found = _attempt(lambda: _at_one_length(layers, goal))
    except BudgetSpentError:
        return Depth(goal=goal, reason="the composition took too long")
    if found is None:
        return Depth(goal=goal, reason=f"there is no formula, and {_TRIED} layers are not enough or took too long")
    return replace(found, at_most=bool(found.layers) and not layers.is_exact)


def _goal(subjects: Sequence[Subject]) -> Goal:
    is_causal = all(decide("causal", [subject]).verdict == "proven" for subject in dict.fromkeys(subjects))
    return "every earlier token" if is_causal else "every token"


def _attempt(find: Callable[[], T]) -> T | None:
    """An answer, if it is found within the limits on a single step."""
    isl.DEFAULT_CONTEXT.reset_operations()
    try:
        with operations_end_as_spent():
            return find()
    except BudgetSpentError:
        return None


def _wanted(layers: Layers, goal: Goal) -> isl.Map:
    positions = layers.positions
    pairs = isl.Map.from_domain_and_range(positions, positions)
    return pairs if goal == "every token" else pairs.intersect(isl.Map.lex_ge(positions.get_space()))


def _pairs(relation: isl.Map) -> isl.Set:
    return relation.wrap().flatten()


# ---------------------------------------------------------------- given layers


def _composed(layers: Layers, wanted: isl.Map) -> Answer:
    if wanted.is_subset(composed(layers.certain)):
        return Answer(verdict="proven")
    missing = wanted.subtract(composed(layers.possible))
    example = None
    if not missing.is_empty():
        example = smallest(_pairs(missing), layers.symbols, note="the query takes nothing from the key")
    if example is None:
        return Answer(verdict="undecided", reason=_INPUTS)
    return Answer(verdict="refuted", example=example)


def _followed(layers: Layers, wanted: isl.Map) -> Answer:
    """The answer at the one length of a grid, token by token."""
    length = layers.length
    if length is None or length > _LARGEST:
        raise BudgetSpentError("operations")
    goal = points_of(wanted, length)
    if all(_covers(row, reached) for row, reached in zip(goal, _rows(layers.certain, length), strict=True)):
        return Answer(verdict="proven")
    for query, (row, reached) in enumerate(zip(goal, _rows(layers.possible, length), strict=True)):
        if not _covers(row, reached):
            missing = row & ~reached
            key = (missing & -missing).bit_length() - 1
            note = "the query takes nothing from the key"
            return Answer(verdict="refuted", example=Example(query=query, key=key, values=(("n", length),), note=note))
    return Answer(verdict="undecided", reason=_INPUTS)


def _covers(row: int, reached: int) -> bool:
    return not row & ~reached


def _rows(relations: Sequence[isl.Map], length: int) -> list[int]:
    """For each query of the last layer the keys of the first that it takes from, as bits."""
    whole = points_of(relations[0], length)
    for relation in relations[1:]:
        whole = [_union(whole, row) for row in points_of(relation, length)]
    return whole


def _union(rows: Sequence[int], chosen: int) -> int:
    found = 0
    while chosen:
        low = chosen & -chosen
        found |= rows[low.bit_length() - 1]
        chosen ^= low
    return found


# ---------------------------------------------------------------- the fewest layers


def _never(layers: Layers, wanted: isl.Map, goal: Goal) -> Depth | None:
    """The answer where some pair is joined by no number of layers, or only for some inputs."""
    missing = wanted.subtract(closure(layers.possible)[0])
    if not missing.is_empty():
        example = smallest(_pairs(missing), layers.symbols, note="no number of layers joins them")
        return Depth(goal=goal, reason="no number of layers is enough", example=example)
    closed, is_exact = closure(layers.certain)
    return Depth(goal=goal, reason=_INPUTS) if is_exact and not wanted.is_subset(closed) else None


def _by_power(layers: Layers, wanted: isl.Map, goal: Goal) -> Depth | None:
    """The fewest layers from the powers of a relation, where isl knows them exactly."""
    powers, is_exact = layers.certain[0].power()
    if not is_exact:
        return None
    lengths = layers.lengths
    numbers = isl.Set.universe(powers.domain().get_space()).lower_bound_val(dim_type.set, 0, isl.Val(1))
    missing = isl.Map.from_domain_and_range(numbers, wanted.wrap()).subtract(powers)
    enough = numbers.subtract(missing.domain()).intersect_params(lengths).coalesce()
    for number in range(1, _TRIED + 1):
        if lengths.is_subset(enough.fix_val(dim_type.set, 0, isl.Val(number)).params()):
            return Depth(goal=goal, layers=str(number))
    pieces = enough.gist_params(lengths).remove_redundancies().get_basic_sets()
    bounds = _lower_bounds(pieces[0]) if len(pieces) == 1 else []
    if not bounds:
        return None
    return Depth(goal=goal, layers=bounds[0] if len(bounds) == 1 else f"max({', '.join(bounds)})")


def _lower_bounds(piece: isl.BasicSet) -> list[str]:
    """The constraints on the number of layers, each as what it must be at least; nothing if there are others."""
    found = []
    for constraint in piece.get_constraints():
        of = as_int(constraint.get_coefficient_val(dim_type.set, 0))
        if piece.dim(dim_type.div) or constraint.is_equality() or of <= 0:
            return []
        term = ""
        for at in range(piece.dim(dim_type.param)):
            by = -as_int(constraint.get_coefficient_val(dim_type.param, at))
            if by:
                term += f"{'-' if by < 0 else '+'} {'' if abs(by) == 1 else f'{abs(by)}*'}"
                term += f"{piece.get_dim_name(dim_type.param, at)} "
        rest = -as_int(constraint.get_constant_val())
        if rest or not term:
            term += f"{'-' if rest < 0 else '+'} {abs(rest)}"
        term = term.strip().removeprefix("+ ")
        found.append(term if of == 1 else f"ceil(({term}) / {of})")
    return sorted(found)


def _by_steps(layers: Layers, wanted: isl.Map, goal: Goal) -> Depth | None:
    """A number of layers that is enough at every length, if it is small."""
    reached = identity_over(layers)
    for number in range(_TRIED):
        reached = step(layers.certain[number % len(layers.certain)], reached)
        if wanted.is_subset(reached):
            return Depth(goal=goal, layers=str(number + 1))
    return None


def _at_one_length(layers: Layers, goal: Goal) -> Depth | None:
    """The fewest layers at one length, by following every token."""
    length = TOKENS if layers.length is None else layers.length
    if length > _LARGEST or layers.has_parameters:
        return None
    graph = nx.DiGraph()
    for query, row in enumerate(points_of(layers.certain[0], length)):
        graph.add_edges_from((query, key) for key in range(length) if row >> key & 1)
    most = 1
    for query in range(length):
        far = nx.single_source_shortest_path_length(graph, query)
        keys = range(query + 1 if goal == "every earlier token" else length)
        if any(key not in far for key in keys):
            return None
        most = max(most, *(far[key] for key in keys))
    return Depth(goal=goal, layers=str(most), length=None if layers.length is not None else length)
