"""Random patterns that both syntaxes can write, and how Python writes them."""

from __future__ import annotations

from hypothesis import strategies as st

from spdsl.grammar import nodes
from spdsl.grammar.nodes import Argument, Expr, Statement
from spdsl.grammar.print import to_spat

GIVEN = ("q", "k", "h", "g", "b", "n", "nq", "d", "heads", "layer", "causal", "token", "Q", "K", "V")
NAMES = st.sampled_from(("q", "k", "h", "n", "causal", "all", "window", "doc", "x", "y", "_0"))
FUNCTIONS = st.sampled_from(("abs", "min", "clamp", "score", "mean", "near"))
STAGES = st.sampled_from(("top", "only", "softmax", "sum"))
BINARY = st.sampled_from(("+", "-", "*", "/", "//", "%", "**", "and", "or"))
RELATIONS = st.sampled_from(("<", "<=", ">", ">=", "==", "!=", "in"))
SETTINGS = st.sampled_from(("bias", "scale", "softcap", "sink_logit"))


def _arguments(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[tuple[Argument, ...]]:
    plain = st.lists(st.builds(Argument, name=st.none(), value=inner), max_size=2)
    named = st.lists(
        st.builds(Argument, name=st.sampled_from(("per", "over", "rate")), value=inner),
        max_size=2,
        unique_by=lambda each: each.name,
    )
    return st.builds(lambda first, last: (*first, *last), plain, named)


def _clauses(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[nodes.Clause]:
    return st.one_of(
        st.builds(nodes.Keep, set=inner, source=st.none() | st.tuples(inner, inner), weight=st.none() | inner),
        st.builds(nodes.Setting, word=SETTINGS, value=inner),
    )


def _bodies(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[nodes.Body]:
    clauses = st.lists(_clauses(inner), max_size=2).map(tuple)
    return st.builds(
        nodes.Body, kind=st.sampled_from(("attend", "linear")), arguments=_arguments(inner), clauses=clauses
    )


def _compare(operands: list[Expr], ops: list[str]) -> nodes.Compare:
    return nodes.Compare(ops=tuple(ops[: len(operands) - 1]), operands=tuple(operands))


def _several(inner: st.SearchStrategy[Expr], least: int) -> st.SearchStrategy[tuple[Expr, ...]]:
    return st.lists(inner, min_size=least, max_size=3).map(tuple)


def _extend(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    # A single index that is a tuple is, for Python, several indices.
    indices = _several(inner, 1).filter(lambda items: not (len(items) == 1 and isinstance(items[0], nodes.Tuple)))
    return st.one_of(
        st.builds(nodes.Binary, op=BINARY, left=inner, right=inner),
        st.builds(nodes.Unary, op=st.sampled_from(("-", "not")), operand=inner),
        st.builds(_compare, st.lists(inner, min_size=2, max_size=4), st.lists(RELATIONS, min_size=3, max_size=3)),
        st.builds(nodes.Choose, condition=inner, yes=inner, no=inner),
        st.builds(
            nodes.Pipe, value=inner, stage=STAGES.map(lambda name: nodes.Name(id=name)), arguments=_arguments(inner)
        ),
        st.builds(nodes.Call, function=FUNCTIONS.map(lambda name: nodes.Name(id=name)), arguments=_arguments(inner)),
        st.builds(nodes.Subscript, value=NAMES.map(lambda name: nodes.Name(id=name)), indices=indices),
        st.builds(nodes.Attribute, value=NAMES.map(lambda name: nodes.Name(id=name)), name=NAMES),
        st.builds(nodes.Tuple, items=_several(inner, 2)),
        _bodies(inner),
    )


LEAVES: st.SearchStrategy[Expr] = st.one_of(
    st.builds(nodes.Name, id=NAMES | st.sampled_from(("true", "false"))),
    st.builds(nodes.Number, value=st.integers(0, 2**63 - 1) | st.floats(0, allow_nan=False, allow_infinity=False)),
)
_EXPRESSIONS = st.recursive(LEAVES, _extend, max_leaves=16)
_SMALL = st.recursive(LEAVES, _extend, max_leaves=3)
# Deferred, so that hypothesis does not write them out wherever they are used.
EXPRESSIONS: st.SearchStrategy[Expr] = st.deferred(lambda: _EXPRESSIONS)
SMALL: st.SearchStrategy[Expr] = st.deferred(lambda: _SMALL)
LOCALS = st.sampled_from(("x", "y", "doc", "blk", "near_"))
STATEMENTS: st.SearchStrategy[Statement] = st.one_of(
    st.builds(nodes.Let, name=LOCALS, value=EXPRESSIONS),
    st.builds(nodes.AxisBy, name=LOCALS, of=SMALL, by=SMALL, step=st.none() | SMALL),
    st.builds(nodes.AxisInto, name=LOCALS, of=SMALL, into=SMALL),
    st.builds(
        nodes.Grid,
        name=st.none() | LOCALS,
        coordinates=st.lists(
            st.builds(nodes.Named, name=st.sampled_from(("t", "y", "x")), value=SMALL),
            min_size=1, max_size=3, unique_by=lambda each: each.name,
        ).map(tuple),
        start=st.none() | SMALL,
    ),
    st.builds(nodes.Export, name=LOCALS, value=EXPRESSIONS),
    _clauses(EXPRESSIONS),
)  # fmt: skip
ENDS = st.builds(nodes.Keep, set=NAMES.map(lambda name: nodes.Name(id=name))) | st.builds(
    nodes.Return,
    value=st.builds(nodes.Binary, op=st.sampled_from("+-*"), left=SMALL, right=_bodies(SMALL)),
)
NUMBERS = st.integers(-5, 5) | st.floats(-1, 1)
RANGES = st.builds(nodes.Range, low=NUMBERS, high=st.none() | NUMBERS) | st.builds(
    nodes.Range, low=st.none(), high=NUMBERS
)
TYPES = st.builds(
    nodes.Type,
    name=st.sampled_from(("int", "float", "bool")),
    extents=st.sampled_from((0, 2, 3)).map(
        lambda size: (nodes.Extent(name=None, value=nodes.Number(value=size)),) if size else ()
    ),
)
DEFAULTS: st.SearchStrategy[Expr] = st.recursive(
    st.builds(nodes.Name, id=st.sampled_from(("true", "false"))) | st.builds(nodes.Number, value=st.integers(0, 9)),
    lambda inner: st.builds(nodes.Tuple, items=_several(inner, 2)),
    max_leaves=3,
)
PARAMS = st.builds(
    nodes.Param,
    name=st.sampled_from(("window", "sinks", "rate", "wide")),
    type=TYPES,
    range=st.none() | RANGES,
    default=st.none() | DEFAULTS,
)
PATTERNS = st.builds(
    lambda parameters, body, end: nodes.Pattern(name="mine", parameters=tuple(parameters), statements=(*body, end)),
    st.lists(PARAMS, max_size=3, unique_by=lambda each: each.name),
    st.lists(STATEMENTS, max_size=4),
    ENDS,
)


def function(pattern: nodes.Pattern) -> str:
    """The pattern as a function of Python."""
    arguments = [*GIVEN, "*", *(_param(each) for each in pattern.parameters)] if pattern.parameters else GIVEN
    lines = [
        f"def {pattern.name}({', '.join(arguments)}):",
        *(f"    {_statement(each)}" for each in pattern.statements),
    ]
    return "\n".join(lines) + "\n"


def _param(node: nodes.Param) -> str:
    type = node.type.name
    if node.type.extents:
        (size,) = (each.value.value for each in node.type.extents if isinstance(each.value, nodes.Number))
        type = f"tuple[{', '.join([type] * int(size))}]"
    if node.range is not None:
        type = f"Annotated[{type}, Within({node.range.low!r}, {node.range.high!r})]"
    return f"{node.name}: {type}" + (f" = {_expr(node.default)}" if node.default is not None else "")


def _statement(node: Statement) -> str:
    match node:
        case nodes.Let(name=name, value=value):
            return f"{name} = {_expr(value)}"
        case nodes.AxisBy(name=name, of=of, by=by, step=step):
            return f"{name} = axis({_expr(of)}, by={_expr(by)}{f', step={_expr(step)}' if step else ''})"
        case nodes.AxisInto(name=name, of=of, into=into):
            return f"{name} = axis({_expr(of)}, into={_expr(into)})"
        case nodes.Grid(name=name, coordinates=coordinates, start=start):
            inside = ", ".join(f"{each.name}={_expr(each.value)}" for each in coordinates)
            return f"{name + ' = ' if name else ''}grid({inside}{f', start={_expr(start)}' if start else ''})"
        case nodes.Export(name=name, value=value):
            return f"export({name}={_expr(value)})"
        case nodes.Return(value=value):
            return f"return {_expr(value)}"
        case nodes.Keep() | nodes.Setting():
            return _clause(node)
        case _:
            raise AssertionError(node)


def _clause(node: nodes.Clause) -> str:
    match node:
        case nodes.Keep(set=set, source=source, weight=weight):
            after = f", source=({_expr(source[0])}, {_expr(source[1])})" if source else ""
            return f"keep({_expr(set)}{after}{f', weight={_expr(weight)}' if weight else ''})"
        case nodes.Setting(word=word, value=value):
            return f"{word}({_expr(value)})"


def _expr(node: Expr) -> str:
    """What is written alike in both is written by the printer of the language: operators bind alike, too."""
    match node:
        case nodes.Choose(condition=condition, yes=yes, no=no):
            return f"({_expr(yes)} if {_expr(condition)} else {_expr(no)})"
        case nodes.Pipe(value=value, stage=nodes.Name(id=stage), arguments=given):
            return f"(({_expr(value)}) | {stage}{f'({_passed(given)})' if given else ''})"
        case nodes.Body(kind=kind, arguments=given, clauses=clauses):
            plain = [_argument(each) for each in given if each.name is None]
            named = [_argument(each) for each in given if each.name is not None]
            return f"{kind}({', '.join([*plain, *(_clause(each) for each in clauses), *named])})"
        case nodes.Name(id=name):
            return {"true": "True", "false": "False"}.get(name, name)
        case nodes.Number() | nodes.Attribute():
            return to_spat(node)
        case nodes.Unary(op=op, operand=operand):
            return to_spat(nodes.Unary(op=op, operand=_held(operand)))
        case nodes.Binary(op=op, left=left, right=right):
            return to_spat(nodes.Binary(op=op, left=_held(left), right=_held(right)))
        case nodes.Compare(ops=ops, operands=operands):
            return to_spat(nodes.Compare(ops=ops, operands=tuple(_held(each) for each in operands)))
        case nodes.Tuple(items=items):
            return f"({', '.join(_expr(each) for each in items)})"
        case nodes.Call(function=called, arguments=given):
            return f"{_expr(called)}({_passed(given)})"
        case nodes.Subscript(value=value, indices=indices):
            return f"{_expr(value)}[{', '.join(_expr(each) for each in indices)}]"
        case _:
            raise AssertionError(node)


def _held(node: Expr) -> Expr:
    """An operand: as it is where its kind decides about brackets, else as a name that is already written out."""
    match node:
        case nodes.Unary(op=op, operand=operand):
            return nodes.Unary(op=op, operand=_held(operand))
        case nodes.Binary(op=op, left=left, right=right):
            return nodes.Binary(op=op, left=_held(left), right=_held(right))
        case nodes.Compare(ops=ops, operands=operands):
            return nodes.Compare(ops=ops, operands=tuple(_held(each) for each in operands))
        case _:
            return nodes.Name(id=_expr(node))


def _passed(given: tuple[Argument, ...]) -> str:
    return ", ".join(_argument(each) for each in given)


def _argument(given: Argument) -> str:
    return (f"{given.name}=" if given.name else "") + _expr(given.value)
