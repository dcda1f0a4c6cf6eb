"""From the children of a grammar rule to a node of the tree: one function per rule, named like it.

A child is a node, a tuple of nodes, a `Token`, or None for an optional part that was left out.  Literals that the
compiler could not hold are refused here; everything else about meaning is left to the checker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from spdsl.diagnostics import Span, error
from spdsl.grammar import nodes
from spdsl.grammar.engine import Token

LARGEST_INT = 2**63 - 1
Children = tuple[Any, ...]


def program(children: Children, span: Span) -> nodes.Program:
    return nodes.Program(items=children, source=span.source, span=span)


def use(children: Children, span: Span) -> nodes.Use:
    (path,) = children
    return nodes.Use(path=path.text[1:-1], span=span)


def def_(children: Children, span: Span) -> nodes.Def:
    name, parameters, value = children
    return nodes.Def(name=name.text, parameters=parameters or (), value=value, span=span)


def pattern(children: Children, span: Span) -> nodes.Pattern:
    name, parameters, *statements = children
    return nodes.Pattern(name=name.text, parameters=parameters or (), statements=tuple(statements), span=span)


def names(children: Children, _: Span) -> tuple[str, ...]:
    return tuple(name.text for name in children)


def several(children: Children, _: Span) -> Children:
    return children


def param(children: Children, span: Span) -> nodes.Param:
    name, type, _, range, default = children
    return nodes.Param(name=name.text, type=type, range=range, default=default, span=span)


def type(children: Children, span: Span) -> nodes.Type:
    name, extents = children
    return nodes.Type(name=name.text, extents=extents or (), span=span)


def extent(children: Children, span: Span) -> nodes.Extent:
    *name, value = children
    return nodes.Extent(name=name[0].text if name else None, value=value, span=span)


def range(children: Children, span: Span) -> nodes.Range:
    dots = next(place for place, child in enumerate(children) if isinstance(child, Token))
    low, high = children[:dots], children[dots + 1 :]
    return nodes.Range(low=low[0] if low else None, high=high[0] if high else None, span=span)


def bound(children: Children, span: Span) -> int | float:
    minus, digits = children
    value = _value(digits.text, span)
    return -value if minus else value


def input(children: Children, span: Span) -> nodes.Input:
    name, type, _, range, sorted = children
    return nodes.Input(name=name.text, type=type, range=range, sorted=sorted is not None, span=span)


def grid(children: Children, span: Span) -> nodes.Grid:
    name, coordinates, start = children
    return nodes.Grid(name=name.text if name else None, coordinates=coordinates, start=start, span=span)


def named(children: Children, span: Span) -> nodes.Named:
    name, value = children
    return nodes.Named(name=name.text, value=value, span=span)


def axis_by(children: Children, span: Span) -> nodes.AxisBy:
    name, of, by, step = children
    return nodes.AxisBy(name=name.text, of=of, by=by, step=step, span=span)


def axis_into(children: Children, span: Span) -> nodes.AxisInto:
    name, of, into = children
    return nodes.AxisInto(name=name.text, of=of, into=into, span=span)


def let(children: Children, span: Span) -> nodes.Let:
    name, value = children
    return nodes.Let(name=name.text, value=value, span=span)


def export(children: Children, span: Span) -> nodes.Export:
    name, value = children
    return nodes.Export(name=name.text, value=value, span=span)


def return_(children: Children, span: Span) -> nodes.Return:
    (value,) = children
    return nodes.Return(value=value, span=span)


def keep(children: Children, span: Span) -> nodes.Keep:
    set, source, weight = children
    return nodes.Keep(set=set, source=source, weight=weight, span=span)


def setting(children: Children, span: Span) -> nodes.Setting:
    word, value = children
    return nodes.Setting(word=word.text, value=value, span=span)


def choose(children: Children, span: Span) -> nodes.Choose:
    condition, yes, no = children
    return nodes.Choose(condition=condition, yes=yes, no=no, span=span)


def pipe(children: Children, span: Span) -> nodes.Pipe:
    value, stage, arguments = children
    return nodes.Pipe(value=value, stage=stage, arguments=arguments or (), span=span)


def unary(children: Children, span: Span) -> nodes.Unary:
    op, operand = children
    return nodes.Unary(op=op.text, operand=operand, span=span)


def binary(children: Children, span: Span) -> nodes.Binary:
    left, op, right = children
    return nodes.Binary(op=op.text, left=left, right=right, span=span)


def compare(children: Children, span: Span) -> nodes.Compare:
    return nodes.Compare(ops=tuple(op.text for op in children[1::2]), operands=children[::2], span=span)


def call(children: Children, span: Span) -> nodes.Call:
    function, arguments = children
    return nodes.Call(function=function, arguments=arguments or (), span=span)


def subscript(children: Children, span: Span) -> nodes.Subscript:
    value, *indices = children
    return nodes.Subscript(value=value, indices=tuple(indices), span=span)


def attribute(children: Children, span: Span) -> nodes.Attribute:
    value, name = children
    return nodes.Attribute(value=value, name=name.text, span=span)


def argument(children: Children, span: Span) -> nodes.Argument:
    *name, value = children
    return nodes.Argument(name=name[0].text if name else None, value=value, span=span)


def body(children: Children, span: Span) -> nodes.Body:
    kind, arguments, *clauses = children
    return nodes.Body(kind=kind.text, arguments=arguments or (), clauses=tuple(clauses), span=span)


def name(children: Children, span: Span) -> nodes.Name:
    return nodes.Name(id=children[0].text, span=span)


def number(children: Children, span: Span) -> nodes.Number:
    return nodes.Number(value=_value(children[0].text, span), span=span)


def string(children: Children, span: Span) -> nodes.String:
    return nodes.String(value=children[0].text[1:-1], span=span)


def tuple_(children: Children, span: Span) -> nodes.Tuple:
    return nodes.Tuple(items=children, span=span)


def _value(digits: str, span: Span) -> int | float:
    if digits.isdigit():
        # Python itself refuses to convert more than a few thousand digits.
        if len(digits.lstrip("0")) < 20 and (value := int(digits)) <= LARGEST_INT:
            return value
        raise error("SP106", "this integer does not fit in 64 bits", span, help=f"The largest one is {LARGEST_INT}.")
    if math.isinf(number := float(digits)):
        raise error("SP106", "this number is too large for a float", span, help="The largest one is about 1.8e308.")
    return number


BUILDERS: dict[str, Callable[[Children, Span], Any]] = {
    "program": program, "use": use, "def": def_, "pattern": pattern, "names": names, "params": several, "param": param,
    "type": type, "extents": several, "extent": extent, "range": range, "bound": bound, "input": input, "grid": grid,
    "coordinates": several, "named": named, "axis_by": axis_by, "axis_into": axis_into, "let": let, "export": export,
    "return": return_, "keep": keep, "source": several, "setting": setting, "choose": choose, "pipe": pipe,
    "unary": unary, "binary": binary, "compare": compare, "call": call, "subscript": subscript, "attribute": attribute,
    "arguments": several, "argument": argument, "body": body, "name": name, "number": number, "string": string,
    "tuple": tuple_,
}  # fmt: skip
