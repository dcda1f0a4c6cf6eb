"""From expressions of a Python function to those of the language, with places in the Python file.

Clauses are here, too, because `attend(Q, K, V, keep(near))` has them among its arguments; statements are in
`spdsl.grammar.python`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Protocol

from spdsl.diagnostics import Source, Span, SpatError, error
from spdsl.grammar import nodes
from spdsl.grammar.build import LARGEST_INT
from spdsl.grammar.nodes import Argument, Clause, Expr
from spdsl.grammar.parse import MAX_DEPTH
from spdsl.grammar.python_mends import REFUSED

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.And: "and", ast.Or: "or", ast.Not: "not", ast.USub: "-",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.In: "in",
}  # fmt: skip
"""Operators that both languages have."""

CLAUSES = frozenset(
    ("bias", "scale", "softcap", "sink_logit", "skip", "times", "decay", "update", "normalize", "fit", "keep")
)
STATEMENTS = CLAUSES | {"axis", "grid", "export"}
BODIES = ("attend", "linear")
WORDED = frozenset(("windows", "overlap", "grad", "rank"))
"""Arguments that are words and no values, as in ``windows=inside``."""


class Outside(Protocol):
    """What names of Python stand for that are neither parameters nor local."""

    def value(self, name: str, span: Span) -> Expr | None:
        """The number, or the name of the `def` or pattern, that a name stands for; None for words of the language."""

    def is_function(self, name: str) -> bool:
        """Whether ``name`` can be called."""

    def is_softmax(self, name: str) -> bool:
        """Whether a call of ``name`` gives a softmax and not a set."""


def place(node: ast.expr | ast.stmt | ast.arg | ast.keyword, source: Source, line: Callable[[int], str]) -> Span:
    """Where a part of Python's tree stands; its columns count bytes, ours characters."""

    def column(number: int, offset: int) -> int:
        return len(line(number).encode()[:offset].decode(errors="replace")) + 1

    last, offset = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
    return Span(
        source=source,
        line=node.lineno,
        column=column(node.lineno, node.col_offset),
        end_line=last,
        end_column=column(last, offset),
    )


def literal(value: object, span: Span) -> Expr | None:
    """A number, bool or tuple of Python as it is written in the language; None for anything else."""
    match value:
        case bool():
            return nodes.Name(id=str(value).lower(), span=span)
        case int() | float() if value < 0:
            return nodes.Unary(op="-", operand=_number(-value, span), span=span)
        case int() | float():
            return _number(value, span)
        case tuple() if len(value) > 1:
            items = tuple(literal(each, span) for each in value)
            found = tuple(each for each in items if each is not None)
            return nodes.Tuple(items=found, span=span) if len(found) == len(items) else None
        case _:
            return None


def _number(value: int | float, span: Span) -> Expr:
    if isinstance(value, int) and value > LARGEST_INT:
        raise error("SP106", "this integer does not fit in 64 bits", span, help=f"The largest one is {LARGEST_INT}.")
    if not value < float("inf"):
        raise error("SP106", f"{value} is not a finite number", span, help="The largest one is about 1.8e308.")
    return nodes.Number(value=value, span=span)


