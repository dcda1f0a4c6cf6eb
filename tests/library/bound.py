"""Library patterns, bound."""

from __future__ import annotations

from typing import Any

from spdsl.library import resolver, text_of
from spdsl.pipeline import read
from spdsl.semantics.bind import bind
from spdsl.semantics.free import reasons_to_fix
from spdsl.semantics.nodes import BoundPattern, CheckedPattern


def library(
    name: str, *, heads: int = 1, groups: int = 1, head_dim: int = 16, opened: bool = False, **parameters: Any
) -> BoundPattern:
    """``opened`` leaves parameters open where they may be, as calls do."""
    checked = read(text_of(name), source=f"{name}.spat", name=name, resolve=resolver(None))
    free = _open(checked) if opened else []
    given = {each: value for each, value in parameters.items() if each not in free}
    return bind(checked, given, layer=None, heads=heads, groups=groups, head_dim=head_dim, free=free)


def program(
    text: str, *, heads: int = 1, groups: int = 1, head_dim: int = 16, opened: bool = False, **parameters: Any
) -> BoundPattern:
    """As `library`, for the text of a pattern."""
    checked = read(text)
    free = _open(checked) if opened else []
    return bind(checked, parameters, layer=None, heads=heads, groups=groups, head_dim=head_dim, free=free)


def _open(checked: CheckedPattern) -> list[str]:
    fixed = reasons_to_fix(checked)
    return [each.name for each in checked.parameters if each.name not in fixed]
