"""Layers of attention as isl relations from queries to the keys that they take from, for `reach`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import islpy as isl
from islpy import dim_type

from spdsl.analysis.affine import Symbols
from spdsl.analysis.budget import as_int
from spdsl.analysis.pairs import Pairs, Subject
from spdsl.semantics.nodes import Expr, Load

_PLACES = ("nq", "q_start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """For each layer, first to last, the pairs that some head keeps, with all queries on themselves.

    ``certain`` whatever inputs and draws are, ``possible`` for some of them; ``lengths`` are the values of n and of
    free parameters, and ``positions`` the tokens.
    """

    certain: tuple[isl.Map, ...]
    possible: tuple[isl.Map, ...]
    lengths: isl.Set
    positions: isl.Set
    symbols: Symbols

    @property
    def is_exact(self) -> bool:
        """Whether inputs and draws do not matter."""
        return all(a.is_equal(b) for a, b in zip(self.certain, self.possible, strict=True))

    @property
    def has_parameters(self) -> bool:
        """Whether anything but n is free."""
        return bool(self.lengths.dim(dim_type.param) > 1)

    @property
    def length(self) -> int | None:
        """The one value of n, if a grid demands one."""
        if self.has_parameters:
            return None
        values = self.lengths.move_dims(dim_type.set, 0, dim_type.param, 0, 1)
        if not values.is_singleton():
            return None
        return as_int(values.sample_point().get_coordinate_val(dim_type.set, 0))


def layers_of(subjects: Sequence[Subject]) -> Layers:
    """The layers of bound patterns.  Uses isl: call it under a budget."""
    pairs = Pairs.of(list(subjects))
    meaning = dict(pairs.symbols.meaning)
    inputs = [name for name, expr in meaning.items() if name not in ("n", "h", "g", *_PLACES) and not _is_free(expr)]
    places = [name for name in meaning if name in _PLACES]
    exist, rest = pairs.exist, pairs.exist
    if places:  # all queries
        exist = exist.fix_val(dim_type.param, exist.find_dim_by_name(dim_type.param, "q_start"), isl.Val(0))
        rest = exist
    for name in (*inputs, *places):
        rest = _project(rest, name)
    lengths = rest
    for name in ("h", "g"):
        lengths = _project(lengths, name)
    positions = lengths.project_out(dim_type.set, 1, 1)
    certain: list[isl.Map] = []
    possible: list[isl.Map] = []
    for kept in pairs.kept:
        some, missing = kept.intersect(exist), exist.subtract(kept)
        for name in (*inputs, *places):
            some, missing = _project(some, name), _project(missing, name)
        for into, points in ((certain, rest.subtract(missing)), (possible, some)):
            into.append(_with_selves(points, positions))
    return Layers(
        certain=tuple(certain),
        possible=tuple(possible),
        lengths=lengths.params(),
        positions=positions,
        symbols=pairs.symbols,
    )


def _is_free(expr: Expr) -> bool:
    """A scalar, the same for all layers and heads; an atom is none."""
    return isinstance(expr, Load) and not expr.indices and not expr.table.startswith("?")


def _project(points: isl.Set, name: str) -> isl.Set:
    at = points.find_dim_by_name(dim_type.param, name)
    return points if at < 0 else points.project_out(dim_type.param, at, 1).coalesce()


def _with_selves(points: isl.Set, positions: isl.Set) -> isl.Map:
    for name in ("h", "g"):
        points = _project(points, name)
    # a set of [q, k] as a relation from q to k
    relation = isl.Map.from_domain(points).move_dims(dim_type.out, 0, dim_type.in_, 1, 1)
    return relation.union(positions.identity()).coalesce()


def identity_over(layers: Layers) -> isl.Map:
    """Every token takes from itself alone: no layer."""
    return layers.positions.identity()


def step(layer: isl.Map, reached: isl.Map) -> isl.Map:
    """One layer after those through which ``reached`` holds."""
    isl.DEFAULT_CONTEXT.reset_operations()
    return layer.apply_range(reached).coalesce()


def composed(layers: Sequence[isl.Map]) -> isl.Map:
    """From a query of the last layer to the keys of the first that it takes from."""
    whole = layers[0]
    for layer in layers[1:]:
        whole = step(layer, whole)
    return whole


def closure(layers: Sequence[isl.Map]) -> tuple[isl.Map, bool]:
    """All pairs that layers join, in any order and number; or, where the second is False, more of them."""
    together = layers[0]
    for layer in layers[1:]:
        together = together.union(layer).coalesce()
    closed, is_exact = together.transitive_closure()
    return closed, bool(is_exact)


def points_of(relation: isl.Map, length: int) -> list[int]:
    """For each query of ``length`` tokens its keys, as bits."""
    rows = [0] * length

    def add(point: isl.Point) -> None:
        q, k = (as_int(point.get_coordinate_val(dim_type.set, side)) for side in (0, 1))
        rows[q] |= 1 << k

    at = relation.find_dim_by_name(dim_type.param, "n")
    relation.fix_val(dim_type.param, at, isl.Val(length)).wrap().flatten().foreach_point(add)
    return rows
