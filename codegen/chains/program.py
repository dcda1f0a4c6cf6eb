"""The text of a kernel under construction: values stand in the outermost loop in which all they are made of is known.

From: expressions over named values, and texts that need them.  To: lines, nested in loops.  A value that was written
once is not written again where it is still in sight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.expressions import helpers_of, text_of, truncated
from spdsl.semantics import build
from spdsl.semantics.bounds import is_non_negative
from spdsl.semantics.nodes import Apply, Const, Dtype, Expr, Extent, Index, Param
from spdsl.semantics.rewrite import children, rebuild, transform, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a value: the depth of its loop, and whether it differs by rows and by columns of the tile.

    ``fine``: its columns are the entries that are folded into the tile's; ``deep``: so are its rows.
    """

    depth: int = 0
    row: bool = False
    column: bool = False
    fine: bool = False
    deep: bool = False

    def __or__(self, other: Known) -> Known:
        return Known(
            depth=max(self.depth, other.depth),
            row=self.row or other.row,
            column=self.column or other.column,
            fine=self.fine or other.fine,
            deep=self.deep or other.deep,
        )

    @property
    def shape(self) -> str:
        """The shape of the value as a tensor."""
        rows, columns = self.sizes
        return f"[{rows}, {columns}]"

    @property
    def sizes(self) -> tuple[str, str]:
        """The sizes of the value as a tensor."""
        columns, rows = "BLOCK_F" if self.fine else "BLOCK_C", "BLOCK_Q" if self.deep else "BLOCK_R"
        return rows if self.row else "1", columns if self.column else "1"


NOTHING = Known()

RESERVED = (
    *("largest", "total", "logit", "key", "keys", "key_row", "sums", "at", "finite", "n", "nq", "heads", "pitch"),
    *("sum_first", "sum_rows", "begin", "share", "parts"),
    *("outer", "upper", "ordinary", "full", "rest", "tile", "scan", "each", "fine", "whole", "any_there", "all_there"),
    *("part", "part_there", "part_left", "row_value", "row_count", "deep"),
    *("entry_left", "entry_there", "left", "count", "entries", "owners", "owner"),
    *("row_tile", "row_tiles", "column_tile", "column_tiles", "row_end"),
    *("rows_first", "rows_last", "columns_first", "columns_last", "touched", "run_end", "first_row", "chunk_rows"),
)
"""Names that the templates of kernels use."""


