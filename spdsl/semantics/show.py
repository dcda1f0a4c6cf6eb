"""Checked and bound patterns as text to read: `dump` for whole patterns, `print_expr` for one expression."""

from __future__ import annotations

from collections.abc import Iterable

from spdsl.semantics.graph import Attention, Descend, Mark, Merge, Pool, Prefix, Score, Select, Smooth, Softmax, Stage
from spdsl.semantics.nodes import (
    Apply,
    Attend,
    Axis,
    BoundPattern,
    Bounds,
    CheckedPattern,
    Const,
    Coord,
    Expr,
    Extent,
    FreeParam,
    Grid,
    Index,
    Load,
    Noise,
    Param,
    Reduce,
    Table,
    Top,
)
from spdsl.semantics.ops import OPS

_LEVELS = {
    "or": 1,
    "and": 2,
    "not": 3,
    "add": 5,
    "sub": 5,
    "mul": 6,
    "div": 6,
    "floordiv": 6,
    "mod": 6,
    "neg": 7,
    "pow": 8,
}
_LEVELS |= dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), 4)
_ATOM = 9


def print_expr(expr: Expr) -> str:
    """Compact infix text, with the parentheses that the language would need."""
    return _text(expr)[0]


def _text(expr: Expr) -> tuple[str, int]:
    match expr:
        case Const(value=bool() as value):
            return ("true" if value else "false"), _ATOM
        case Const(value=value):
            return repr(value), _ATOM if value >= 0 else 7
        case Index(name=name) | Extent(name=name) | FreeParam(name=name):
            return name, _ATOM
        case Param(name=name, item=item):
            return name if item is None else f"{name}[{item}]", _ATOM
        case Coord(side=side, axis=axis):
            return f"{side}.{axis}", _ATOM
        case Load(table=table, indices=indices):
            return table + (f"[{_list(indices)}]" if indices else ""), _ATOM
        case Reduce(kind=kind, side=side, axis=axis, body=body):
            along = f"over = {side}" if axis is None else f"per = {side}.{axis}"
            return f"{kind}({print_expr(body)}, {along})", _ATOM
        case Noise(seed=seed, per=per):
            return f"noise({print_expr(seed)}, per = ({_list(per)}))", _ATOM
        case Top(value=value, only=only, count=count, side=side, axis=axis):
            along = side if axis is None else f"{side}.{axis}"
            return f"top({print_expr(value)}, {print_expr(count)}, only = {print_expr(only)}, over = {along})", _ATOM
        case Apply(op="where", args=(condition, yes, no)):
            return f"if {_at(condition, 1)} then {_at(yes, 1)} else {_at(no, 1)}", 0
        case Apply(op=op, args=args) if op in _LEVELS:
            return _operator(op, args), _LEVELS[op]
        case Apply(op=op, args=args):
            return f"{op}({_list(args)})", _ATOM


def _operator(op: str, args: tuple[Expr, ...]) -> str:
    level, symbol = _LEVELS[op], OPS[op].symbol
    if op == "not":
        return f"not {_at(args[0], level)}"
    if op == "neg":
        return f"-{_at(args[0], level)}"
    # Comparisons do not chain here, powers lean to the right, the rest to the left.
    left = level + 1 if level == 4 or op == "pow" else level
    right = 7 if op == "pow" else level + 1
    return f"{_at(args[0], left)} {symbol} {_at(args[1], right)}"


def _at(expr: Expr, level: int) -> str:
    text, own = _text(expr)
    return text if own >= level else f"({text})"


def _list(exprs: Iterable[Expr]) -> str:
    return ", ".join(print_expr(expr) for expr in exprs)


def dump(pattern: CheckedPattern | BoundPattern) -> str:
    """A pattern with its types, one declaration a line."""
    lines: list[str] = []
    match pattern:
        case CheckedPattern():
            lines.append(f"checked {pattern.name}")
            for parameter in pattern.parameters:
                kind = parameter.dtype + (f"[{parameter.length}]" if parameter.length is not None else "")
                default = "" if parameter.default is None else f" = {_value(parameter.default)}"
                lines.append(f"  parameter {parameter.name}: {kind}{_range(parameter.bounds)}{default}")
        case BoundPattern():
            lines.append(f"bound {pattern.name}")
            lines += [f"  parameter {name} = {_value(value)}" for name, value in pattern.parameters]
            lines.append(
                f"  layer {pattern.layer}, heads {pattern.heads}, groups {pattern.groups}, head dim {pattern.head_dim}"
            )
    lines += [_table(table) for table in pattern.tables]
    lines += [_grid(grid) for grid in pattern.grids]
    lines += [_axis(axis) for axis in pattern.axes]
    if pattern.graph is not None:
        lines += [f"  {stage_text(stage)}" for stage in pattern.graph.stages]
        lines += [f"  export {each.name} = {_where(each.value, each.only)}" for each in pattern.graph.exports]
        lines.append(f"  return {print_expr(pattern.graph.result)}")
        return "\n".join(lines) + "\n"
    lines += _clauses(pattern.attend)
    return "\n".join(lines) + "\n"


