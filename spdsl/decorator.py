"""`@spdsl.pattern`: a Python function in place of the text of a pattern.

From: a function, of which the signature, the source and the values it mentions are read; it is never called.  To: the
grammar's `Program`, which goes the way of every other one from `check` on.  The body is translated by
`spdsl.grammar.python`.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import numbers
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, overload

from spdsl.api import Pattern
from spdsl.diagnostics import Source, Span, SpatError, error
from spdsl.grammar import nodes, python
from spdsl.grammar.parse import parse
from spdsl.grammar.python_expressions import literal, place
from spdsl.language import Word
from spdsl.library import resolver
from spdsl.semantics.check import check
from spdsl.semantics.functions import FUNCTIONS
from spdsl.semantics.scope import BUILTINS
from spdsl.semantics.unsupported import UNSUPPORTED

__all__ = ["Input", "Within", "pattern"]

POSITIONS = frozenset(BUILTINS) - {"all", "true", "false"}
"""Names of the language that a function takes as parameters without a type, so that Python knows them."""


@dataclass(frozen=True, slots=True)
class Within:
    """The range of a parameter, both ends inclusive: ``window: Annotated[int, Within(1)]``; None leaves a side open."""

    low: int | float | None = None
    high: int | float | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that is given at each call: ``doc: Annotated[Tensor, Input("int[token] sorted")]``.

    Axes, ranges and promises are written as after `input NAME:` in a text.
    """

    type: str


@overload
def pattern(function: Callable[..., Any], /) -> Pattern: ...
@overload
def pattern(*, use: str | Sequence[str] = ()) -> Callable[[Callable[..., Any]], Pattern]: ...
def pattern(
    function: Callable[..., Any] | None = None, /, *, use: str | Sequence[str] = ()
) -> Pattern | Callable[[Callable[..., Any]], Pattern]:
    """The pattern that a function describes, in the syntax of Python.

    Args:
        function: names of the language (``q``, ``k``, ``h``, ``causal``, …) as parameters without a type; parameters of
            the pattern with ``int``, ``float``, ``bool``, ``tuple[int, int]`` or ``Annotated[int, Within(1)]`` and
            perhaps a default; inputs with ``Annotated[Tensor, Input("int[token]")]``.  The set that is returned is
            kept.  Numbers from outside of the function become constants, functions of one ``return`` become `def`s.
        use: files whose definitions are seen, beside the function's own file or of the library.

    Raises:
        SpatError: what Python has and the language has not (SP110), a signature that says nothing (SP111), a source
            that cannot be read (SP640), and every mistake that the same pattern as a text would have; places are those
            of the Python file.
    """
    files = (use,) if isinstance(use, str) else tuple(use)
    if function is None:
        return lambda function: _pattern(function, files)
    return _pattern(function, files)


def _pattern(function: Callable[..., Any], files: tuple[str, ...]) -> Pattern:
    program = program_of(function, files)
    assert program.source is not None, "every function has its file"
    folder = Path(program.source.name).parent
    return Pattern(check(program, resolve=resolver(folder if folder.is_dir() else None)))


def program_of(function: Callable[..., Any], files: Sequence[str] = ()) -> nodes.Program:
    """The program of a function, with the `def`s and patterns that it calls; nothing is checked.

    Raises:
        SpatError: as `pattern` does, but for mistakes of meaning.
    """
    if not isinstance(function, types.FunctionType):
        found = f"a pattern is made of a function, not of a {type(function).__name__}"
        raise error("SP111", found, help="put `@spdsl.pattern` above a `def`")
    tree, source = source_of(function)
    outside = _Outside()
    signature = _Signature(function, tree, source)
    made = python.pattern(tree, source, outside.of(function, signature.given), signature.parameters, signature.inputs)
    used = tuple(nodes.Use(path=each, span=made.span) for each in files)
    return nodes.Program(items=(*used, *outside.items.values(), made), source=source)


# ---------------------------------------------------------------- the source


