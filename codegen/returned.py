"""Arithmetic on what softmaxes return (gates, differences, scales): a kernel for the result, and one for its gradients.

From: the expression that a pattern returns, over heads, queries and features.  To: its kernels, or why there are none.
Everything that is read lies along some of these three axes, so that one launch reads every number once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from spdsl.codegen.emit import HELPERS, NEEDED, KernelSource, environment
from spdsl.codegen.expressions import helpers_of, text_of
from spdsl.diagnostics import SpatError
from spdsl.semantics.differentiate import derivative
from spdsl.semantics.nodes import Apply, Const, Coord, Expr, Extent, Index, Load, Param
from spdsl.semantics.rewrite import transform, walk

Place: TypeAlias = "int | str"
"""Where an axis of a table is read: at one number, or along ``h``, ``q`` or ``d``."""

ROWS = 32
"""Queries of a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A table that is read, axis by axis, and the name of what is read; ``slope`` is the result's derivative, for
    floats.  ``every``: so many queries, from the first position on, read the same; ``share``: so many heads do.
    ``runs`` names the axis by a table that says which entry each query reads, where runs of them read one."""

    name: str
    table: str
    dtype: str
    places: tuple[Place, ...]
    slope: Expr | None
    every: int = 1
    share: int = 1
    runs: str = ""

    @property
    def along(self) -> tuple[str, ...]:
        """The axes along which it is read."""
        return tuple(place for place in self.places if isinstance(place, str))

    @property
    def wide(self) -> bool:
        """Whether it has a number for every feature."""
        return "d" in self.along


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A result by the names of what is read; its kernels are `forward` and `backward`."""

    value: Expr
    reads: tuple[Read, ...]


def returned(
    result: Expr, labels: Mapping[str, tuple[str, ...]], blocks: Mapping[str, int | str], ratio: int = 1
) -> Returned | str:
    """The kernels of ``result``, or why there are none.

    ``labels`` are the axes of all tables that it reads, and ``blocks`` those axes of queries whose members are blocks
    of so many positions, or runs of the axis of this name; ``ratio`` heads share a head of keys.
    """
    loads = list(dict.fromkeys(node for node in walk(result) if isinstance(node, Load)))
    names = {load: Param(name=f"x{number}", dtype=load.dtype) for number, load in enumerate(loads)}
    reads = []
    for load in loads:
        coarse = next((label for label in labels[load.table] if label in blocks), None)
        places = _places(load, labels[load.table], coarse)
        if places is None:
            return f"the way in which `{load.table}` is read"
        slope: Expr | None = None
        if load.dtype == "float":
            try:
                slope = _named(derivative(result, load), names)
            except SpatError:
                return "an operation without a derivative"
        every = 1 if coarse is None else blocks[coarse]
        reads.append(
            Read(
                name=names[load].name,
                table=load.table,
                dtype=load.dtype,
                places=places,
                slope=slope,
                every=1 if isinstance(every, str) else every,
                share=ratio if "g" in labels[load.table] else 1,
                runs=every if isinstance(every, str) else "",
            )
        )
    value = _named(result, names)
    for node in walk(value):
        known = isinstance(node, Param | Apply | Const) or (isinstance(node, Extent) and node.name in ("n", "nq"))
        if not known and node not in (Index(name="h"), Index(name="q"), Index(name="d")):
            return f"`{type(node).__name__.lower()}` beside softmaxes"
    return Returned(value=value, reads=tuple(reads))


def _places(load: Load, labels: tuple[str, ...], coarse: str | None) -> tuple[Place, ...] | None:
    found: list[Place] = []
    for index, label in zip(load.indices[-len(labels) :] if labels else (), labels, strict=True):
        match index:
            case Const(value=int() as value) if label not in ("h", "q", "d", "token"):
                found.append(value)
            case Index(name="h" | "q" | "d" as name) if label == name or (name, label) == ("q", "token"):
                found.append(name)
            case Index(name="g") if label == "g":
                found.append("h")  # of the heads that share it
            case Coord(side="q") if label == coarse == f"q.{index.axis}":
                found.append("q")
            case _:
                return None
    along = [place for place in found if isinstance(place, str)]
    return tuple(found) if len(set(along)) == len(along) else None


def _named(expr: Expr, names: Mapping[Load, Param]) -> Expr:
    return transform(expr, lambda node: names[node] if isinstance(node, Load) else None)


def emit_returned(given: Returned, name: str) -> KernelSource:
    """The source of both kernels; ``name`` is that of the pattern."""
    expressions = [given.value, *(read.slope for read in given.reads if read.slope is not None)]
    helpers = {helper for expr in expressions for helper in helpers_of(expr)}
    helpers |= {needed for helper in helpers for needed in NEEDED.get(helper, ())}
    text = (
        environment()
        .get_template("returned.jinja")
        .render(
            name=name,
            value=text_of(given.value),
            reads=given.reads,
            helpers=[helper for helper in HELPERS if helper in helpers],
            text=text_of,
        )
    )
    text = re.sub(r"[ \t]+\n", "\n", text).rstrip("\n") + "\n"
    return KernelSource(name=f"{name}_returned", text=text, digest=hashlib.sha256(text.encode()).hexdigest()[:16])
