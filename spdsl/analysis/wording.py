"""An expression as the user would write it, for reasons and messages."""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import assert_never

from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, FreeParam, Index, Load, Noise, Param, Reduce, Top
from spdsl.semantics.ops import OPS
from spdsl.semantics.rewrite import transform

_LEVELS = (
    ("or",),
    ("and",),
    ("not",),
    ("lt", "le", "gt", "ge", "eq", "ne"),
    ("add", "sub"),
    ("mul", "div", "floordiv", "mod"),
)
_LEVEL = {op: level for level, ops in enumerate(_LEVELS) for op in ops} | {"neg": 6, "pow": 7}
_ATOM = 8


def describe(expr: Expr, limit: int = 60, stages: Mapping[str, Expr] | None = None) -> str:
    """Text of ``expr``, cut to ``limit`` characters; loads of ``stages`` are written as what they stand for."""
    text, _ = _text(_restored(expr, stages) if stages else expr)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _restored(expr: Expr, stages: Mapping[str, Expr]) -> Expr:
    return transform(expr, lambda node: stages.get(node.table) if isinstance(node, Load) else None)


def _text(expr: Expr) -> tuple[str, int]:
    match expr:
        case Const(value=value):
            return (str(value).lower() if isinstance(value, bool) else str(value)), _ATOM
        case Index(name=name) | Extent(name=name) | FreeParam(name=name):
            return name, _ATOM
        case Param(name=name, item=item):
            return (name if item is None else f"{name}[{item}]"), _ATOM
        case Coord(side=side, axis=axis):
            return f"{side}.{axis}", _ATOM
        case Load(table=table, indices=indices):
            return (f"{table}[{_list(indices)}]" if indices else table), _ATOM
        case Apply(op=op, args=args):
            return _apply(op, args)
        case Reduce(kind=kind, side=side, axis=axis, body=body):
            where = f"over = {side}" if axis is None else f"per = {side}.{axis}"
            return f"{kind}({_text(body)[0]}, {where})", _ATOM
        case Noise(per=per):
            return f"noise(per = ({_list(per)}))", _ATOM
        case Top(value=value, only=only, count=count):
            among = "" if only == Const(value=True) else f" |> only({_text(only)[0]})"
            return f"{_wrap(value, _ATOM)}{among} |> top({_text(count)[0]})", -1
        case _:
            assert_never(expr)


def _list(items: tuple[Expr, ...]) -> str:
    return ", ".join(_text(item)[0] for item in items)


def _apply(op: str, args: tuple[Expr, ...]) -> tuple[str, int]:
    level = _LEVEL.get(op)
    symbol = OPS[op].symbol
    if op == "where":
        return f"(if {_text(args[0])[0]} then {_text(args[1])[0]} else {_text(args[2])[0]})", _ATOM
    if level is None or not symbol:
        return f"{op}({_list(args)})", _ATOM
    if len(args) == 1:
        gap = " " if symbol.isalpha() else ""
        return f"{symbol}{gap}{_wrap(args[0], level)}", level
    # the right operand needs one level more: a - (b - c)
    return f"{_wrap(args[0], level)} {symbol} {_wrap(args[1], level + 1)}", level


def _wrap(expr: Expr, level: int) -> str:
    text, own = _text(expr)
    return text if own >= level else f"({text})"
