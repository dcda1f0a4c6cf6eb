"""The names in an expression of the syntax tree, wherever they stand and whatever they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from spdsl.grammar import nodes as syntax


def names_of(node: object) -> Iterator[str]:
    """Every name, stage and attribute; of clauses and arguments too."""
    stack: list[object] = [node]
    while stack:
        part = stack.pop()
        match part:
            case syntax.Name(id=name) | syntax.Attribute(name=name):
                yield name
            case _:
                pass
        if isinstance(part, tuple):
            stack.extend(part)
        elif isinstance(part, syntax.Node):
            stack.extend(getattr(part, field.name) for field in fields(part) if field.name != "span")