def source_of(function: types.FunctionType) -> tuple[ast.FunctionDef, Source]:
    """The tree of a function in that of its file, or of its cell in a notebook, and the text of that.

    Raises:
        SpatError: the text is not known, or is not that of the function (SP640).
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    try:
        tree = ast.parse(text)
    except SyntaxError:
        raise _unread(function) from None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            # Python counts a function from its first decorator on.
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first == code.co_firstlineno:
                # Python's lines end at newlines alone; ours also at rarer marks, which would shift the numbers.
                plain = re.sub("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", " ", text)
                return node, Source(name=code.co_filename, text=plain)
    raise _unread(function)


def _unread(function: types.FunctionType) -> SpatError:
    name = function.__name__
    if name == "<lambda>":
        return error(
            "SP111", "a pattern is made of a `def`, not of a `lambda`", help="give it a name and its parameters"
        )
    return error(
        "SP640",
        f"the source of `{name}` cannot be read from `{function.__code__.co_filename}`",
        help="define it in a file or a cell of a notebook, import it again after a change, or use `spdsl.loads(text)`",
    )


# ---------------------------------------------------------------- the signature


class _Signature:
    """What the parameters of a function declare."""

    def __init__(self, function: types.FunctionType, tree: ast.FunctionDef, source: Source) -> None:
        self.function, self.source = function, source
        self.lines = source.text.splitlines()
        parameters: list[nodes.Param] = []
        inputs: list[nodes.Input] = []
        given: set[str] = set()
        for star in (tree.args.vararg, tree.args.kwarg):
            if star is not None:
                raise self._error(star, f"`*{star.arg}` is no parameter of a pattern", "name every parameter")
        try:
            annotations = inspect.get_annotations(function, eval_str=True)
        except Exception as failure:  # noqa: BLE001  # annotations are any code
            found = f"the annotations of `{function.__name__}` cannot be evaluated: {failure}"
            raise error("SP111", found, self._place(tree), help="they may use the names of the module") from None
        defaults = {
            name: each.default
            for name, each in inspect.signature(function).parameters.items()
            if each.default is not inspect.Parameter.empty
        }
        for arg in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs):
            if arg.arg in POSITIONS and not isinstance(annotations.get(arg.arg), Input):
                if arg.arg in defaults:
                    found = f"`{arg.arg}` is a name of the language and has no default"
                    raise self._error(arg, found, "leave the default out, or give the parameter another name")
                given.add(arg.arg)
            elif arg.arg not in annotations:
                help = f"a parameter has a type, `{arg.arg}: int`; without one stand names of the language such as `q`"
                raise self._error(arg, f"`{arg.arg}` has no type", help)
            else:
                made = self._declared(arg, annotations[arg.arg], defaults)
                if isinstance(made, nodes.Input):
                    inputs.append(made)
                else:
                    parameters.append(made)
        self.parameters, self.inputs, self.given = tuple(parameters), tuple(inputs), frozenset(given)

    def _place(self, node: ast.arg | ast.stmt) -> Span:
        span = place(node, self.source, lambda number: self.lines[number - 1])
        return span if isinstance(node, ast.arg) else replace(span, end_line=span.line, end_column=span.column + 3)

    def _error(self, arg: ast.arg, message: str, help: str) -> SpatError:
        return error("SP111", message, self._place(arg), help=help)

    def _declared(self, arg: ast.arg, annotation: object, defaults: Mapping[str, object]) -> nodes.Param | nodes.Input:
        span = self._place(arg)
        details: tuple[object, ...] = ()
        if get_origin(annotation) is Annotated:
            annotation, *rest = get_args(annotation)
            details = tuple(each for each in rest if isinstance(each, Within | Input))
        elif isinstance(annotation, Input):
            details = (annotation,)
        match details:
            case [Input(type=text)]:
                if arg.arg in defaults:
                    raise self._error(arg, f"the input `{arg.arg}` has a default", "inputs are given at each call")
                return _input(arg.arg, text, span)
            case [] | [Within()]:
                pass
            case _:
                raise self._error(arg, f"`{arg.arg}` is described twice", "leave one `Within` or `Input`")
        type = _type(annotation, span)
        if type is None:
            shown = getattr(annotation, "__name__", None) or str(annotation)
            found = f"`{arg.arg}` is annotated with `{shown}`"
            help = (
                "parameters are `int`, `float`, `bool`, a `tuple[int, int]`, or `Annotated[int, spdsl.Within(1)]`; "
                'inputs `Annotated[Tensor, spdsl.Input("int[token]")]`'
            )
            raise self._error(arg, found, help)
        default = None
        if arg.arg in defaults:
            default = literal(plain(defaults[arg.arg]), span)
            if default is None:
                found = f"the default of `{arg.arg}` is {defaults[arg.arg]!r:.80}"
                raise self._error(arg, found, "defaults are numbers, bools and tuples of these")
        range = None
        if details and isinstance(details[0], Within):
            range = nodes.Range(low=details[0].low, high=details[0].high, span=span)
            if range.low is None and range.high is None:
                raise self._error(arg, f"the range of `{arg.arg}` has no ends", "write `Within(1)` or `Within(1, 8)`")
        return nodes.Param(name=arg.arg, type=type, range=range, default=default, span=span)


def _type(annotation: object, span: Span) -> nodes.Type | None:
    if annotation in (int, float, bool) and isinstance(annotation, type):
        return nodes.Type(name=annotation.__name__, span=span)
    items = get_args(annotation)
    if get_origin(annotation) is tuple and items and all(each is items[0] for each in items):
        item = _type(items[0], span)
        if item is not None and not item.extents:
            size = nodes.Extent(name=None, value=nodes.Number(value=len(items), span=span), span=span)
            return replace(item, extents=(size,))
    return None


def _input(name: str, text: str, span: Span) -> nodes.Input:
    """The declaration of an input, read by the grammar and placed at the parameter."""
    try:
        program = parse(f"pattern declared() {{ input {name}: {text} }}")
    except SpatError as mistake:
        found = f'the type "{text}" of `{name}`: {mistake.message}'
        raise error(mistake.code, found, span, help=mistake.help) from None
    match program.items:
        case [nodes.Pattern(statements=[nodes.Input() as declared])]:
            placed: nodes.Input = _at(declared, span)
            return placed
        case _:
            found = f'"{text}" is more than the type of an input'
            raise error("SP111", found, span, help='for example `Input("float[h, q] in 0.. ")`')


def _at(node: Any, span: Span) -> Any:
    """A tree with all its places at one."""
    if isinstance(node, tuple):
        return tuple(_at(each, span) for each in node)
    if not is_dataclass(node) or isinstance(node, type):
        return node
    inner = {each.name: _at(getattr(node, each.name), span) for each in fields(node) if each.name != "span"}
    return replace(node, **inner, span=span)


# ---------------------------------------------------------------- names from outside


def plain(value: object) -> object:
    """Numbers of NumPy as those of Python."""
    match value:
        case bool() | int() | float():
            return value
        case tuple():
            return tuple(plain(each) for each in value)
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case _:
            return value


MISSING = object()
"""What a name without a value stands for."""


def _content(cell: types.CellType) -> object:
    """The value of a variable of an enclosing function, which may not have one yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


