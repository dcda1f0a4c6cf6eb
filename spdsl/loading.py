"""Patterns as Python knows them, from texts, files and the library: `load`, `loads`, `Pattern`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spdsl import reference
from spdsl.arguments import plain_values, tables_of, whole
from spdsl.diagnostics import error
from spdsl.library import read_file, resolver, text_of
from spdsl.pipeline import Value, bound, key_of, read
from spdsl.semantics.nodes import BoundPattern, CheckedPattern
from spdsl.semantics.softmaxes import static_part


@dataclass(frozen=True, slots=True, repr=False)
class Pattern:
    """A checked pattern, not yet given its parameters."""

    checked: CheckedPattern

    @property
    def name(self) -> str:
        """The name after `pattern`."""
        return self.checked.name

    @property
    def parameters(self) -> dict[str, Value | None]:
        """Parameters and their defaults; None where one must be given."""
        return {each.name: each.default for each in self.checked.parameters}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the tensors that a call must give."""
        return tuple(each.name for each in self.checked.tables)

    @property
    def exports(self) -> tuple[str, ...]:
        """The names of what `Attention.exports` returns."""
        return () if self.checked.graph is None else tuple(each.name for each in self.checked.graph.exports)

    def to_spat(self) -> str:
        """The canonical text, imports inlined."""
        return self.checked.text

    def mask(
        self,
        /,
        nq: int,
        nk: int,
        heads: int = 1,
        groups: int | None = None,
        layer: int | None = None,
        q_start: int | None = None,
        **given: Any,
    ) -> Tensor:
        """The pairs that the pattern keeps, from the dense reference; selections by scores count as everything.

        ``given`` holds parameters and inputs by name.  Queries are the last ``nq`` positions unless ``q_start`` is
        given.

        Returns:
            bool ``[heads, nq, nk]``, or ``[batch, heads, nq, nk]`` when an input has a batch axis.

        Raises:
            SpatError: an unknown or missing name, or a value that does not fit.
        """
        if whole("nq", nq) < 0 or whole("nk", nk) < 0:
            shown = f"a mask of {nq} queries and {nk} keys"
            raise error("SP303", f"{shown} is not possible", help="pass lengths of at least 0")
        groups = heads if groups is None else groups
        tables = {name: given.pop(name) for name in self.inputs if name in given}
        pattern = static_part(_bind(self, given, layer, heads, groups, 64))
        tensors = tables_of(self.checked, tables, torch.device("cpu"))
        return reference.mask(pattern, nq, nk, tables=tensors, q_start=q_start)

    def __str__(self) -> str:
        return self.to_spat()

    def __repr__(self) -> str:
        return f"<pattern {self.name}({', '.join(self.parameters)})>"

    def _repr_html_(self) -> str:
        """What notebooks show: a picture of the mask, where parameters have defaults, and the text."""
        from spdsl.showing import html

        return html(self)


def loads(text: str, *, name: str | None = None) -> Pattern:
    """The pattern ``name`` (by default the last) of a `.spat` text.

    Raises:
        SpatError: with everything that is wrong with the text.
    """
    given: object = text
    if not isinstance(given, str):
        found = f"the text of a pattern is a str, not a {type(given).__name__}"
        raise error("SP601", found, help="decode bytes as UTF-8; `spdsl.load` reads a file")
    return Pattern(read(text, name=name, resolve=resolver(None)))


def load(path_or_name: str | Path) -> Pattern:
    """A pattern of the library by name, or of a file: ``path.spat`` for its last pattern, ``path.spat:NAME`` for
    another.

    Raises:
        SpatError: no such file or pattern (SP60x), or what is wrong with the text.
    """
    where: object = path_or_name
    if not isinstance(where, str | Path):
        found = f"a pattern is given by its name or path, not by a {type(where).__name__}"
        raise error("SP601", found, help='for example `"streaming"`, or `"mine.spat"`')
    given = str(where)
    if "{" in given and not given.endswith(".spat"):
        raise error("SP601", "this is the text of a pattern, not its name", help="read it with `spdsl.loads(text)`")
    path, _, name = given.rpartition(":") if ".spat:" in given else (given, "", "")
    if not path.endswith(".spat"):
        return Pattern(read(text_of(given), source=f"{given}.spat", name=given, resolve=resolver(None)))
    file = Path(path)
    return Pattern(read(read_file(file), source=path, name=name or None, resolve=resolver(file.parent)))


def packed(path: Path, name: str | None) -> Pattern:
    """The pattern of a file that `spdsl compile` wrote: messages, plans and kernels name its text without a folder.

    Raises:
        SpatError: as `load`.
    """
    return Pattern(read(read_file(path), source=path.name, name=name, resolve=resolver(None)))


def _bind(
    pattern: Pattern, parameters: Mapping[str, Any], layer: int | None, heads: int, groups: int, head_dim: int
) -> BoundPattern:
    return bound(key_of(pattern.checked, plain_values(parameters), layer, None, False), heads, groups, head_dim)
