"""From the tree of a Python function to a `Pattern` or `Def`: the language in the syntax of Python.

Takes Python's own tree (`ast`) and gives the nodes that the parser of `.spat` text gives, with places in the Python
file.  Reads no files and no annotations, and knows no values: what a name from outside of the function stands for is
asked of `Outside`.  What Python has and the language has not is refused by name (SP110).

Statements and clauses are calls of the words that open them in a text: ``keep(near)``, ``bias(-x)``,
``blk = axis(token, by=64)``, ``grid(y=height, x=width)``, ``export(mass=x)``, ``attend(Q, K, V, keep(near))``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Protocol

from spdsl.diagnostics import Source, Span, SpatError, error
from spdsl.grammar import nodes
from spdsl.grammar.build import LARGEST_INT
from spdsl.grammar.nodes import Argument, Clause, Expr, Statement
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


def pattern(
    function: ast.FunctionDef,
    source: Source,
    outside: Outside,
    parameters: tuple[nodes.Param, ...],
    inputs: tuple[nodes.Input, ...],
) -> nodes.Pattern:
    """The pattern of a function whose signature has been read.

    Raises:
        SpatError: something that the language has not (SP110), or that is nested too deeply (SP105).
    """
    reader = _Reader(function, source, outside)
    body = reader.statements(_after_docstring(function))
    return nodes.Pattern(
        name=function.name, parameters=parameters, statements=_placed(inputs, body), span=reader.span(function)
    )


def definition(function: ast.FunctionDef, source: Source, outside: Outside, name: str) -> nodes.Def:
    """The `def` of a function that returns one expression of its arguments; annotations of these say nothing.

    Raises:
        SpatError: as `pattern` does.
    """
    reader = _Reader(function, source, outside)
    match _after_docstring(function):
        case [ast.Return(value=ast.expr() as value)]:
            pass
        case body:
            at = body[0] if body else function
            raise reader.refuse(at, f"`{name}`, which is more than one `return`,", "A `def` is a single expression.")
    given = function.args
    if given.vararg or given.kwarg or given.defaults or any(given.kw_defaults):
        raise reader.refuse(
            function, f"`{name}` with defaults or `*`", "A `def` takes all of its arguments at every call."
        )
    names = tuple(each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs))
    return nodes.Def(name=name, parameters=names, value=reader.expr(value), span=reader.span(function))


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


def _after_docstring(function: ast.FunctionDef) -> list[ast.stmt]:
    match function.body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
        case body:
            return body


def _placed(inputs: tuple[nodes.Input, ...], body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Inputs stand in front of the statements, or after the last axis or value that their type names."""
    declared = {each.name: number for number, each in enumerate(body, 1) if isinstance(each, _DECLARATIONS)}
    after: dict[int, list[nodes.Input]] = {}
    for each in inputs:
        named = {name for extent in each.type.extents for name in _words(extent.value)}
        after.setdefault(max((declared.get(name, 0) for name in named), default=0), []).append(each)
    found: list[Statement] = [*after.get(0, ())]
    for number, statement in enumerate(body, 1):
        found += [statement, *after.get(number, ())]
    return tuple(found)


_DECLARATIONS = (nodes.AxisBy, nodes.AxisInto, nodes.Let)


def _words(expr: Expr) -> Iterable[str]:
    """Names and coordinates in the size of an axis."""
    match expr:
        case nodes.Name(id=name):
            yield name
        case nodes.Attribute(value=value, name=name):
            yield name
            yield from _words(value)
        case nodes.Unary(operand=operand):
            yield from _words(operand)
        case nodes.Binary(left=left, right=right):
            yield from _words(left)
            yield from _words(right)
        case _:
            pass