class _Outside:
    """What functions mention from outside of them: the `def`s and patterns that their program holds."""

    def __init__(self) -> None:
        self.items: dict[str, nodes.Def | nodes.Pattern] = {}
        self.functions: dict[types.FunctionType, str] = {}

    def of(self, function: types.FunctionType, given: frozenset[str]) -> _Names:
        """The names that one function sees."""
        return _Names(self, function, given)

    def define(self, name: str, function: types.FunctionType) -> None:
        """Make a `def` of a function, and of those that it calls."""
        if function in self.functions:
            return
        self.functions[function] = name
        tree, source = source_of(function)
        self.items[name] = python.definition(tree, source, self.of(function, POSITIONS), name)

    def include(self, called: Pattern) -> None:
        """Take in a pattern that is called, and what it uses."""
        for item in parse(called.to_spat(), f"{called.name}.spat").items:
            assert not isinstance(item, nodes.Use), "a canonical text is self-contained"
            self.items.setdefault(item.name, item)


class _Names:
    """What the names of one function stand for."""

    def __init__(self, outside: _Outside, function: types.FunctionType, given: frozenset[str]) -> None:
        self.outside, self.function, self.given = outside, function, given
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self.values: dict[str, object] = {**function.__globals__, **{name: _content(cell) for name, cell in cells}}

    def value(self, name: str, span: Span) -> nodes.Expr | None:
        """As `Outside` says."""
        value = plain(self.values.get(name, MISSING))
        if isinstance(value, Word):
            return nodes.Name(id=value.name, span=span)
        if name in POSITIONS and name not in self.given:
            help = f"add it: `def {self.function.__name__}(…, {name}, …)`"
            found = f"`{name}` is a name of the language and not among the parameters of `{self.function.__name__}`"
            raise error("SP111", found, span, help=help)
        if name in POSITIONS or name in FUNCTIONS or name in UNSUPPORTED or name in BUILTINS:
            if isinstance(value, types.FunctionType) and value.__module__ == self.function.__module__:
                found = f"`{name}` already means something in the language"
                raise error("SP202", found, span, help="give the function another name")
            return None
        if value is MISSING:
            return None
        made = literal(value, span)
        if made is not None:
            return made
        match value:
            case types.FunctionType():
                self.outside.define(name, value)
                return nodes.Name(id=name, span=span)
            case Pattern():
                self.outside.include(value)
                return nodes.Name(id=value.name, span=span)
            case types.ModuleType():
                help = "functions are called by their own names, as in `sqrt(x)`"
            case _:
                help = (
                    "numbers, tuples of numbers, functions of one `return` and patterns can be used; a tensor is an "
                    f'input: `{name}: Annotated[Tensor, spdsl.Input("int[token]")]`'
                )
        raise error("SP110", f"`{name}` is a {type(value).__name__}, which is not in the language", span, help=help)

    def is_function(self, name: str) -> bool:
        """As `Outside` says."""
        value = self.values.get(name)
        return name in FUNCTIONS or name in UNSUPPORTED or isinstance(value, Word | types.FunctionType | Pattern)

    def is_softmax(self, name: str) -> bool:
        """As `Outside` says."""
        called = self.outside.items.get(name)
        return isinstance(called, nodes.Pattern) and any(
            isinstance(each, nodes.Setting | nodes.Return) for each in called.statements
        )
