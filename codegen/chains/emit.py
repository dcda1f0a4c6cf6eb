"""From a chain to the text of a Python file with its kernels; the text depends on the chain alone."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from spdsl.codegen.chains.lower import Chain, ChainKernel
from spdsl.codegen.chains.parts import ABSENT, FORCED
from spdsl.codegen.emit import HELPERS, NEEDED, KernelSource, environment

OWN = {"count": ("sortable", "count_key"), "mass": ("mass_key",), "mark": ()}
"""The functions that make keys, by how entries are chosen."""

NEAR = 3
"""Keys from which on the cut of a row is sought key by key."""

SHORT = 256
"""Keys of a row up to which it may be gone through from its largest key on."""

FEW = 6
"""Entries up to which that is done: for each there are two looks at the row, where some twenty find any cut."""

HALVED = 1024
"""Keys of a row from which on there is a way for rows of half as many, too."""


def emit_chain(chain: Chain, name: str) -> KernelSource:
    """The source of the kernels of a chain; ``name`` is that of the pattern."""
    helpers = {helper for kernel in chain.kernels for helper in kernel.helpers}
    helpers |= {needed for helper in helpers for needed in NEEDED.get(helper, ())}
    notes = tuple(dict.fromkeys(note for kernel in chain.kernels for note in kernel.notes))
    return _source(
        f"{name}_{chain.stage}",
        "chains/module.jinja",
        name=name,
        chain=chain,
        notes=notes,
        helpers=[helper for helper in HELPERS if helper in helpers],
        own=OWN[chain.by] if chain.kernels[-1].role == "keys" else (),
        signature=_signature,
        unspecialised=_unspecialised,
        absent=ABSENT,
        forced=FORCED,
    )


@lru_cache(maxsize=16)
def emit_choose(each: int = 0) -> KernelSource:
    """The source of the kernels that choose among keys; with ``each``, among those of the members, so many of each, of
    blocks that were chosen before."""
    numbers = {"absent": ABSENT, "forced": FORCED, "near": NEAR, "halved": HALVED, "short": SHORT, "few": FEW}
    return _source("choose", "chains/choose.jinja", each=each, **numbers)


def _source(file: str, template: str, **values: object) -> KernelSource:
    text = environment().get_template(template).render(**values)
    text = re.sub(r"[ \t]+\n", "\n", text).rstrip("\n") + "\n"
    return KernelSource(name=file, text=text, digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def _signature(kernel: ChainKernel) -> str:
    """The arguments after the first, with what they are."""
    given, lines = kernel.arguments, []
    for each in given.vectors:
        strides = [f"{each.name}_{step}" for step in ("b", *each.axes, "r", "f")]
        strides += [f"{each.name}_t"] if each.terms > 1 else []
        terms = f", each a sum of {each.terms}" if each.terms > 1 else ""
        axes = ", ".join(("batch", *each.axes, each.rows, each.feature))
        lines.append(f"    {each.name},  # [{axes}]{terms}")
        lines.append(f"    {', '.join((*strides, f'{each.name}_rows', f'{each.name}_size'))},")
    for sums in given.sums:
        lines.append(f"    {sums.name},  # [batch, heads, rows, 2]: log2 of the sum and of the largest share")
        lines.append(f"    {sums.name}_b, {sums.name}_h, {sums.name}_rows,")
    lines += [f"    {', '.join(table_arguments(name, rank))}," for name, rank in given.tables]
    for array, along in given.arrays:
        lines.append(f"    {array},  # [{', '.join(('batch', *along))}]")
        lines.append(f"    {', '.join(array_arguments(array, along)[1:])},")
    for name, has_heads in given.pairs:
        lines.append(f"    {name},  # [batch, {'heads, ' * has_heads}chunk_rows, entries]")
        lines.append(f"    {', '.join(pair_arguments(name, has_heads)[1:])},")
    lines += [f"    {name},  # entries of {axis}" for name, axis in given.sizes]
    lines += [f"    {name}," for name, _ in given.factors]
    lines += [f"    {each.name.upper()}: tl.constexpr," for each in given.vectors]
    return "\n".join(lines)


def table_arguments(name: str, rank: int) -> tuple[str, ...]:
    """A table, its strides and its sizes, as kernels name them."""
    strides = [f"stride_{name}_{step}" for step in ("b", *range(rank))]
    return (f"t_{name}", *strides, *(f"size_{name}_{place}" for place in range(rank)))


def array_arguments(name: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    """An array of an earlier stage, its strides and how many rows it has, as kernels name them."""
    return (name, f"{name}_b", *(f"{name}_{axis[:1]}" for axis in axes), f"{name}_rows")


def pair_arguments(name: str, has_heads: bool) -> tuple[str, ...]:
    """What a kernel before has left for pairs, and its strides, as kernels name them."""
    return (name, f"{name}_b", *((f"{name}_h",) if has_heads else ()), f"{name}_r")


def _unspecialised(kernel: ChainKernel, chain: Chain) -> str:
    """Lengths, which never make another kernel."""
    given = kernel.arguments
    names = ["n", "nq", "q_start", "column_count"]
    names += ["chunk_rows"] if kernel.role not in ("columns", "distances") else []
    names += ["first_row", "parts", "part_spans", "raised_count"] if kernel.role == "sweep" else []
    names += ["sum_first", "sum_rows", "begin", "count", "parts"] if kernel.role == "sums" else []
    names += [f"{each.name}_rows" for each in given.vectors]
    names += [f"{sums.name}_{step}" for sums in given.sums for step in ("b", "h", "rows")]
    for name, rank in given.tables:
        # The last stride is 1 where tables lie as they are made; others follow lengths.
        names += [f"stride_{name}_{step}" for step in ("b", *range(rank - 1))]
        names += [f"size_{name}_{place}" for place in range(rank)]
    names += [name for name, _ in given.sizes]
    names += [each for name, has_heads in given.pairs for each in pair_arguments(name, has_heads)[1:]]
    names += [
        each for name, axes in given.arrays for each in array_arguments(name, axes)[1:] if each[-2:] not in ("_q", "_k")
    ]
    candidates = chain.among is not None or chain.queries > 0
    if kernel.role == "pairs":
        names += ["first_row"]
    if kernel.role == "keys":
        names += ["first_row", *(() if candidates else ("ends_first",))]
    if kernel.role == "keys" and candidates:
        names += ["total", *(("list_b", "list_h", "list_r", "list_count") if chain.among is not None else ())]
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
