"""Parameters without a value: from a checked pattern to one that has scalar inputs in their place.

For questions that are to be answered for every value of a parameter.  Of the pattern its ``keep`` alone is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from spdsl.diagnostics import error
from spdsl.semantics.nodes import Attend, CheckedPattern, Expr, Load, Param, Parameter, Table
from spdsl.semantics.report import did_you_mean
from spdsl.semantics.rewrite import transform, walk


def freed(checked: CheckedPattern, names: Collection[str]) -> CheckedPattern:
    """The pattern with these parameters free within their declared ranges.

    Raises:
        SpatError: a name that is no parameter (SP330), or a parameter that needs a value, since it is a float or a size
            of an axis, a grid or an input (SP412).
    """
    known = {each.name: each for each in checked.parameters}
    for name in names:
        if name not in known:
            raise error(
                "SP330",
                f"`{checked.name}` has no parameter `{name}`",
                checked.span,
                help=did_you_mean(name, known) or f"its parameters are {', '.join(known) or 'none'}",
            )
        if name not in freeable(checked):
            what = "is a float" if known[name].dtype == "float" else "is a size of an axis, a grid or an input"
            raise error(
                "SP412",
                f"`{name}` {what}, so that it cannot be left free",
                known[name].span,
                help=f"give it a value: `-p {name}=…`",
            )
    free = [known[name] for name in known if name in names]
    tables = tuple(
        Table(name=label, dtype=each.dtype, axes=(), bounds=each.bounds, sorted=False)
        for each in free
        for label in _labels(each)
    )
    return replace(
        checked,
        parameters=tuple(each for each in checked.parameters if each.name not in names),
        tables=checked.tables + tables,
        attend=Attend(keep=transform(checked.attend.keep, lambda node: _read(node, names)), span=checked.attend.span),
    )


def freeable(checked: CheckedPattern) -> frozenset[str]:
    """The parameters that may be left free."""
    sizes = {node.name for expr in _sizes(checked) for node in walk(expr) if isinstance(node, Param)}
    return frozenset(each.name for each in checked.parameters if each.dtype != "float" and each.name not in sizes)


def _sizes(checked: CheckedPattern) -> Iterator[Expr]:
    for axis in checked.axes:
        yield from (*axis.of, *(axis.size or ()), *axis.extents)
        yield from (expr for expr in (axis.step, axis.into) if expr is not None)
    for grid in checked.grids:
        yield from (grid.of, *(extent for _, extent in grid.coordinates))
    for table in checked.tables:
        yield from (axis.size for axis in table.axes)


def _labels(each: Parameter) -> list[str]:
    return [each.name] if each.length is None else [f"{each.name}[{item}]" for item in range(each.length)]


def _read(node: Expr, names: Collection[str]) -> Expr | None:
    if not isinstance(node, Param) or node.name not in names:
        return None
    label = node.name if node.item is None else f"{node.name}[{node.item}]"
    return Load(table=label, dtype=node.dtype, span=node.span)
