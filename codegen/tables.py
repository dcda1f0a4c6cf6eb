"""How kernels read tables: from a load to a gather with named strides and sizes, and the arguments that carry them."""

from __future__ import annotations

from collections.abc import Iterable

from spdsl.analysis.plans import Plan
from spdsl.analysis.tiles import Cuts
from spdsl.codegen.arith import sub
from spdsl.codegen.blocks import Argument, Gather, TableIndex
from spdsl.semantics.nodes import Expr, Extent, Index, Load, Table, TableAxis
from spdsl.semantics.rewrite import free_indices

TYPES = {
    "bool": "u1",
    "uint8": "u8",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "float64": "fp64",
}
"""Element types of torch by the names of Triton's signatures."""


INTERVALS = "intervals"
"""The argument that holds the intervals of cuts; no table's argument has this name."""


class Tables:
    """The tables of a plan as kernels see them."""

    def __init__(self, plan: Plan, cuts: Cuts | None = None) -> None:
        self._cuts = cuts
        self._tables = {table.name: table for table in plan.tables}
        self._types = dict(plan.problem.tables)
        self._square = plan.problem.shape == "square"

    def gather(self, name: str, load: Load, indices: tuple[Expr, ...]) -> Gather:
        """The gather that names the elements of ``load`` ``name``; ``indices`` are ready to be printed."""
        if self._cuts is not None and load.table in self._cuts.names:
            return _interval(name, load, indices, self._cuts.names.index(load.table))
        table = self._tables[load.table]
        if table.listed:
            return self._search(name, load, indices, table)
        pairs = zip(load.indices, indices, table.axes, strict=True)
        vectors = sum(_is_vector(index) for index in load.indices)
        return Gather(
            name=name,
            pointer=f"t_{table.name}",
            batch_stride=None if _has_batch(table) else f"stride_{table.name}_b",
            indices=tuple(self._index(table, at, old, new, axis) for at, (old, new, axis) in enumerate(pairs)),
            dtype=load.dtype,
            wide=vectors > 1,
        )

    def _search(self, name: str, load: Load, indices: tuple[Expr, ...], table: Table) -> Gather:
        """The search for the last index in the list that the others name."""
        *rows, wanted = indices
        triples = zip(load.indices[:-1], rows, table.axes[:-1], strict=True)
        return Gather(
            name=name,
            pointer=f"t_{table.name}",
            batch_stride=None if _has_batch(table) else f"stride_{table.name}_b",
            indices=tuple(self._index(table, at, old, new, axis) for at, (old, new, axis) in enumerate(triples)),
            dtype="bool",
            wide=True,
            wanted=wanted,
            most=f"size_{table.name}_{len(rows)}",
        )

    def is_long(self, name: str) -> bool:
        """Whether the table is given in ints of 64 bits."""
        return self._types.get(name) == "int64"

    def arguments(self, gathers: Iterable[Gather]) -> tuple[Argument, ...]:
        """The arguments of the tables that are read, in the order of their declaration."""
        read = {gather.pointer.partition(" ")[0] for gather in gathers}
        given = tuple(
            argument
            for table in self._tables.values()
            if f"t_{table.name}" in read
            for argument in self._arguments(table)
        )
        if self._cuts is None or INTERVALS not in read:
            return given
        return (*interval_arguments(self._cuts), *given)

    def _arguments(self, table: Table) -> tuple[Argument, ...]:
        name = f"t_{table.name}"
        axes = range(len(table.axes))
        labels = ", ".join(axis.label for axis in table.axes)
        element = TYPES[self._types.get(table.name, {"bool": "bool", "int": "int32", "float": "float32"}[table.dtype])]
        steps = ([] if _has_batch(table) else ["b"]) + [str(axis) for axis in axes]
        strides = [f"stride_{table.name}_{step}" for step in steps]
        return (
            Argument(name=name, type=f"*{element}", note=f"table {table.name}[{_plain(labels)}]"),
            # The last stride is 1 for contiguous tables, which makes wide loads; others follow the lengths of a call.
            *(Argument(name=stride, type="i32", fixed=stride == strides[-1]) for stride in strides),
            *(Argument(name=f"size_{table.name}_{axis}", type="i32") for axis in axes),
        )

    def _index(self, table: Table, at: int, old: Expr, new: Expr, axis: TableAxis) -> TableIndex:
        rows = axis.kind == "q" and not self._square
        known = isinstance(old, Index) and old.name == axis.kind and old.name in ("h", "g", "b")
        return TableIndex(
            value=sub(new, Extent(name="q_start")) if rows else new,
            stride=f"stride_{table.name}_{at}",
            size=None if known else f"size_{table.name}_{at}",
            rows=rows,
        )


def interval_arguments(cuts: Cuts) -> tuple[Argument, ...]:
    """The intervals of the tiles of a kernel, as it reads them."""
    axes = {None: "", "h": "heads, ", "g": "groups, "}[cuts.heads]
    strides = (f"{INTERVALS}_stride_b", *((f"{INTERVALS}_stride_h",) if cuts.heads else ()))
    return (
        Argument(name=INTERVALS, type="*i32", note=f"[batch or 1, {axes}tiles, 4], ends of the rows to walk"),
        *(Argument(name=stride, type="i32") for stride in strides),
    )


def _interval(name: str, load: Load, indices: tuple[Expr, ...], column: int) -> Gather:
    """One of the four ints of a tile; the tile exists, as it is the program's own."""
    strides = (f"{INTERVALS}_stride_h", "4") if len(indices) == 2 else ("4",)
    at = [TableIndex(value=index, stride=stride, size=None) for index, stride in zip(indices, strides, strict=True)]
    return Gather(
        name=name,
        pointer=f"{INTERVALS} + {column}",
        batch_stride=f"{INTERVALS}_stride_b",
        indices=tuple(at),
        dtype=load.dtype,
        wide=False,
    )


def _has_batch(table: Table) -> bool:
    return any(axis.kind == "b" for axis in table.axes)


def _is_vector(index: Expr) -> bool:
    return any(name[0] in "qk" for name in free_indices(index))


def _plain(text: str) -> str:
    """Text of a user for a comment: letters, digits and a few marks only."""
    return "".join(
        character if character.isascii() and (character.isalnum() or character in " ._,") else "?" for character in text
    )
