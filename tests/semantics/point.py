"""What the interpreter of the syntax tree knows at one pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spdsl.grammar import nodes as syntax


class OutsideError(Exception):
    """A coordinate was asked of a position outside its named grid: the comparison around it is false."""


@dataclass(frozen=True, kw_only=True)
class Later:
    """An expression with the names that it may use; positions are those at the time of evaluation."""

    expr: syntax.Expr
    names: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A pair of positions, and everything that a call fixes."""

    q: int
    k: int
    h: int
    b: int
    sizes: Mapping[str, int]
    tables: Mapping[str, Any]
    pattern: syntax.Pattern
    axes: Mapping[str, syntax.AxisBy | syntax.AxisInto] = field(default_factory=dict)
    grids: tuple[syntax.Grid, ...] = ()
    names: Mapping[str, Any] = field(default_factory=dict)