@dataclass(slots=True, kw_only=True)
class Scope:
    """Lines of one loop; ``names`` are the values that stand there, by their text."""

    items: list[str | Scope] = field(default_factory=list)
    header: str = ""
    names: dict[str, Expr] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How deep loops are nested inside."""
        inner = (item for item in self.items if isinstance(item, Scope))
        return max((item.header.startswith("for") + item.depth for item in inner), default=0)

    def lines(self, depth: int) -> list[str]:
        """The text, indented."""
        found = ["    " * depth + self.header] if self.header else []
        inner = depth + bool(self.header)
        for item in self.items:
            found += item.lines(inner) if isinstance(item, Scope) else ["    " * inner + item]
        return found


@dataclass(slots=True, kw_only=True)
class Program:
    """A kernel's body while it is written."""

    stack: list[Scope] = field(default_factory=lambda: [Scope()])
    known: dict[str, Known] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESERVED, 0))
    helpers: set[str] = field(default_factory=set)

    # ------------------------------------------------------------ names

    def fresh(self, hint: str) -> str:
        """A name that is not taken."""
        number = self.counts.get(hint, -1) + 1
        self.counts[hint] = number
        return hint if number == 0 else f"{hint}_{number}"

    def declare(self, name: str, what: Known) -> Index:
        """An int that does not fall below 0 and is known by this name: an argument, a place, a loop's number."""
        self.known[name] = what
        self.counts.setdefault(name, 0)
        return Index(name=name)

    def of(self, expr: Expr) -> Known:
        """What is known of an expression."""
        found = NOTHING
        for node in walk(expr):
            if isinstance(node, Index | Param):
                found = found | self.known[node.name]
        return found

    # ------------------------------------------------------------ lines

    def line(self, text: str, depth: int | None = None) -> None:
        """Write a line at the end of a loop, by default the innermost."""
        self.stack[len(self.stack) - 1 if depth is None else depth].items.append(text)

    def let(self, hint: str, text: str, what: Known, dtype: Dtype) -> Expr:
        """The name of a value, written where all it is made of is known.

        Conditions of a whole tile stand where they are asked for: kept from loop to loop they would fill registers.
        """
        if dtype == "bool" and what.row and what.column:
            what = replace(what, depth=len(self.stack) - 1)
        scope = self.stack[what.depth]
        for each in self.stack[: what.depth + 1]:
            if text in each.names:
                return each.names[text]
        name = self.fresh(hint)
        scope.items.append(f"{name} = {text}")
        self.known[name] = what
        scope.names[text] = Param(name=name, dtype=dtype)
        return scope.names[text]

    def is_scalar(self, name: str) -> bool:
        """Whether a name is known to be that of one number for the whole tile."""
        return self.known.get(name) == NOTHING

    def name(self, hint: str, expr: Expr) -> Expr:
        """The name of an expression's value; of a leaf, itself."""
        expr = self._split(tidy(expr))
        if not isinstance(expr, Apply):
            return expr
        found = self.let(hint, self._print(expr), self.of(expr), expr.dtype)
        if expr.dtype == "int" and isinstance(found, Param) and is_non_negative(expr):
            return Index(name=found.name)
        return found

    def text(self, expr: Expr) -> str:
        """The text of an expression; what need not be computed in this loop, or for the whole tile, has a name."""
        expr = self._split(tidy(expr))
        if isinstance(expr, Apply) and self.of(expr).depth < len(self.stack) - 1 and not _is_plain(expr):
            return self.atom(expr, "x" if expr.dtype != "bool" else "holds")
        return self._print(expr)

    def atom(self, expr: Expr, hint: str = "x") -> str:
        """As `text`, but a name or a number."""
        return self._print(self.name(hint, expr))

    def _print(self, expr: Expr) -> str:
        expr = truncated(transform(expr, _with_nans))
        self.helpers |= helpers_of(expr)
        return text_of(expr)

    def _split(self, expr: Expr) -> Expr:
        if not isinstance(expr, Apply):
            return expr
        whole = self.of(expr)
        parts = []
        for part in children(expr):
            inner = self._split(part)
            if isinstance(inner, Apply) and self.of(inner) != whole and not _is_plain(inner):
                inner = self.name("x" if inner.dtype != "bool" else "holds", inner)
            parts.append(inner)
        return rebuild(expr, tuple(parts))

    # ------------------------------------------------------------ loops

    @contextmanager
    def loop(self, header: str, depth: int, name: str | None = None) -> Iterator[Scope]:
        """A loop right inside of that of a depth; what stands deeper there comes after it."""
        held = self.stack[depth + 1 :]
        scope = Scope(header=header)
        self.stack = [*self.stack[: depth + 1], scope]
        if name is not None:
            self.known[name] = Known(depth=depth + 1)
        yield scope
        self.stack = [*self.stack[: depth + 1], *held]
        self.stack[depth].items.append(scope)

    @contextmanager
    def inside(self, depth: int) -> Iterator[None]:
        """Lines of a loop further out, for a while."""
        held = self.stack[depth + 1 :]
        self.stack = self.stack[: depth + 1]
        yield
        self.stack = [*self.stack, *held]


def _with_nans(node: Expr) -> Expr | None:
    """A bound by a number that leaves a NaN, which maxima and minima of GPUs do not."""
    match node:
        case Apply(op="max" | "min" as op, args=(inner, Const() as bound), dtype="float"):
            beyond = build.apply("lt" if op == "max" else "gt", inner, bound)
            return build.apply("where", beyond, bound, inner)
        case _:
            return None


def _is_plain(expr: Expr) -> bool:
    """Whether an expression is of numbers and sizes alone."""
    return all(isinstance(node, Const | Extent | Apply) for node in walk(expr))
