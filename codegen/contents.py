"""What blocks hold: the blocks inside of them, and expressions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from spdsl.codegen.blocks import Block, EachItem, EachTold, FetchedTiles, If, Loop, Stream, ToldTiles
from spdsl.semantics.nodes import Expr, Node


def every(body: Iterable[Block]) -> Iterator[Block]:
    """All blocks, those inside loops and conditions included."""
    for block in body:
        yield block
        if isinstance(block, EachItem | EachTold | FetchedTiles | ToldTiles | Loop | If | Stream):
            yield from every(block.body)
        if isinstance(block, If):
            yield from every(block.otherwise)


def expressions_in(block: Block) -> list[Expr]:
    """The expressions that a block holds, not those of the blocks inside it."""
    found: list[Expr] = []
    for each in fields(block):
        value: Any = getattr(block, each.name)
        if isinstance(value, Node):
            found.append(value)  # type: ignore[arg-type]  # the only nodes in blocks are expressions
        elif each.name == "indices":
            found += [index.value for index in value]
        elif each.name == "searches":
            found += [expr for search in value for expr in (search.low, search.high, search.least)]
    return found
