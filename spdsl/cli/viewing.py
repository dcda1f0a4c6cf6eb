"""What `spdsl view -o mask.html` writes: patterns with their values, masks and kernels, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import BoxWalk
from spdsl.cli.drawing import drawing
from spdsl.cli.files import write_whole
from spdsl.cli.options import Value
from spdsl.cli.stages import Wish
from spdsl.cli.tensors import make_inputs
from spdsl.page.content import Kernel, Shown, is_worked_out, page
from spdsl.runtime.calls import Call
from spdsl.samples import Sizes
from spdsl.semantics.bind import bind
from spdsl.showing import chosen

if TYPE_CHECKING:
    from spdsl.api import Pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What patterns are looked at with."""

    sizes: Sizes
    layer: int | None
    head: int
    dtype: str
    target: str
    tile: int
    given: tuple[str, ...]
    seed: int
    real: tuple[Tensor, Tensor] | None = None


def write_page(path: Path, patterns: Sequence[tuple[Pattern, dict[str, Value]]], look: Look) -> dict[str, Any]:
    """Write the page, and say which patterns it has and whether it works all of them out by itself.

    Raises:
        SpatError: a pattern does not fit its values, a mask is too large (SP609), or the file cannot be written
            (SP605).
    """
    sizes = look.sizes
    shown = [_shown(pattern, values, look) for pattern, values in patterns]
    text = page(
        shown,
        n=sizes.n,
        nq=sizes.nq,
        heads=sizes.heads,
        groups=sizes.groups,
        head_dim=sizes.head_dim,
        tile=look.tile,
    )
    write_whole(path, text)
    return {
        "patterns": [each.pattern.name for each in shown],
        "worked_out": all(is_worked_out(each.pattern) for each in shown),
    }


def _shown(pattern: Pattern, values: dict[str, Value], look: Look) -> Shown:
    checked, sizes = pattern.checked, look.sizes
    bind(checked, values, layer=look.layer, heads=sizes.heads, groups=sizes.groups, head_dim=sizes.head_dim)
    inputs, _ = make_inputs(
        pattern,
        values,
        [word for word in look.given if word.partition("=")[0] in pattern.inputs],
        sizes,
        layer=look.layer,
        seed=look.seed,
    )
    mask = None
    if look.real is not None and checked.graph is not None:
        mask = chosen(pattern, values, *look.real, inputs, layer=look.layer).numpy()
    elif not is_worked_out(checked):
        settings: dict[str, Any] = {**values, **inputs}
        found = pattern.mask(sizes.nq, sizes.n, sizes.heads, sizes.groups, look.layer, **settings)
        mask = (found[0] if found.ndim == 4 else found).numpy()
    return Shown(
        pattern=checked,
        values=values,
        tables={name: each.numpy() for name, each in inputs.items()},
        layer=look.layer,
        kernels=[] if checked.graph is not None else _kernels(pattern, values, look),
        mask=mask,
    )


def _kernels(pattern: Pattern, values: dict[str, Value], look: Look) -> list[Kernel]:
    sizes = look.sizes
    wish = Wish(
        parameters=values,
        heads=sizes.heads,
        groups=sizes.groups,
        head_dim=sizes.head_dim,
        value_dim=sizes.head_dim,
        dtype=look.dtype,
        layer=look.layer,
        shape="square",
        target=look.target,
    )
    found = drawing(pattern, values, look.given, wish, n=sizes.n, nq=sizes.nq, head=look.head, seed=look.seed)
    many = bool(found.call.plan.more)
    return [
        Kernel(
            title=" and ".join(each.kind for each in alike) + (f" of set {part.plan.place + 1}" if many else ""),
            rows=_rows(part, alike[0]),
            by=alike[0].by,
            block_q=alike[0].block_q,
            block_k=alike[0].block_k,
            touched=int((states > 0).sum()),
            full=int((states == 2).sum()),
        )
        for part, alike, states in found.kernels
    ]


def _rows(call: Call, kernel: KernelPlan) -> str:
    """Which rows the tiles of a kernel hold; nothing where they are consecutive."""
    if kernel.marked is not None and kernel.marked.alike:
        return "of keys with like intervals"
    if call.marks is not None:
        return "of marked rows"
    if kernel.classes > 1:
        return f"of class 0 of {kernel.classes}"
    return "boxes of the grid" if isinstance(kernel.walk, BoxWalk) else ""
