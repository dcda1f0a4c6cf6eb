"""From the tree of a Python function to a `Pattern` or `Def`: the language in the syntax of Python.

Takes Python's own tree (`ast`) and gives the nodes that the parser of `.spat` text gives, with places in the Python
file.  Reads no files and no annotations, and knows no values: what a name from outside of the function stands for is
asked of `Outside`.  What Python has and the language has not is refused by name (SP110).

Statements and clauses are calls of the words that open them in a text: ``keep(near)``, ``bias(-x)``,
``blk = axis(token, by=64)``, ``grid(y=height, x=width)``, ``export(mass=x)``, ``attend(Q, K, V, keep(near))``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from spdsl.diagnostics import Source, error
from spdsl.grammar import nodes
from spdsl.grammar.nodes import Expr, Statement
from spdsl.grammar.python_expressions import Outside, Reading


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


class _Reader(Reading):
    """Translates one function."""

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
            case nodes.Pipe(value=inner, stage=nodes.Name(id=name)):
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
