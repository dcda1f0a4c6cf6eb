"""Axes along which stages have values: all sequences of a call share them.

An input with a batch axis may differ from sequence to sequence, but an array has one length along each axis, so what
makes its coordinates may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spdsl.diagnostics import error
from spdsl.semantics.nodes import BoundPattern, Coord
from spdsl.semantics.rewrite import walk


def check_shared(pattern: BoundPattern, batches: Mapping[str, int]) -> None:
    """Refuse inputs that make an axis of a stage for each sequence; ``batches`` are the sizes of their batch axes.

    Raises:
        SpatError: SP346.
    """
    stages = () if pattern.graph is None else pattern.graph.stages
    for name in dict.fromkeys(label.rpartition(".")[2] for stage in stages for label in stage.axes):
        for table in _tables(pattern, name):
            if batches[table] > 1:
                raise error(
                    "SP346",
                    f"`{table}` makes the axis `{name}` of a stage, but is given for {batches[table]} sequences",
                    next(each.span for each in pattern.tables if each.name == table),
                    help="such an axis is shared by all sequences: give the input without a batch axis, "
                    "or call once for each sequence",
                )


def _tables(pattern: BoundPattern, name: str) -> Iterator[str]:
    """The inputs that make an axis, or what it divides."""
    for axis in pattern.axes:
        if axis.name == name:
            if axis.table is not None:
                yield axis.table
            for each in (node for of in axis.of for node in walk(of)):
                if isinstance(each, Coord):
                    yield from _tables(pattern, each.axis)
