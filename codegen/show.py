"""The block graph as text, for `spdsl show --emit block`: one block a line, loops indented."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from spdsl.codegen.blocks import (
    Block,
    BlockGraph,
    EachItem,
    EachTold,
    FetchedTiles,
    If,
    Kernel,
    Loop,
    Stream,
    TableIndex,
    ToldTiles,
)
from spdsl.codegen.expressions import text_of
from spdsl.semantics.nodes import Node


def dump(graph: BlockGraph) -> str:
    """All kernels of ``graph``."""
    return "\n".join(line for kernel in graph.kernels for line in _kernel(kernel)) + "\n"


def _kernel(kernel: Kernel) -> Iterator[str]:
    sizes = ", ".join(f"{name} = {value}" for name, value in kernel.constants)
    yield f"kernel {kernel.name}: {kernel.warps} warps, {kernel.stages} stages, {sizes}"
    yield f"  arguments {', '.join(argument.name for argument in kernel.arguments)}"
    if kernel.fetch is not None:
        yield "  copying warp"
        yield from _blocks(kernel.fetch, 2)
        yield "  computing warps"
    yield from _blocks(kernel.body, 1 if kernel.fetch is None else 2)


def _blocks(blocks: tuple[Block, ...], depth: int) -> Iterator[str]:
    for block in blocks:
        yield "  " * depth + _line(block)
        if isinstance(block, EachItem | EachTold | FetchedTiles | ToldTiles | Loop | If | Stream):
            yield from _blocks(block.body, depth + 1)
        if isinstance(block, If) and block.otherwise:
            yield "  " * depth + "Else"
            yield from _blocks(block.otherwise, depth + 1)


def _line(block: Block) -> str:
    parts = [
        f"{each.name}={_value(getattr(block, each.name))}" for each in fields(block) if _is_shown(block, each.name)
    ]
    return " ".join((type(block).__name__, *parts))


def _is_shown(block: Block, name: str) -> bool:
    value = getattr(block, name)
    return name not in ("body", "otherwise", "note", "span") and value not in (None, False, ())


def _value(value: Any) -> str:
    match value:
        case Node():
            return f"({text_of(value)})"  # type: ignore[arg-type]  # the only nodes in blocks are expressions
        case TableIndex(value=inner):
            return text_of(inner)
        case tuple():
            return "[" + ", ".join(_value(each) for each in value) + "]"
        case _:
            return str(value)
