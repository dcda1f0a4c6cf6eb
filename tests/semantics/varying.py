"""Along which axes of positions an expression of the syntax tree varies.

A reduction removes the axes that are finer than its own, so an array without any is left as it is.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from spdsl.grammar import nodes as syntax
from tests.semantics.point import Later, Point


def axes_of(expr: Any, at: Point) -> set[str]:
    """The axes of positions along which an expression varies: ``q``, ``k``, ``q.blk``, …"""
    match expr:
        case syntax.Name(id="causal"):
            return {"q", "k"}
        case syntax.Name(id=("q" | "k") as side):
            return {side}
        case syntax.Name(id=name) if isinstance(at.names.get(name), Later):
            later = at.names[name]
            return axes_of(later.expr, replace(at, names=later.names))
        case syntax.Attribute(value=syntax.Name(id=("q" | "k") as side), name=name):
            named = {each.name for grid in at.grids if grid.name is not None for each in grid.coordinates}
            # Where the coordinate means something depends on the position itself.
            return {f"{side}.{name}", side} if name in named else {f"{side}.{name}"}
        case syntax.Call(function=syntax.Name(id=name), arguments=arguments) if isinstance(
            at.names.get(name), syntax.Def
        ):
            target = at.names[name]
            values = {
                parameter: Later(expr=argument.value, names=at.names)
                for parameter, argument in zip(target.parameters, arguments, strict=True)
            }
            return axes_of(target.value, replace(at, names={**at.names, **values}))
        case syntax.Call(
            function=syntax.Name(id=name), arguments=(body, syntax.Argument(name="per" | "over", value=along))
        ):
            if name == "noise":
                return axes_of(along, at)
            side = along.value.id if isinstance(along, syntax.Attribute) else along.id
            kept = {each for each in axes_of(body.value, at) if not each.startswith(side)}
            return kept | ({f"{side}.{along.name}"} if isinstance(along, syntax.Attribute) else set())
        case syntax.Call(function=syntax.Name(id=name)) if isinstance(at.names.get(name), syntax.Pattern):
            # The patterns of these tests that call others relate single positions.
            return {"q", "k"}
        case syntax.Node():
            parts = [getattr(expr, each.name) for each in fields(expr) if each.name != "span"]
            return set().union(*(axes_of(part, at) for part in parts))
        case tuple():
            return set().union(*(axes_of(part, at) for part in expr))
        case _:
            return set()
