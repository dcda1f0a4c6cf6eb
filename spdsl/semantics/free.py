"""Which int parameters of a pattern may stay open when it is bound, so that one kernel serves all their values.

From a `CheckedPattern` to the reason, for each parameter, why its value has to be known first; without one it is free.
A free parameter is added, compared, chosen between and divided by constants, in the set, the bias or the sink, and
nowhere else.  Says nothing about whether the tiles of the set then have a closed form: the planner finds that out.
"""

from __future__ import annotations

from collections.abc import Iterator

from spdsl.semantics.nodes import (
    Apply,
    Axis,
    CheckedPattern,
    Const,
    Expr,
    Grid,
    Index,
    Load,
    Noise,
    Param,
    Reduce,
    Top,
)
from spdsl.semantics.rewrite import children, free_indices, walk

LARGEST = 1 << 26
"""The largest magnitude of a value that kernels take at run time."""

_FACTOR = 16
"""The largest number that such a value is multiplied by: sums with positions then stay inside 32 bits."""

_ARITHMETIC = frozenset({"add", "sub", "neg", "abs", "min", "max", "mul", "floordiv", "mod"})
_OPEN = _ARITHMETIC | {"where", "and", "or", "not", "lt", "le", "gt", "ge", "eq", "ne"}
"""Operations that need no value of a parameter to be analysed; of divisions only the dividend."""


def reasons_to_fix(pattern: CheckedPattern) -> dict[str, str]:
    """Why parameters become constants before kernels are planned, by name; those left out are free."""
    found: dict[str, str] = {}
    for declared in pattern.parameters:
        if declared.dtype != "int" or declared.length is not None:
            found[declared.name] = "it is no single int"
    if pattern.graph is not None:
        for declared in pattern.parameters:
            found.setdefault(declared.name, "selections are computed with it")
    if any(grid.name is None for grid in pattern.grids):
        for declared in pattern.parameters:
            found.setdefault(declared.name, "the boxes of the grid are chosen by it")
    attend = pattern.attend
    settings = [("the scale", attend.scale), ("the softcap", attend.softcap)]
    settings += [part for axis in pattern.axes for part in _of_axis(axis)]
    settings += [part for grid in pattern.grids for part in _of_grid(grid)]
    settings += [("the shape of an input", axis.size) for table in pattern.tables for axis in table.axes]
    for where, setting in settings:
        for name in () if setting is None else _names(setting):
            found.setdefault(name, f"it is part of {where}")
    for clause in (attend.keep, attend.bias, attend.sink_logit):
        for name, reason in () if clause is None else _in_clause(clause):
            found.setdefault(name, reason)
    return found


def fits(value: object) -> bool:
    """Whether kernels can take a value of a free parameter at run time."""
    return isinstance(value, int) and abs(value) <= LARGEST


def _of_axis(axis: Axis) -> Iterator[tuple[str, Expr | None]]:
    for part in (*axis.of, *(axis.size or ()), axis.step, axis.into, *axis.extents):
        yield f"the axis `{axis.name}`", part


def _of_grid(grid: Grid) -> Iterator[tuple[str, Expr | None]]:
    for part in (grid.of, *(extent for _, extent in grid.coordinates)):
        yield "a grid", part


def _names(expr: Expr) -> Iterator[str]:
    return (node.name for node in walk(expr) if isinstance(node, Param))


def _in_clause(clause: Expr) -> Iterator[tuple[str, str]]:
    """Parameters below an operation that asks for their value, and what it is."""
    for node in walk(clause):
        match node:
            case Reduce() | Top() | Noise():
                reason, parts = "it is part of a selection or reduction", children(node)
            case Load(table=table):
                reason, parts = f"it is part of an index of `{table}`", children(node)
            case Apply(op="floordiv" | "mod", args=(_, divisor)) if any(_names(divisor)):
                reason, parts = "it is a divisor", (divisor,)
            case Apply(op="mod", args=(dividend, _)) if free_indices(dividend) & {"q", "k"}:
                reason, parts = "it shifts a residue class", (dividend,)
            case Apply(op="eq" | "ne", args=args) if any(_is_residue(part) for part in args):
                reason, parts = "it tells a residue class", args
            case Apply(op=op, args=args) if op not in _OPEN:
                reason, parts = f"`{op}` is taken of it", args
            case Apply(op="mul", args=(left, right)):
                reason = "it is multiplied by something else than a small number or what a head fixes"
                parts = tuple(a for a, b in ((left, right), (right, left)) if not _is_factor(b))
            case _:
                continue
        for part in parts:
            for name in _names(part):
                yield name, reason


def _is_residue(expr: Expr) -> bool:
    """Whether a remainder of positions takes part."""
    return any(isinstance(node, Apply) and node.op == "mod" and free_indices(node) & {"q", "k"} for node in walk(expr))


def _is_factor(expr: Expr) -> bool:
    """Whether sums with multiples by this value stay affine in the positions, and small."""
    match expr:
        case Const(value=value):
            return abs(value) <= _FACTOR
        case _:
            leaves = [node for node in walk(expr) if not children(node) and not isinstance(node, Const)]
            return all(isinstance(leaf, Index) and leaf.name in ("h", "g", "b") for leaf in leaves)
