"""From a fused kernel to the text of a file in Gluon, Triton's language of layouts, barriers and copies.

Blocks that Gluon writes as Triton does come from the same macros.  Names that moved between versions of Triton stand in
one table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from spdsl.codegen.blocks import Argument, Block, BlockGraph, If, Loop
from spdsl.codegen.emit import KernelSource, environment, helpers_in, macro_name

NAMES: dict[bool, Mapping[str, str]] = {
    False: {
        "load": "async_copy_global_to_shared",
        "store": "async_copy_shared_to_global",
        "barrier": "thread_barrier",
        "add": "add_to_memory",
        "view": "_reinterpret",
    },
    True: {
        "load": "async_load",
        "store": "async_store",
        "barrier": "barrier",
        "add": "tma.async_atomic_add",
        "view": "reinterpret",
    },
}
"""Names of Gluon by whether Triton is 3.7 or newer."""


def emit_fused(graph: BlockGraph, version: str | None = None) -> KernelSource:
    """The source of the fused kernel of ``graph``, which has one, for a version of Triton; by default the installed."""
    kernel = graph.fused
    assert kernel is not None
    names = NAMES[_is_modern(version or _installed())]
    own = ("Q", "K", "V", "dO", "LSE2", "Delta", "dQ", "dK", "dV")
    given = "".join(f" {argument.name}," for argument in kernel.arguments if argument.name not in own)
    assert kernel.fetch is not None
    template = environment().get_template("gluon/module.jinja")
    text = template.render(
        name=graph.name,
        kernel=kernel,
        dtype=graph.dtype,
        names=names,
        sizes=dict(kernel.constants),
        given=given,
        helpers=[
            _in_gluon(environment().get_template(f"helpers/{helper}.jinja").render())
            for helper in helpers_in((kernel,))
        ],
        fetch="\n".join(_lines(kernel.fetch, 1, names)),
        compute="\n".join(_lines(kernel.body, 1, names)),
    )
    text = re.sub(r"[ \t]+\n", "\n", text).rstrip("\n") + "\n"
    return KernelSource(name=f"{graph.name}_fused", text=text, digest=hashlib.sha256(text.encode()).hexdigest()[:16])


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


def _lines(blocks: tuple[Block, ...], depth: int, names: Mapping[str, str]) -> list[str]:
    found: list[str] = []
    for block in blocks:
        text = _text(block, names)
        found += ["    " * depth + line if line else "" for line in text.splitlines() if line.strip()]
        if isinstance(block, Loop | If):
            found += _lines(block.body, depth + 1, names)
        if isinstance(block, If) and block.otherwise:
            found += ["    " * depth + "else:", *_lines(block.otherwise, depth + 1, names)]
    return found


def _text(block: Block, names: Mapping[str, str]) -> str:
    macro = macro_name(block)
    own = environment().get_template("gluon/blocks.jinja").make_module({"names": names})
    if hasattr(own, macro):
        return str(getattr(own, macro)(block))
    return _in_gluon(str(getattr(environment().get_template("blocks.jinja").module, macro)(block)))


def _in_gluon(text: str) -> str:
    """Text in Triton's language, for what both have."""
    return text.replace("@triton.jit", "@gluon.jit").replace("tl.range(", "range(").replace("tl.", "gl.")
