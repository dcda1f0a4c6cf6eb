"""From the block graph to the text of a Python file with Triton kernels.

Every kind of block has a macro of the same name in ``templates/blocks``; here is only the nesting.  The text
depends on the graph alone.  Nothing is compiled.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2

from spdsl.codegen import readiness
from spdsl.codegen.blocks import Block, BlockGraph, Gather, If, Kernel, Logits, Loop, SearchBegin, Searches
from spdsl.codegen.contents import every, expressions_in
from spdsl.codegen.expressions import helpers_of, literal, text_of
from spdsl.codegen.frame import LN2, LOG2E
from spdsl.codegen.kept_templates import BLOCKS, KeptTemplates
from spdsl.diagnostics import Span

HELPERS = (
    "floor_div",
    "floor_mod",
    "int_power",
    "power",
    "isqrt",
    "is_pow2",
    "bitlen",
    "tanh",
    "halved",
    "in_list",
)
"""Functions of the generated file, in the order in which they are written."""

NEEDED = {"floor_mod": ("floor_div",), "power": ("int_power",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSource:
    """The text of a generated file; ``digest`` identifies it."""

    name: str
    text: str
    digest: str


def emit(graph: BlockGraph) -> KernelSource:
    """The source of the kernels of ``graph`` that are written in Triton; `spdsl.codegen.gluon` writes the others."""
    readiness.wait("templates")
    kernels = [(kernel, "\n".join(_lines(kernel.body, 1))) for kernel in graph.triton]
    text = (
        environment()
        .get_template("module.jinja")
        .render(graph=graph, kernels=kernels, helpers=helpers_in(graph.triton))
    )
    text = re.sub(r"[ \t]+\n", "\n", text).rstrip("\n") + "\n"
    return KernelSource(name=graph.name, text=text, digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def _lines(blocks: tuple[Block, ...], depth: int) -> list[str]:
    found: list[str] = []
    for block in blocks:
        text = str(macro_of(block, modules())(block))
        found += ["    " * depth + line if line else "" for line in text.splitlines() if line.strip()]
        if isinstance(block, Loop | If):
            found += _lines(block.body, depth + 1)
        if isinstance(block, If) and block.otherwise:
            found += ["    " * depth + "else:", *_lines(block.otherwise, depth + 1)]
    return found


def modules() -> tuple[Any, ...]:
    """The templates of blocks."""
    return tuple(environment().get_template(f"blocks/{each}.jinja").module for each in BLOCKS)


def macro_of(block: Block, modules: tuple[Any, ...]) -> Callable[[Block], object]:
    """What writes a kind of block, in the first template that has it; each macro has the name of its block."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(block).__name__).lower()
    name = {"if": "condition"}.get(name, name)
    found: Callable[[Block], object] = next(getattr(each, name) for each in modules if hasattr(each, name))
    return found


def helpers_in(kernels: Iterable[Kernel]) -> tuple[str, ...]:
    """The helpers that the text of ``kernels`` calls, in the order in which they are written."""
    found: set[str] = set()
    for kernel in kernels:
        for block in every((*kernel.body, *(kernel.fetch or ()))):
            if isinstance(block, Logits) and block.softcap is not None:
                found.add("tanh")
            if isinstance(block, Gather) and block.wanted is not None:
                found.add("in_list")
            if isinstance(block, SearchBegin):
                found.add("bitlen")
            if isinstance(block, Searches):
                found.add("halved")
            for expr in expressions_in(block):
                found |= helpers_of(expr)
    for name in list(found):
        found.update(NEEDED.get(name, ()))
    return tuple(name for name in HELPERS if name in found)


def _place(span: Span | None) -> str:
    """Where a clause stands, for a comment: the file's name without its folder, and the line."""
    if span is None:
        return ""
    name = re.split(r"[/\\]", span.source.name)[-1]
    return f"  # {re.sub(r'[^A-Za-z0-9._-]', '_', name)}:{span.line}"


def _signature(kernel: Kernel) -> str:
    """The arguments: one with a note has a line of its own, others share lines."""
    lines: list[str] = []
    for argument in kernel.arguments:
        if argument.note:
            lines.append(f"    {argument.name},  # {argument.note}")
        elif lines and "#" not in lines[-1] and len(lines[-1]) + len(argument.name) < 110:
            lines[-1] += f" {argument.name},"
        else:
            lines.append(f"    {argument.name},")
    return "\n".join(lines)


def _unspecialised(kernel: Kernel) -> str:
    names = [argument.name for argument in kernel.arguments if argument.type == "i32" and not argument.fixed]
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _ordinal(value: int) -> str:
    """``4th``, for comments."""
    teen = 10 < value % 100 < 20
    return f"{value}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(value % 10, 'th')}"


def _number(value: float) -> str:
    return literal(float(value))[0]


def _index_sum(gather: Gather) -> str:
    """The offset of a gathered element."""
    parts = [f"b.to(tl.int64) * {gather.batch_stride}"] if gather.batch_stride else []
    for each in gather.indices:
        text = text_of(each.value)
        text = text if re.fullmatch(r"\w+", text) else f"({text})"
        parts.append(f"tl.cast({text}, tl.int64) * {each.stride}" if gather.wide else f"{text} * {each.stride}")
    return "".join(f" + {part}" for part in parts)


def _guards(gather: Gather) -> str:
    """The condition under which all indices of a gather are in bounds; empty if they always are."""
    found = []
    for each in gather.indices:
        if each.size is not None:
            text = text_of(each.value)
            text = text if re.fullmatch(r"\w+", text) else f"({text})"
            found.append(f"({text} >= 0) & ({text} < {each.size})")
    return " & ".join(found)


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The templates, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spdsl.codegen", "templates"),
        bytecode_cache=KeptTemplates(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  # Python is written, not HTML
    )
    environment.filters.update(
        text=text_of,
        ordinal=_ordinal,
        product=math.prod,
        num=_number,
        place=_place,
        signature=_signature,
        unspecialised=_unspecialised,
        type=lambda dtype: {"bf16": "gl.bfloat16", "fp16": "gl.float16"}[dtype],
        index_sum=_index_sum,
        guards=_guards,
    )
    environment.globals.update(LOG2E=LOG2E, LN2=LN2)
    return environment