class Reading:
    """Translates the expressions of one function."""

    def __init__(self, function: ast.FunctionDef, source: Source, outside: Outside) -> None:
        self.source, self.outside = source, outside
        self.lines = source.text.splitlines()
        given = function.args
        arguments = {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        stored = {
            each.id for each in ast.walk(function) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        }
        self.local = arguments | stored
        self.softmaxes: set[str] = set()

    # ------------------------------------------------------------ places and refusals

    def span(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword) -> Span:
        """Where something stands."""
        return place(node, self.source, self._line)

    def _line(self, number: int) -> str:
        return self.lines[number - 1] if number <= len(self.lines) else ""

    def refuse(self, node: ast.expr | ast.stmt, what: str, help: str) -> SpatError:
        """The error of what Python has and the language has not."""
        span = self.span(node)
        return error("SP110", f"{what} is not in the language of patterns", span, help=help)

    def refused(self, node: ast.expr | ast.stmt, kind: ast.AST | None = None) -> SpatError:
        """The error of a node, in the words for nodes of its kind or of another."""
        kind = node if kind is None else kind
        what, help = REFUSED.get(
            type(kind), (f"`{type(kind).__name__.lower()}`", "See docs/python.md for what there is.")
        )
        return self.refuse(node, what, help)

    # ------------------------------------------------------------ expressions

    def _clause(self, node: ast.expr, depth: int = 0) -> Clause | None:
        """A clause, if this is the call of a word that opens one."""
        match node:
            case ast.Call(func=ast.Name(id="keep"), args=[kept], keywords=keywords) if {
                each.arg for each in keywords
            } <= {"source", "weight"}:
                given = {each.arg: self.expr(each.value, depth) for each in keywords}
                match given.get("source"):
                    case None:
                        source = None
                    case nodes.Tuple(items=(keys, values)):
                        source = (keys, values)
                    case _:
                        raise self.refuse(node, "a `source` that is no pair", "Write `source=(keys, values)`.")
                set = self.expr(kept, depth)
                return nodes.Keep(set=set, source=source, weight=given.get("weight"), span=self.span(node))
            case ast.Call(func=ast.Name(id=word), args=[value], keywords=[]) if word in CLAUSES:
                return nodes.Setting(word=word, value=self.expr(value, depth), span=self.span(node))
            case ast.Call(func=ast.Name(id=word)) if word in CLAUSES:
                more = ", with `source=(keys, values)` and `weight=`" if word == "keep" else ""
                help = f"Write `{word}(…)` with one value{more}."
                raise error("SP110", f"`{word}` takes one value", self.span(node), help=help)
            case _:
                return None

    # ------------------------------------------------------------ expressions

    def expr(self, node: ast.expr, depth: int = 0) -> Expr:
        """An expression that stands in ``depth`` others."""
        span, inner = self.span(node), depth + 1
        if depth > MAX_DEPTH:
            what = f"this is nested more than {MAX_DEPTH} levels deep; every operator of a chain counts as one"
            raise error("SP105", what, span, help="Name parts of it.")
        match node:
            case ast.Name(id=name):
                found = None if name in self.local else self.outside.value(name, span)
                return nodes.Name(id=name, span=span) if found is None else found
            case ast.Constant():
                return self._constant(node, span)
            case ast.Tuple(elts=items) if len(items) > 1:
                return nodes.Tuple(items=tuple(self.expr(each, inner) for each in items), span=span)
            case ast.Tuple():
                raise self.refuse(node, "a tuple of fewer than two items", "Write the item without brackets.")
            case ast.Attribute(value=value, attr=name):
                return nodes.Attribute(value=self.expr(value, inner), name=name, span=span)
            case ast.Subscript(value=value, slice=index):
                indices = index.elts if isinstance(index, ast.Tuple) and index.elts else [index]
                return nodes.Subscript(
                    value=self.expr(value, inner), indices=tuple(self.expr(each, inner) for each in indices), span=span
                )
            case ast.Call(func=ast.Name(id=word)) if word in BODIES:
                return self._body(node, word, inner)
            case ast.Call(func=function, args=args, keywords=keywords):
                arguments = self._arguments(args, keywords, inner)
                return nodes.Call(function=self.expr(function, inner), arguments=arguments, span=span)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return nodes.Unary(op=OPERATORS[type(op)], operand=self.expr(operand, inner), span=span)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self._pipe(node, left, right, inner)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return nodes.Binary(
                    op=OPERATORS[type(op)], left=self.expr(left, inner), right=self.expr(right, inner), span=span
                )
            case ast.BoolOp(op=op, values=values):
                # Python keeps a chain of `and` as one list; the language groups it to the left.
                first, *rest = (self.expr(each, depth + len(values) - 1) for each in values)
                for each in rest:
                    first = nodes.Binary(op=OPERATORS[type(op)], left=first, right=each, span=_over(first, each))
                return first
            case ast.Compare(left=left, ops=ops, comparators=others):
                for relation in ops:
                    if type(relation) not in OPERATORS:
                        raise self.refused(node, relation)
                operands = tuple(self.expr(each, inner) for each in (left, *others))
                return nodes.Compare(ops=tuple(OPERATORS[type(op)] for op in ops), operands=operands, span=span)
            case ast.IfExp(test=test, body=yes, orelse=no):
                return nodes.Choose(
                    condition=self.expr(test, inner), yes=self.expr(yes, inner), no=self.expr(no, inner), span=span
                )
            case ast.UnaryOp(op=op):
                raise self.refused(node, op)
            case ast.BinOp(op=operator):
                raise self.refused(node, operator)
            case _:
                raise self.refused(node)

    def _constant(self, node: ast.Constant, span: Span) -> Expr:
        match node.value:
            case str(text) if '"' not in text and "\n" not in text:
                return nodes.String(value=text, span=span)
            case value if (found := literal(value, span)) is not None:
                return found
            case value:
                raise self.refuse(node, f"`{value!r:.40}`", "Values are numbers, `True`, `False` and tuples of these.")

    def _body(self, node: ast.Call, kind: str, depth: int) -> Expr:
        clauses = {id(each): clause for each in node.args if (clause := self._clause(each, depth)) is not None}
        plain = [each for each in node.args if id(each) not in clauses]
        return nodes.Body(
            kind=kind,
            arguments=self._arguments(plain, node.keywords, depth),
            clauses=tuple(clauses.values()),
            span=self.span(node),
        )

    def _pipe(self, node: ast.expr, left: ast.expr, right: ast.expr, depth: int) -> Expr:
        match right:
            case ast.Call(func=ast.Name(id=stage), args=args, keywords=keywords):
                pass
            case ast.Name(id=stage) if stage not in self.local and self.outside.is_function(stage):
                args, keywords = [], []
            case _:
                raise self.refused(node, ast.BitOr())
        called = right.func if isinstance(right, ast.Call) else right
        match self.expr(called, depth):
            case nodes.Name() as name:
                arguments = self._arguments(args, keywords, depth)
                return nodes.Pipe(value=self.expr(left, depth), stage=name, arguments=arguments, span=self.span(node))
            case _:
                raise self.refused(node, ast.BitOr())

    def _arguments(self, args: list[ast.expr], keywords: list[ast.keyword], depth: int) -> tuple[Argument, ...]:
        found = [Argument(name=None, value=self.expr(each, depth), span=self.span(each)) for each in args]
        for each in keywords:
            if each.arg is None:
                raise self.refuse(each.value, "`**`", "Write the arguments one by one.")
            match each.value:
                case ast.Name(id=word) if each.arg in WORDED:
                    value: Expr = nodes.Name(id=word, span=self.span(each.value))
                case _:
                    value = self.expr(each.value, depth)
            found.append(Argument(name=each.arg, value=value, span=self.span(each)))
        return tuple(found)


def _over(first: Expr, last: Expr) -> Span | None:
    return first.span.to(last.span) if first.span is not None else last.span
