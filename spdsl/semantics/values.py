"""What an expression of the syntax tree means to the checker.

Only a `Scalar` becomes part of the checked pattern; the others are things that must still be applied to something: a
table without its indices, an axis, a pattern's softmax, a set of candidates on its way to ``top``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from spdsl.diagnostics import Span
from spdsl.semantics import nodes as ir
from spdsl.semantics.nodes import Attend, Dtype, Expr, Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """A typed expression, pointwise.

    ``axes`` are the axes it varies along: ``q k h g b`` and coordinates such as ``q.blk``.  ``guards`` are the named
    grids whose coordinates take part in the number: the first comparison that uses it must hold inside them only.
    ``size`` counts the nodes as a tree, ``depth`` the longest way down.
    """

    expr: Expr
    axes: frozenset[str] = frozenset()
    guards: frozenset[tuple[Side, str]] = frozenset()
    size: int = 1
    depth: int = 1

    @property
    def dtype(self) -> Dtype:
        """The type of one element."""
        return self.expr.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A tuple."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRef:
    """An input that is not indexed yet."""

    table: ir.Table


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisRef:
    """An axis or a grid coordinate, by its name in the checked pattern; ``token`` is the axis of positions."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRef:
    """A named grid."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """``Q``, ``K`` or ``V``."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A softmax over a set; ``axes`` are those of the set.

    ``sources`` are its queries, keys and values where these are not ``Q K V``; ``streams`` are further softmaxes whose
    keys take part in it.
    """

    attend: Attend
    axes: frozenset[str]
    size: int
    sources: tuple[Scalar, Scalar, Scalar] | None = None
    streams: tuple[Branch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Several softmaxes in one, by their LSEs: the name of the stage, and its value."""

    stage: str
    value: Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Values of which only those in a set are present: what ``only`` gives and ``top`` takes.

    Those in ``forced`` are present in any case, and come first.
    """

    value: Scalar
    only: Scalar
    forced: Scalar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRef:
    """A built-in function, a `def` or a pattern, named where a value is wanted."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """The value of what was wrong: everything made of it is wrong too, and nothing more is said about it."""


Value: TypeAlias = (
    Scalar | Items | TableRef | AxisRef | GridRef | TensorRef | Branch | Merged | Candidates | FunctionRef | Poison
)

POISON = Poison()


def describe(value: Value) -> str:
    """The kind of a value in words, with its article."""
    match value:
        case Scalar():
            return {"int": "an int", "float": "a float", "bool": "a bool"}[value.dtype]
        case Items():
            return f"a tuple of {len(value.items)}"
        case TableRef():
            return f"a table {value.table.dtype}[{', '.join(axis.label for axis in value.table.axes)}]"
        case AxisRef():
            return "an axis"
        case GridRef():
            return "a grid"
        case TensorRef():
            return "a tensor"
        case Branch() | Merged():
            return "a softmax branch"
        case Candidates():
            return "a set of candidates"
        case FunctionRef():
            return f"a {value.kind}"
        case Poison():
            return "wrong"


@dataclass(slots=True, kw_only=True)
class Entry:
    """A name in scope: what it means, where it was declared, as what, and whether anything used it."""

    value: Value
    span: Span | None
    kind: str
    used: bool = False
