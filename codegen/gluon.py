"""From kernels with specialised warps to the text of files in Gluon, Triton's language of layouts, barriers and copies.

Blocks that Gluon writes as Triton does come from the same macros.  Names that moved between versions of Triton stand in
one table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any, TypeAlias

from spdsl.codegen.blocks import (
    Argument,
    Block,
    BlockGraph,
    EachItem,
    EachTold,
    FetchedTiles,
    If,
    Kernel,
    Loop,
    PicksEnd,
    SendBlocks,
    Speaks,
    Stream,
    ToldTiles,
)
from spdsl.codegen.contents import every
from spdsl.codegen.emit import KernelSource, environment, helpers_in, macro_of, modules

NAMES: dict[bool, Mapping[str, str]] = {
    False: {
        "load": "async_copy_global_to_shared",
        "store": "async_copy_shared_to_global",
        "barrier": "thread_barrier",
        "add": "add_to_memory",
        "view": "_reinterpret",
        "number": "async_copy.async_copy_global_to_shared",
    },
    True: {
        "load": "async_load",
        "store": "async_store",
        "barrier": "barrier",
        "add": "tma.async_atomic_add",
        "view": "reinterpret",
        "number": "async_copy.async_load",
    },
}
"""Names of Gluon by whether Triton is 3.7 or newer."""

OWN = ("blocks", "forward_blocks", "fused_blocks", "dkdv_blocks")
"""Templates of blocks that are written in another way in Gluon, or only there."""

Macros: TypeAlias = tuple[Any, ...]

_AROUND = (Stream, FetchedTiles, ToldTiles, EachItem, EachTold)
"""Blocks whose text says where that of their bodies stands."""

_SWIZZLED = "gl.NVMMASharedLayout(swizzle_byte_width={}, element_bitwidth=16, rank=2)"


def emit_gluon(graph: BlockGraph, kernel: Kernel, version: str | None = None) -> KernelSource:
    """The source of a kernel of ``graph`` with specialised warps, for a version of Triton; by default the installed."""
    assert kernel.fetch is not None
    names = NAMES[_is_modern(version or _installed())]
    sizes = dict(kernel.constants)
    macros = _macros(names)
    text = (
        environment()
        .get_template(f"gluon/{'fused' if _is_fused(kernel) else kernel.name}.jinja")
        .render(
            name=graph.name,
            kernel=kernel,
            dtype=graph.dtype,
            names=names,
            adds=_is_fused(kernel) or any(isinstance(block, PicksEnd) and block.added for block in every(kernel.body)),
            sizes=sizes,
            looks=_looks(kernel),
            gathers=_gathers(kernel),
            products=_products(kernel, sizes),
            layouts=_layouts(kernel, sizes),
            blocks=_blocks(kernel, sizes),
            given=", ".join(argument.name for argument in kernel.arguments),
            helpers=[
                _in_gluon(environment().get_template(f"helpers/{helper}.jinja").render())
                for helper in helpers_in((kernel,))
            ],
            fetch="\n".join(_lines(kernel.fetch, 1, macros)),
            compute="\n".join(_lines(kernel.body, 1, macros)),
            add="\n".join(_lines(kernel.add or (), 1, macros)),
        )
    )
    text = re.sub(r"[ \t]+\n", "\n", text).rstrip("\n") + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return KernelSource(name=f"{graph.name}_{kernel.name}", text=text, digest=digest)


def _looks(kernel: Kernel) -> bool:
    """Whether the copying warp looks at tables."""
    return any(isinstance(block, Speaks) for block in every(kernel.fetch or ()))


def _gathers(kernel: Kernel) -> bool:
    """Whether the copying warp puts tiles of keys together."""
    return any(isinstance(block, SendBlocks) for block in every(kernel.fetch or ()))


def _is_fused(kernel: Kernel) -> bool:
    """Whether it has the skeleton of the fused backward."""
    return kernel.name in ("fused", "ordered")


def _products(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, int]:
    """The layouts of products, by their columns."""
    if _is_fused(kernel):
        return {"SCORES": sizes["BLOCK_Q"], "SUMS": sizes["HEAD_DIM"], "QUERIES": sizes["COLUMNS"]}
    return {"SCORES": sizes["BLOCK_K"], "SUMS": sizes["VALUE_DIM"]}


def _layouts(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, str]:
    """Other layouts, as they are written."""
    found = {
        "ONE": "gl.BlockedLayout([1], [32], [1], [0])",
        "SAME": "gl.BlockedLayout([1], [32], [4], [0])",
        "NUMBER": "gl.SwizzledSharedLayout(1, 1, 1, [0])",
    }
    if _looks(kernel):
        found["LANES"] = "gl.BlockedLayout([1, 1], [1, 32], [1, 1], [1, 0])"
    if kernel.name == "dkdv" or _gathers(kernel):
        found["TILE"] = _SWIZZLED.format(128)
    if _is_fused(kernel):
        found["SWIZZLED"] = _SWIZZLED.format(128)
    if all(a.block is None for a in kernel.arguments if a.name == "O"):
        across = min(32, sizes["VALUE_DIM"] // 8)
        output = _SWIZZLED.format(min(128, 2 * sizes["VALUE_DIM"]))
        found |= {"OUTPUT": output, "ACROSS": f"gl.BlockedLayout([1, 8], [{32 // across}, {across}], [4, 1], [1, 0])"}
    return found


def _blocks(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, str]:
    """The shapes of what the copy engine moves, by tensor."""
    found = {a.name: ", ".join(map(str, a.block)) for a in kernel.arguments if a.block is not None}
    if kernel.name == "forward" and "O" not in found:
        found["O"] = found["Q"] if kernel.shares_output else f"ROWS, {sizes['VALUE_DIM']}"
    return found


def _is_modern(version: str) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= (3, 7)


def _installed() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "3.6.0"  # to be read, where nothing can run it


def layout_of(argument: Argument) -> Any:
    """How a block of ``argument`` lies in shared memory: swizzled, so that matrix instructions read it without bank
    conflicts, or, for numbers of rows, one after the other."""
    from triton.experimental.gluon import language as gl

    assert argument.block is not None
    element = {"bf16": gl.bfloat16, "fp16": gl.float16, "fp32": gl.float32}[argument.type.removeprefix("*")]
    if len(argument.block) == 1:
        return gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=element.primitive_bitwidth, rank=1)
    return gl.NVMMASharedLayout.get_default_for(list(argument.block), element)


def described(argument: Argument) -> str:
    """The type of an argument in Gluon's signatures."""
    return (
        argument.signature if argument.block is None else f"{argument.signature.rstrip('>')},{layout_of(argument)!r}>"
    )


