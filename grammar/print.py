"""From a tree to text: one canonical way to write each node, with as few parentheses as the grammar allows.

``parse(to_spat(program)) == program`` for every tree that `parse` can return.  Here a node becomes one line; where
lines are broken is decided in ``layout``.
"""

from __future__ import annotations

from collections.abc import Iterable

from typing_extensions import assert_never

from spdsl.grammar import nodes
from spdsl.grammar.nodes import (
    Argument,
    Attribute,
    Binary,
    Body,
    Call,
    Choose,
    Compare,
    Def,
    Expr,
    Name,
    Number,
    Pattern,
    Pipe,
    Program,
    Statement,
    String,
    Subscript,
    Tuple,
    Unary,
    Use,
)

# How tightly an expression holds together: an operand that is looser than its place asks for stands in parentheses.
LOOSEST, PIPE, OR, AND, NOT, COMPARE, SUM, PRODUCT, SIGN, POWER, POSTFIX = range(11)
_BINARY = {
    "or": (OR, OR, AND),
    "and": (AND, AND, NOT),
    "+": (SUM, SUM, PRODUCT),
    "-": (SUM, SUM, PRODUCT),
    "*": (PRODUCT, PRODUCT, SIGN),
    "/": (PRODUCT, PRODUCT, SIGN),
    "//": (PRODUCT, PRODUCT, SIGN),
    "%": (PRODUCT, PRODUCT, SIGN),
    "**": (POWER, POSTFIX, SIGN),
}


def to_spat(node: nodes.Node) -> str:
    """The text of a program or pattern (whole lines), or of an expression, type, parameter or statement (one line)."""
    from spdsl.grammar.layout import lay_out

    match node:
        case Program() | Pattern() | Def() | Use():
            return lay_out(node if isinstance(node, Program) else Program(items=(node,)))
        case (
            nodes.Input()
            | nodes.Grid()
            | nodes.AxisBy()
            | nodes.AxisInto()
            | nodes.Let()
            | nodes.Export()
            | nodes.Return()
            | nodes.Keep()
            | nodes.Setting()
        ):
            return statement(node)
        case nodes.Param():
            return param(node)
        case nodes.Type():
            return type_(node)
        case nodes.Range():
            return range_(node)
        case nodes.Extent() | nodes.Named():
            return (f"{node.name}: " if node.name else "") + expression(node.value)
        case Argument():
            return argument(node)
        case _:
            return expression(node)  # type: ignore[arg-type]


def levels(op: str) -> tuple[int, int, int]:
    """How tightly ``a op b`` holds, and what it asks of its left and right operand."""
    return _BINARY[op]


def level(expr: Expr) -> int:
    """How tightly an expression holds together."""
    match expr:
        case Choose():
            return LOOSEST
        case Pipe():
            return PIPE
        case Binary(op=op):
            return levels(op)[0]
        case Unary(op="not"):
            return NOT
        case Compare():
            return COMPARE
        case Unary():
            return SIGN
        case Number(value=value):
            return POSTFIX if value >= 0 else SIGN
        case Name() | String() | Tuple() | Attribute() | Subscript() | Call() | Body():
            return POSTFIX
        case _:
            assert_never(expr)


def operand(expr: Expr, least: int) -> str:
    """An expression where one of at least this level must stand."""
    return expression(expr) if level(expr) >= least else f"({expression(expr)})"


