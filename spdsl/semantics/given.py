"""The values that are given for the parameters of a pattern, each checked against its declaration."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping
from typing import TypeAlias

from spdsl.diagnostics import SpatError, error
from spdsl.semantics.fold import INT_HIGH, INT_LOW
from spdsl.semantics.nodes import CheckedPattern, FreeParam, Parameter
from spdsl.semantics.report import did_you_mean

Value: TypeAlias = "bool | int | float"


def open_parameter(declared: Parameter) -> FreeParam:
    """A parameter as it stands in bound patterns while it is free."""
    low, high = (None, None) if declared.bounds is None else (declared.bounds.low, declared.bounds.high)
    return FreeParam(name=declared.name, low=_whole(low), high=_whole(high))


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def parameter_values(checked: CheckedPattern, given: Mapping[str, object]) -> dict[str, Value | tuple[Value, ...]]:
    """The value of every parameter, given or by default.

    Raises:
        SpatError: as `bind` (SP330 to SP334).
    """
    return values_of(checked, given, ())


def values_of(
    checked: CheckedPattern, given: Mapping[str, object], free: Collection[str]
) -> dict[str, Value | tuple[Value, ...]]:
    """The value of every parameter that is not ``free``, as `parameter_values`."""
    names = [declared.name for declared in checked.parameters]
    for name in given:
        if name not in names:
            has = f"its parameters are {', '.join(names)}" if names else "it has none"
            raise error(
                "SP330",
                f"`{checked.name}` has no parameter `{name}`",
                checked.span,
                help=did_you_mean(str(name), names) or has,
            )
    found: dict[str, Value | tuple[Value, ...]] = {}
    for declared in checked.parameters:
        if declared.name in free:
            continue
        if declared.name in given:
            found[declared.name] = _value(declared, given[declared.name])
        elif declared.default is not None:
            found[declared.name] = declared.default
        else:
            raise error(
                "SP331",
                f"`{checked.name}` needs a value for `{declared.name}`",
                declared.span,
                note=_kind(declared),
                help=f"pass `{declared.name}=…`",
            )
    return found


def _kind(declared: Parameter) -> str:
    return declared.dtype if declared.length is None else f"{declared.dtype}[{declared.length}]"


def _value(declared: Parameter, value: object) -> Value | tuple[Value, ...]:
    if declared.length is None:
        return _one(declared, value, declared.name)
    items = value if isinstance(value, (tuple, list)) else (value,) if declared.length == 1 else None
    if items is None or len(items) != declared.length:
        found = f"{value!r:.80} is" if items is None else f"{len(items)} values are"
        raise error(
            "SP334",
            f"`{declared.name}` is a tuple of {declared.length}, but {found} given",
            declared.span,
            note=_kind(declared),
            help=f"pass {declared.length} values",
        )
    return tuple(_one(declared, item, f"{declared.name}[{place}]") for place, item in enumerate(items))


def _one(declared: Parameter, value: object, name: str) -> Value:
    found: Value
    match declared.dtype:
        case "bool":
            if not isinstance(value, bool):
                raise _wrong_kind(name, declared, value)
            found = value
        case "int":
            found = integer(value, name, declared)
        case "float":
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise _wrong_kind(name, declared, value)
            try:
                found = float(value)
            except OverflowError:
                raise error(
                    "SP332", f"`{name}` is larger than any float", declared.span, help="pass a smaller number"
                ) from None
    bounds = declared.bounds
    if bounds is not None:
        low, high = bounds.low, bounds.high
        if not ((low is None or found >= low) and (high is None or found <= high)):
            text = f"{'' if low is None else low}..{'' if high is None else high}"
            raise error(
                "SP333",
                f"`{name}` is {found}, but must be in {text}",
                declared.span,
                note="declared here",
                help="pass a value of this range",
            )
    return found


def integer(value: object, name: str, declared: Parameter | None) -> int:
    """An int of 64 bits; SP332 for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _wrong_kind(name, declared, value)
    found = int(value)
    if not INT_LOW <= found <= INT_HIGH:
        raise error(
            "SP332",
            f"`{name}` does not fit into 64 bits",
            declared.span if declared else None,
            help="pass a smaller number",
        )
    return found


def _wrong_kind(name: str, declared: Parameter | None, value: object) -> SpatError:
    wanted = {"bool": "a bool", "int": "an int", "float": "a float"}[declared.dtype if declared else "int"]
    return error(
        "SP332",
        f"`{name}` needs {wanted}, but {value!r:.80} is {_a_type(value)}",
        declared.span if declared else None,
        note="declared here" if declared else "",
        help=f"pass {wanted}",
    )


def _a_type(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
