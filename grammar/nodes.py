"""The syntax tree: what `parse` returns.  Rule names in ``spat.lark`` equal these names in snake case.

A `Program` is a list of `Use`, `Def` and `Pattern`.  Nothing here is checked: names may be unknown, types wrong.
Every node carries a `Span` that equality ignores, so that ``parse(print(tree)) == tree``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from spdsl.diagnostics import Source, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What all nodes share."""

    span: Span | None = field(default=None, compare=False, repr=False)


# ---------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True, kw_only=True)
class Name(Node):
    """``q``, ``window``, ``causal``, ``true``."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Node):
    """An int or float literal."""

    value: int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class String(Node):
    """``"text"``."""

    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuple(Node):
    """``(a, b, …)`` with at least two items."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute(Node):
    """``value.name``: ``q.blk``, ``k.blk.last``, ``blk.count``."""

    value: Expr
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscript(Node):
    """``value[index, …]``."""

    value: Expr
    indices: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument(Node):
    """One argument of a call; ``name`` is None for a positional one."""

    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Node):
    """``function(arguments)``."""

    function: Expr
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary(Node):
    """``-x`` or ``not x``."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Node):
    """``a op b`` for ``+ - * / // % ** and or``."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare(Node):
    """A chain ``a < b <= c`` or ``layer in (0, 1)``: one operand more than operators."""

    ops: tuple[str, ...]
    operands: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choose(Node):
    """``if condition then yes else no``."""

    condition: Expr
    yes: Expr
    no: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe(Node):
    """``value |> stage(arguments)``; ``|> softmax`` has no arguments."""

    value: Expr
    stage: Name
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body(Node):
    """``attend(Q, K, V) { … }`` or ``linear(…) { … }``; ``kind`` is the word."""

    kind: str
    arguments: tuple[Argument, ...]
    clauses: tuple[Clause, ...]


Expr: TypeAlias = (
    Name | Number | String | Tuple | Attribute | Subscript | Call | Unary | Binary | Compare | Choose | Pipe | Body
)


# ---------------------------------------------------------------- types


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent(Node):
    """One axis of a type: ``token``, ``3``, ``q.blk`` or, with a name, ``c: clusters``."""

    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Type(Node):
    """``int``, ``float[3, h, q]``, ``int[i: 5]``."""

    name: str
    extents: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Range(Node):
    """``low..high``, both inclusive; None leaves the side open."""

    low: int | float | None
    high: int | float | None


# ---------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Param(Node):
    """``window: int in 1.. = 1024``."""

    name: str
    type: Type
    range: Range | None
    default: Expr | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Node):
    """``input doc: int[token] in 0.. sorted``."""

    name: str
    type: Type
    range: Range | None
    sorted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Node):
    """One coordinate of a grid: ``y: height``."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid(Node):
    """``grid video (t: frames, y: height, x: width) from start``."""

    name: str | None
    coordinates: tuple[Named, ...]
    start: Expr | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisBy(Node):
    """``axis blk = token by 64 step 16``."""

    name: str
    of: Expr
    by: Expr
    step: Expr | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisInto(Node):
    """``axis bin = token into 256``."""

    name: str
    of: Expr
    into: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Let(Node):
    """``let near = abs(q - k) < 8``."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(Node):
    """``export map = …``."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Return(Node):
    """``return …``."""

    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep(Node):
    """``keep SET [from (K1, V1)] [weight w]``."""

    set: Expr
    source: tuple[Expr, Expr] | None = None
    weight: Expr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Node):
    """``bias …``, ``softcap …`` and the other clauses that are one word and one expression."""

    word: str
    value: Expr


Clause: TypeAlias = Keep | Setting
Statement: TypeAlias = Input | Grid | AxisBy | AxisInto | Let | Export | Return | Keep | Setting


# ---------------------------------------------------------------- top level


@dataclass(frozen=True, slots=True, kw_only=True)
class Use(Node):
    """``use "file.spat"``."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Def(Node):
    """``def centre(x, window) = …``: a pure function, expanded where it is called."""

    name: str
    parameters: tuple[str, ...]
    value: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern(Node):
    """``pattern name(parameters) { statements }``."""

    name: str
    parameters: tuple[Param, ...]
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program(Node):
    """A whole file, and the text it came from (ignored by equality)."""

    items: tuple[Use | Def | Pattern, ...]
    source: Source | None = field(default=None, compare=False, repr=False)