def expression(expr: Expr) -> str:
    """An expression on one line."""
    match expr:
        case Name(id=name):
            return name
        case Number(value=value):
            return repr(value)
        case String(value=text):
            return f'"{text}"'
        case Tuple(items=items):
            return f"({_list(items)})"
        case Attribute(value=value, name=name):
            return f"{operand(value, POSTFIX)}.{name}"
        case Subscript(value=value, indices=indices):
            return f"{operand(value, POSTFIX)}[{_list(indices)}]"
        case Call(function=function, arguments=given):
            return f"{operand(function, POSTFIX)}({arguments(given)})"
        case Unary(op=op, operand=inner):
            return f"not {operand(inner, NOT)}" if op == "not" else f"{op}{operand(inner, SIGN)}"
        case Binary(op=op, left=left, right=right):
            _, at_left, at_right = levels(op)
            return f"{operand(left, at_left)} {op} {operand(right, at_right)}"
        case Compare(ops=ops, operands=operands):
            first, *rest = (operand(item, SUM) for item in operands)
            return first + "".join(f" {op} {item}" for op, item in zip(ops, rest, strict=True))
        case Choose(condition=condition, yes=yes, no=no):
            return f"if {expression(condition)} then {expression(yes)} else {expression(no)}"
        case Pipe(value=value):
            return f"{operand(value, PIPE)} |> {stage(expr)}"
        case Body(clauses=clauses):
            inside = "  ".join(statement(clause) for clause in clauses)
            return f"{body_head(expr)} {{ {inside} }}" if clauses else f"{body_head(expr)} {{}}"
        case _:
            assert_never(expr)


def stage(pipe: Pipe) -> str:
    """What stands after ``|>``."""
    return f"{pipe.stage.id}({arguments(pipe.arguments)})" if pipe.arguments else pipe.stage.id


def body_head(body: Body) -> str:
    """``attend`` or ``linear`` with its arguments, without the braces."""
    return f"{body.kind}({arguments(body.arguments)})" if body.arguments else body.kind


def arguments(given: Iterable[Argument]) -> str:
    """Arguments of a call, without the parentheses."""
    return ", ".join(argument(item) for item in given)


def argument(given: Argument) -> str:
    """One argument of a call."""
    return (f"{given.name} = " if given.name else "") + expression(given.value)


def statement(node: Statement) -> str:
    """A statement on one line."""
    before, value, after = statement_parts(node)
    return before + (expression(value) if value is not None else "") + after


def statement_parts(node: Statement) -> tuple[str, Expr | None, str]:
    """A statement as the words before its main expression, that expression, and what follows it."""
    match node:
        case nodes.Input(name=name, type=type, range=range, sorted=sorted):
            text = f"input {name}: {type_(type)}"
            return text + (f" in {range_(range)}" if range else "") + (" sorted" if sorted else ""), None, ""
        case nodes.Grid(name=name, coordinates=coordinates, start=start):
            inside = ", ".join(f"{one.name}: {expression(one.value)}" for one in coordinates)
            text = f"grid {name + ' ' if name else ''}({inside})"
            return text + (f" from {expression(start)}" if start else ""), None, ""
        case nodes.AxisBy(name=name, of=of, by=by, step=step):
            text = f"axis {name} = {expression(of)} by {expression(by)}"
            return text + (f" step {expression(step)}" if step else ""), None, ""
        case nodes.AxisInto(name=name, of=of, into=into):
            return f"axis {name} = {expression(of)} into {expression(into)}", None, ""
        case nodes.Let(name=name, value=value):
            return f"let {name} = ", value, ""
        case nodes.Export(name=name, value=value):
            return f"export {name} = ", value, ""
        case nodes.Return(value=value):
            return "return ", value, ""
        case nodes.Keep(set=set, source=source, weight=weight):
            after = f" from ({expression(source[0])}, {expression(source[1])})" if source else ""
            return "keep ", set, after + (f" weight {expression(weight)}" if weight else "")
        case nodes.Setting(word=word, value=value):
            return f"{word} ", value, ""
        case _:
            assert_never(node)


def param(node: nodes.Param) -> str:
    """One parameter of a pattern."""
    text = f"{node.name}: {type_(node.type)}"
    text += f" in {range_(node.range)}" if node.range else ""
    return text + (f" = {expression(node.default)}" if node.default else "")


def type_(node: nodes.Type) -> str:
    """A type with its axes."""
    extents = ", ".join((f"{one.name}: " if one.name else "") + expression(one.value) for one in node.extents)
    return f"{node.name}[{extents}]" if node.extents else node.name


def range_(node: nodes.Range) -> str:
    """``low..high``."""
    low = "" if node.low is None else repr(node.low)
    return f"{low}..{'' if node.high is None else repr(node.high)}"


def _list(items: Iterable[Expr]) -> str:
    return ", ".join(expression(item) for item in items)
