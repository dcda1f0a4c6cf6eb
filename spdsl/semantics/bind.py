"""From a checked pattern and the values of its parameters to a bound one, in which only run-time lengths are open.

It checks the values against their declarations and folds.  What depends on tensors is checked at the call.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from spdsl.diagnostics import error
from spdsl.semantics.bounds import Facts
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import (
    Attend,
    Axis,
    BoundPattern,
    CheckedPattern,
    Const,
    Dtype,
    Expr,
    Extent,
    Grid,
    Param,
    Parameter,
    Table,
)
from spdsl.semantics.rewrite import mentions, transform

Scalar = bool | int | float
Value = Scalar | tuple[Scalar, ...]


def bind(
    checked: CheckedPattern,
    parameters: Mapping[str, object],
    *,
    layer: int | None,
    heads: int,
    groups: int,
    head_dim: int,
) -> BoundPattern:
    """Fix the parameters (by name; defaults fill in), the layer, and the sizes that a call knows.

    Raises:
        SpatError: an unknown or missing parameter, a value of the wrong kind or out of range (SP32x), a missing layer, or
            an operation that these values make impossible (SP307).
    """
    values = parameter_values(checked, parameters)
    if layer is None and any(mentions(expr, Extent(name="layer")) for expr in _expressions(checked)):
        raise error(
            "SP325",
            f"`{checked.name}` depends on `layer`, but no layer is given",
            checked.span,
            help="give it: `spdsl.compile(…, layer=0)`, or `--layer 0` on the command line",
        )
    sizes = {"layer": layer or 0, "heads": heads, "groups": groups, "d": head_dim}
    facts = Facts(
        tables={t.name: (t.bounds.low, t.bounds.high) for t in checked.tables if t.bounds is not None},
        indices={"h": (0, heads - 1), "g": (0, groups - 1)},
    )

    def close(expr: Expr) -> Expr:
        return fold(transform(expr, lambda node: _fixed(node, values, sizes)), facts=facts)

    return BoundPattern(
        name=checked.name,
        parameters=tuple(values.items()),
        tables=tuple(_table(table, close) for table in checked.tables),
        axes=tuple(_axis(axis, close) for axis in checked.axes),
        grids=tuple(_grid(grid, close) for grid in checked.grids),
        attend=_attend(checked.attend, close),
        layer=layer or 0,
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        text=checked.text,
        span=checked.span,
    )


def parameter_values(checked: CheckedPattern, given: Mapping[str, object]) -> dict[str, Value]:
    """The value of every parameter, checked against its declaration."""
    known = {each.name for each in checked.parameters}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            listed = ", ".join(f"`{each.name}`" for each in checked.parameters)
            raise error(
                "SP321",
                f"`{checked.name}` has no parameter `{name}`",
                checked.span,
                help=f"did you mean `{close[0]}`?" if close else f"its parameters are {listed}" if listed else "it has none",
            )
    return {each.name: _value(checked, each, given) for each in checked.parameters}


def _value(checked: CheckedPattern, declared: Parameter, given: Mapping[str, object]) -> Value:
    value = given.get(declared.name, declared.default)
    if value is None:
        raise error(
            "SP322",
            f"`{checked.name}` needs a value for `{declared.name}`",
            declared.span,
            note="has no default",
            help=f"give it: `{declared.name}=…` in Python, `-p {declared.name}=…` on the command line",
        )
    if declared.length is None:
        return _item(declared, value)
    if not isinstance(value, (tuple, list)) or len(value) != declared.length:
        raise error(
            "SP323",
            f"`{declared.name}` must be {declared.length} values of type {declared.dtype}, not {value!r}",
            declared.span,
            help=f"for example `{declared.name}=({', '.join(['1'] * declared.length)}{',' if declared.length == 1 else ''})`",
        )
    return tuple(_item(declared, item) for item in value)


_KINDS: dict[Dtype, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float)}


def _item(declared: Parameter, value: object) -> Scalar:
    fits = isinstance(value, _KINDS[declared.dtype]) and (declared.dtype == "bool" or not isinstance(value, bool))
    if not fits:
        raise error(
            "SP323",
            f"`{declared.name}` must be {_article(declared.dtype)}, not {value!r}",
            declared.span,
            note=f"declared as {declared.dtype}",
            help="give a value of this type",
        )
    assert isinstance(value, (bool, int, float))
    if isinstance(value, float) and not math.isfinite(value):
        raise error("SP323", f"`{declared.name}` is {value}, but must be finite", declared.span, help="give a finite number")
    if declared.dtype == "int" and not -(2**63) <= value < 2**63:
        raise error("SP323", f"`{declared.name}` does not fit into 64 bits", declared.span, help="give a smaller number")
    bounds = declared.bounds
    low, high = (None, None) if bounds is None else (bounds.low, bounds.high)
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"{'' if low is None else low}..{'' if high is None else high}"
        raise error(
            "SP324",
            f"`{declared.name}` is {value}, outside {span}",
            declared.span,
            note=f"declared in {span}",
            help=f"give a value {'' if low is None else f'of at least {low}'}"
            f"{' and ' if low is not None and high is not None else ''}{'' if high is None else f'of at most {high}'}",
        )
    return float(value) if declared.dtype == "float" else value


def _article(dtype: Dtype) -> str:
    return {"bool": "true or false", "int": "an int", "float": "a float"}[dtype]


def _fixed(node: Expr, values: Mapping[str, Value], sizes: Mapping[str, int]) -> Expr | None:
    match node:
        case Param(name=name, item=item):
            value = values[name]
            if isinstance(value, tuple):
                assert item is not None
                value = value[item]
            return Const(value=value, span=node.span)
        case Extent(name=name) if name in sizes:
            return Const(value=sizes[name], span=node.span)
        case _:
            return None


def _expressions(checked: CheckedPattern) -> list[Expr]:
    attend = checked.attend
    found = [attend.keep, attend.bias, attend.scale, attend.softcap, attend.sink_logit]
    for axis in checked.axes:
        found += [*axis.of, *(axis.size or ()), axis.step, axis.into, *axis.extents]
    for grid in checked.grids:
        found += [grid.of, *(extent for _, extent in grid.coordinates)]
    for table in checked.tables:
        found += [each.size for each in table.axes]
    return [expr for expr in found if expr is not None]


Close = Callable[[Expr], Expr]


def _maybe(expr: Expr | None, close: Close) -> Expr | None:
    return None if expr is None else close(expr)


def _attend(attend: Attend, close: Close) -> Attend:
    return replace(
        attend,
        keep=close(attend.keep),
        bias=_maybe(attend.bias, close),
        scale=_maybe(attend.scale, close),
        softcap=_maybe(attend.softcap, close),
        sink_logit=_maybe(attend.sink_logit, close),
    )


def _table(table: Table, close: Close) -> Table:
    return replace(table, axes=tuple(replace(axis, size=close(axis.size)) for axis in table.axes))


def _axis(axis: Axis, close: Close) -> Axis:
    size = None if axis.size is None else tuple(_positive(close(each), axis, "size") for each in axis.size)
    return replace(
        axis,
        of=tuple(close(each) for each in axis.of),
        size=size,
        step=None if axis.step is None else _positive(close(axis.step), axis, "step"),
        into=None if axis.into is None else _positive(close(axis.into), axis, "number of parts"),
        extents=tuple(close(each) for each in axis.extents),
    )


def _grid(grid: Grid, close: Close) -> Grid:
    return replace(
        grid,
        of=close(grid.of),
        coordinates=tuple((name, _positive(close(extent), grid, f"extent `{name}`")) for name, extent in grid.coordinates),
    )


def _positive(expr: Expr, of: Axis | Grid, what: str) -> Expr:
    """Sizes of axes and grids are constants of at least 1; an extent may also be a run-time length."""
    if isinstance(expr, Const) and (not isinstance(expr.value, int) or expr.value < 1):
        kind = "axis" if isinstance(of, Axis) else "grid"
        raise error(
            "SP326",
            f"the {what} of {kind} `{of.name or '(unnamed)'}` is {expr.value}, but must be an int of at least 1",
            expr.span or of.span,
            help="check the parameters it is made from",
        )
    return expr
