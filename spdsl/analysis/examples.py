"""Small points of isl sets as examples that a person can check, and whether such a point can come about.

Parameters that stand for elements of inputs take any value in a set.  Two of them may be one element, and what is
computed from positions but is not affine has a value of its own: `is_consistent` compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import islpy as isl
from islpy import dim_type

from spdsl.analysis.affine import Symbols
from spdsl.analysis.budget import BudgetSpentError, as_int, operations_end_as_spent
from spdsl.analysis.wording import describe
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load
from spdsl.semantics.ops import OPS

_SMALL = 1 << 20  # examples are looked for among these values first
_ORDER = ("n", "nq", "q_start", "q", "k", "h", "g", "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A pair, or a query if ``key`` is None, and values of everything else that matters by the names the user knows.

    ``inputs`` says what tables hold where that matters beyond ``values``; ``note`` what is true of the pair.
    """

    query: int
    key: int | None
    values: tuple[tuple[str, int | bool], ...]
    inputs: str = ""
    note: str = ""

    @property
    def where(self) -> str:
        """The pair or query and the values."""
        pair = [("q", self.query)] + ([] if self.key is None else [("k", self.key)])
        shown = ", ".join(f"{name} = {str(value).lower()}" for name, value in (*pair, *self.values))
        return shown + (f", where {self.inputs}" if self.inputs else "")

    def __str__(self) -> str:
        return self.where + (f": {self.note}" if self.note else "")


def smallest(points: isl.Set, symbols: Symbols, *, inputs: str = "", note: str = "") -> Example | None:
    """An example from a set of ``[q]`` or ``[q, k]`` that is not empty, the smallest if that is found soon.

    The smallest has the smallest ``n``, then the smallest query, key and head.  None if the point found cannot come
    about.
    """
    sides = ["q", "k"][: points.dim(dim_type.set)]
    found = _point(points, sides)
    meaning = {name: expr for name, expr in symbols.meaning if name in found}
    if not is_consistent(found, meaning):
        return None
    shown = sorted(meaning, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    values = tuple(
        (describe(meaning[name]), bool(found[name]) if meaning[name].dtype == "bool" else found[name]) for name in shown
    )
    key = found["k"] if "k" in sides else None
    return Example(query=found["q"], key=key, values=values, inputs=inputs, note=note)


def _point(points: isl.Set, sides: Sequence[str]) -> dict[str, int]:
    names = [*(points.get_dim_name(dim_type.param, i) for i in range(points.dim(dim_type.param))), *sides]
    flat = points.move_dims(dim_type.set, 0, dim_type.param, 0, points.dim(dim_type.param))
    order = sorted(range(len(names)), key=lambda i: _ORDER.index(names[i]) if names[i] in _ORDER else len(_ORDER))
    small = flat
    for position in range(len(names)):
        small = small.lower_bound_val(dim_type.set, position, isl.Val(0))
        small = small.upper_bound_val(dim_type.set, position, isl.Val(_SMALL))
    try:
        with operations_end_as_spent():
            if small.is_empty():
                return _coordinates(flat.sample_point(), names)
            # the smallest in this order of names
            places = ", ".join(f"i{position}" for position in range(len(names)))
            turned = isl.Map(f"{{ [{places}] -> [{', '.join(f'i{position}' for position in order)}] }}")
            return _coordinates(small.apply(turned).lexmin().sample_point(), [names[position] for position in order])
    except BudgetSpentError:
        return _coordinates(flat.sample_point(), names)


def _coordinates(point: isl.Point, names: Sequence[str]) -> dict[str, int]:
    return {name: as_int(point.get_coordinate_val(dim_type.set, i)) for i, name in enumerate(names)}


def is_consistent(point: Mapping[str, int], meaning: Mapping[str, Expr]) -> bool:
    """Whether inputs exist that give all parameters the values of a point."""
    elements: dict[tuple[str, tuple[int, ...]], int] = {}
    loads = [(name, expr) for name, expr in meaning.items() if isinstance(expr, Load)]
    for name, expr in sorted(loads, key=lambda each: len(describe(each[1]))):  # what an index reads comes first
        indices = [_value(index, point, elements) for index in expr.indices]
        if any(index is None for index in indices):
            return False
        place = (expr.table, tuple(int(index) for index in indices if index is not None))
        if elements.setdefault(place, point[name]) != point[name]:
            return False
    others = [(name, expr) for name, expr in meaning.items() if isinstance(expr, Apply)]
    return all(_value(expr, point, elements) == point[name] for name, expr in others)


def _value(
    expr: Expr, point: Mapping[str, int], elements: Mapping[tuple[str, tuple[int, ...]], int]
) -> int | float | None:
    """The value of an expression over what is fixed for a call; None if it is not known or has none."""
    match expr:
        case Const(value=value):
            return value
        case Index(name=name) | Extent(name=name):
            return point.get(name, 0 if name in ("h", "g", "b") else None)
        case Load(table=table, indices=indices):
            places = [_value(index, point, elements) for index in indices]
            known = tuple(int(place) for place in places if place is not None)
            return elements.get((table, known)) if len(known) == len(places) else None
        case Apply(op=op, args=args):
            values = [_value(arg, point, elements) for arg in args]
            if any(value is None for value in values):
                return None
            try:
                return OPS[op].fold(*values)  # type: ignore[no-any-return]
            except (ArithmeticError, ValueError):
                return None
        case _:
            return None
