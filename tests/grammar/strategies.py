"""Random syntax trees: everything that `parse` can return, whether or not it means anything."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

from spdsl.grammar import nodes
from spdsl.grammar.nodes import Argument, Expr, Program, Statement

T = TypeVar("T")

# Words of the language are good names wherever the grammar lets them be names: all but `if not attend linear`.
NAMES = st.sampled_from(
    [
        "q",
        "k",
        "h",
        "g",
        "b",
        "n",
        "layer",
        "causal",
        "all",
        "token",
        "window",
        "doc",
        "x",
        "y",
        "_0",
        "in",
        "then",
        "else",
        "and",
        "or",
        "keep",
        "let",
        "by",
        "step",
        "from",
        "weight",
        "bias",
        "sorted",
    ]
)
BINARY = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "and", "or"])
RELATIONS = st.sampled_from(["<", "<=", ">", ">=", "==", "!=", "in"])
CLAUSES = st.sampled_from(
    ["bias", "scale", "softcap", "sink_logit", "skip", "times", "decay", "update", "normalize", "fit"]
)
INTS = st.integers(0, 9) | st.integers(0, 2**63 - 1)
FLOATS = st.floats(0, allow_nan=False, allow_infinity=False)
BOUNDS = INTS | INTS.map(int.__neg__) | FLOATS | FLOATS.map(float.__neg__)
TEXTS = st.text(st.characters(exclude_characters='"', exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8)


def tuples(items: st.SearchStrategy[T], least: int = 0, most: int = 3) -> st.SearchStrategy[tuple[T, ...]]:
    """Tuples of these."""
    return st.lists(items, min_size=least, max_size=most).map(tuple)


def _arguments(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[tuple[Argument, ...]]:
    return tuples(st.builds(Argument, name=st.none() | NAMES, value=inner))


def _clauses(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[tuple[nodes.Clause, ...]]:
    keep = st.builds(nodes.Keep, set=inner, source=st.none() | st.tuples(inner, inner), weight=st.none() | inner)
    return tuples(keep | st.builds(nodes.Setting, word=CLAUSES, value=inner))


def _compare(operands: list[Expr], draw_ops: list[str]) -> nodes.Compare:
    return nodes.Compare(ops=tuple(draw_ops[: len(operands) - 1]), operands=tuple(operands))


def _extend(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(nodes.Binary, op=BINARY, left=inner, right=inner),
        st.builds(nodes.Unary, op=st.sampled_from(("-", "not")), operand=inner),
        st.builds(_compare, st.lists(inner, min_size=2, max_size=4), st.lists(RELATIONS, min_size=3, max_size=3)),
        st.builds(nodes.Choose, condition=inner, yes=inner, no=inner),
        st.builds(
            nodes.Pipe, value=inner, stage=NAMES.map(lambda name: nodes.Name(id=name)), arguments=_arguments(inner)
        ),
        st.builds(nodes.Call, function=inner, arguments=_arguments(inner)),
        st.builds(nodes.Subscript, value=inner, indices=tuples(inner, 1)),
        st.builds(nodes.Attribute, value=inner, name=NAMES),
        st.builds(nodes.Tuple, items=tuples(inner, 2)),
        st.builds(
            nodes.Body, kind=st.sampled_from(("attend", "linear")), arguments=_arguments(inner), clauses=_clauses(inner)
        ),
    )


LEAVES: st.SearchStrategy[Expr] = st.one_of(
    st.builds(nodes.Name, id=NAMES),
    st.builds(nodes.Number, value=INTS | FLOATS),
    st.builds(nodes.String, value=TEXTS),
)
EXPRESSIONS: st.SearchStrategy[Expr] = st.recursive(LEAVES, _extend, max_leaves=24)
SMALL = st.recursive(LEAVES, _extend, max_leaves=4)

RANGES = st.builds(nodes.Range, low=BOUNDS, high=st.none() | BOUNDS) | st.builds(
    nodes.Range, low=st.none(), high=BOUNDS
)
TYPES = st.builds(nodes.Type, name=NAMES, extents=tuples(st.builds(nodes.Extent, name=st.none() | NAMES, value=SMALL)))
PARAMS = st.builds(nodes.Param, name=NAMES, type=TYPES, range=st.none() | RANGES, default=st.none() | SMALL)

STATEMENTS: st.SearchStrategy[Statement] = st.one_of(
    st.builds(nodes.Input, name=NAMES, type=TYPES, range=st.none() | RANGES, sorted=st.booleans()),
    st.builds(
        nodes.Grid,
        name=st.none() | NAMES,
        coordinates=tuples(st.builds(nodes.Named, name=NAMES, value=SMALL), 1),
        start=st.none() | SMALL,
    ),
    st.builds(nodes.AxisBy, name=NAMES, of=SMALL, by=SMALL, step=st.none() | SMALL),
    st.builds(nodes.AxisInto, name=NAMES, of=SMALL, into=SMALL),
    st.builds(nodes.Let, name=NAMES, value=EXPRESSIONS),
    st.builds(nodes.Export, name=NAMES, value=EXPRESSIONS),
    st.builds(nodes.Return, value=EXPRESSIONS),
    _clauses(EXPRESSIONS).filter(bool).map(lambda clauses: clauses[0]),
)
PATTERNS = st.builds(nodes.Pattern, name=NAMES, parameters=tuples(PARAMS), statements=tuples(STATEMENTS, 0, 4))
DEFS = st.builds(nodes.Def, name=NAMES, parameters=tuples(NAMES), value=EXPRESSIONS)
PROGRAMS: st.SearchStrategy[Program] = st.builds(
    Program, items=tuples(st.builds(nodes.Use, path=TEXTS) | DEFS | PATTERNS)
)
