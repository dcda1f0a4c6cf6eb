"""Library patterns, bound."""

from __future__ import annotations

from typing import Any

from spdsl.library import resolver, text_of
from spdsl.pipeline import read
from spdsl.semantics.bind import bind
from spdsl.semantics.nodes import BoundPattern


def library(name: str, *, heads: int = 1, groups: int = 1, head_dim: int = 16, **parameters: Any) -> BoundPattern:
    checked = read(text_of(name), source=f"{name}.spat", name=name, resolve=resolver(None))
    return bind(checked, parameters, layer=None, heads=heads, groups=groups, head_dim=head_dim)


def program(text: str, *, heads: int = 1, groups: int = 1, head_dim: int = 16, **parameters: Any) -> BoundPattern:
    return bind(read(text), parameters, layer=None, heads=heads, groups=groups, head_dim=head_dim)