def _lines(blocks: tuple[Block, ...], depth: int, macros: Macros) -> list[str]:
    found: list[str] = []
    for block in blocks:
        for line in _text(block, macros).splitlines():
            if line.strip() == "@body" and isinstance(block, _AROUND):
                found += _lines(block.body, depth + (len(line) - len(line.lstrip())) // 4, macros)
            elif line.strip():
                found.append("    " * depth + line)
        if isinstance(block, Loop | If):
            found += _lines(block.body, depth + 1, macros)
        if isinstance(block, If) and block.otherwise:
            found += ["    " * depth + "else:", *_lines(block.otherwise, depth + 1, macros)]
    return found


def _macros(names: Mapping[str, str]) -> Macros:
    """What writes blocks, those of Gluon alone before those that both languages have."""
    own = (environment().get_template(f"gluon/{each}.jinja").make_module({"names": names}) for each in OWN)
    return (*own, *modules())


def _text(block: Block, macros: Macros) -> str:
    return _in_gluon(str(macro_of(block, macros)(block)))


def _in_gluon(text: str) -> str:
    """Text in Triton's language, for what both have; places in a tile have layouts, and so names."""
    text = re.sub(r"tl\.arange\(0, BLOCK_([QK])\)", lambda found: f"{found[1].lower()}_places", text)
    return text.replace("@triton.jit", "@gluon.jit").replace("tl.range(", "range(").replace("tl.", "gl.")