class _Reader:
    """Translates one function."""

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
        return place(node, self.source, self._line)

    def _line(self, number: int) -> str:
        return self.lines[number - 1] if number <= len(self.lines) else ""

    def refuse(self, node: ast.expr | ast.stmt, what: str, help: str) -> SpatError:
        span = self.span(node)
        return error("SP110", f"{what} is not in the language of patterns", span, help=help)

    def refused(self, node: ast.expr | ast.stmt, kind: ast.AST | None = None) -> SpatError:
        kind = node if kind is None else kind
        what, help = REFUSED.get(
            type(kind), (f"`{type(kind).__name__.lower()}`", "See docs/python.md for what there is.")
        )
        return self.refuse(node, what, help)

    # ------------------------------------------------------------ statements

    def statements(self, body: list[ast.stmt]) -> tuple[Statement, ...]:
        found: list[Statement] = []
        for number, node in enumerate(body):
            found += self.statement(node)
            if isinstance(node, ast.Return) and number + 1 < len(body):
                raise self.refuse(body[number + 1], "a statement after `return`", "Put it above the `return`.")
        return tuple(found)

    def statement(self, node: ast.stmt) -> tuple[Statement, ...]:
        match node:
            case ast.Return(value=ast.expr() as value):
                return (self._return(node, self.expr(value)),)
            case ast.Return():
                raise self.refuse(node, "`return` of nothing", "Return the set that is kept.")
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return (self._assign(node, name, value),)
            case ast.Assign():
                raise self.refuse(node, "an assignment to several names", "Name one value in each line.")
            case ast.Expr(value=ast.Call(func=ast.Name(id="grid")) as call):
                return (self._grid(node, None, call),)
            case ast.Expr(value=ast.Call(func=ast.Name(id="export")) as call):
                return self._exports(call)
            case ast.Expr(value=value):
                if (clause := self._clause(value)) is not None:
                    return (clause,)
                raise self.refuse(
                    node, "a value that nothing uses", "Return it, name it, or put it into a clause such as `keep(…)`."
                )
            case _:
                raise self.refused(node)

    def _return(self, node: ast.stmt, value: Expr) -> Statement:
        """A set is kept, a softmax is returned."""
        span = self.span(node)
        if self._is_softmax(value):
            return nodes.Return(value=value, span=span)
        return nodes.Keep(set=value, span=span)

    def _is_softmax(self, value: Expr) -> bool:
        match value:
            case nodes.Body():
                return True
            case nodes.Name(id=name):
                return name in self.softmaxes
            case nodes.Call(function=nodes.Name(id=name), arguments=arguments):
                inside = name in ("mean", "sum") and any(self._is_softmax(each.value) for each in arguments)
                return name == "merge" or inside or self.outside.is_softmax(name)
            case nodes.Pipe(value=inner, stage=name):
                return name == "merge" or self._is_softmax(inner)
            case nodes.Binary(left=left, right=right):
                return self._is_softmax(left) or self._is_softmax(right)
            case nodes.Unary(operand=operand):
                return self._is_softmax(operand)
            case nodes.Choose(yes=yes, no=no):
                return self._is_softmax(yes) or self._is_softmax(no)
            case _:
                return False

    def _assign(self, node: ast.stmt, name: str, value: ast.expr) -> Statement:
        match value:
            case ast.Call(func=ast.Name(id="axis")):
                return self._axis(node, name, value)
            case ast.Call(func=ast.Name(id="grid")):
                return self._grid(node, name, value)
            case _:
                made = self.expr(value)
                if self._is_softmax(made):
                    self.softmaxes.add(name)
                return nodes.Let(name=name, value=made, span=self.span(node))

    def _axis(self, node: ast.stmt, name: str, call: ast.Call) -> Statement:
        given = {each.arg: self.expr(each.value) for each in call.keywords}
        match call.args, given:
            case [of], {"by": by, **rest} if rest.keys() <= {"step"}:
                return nodes.AxisBy(name=name, of=self.expr(of), by=by, step=rest.get("step"), span=self.span(node))
            case [of], {"into": into, **rest} if not rest:
                return nodes.AxisInto(name=name, of=self.expr(of), into=into, span=self.span(node))
            case _:
                help = "Write `axis(token, by=64)`, `axis(token, by=64, step=16)` or `axis(token, into=256)`."
                raise error("SP110", "an axis says what it divides, and how", self.span(call), help=help)

    def _grid(self, node: ast.stmt, name: str | None, call: ast.Call) -> Statement:
        given = [each for each in call.keywords if each.arg != "start"]
        start = next((self.expr(each.value) for each in call.keywords if each.arg == "start"), None)
        if call.args or not given or any(each.arg is None for each in given):
            help = "Write `grid(y=height, x=width)`; `start=` is the position of its first token."
            raise error("SP110", "a grid names its coordinates and their sizes", self.span(call), help=help)
        named = (nodes.Named(name=str(each.arg), value=self.expr(each.value), span=self.span(each)) for each in given)
        return nodes.Grid(name=name, coordinates=tuple(named), start=start, span=self.span(node))

    def _exports(self, call: ast.Call) -> tuple[Statement, ...]:
        if call.args or not call.keywords or any(each.arg is None for each in call.keywords):
            help = "Write `export(mass=x)`."
            raise error("SP110", "what is exported has a name", self.span(call), help=help)
        return tuple(
            nodes.Export(name=str(each.arg), value=self.expr(each.value), span=self.span(each))
            for each in call.keywords
        )

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
            case nodes.Name(id=stage):
                arguments = self._arguments(args, keywords, depth)
                return nodes.Pipe(value=self.expr(left, depth), stage=stage, arguments=arguments, span=self.span(node))
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
