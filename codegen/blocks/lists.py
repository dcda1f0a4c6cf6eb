"""Blocks that walk tiles listed on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spdsl.semantics.nodes import Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class ListBounds:
    """Read ``begin``, ``middle`` and ``end`` of a row, by the name of its number, from the tile lists.

    Without ``row`` there is one row; without ``by_head`` heads share it.
    """

    row: str
    by_head: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Name the first place from ``low`` to ``high`` at which the ascending lists reach ``least``, else ``high``."""

    name: str
    low: Expr
    high: Expr
    least: Expr
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searches:
    """Searches side by side, so that what they read of the lists comes at the same time."""

    searches: tuple[Search, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTile:
    """Read the walked tile's number from the lists, at ``at``, where ``where`` holds; it counts from the tile named
    ``first``.  Of ``turns``: the place among the lists that is gone to in turn ``at``.  Of ``bits``: which blocks of
    the tile have been picked."""

    variable: str
    at: Expr
    of: Literal["tiles", "turns", "bits"] = "tiles"
    first: str = ""
    where: Expr | None = None
