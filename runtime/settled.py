"""Inputs that say what tokens are (documents, pieces, text), known by their content: how many members an axis has,
where they lie, and how many tokens are marked is decided once for all calls that have the same.

From: a pattern with stages, and the inputs of a call.  To: copies of these inputs, the same objects for the same
content.  What was seen before, unchanged, is found without a look at its numbers; what is new is compared, which waits
for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from spdsl.runtime.checks import captured
from spdsl.runtime.notices import watcher
from spdsl.runtime.recent import ByContent
from spdsl.semantics.nodes import BoundPattern, Table


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """Copies of inputs, by their names."""

    tables: dict[str, Tensor]

    def trust(self) -> None:
        """Tell who watches that these depend on no tensor of a call."""
        by = watcher()
        if by is not None:
            by.trust(tuple(self.tables.values()))


_settled: ByContent[Settled] = ByContent(size=64)

_captured: set[Settled] = set()
"""Those that CUDA graphs were captured with, which read them for as long as the process runs."""


def is_settled(table: Table) -> bool:
    """Whether an input tells ints or bools of single tokens, as all do that make axes."""
    return table.dtype != "float" and not table.listed and [axis.kind for axis in table.axes] == ["token"]


def settled(pattern: BoundPattern, tables: Mapping[str, Tensor]) -> Settled | None:
    """The inputs of this kind; None while a CUDA graph is captured, which may not wait, if they are new."""
    names = tuple(table.name for table in pattern.tables if is_settled(table))
    given = tuple(tables[name] for name in names)
    if not names:
        return Settled(tables={})

    def made() -> Settled:
        return Settled(tables={name: table.detach().clone() for name, table in zip(names, given, strict=True)})

    # They say the same whichever pattern they are of.
    if captured(given[0]):
        found = _settled.seen(names, given)
        if found is not None:
            _captured.add(found)
        return found
    return _settled.get(names, given, None, made)