def _clauses(attend: Attend) -> list[str]:
    lines = [f"  keep {print_expr(attend.keep)}"]
    for word, setting in (
        ("bias", attend.bias),
        ("scale", attend.scale),
        ("softcap", attend.softcap),
        ("sink_logit", attend.sink_logit),
    ):
        if setting is not None:
            lines.append(f"  {word} {print_expr(setting)}")
    return lines


def stage_text(stage: Stage) -> str:
    """A stage on one line: its name and axes, and what it computes."""
    what: str
    match stage:
        case Score(left=left, right=right, over=over, scale=scale):
            by = "" if scale is None else f", scale = {print_expr(scale)}"
            what = f"score({print_expr(left)}, {print_expr(right)}, over = {over}{by})"
        case Pool(kind=kind, over=over, per=per, windows=windows):
            along = f"over = {over}" if per is None else f"{over}, per = {per}"
            ways = "" if windows is None else f", windows = {windows}"
            what = f"{kind}({_where(stage.value, stage.only)}, {along}{ways})"
        case Softmax(over=over):
            what = f"softmax({_where(stage.value, stage.only)}, over = {over})"
        case Select(by=by, over=over, also=also, amount=amount, forced=forced, least=least, rank=rank):
            first = "" if forced == Const(value=False) else f" |> force({print_expr(forced)})"
            word = "top" if by == "count" else "top_p"
            along = f"over = ({', '.join((*also, over))})" if also else f"over = {over}"
            more = "" if least is None else f", least = {print_expr(least)}"
            more += "" if rank is None else f", rank = {rank}"
            what = f"{_where(stage.value, stage.only)}{first} |> {word}({print_expr(amount)}, {along}{more})"
        case Smooth(over=over, width=width):
            what = f"smooth({_where(stage.value, stage.only)}, {print_expr(width)}, over = {over})"
        case Descend(per=per):
            what = f"descend({_where(stage.value, stage.only)}, per = {per})"
        case Prefix(kind=kind):
            what = f"{kind}({_where(stage.value, stage.only)}, upto = q)"
        case Mark(value=value):
            what = print_expr(value)
        case Attention(query=query, key=key, value=value, attend=attend):
            given = ", ".join(print_expr(part) for part in (query, key, value))
            what = f"attend({given}) {{ {'  '.join(line.strip() for line in _clauses(attend))} }}"
        case Merge(parts=names, counted=counted, over=axis, by=way, stopped=stopped):
            word = "merge" if way == "lse" else "mean"
            more = "" if axis is None else f", over = {axis}"
            more += ", overlap = counted" if counted else ""
            what = f"{word}({', '.join(names)}{more}{', grad = stop' if stopped else ''})"
    return f"{stage.name}[{', '.join(stage.axes)}] = {what}"


def _where(value: Expr, only: Expr) -> str:
    return print_expr(value) if only == Const(value=True) else f"{print_expr(value)} |> only({print_expr(only)})"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_value(item) for item in value)})"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _range(bounds: Bounds | None) -> str:
    if bounds is None:
        return ""
    return f" in {'' if bounds.low is None else bounds.low}..{'' if bounds.high is None else bounds.high}"


def _table(table: Table) -> str:
    axes = f"[{', '.join(axis.label for axis in table.axes)}]" if table.axes else ""
    return f"  input {table.name}: {table.dtype}{axes}{_range(table.bounds)}{' sorted' if table.sorted else ''}"


def _grid(grid: Grid) -> str:
    name = f" {grid.name}" if grid.name is not None else ""
    coordinates = ", ".join(f"{name}: {print_expr(extent)}" for name, extent in grid.coordinates)
    return f"  grid{name} ({coordinates}) of {print_expr(grid.of)}"


def _axis(axis: Axis) -> str:
    of = _list(axis.of)
    by = (
        f"by {axis.table}"
        if axis.table is not None
        else f"into {print_expr(axis.into)}"
        if axis.into is not None
        else f"by {_list(axis.size or ())}"
    )
    step = "" if axis.step is None else f" step {print_expr(axis.step)}"
    return f"  axis {axis.name} = {of} {by}{step}"
