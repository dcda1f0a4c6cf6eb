"""The tiles of kernels as text: a picture in blocks, and lists for `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from rich.text import Text
from torch import Tensor

from spdsl import walks
from spdsl.analysis.plans import KernelPlan
from spdsl.cli.measure import DTYPES
from spdsl.cli.options import Value
from spdsl.cli.stages import TARGETS, Wish
from spdsl.cli.tensors import length_of, make_inputs
from spdsl.diagnostics import error
from spdsl.explain import call_like
from spdsl.picture import Walked
from spdsl.pipeline import bound, key_of, order_of
from spdsl.runtime.calls import Call
from spdsl.runtime.parts import parts_of
from spdsl.samples import Sizes, drawn, shaped
from spdsl.selecting import softmax_calls
from spdsl.semantics.titles import in_titles
from spdsl.states import EMPTY, FULL, PARTIAL, tile_rows, tile_states

if TYPE_CHECKING:
    from spdsl.api import Pattern

LENGTH = 2048
"""Keys where neither the command nor a grid says how many."""

MOST_SELECTED = 4096
"""Tokens of which a pattern with stages selects for a picture."""

MOST_ROWS, MOST_COLUMNS = 64, 96
"""Tiles that are drawn one by one; of more, a mark stands for several."""

MARKS = (("·", "bright_black"), ("▒", "yellow"), ("█", "blue"))
"""The mark and colour of tiles that are empty, partial and full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """The tiles of the kernels of one call for one head, kernels that walk alike together, with the call of their part
    of a union; and the inputs made up.

    ``title``: which softmax of a pattern with stages it is; ``called``: the titles of these stages.
    """

    title: str
    call: Call
    head: int
    kernels: tuple[tuple[Call, tuple[KernelPlan, ...], Tensor], ...]
    generated: tuple[str, ...]
    called: Mapping[str, str] = field(default_factory=dict)

    def words(self, call: Call, kernel: KernelPlan) -> list[str]:
        """The walk of a kernel in words."""
        return [in_titles(line, self.called) for line in walks.describe(kernel, call.plan, call)]

    def notes(self, kernel: KernelPlan) -> list[str]:
        """What else is said of a kernel."""
        return [in_titles(line, self.called) for line in kernel.notes]


def drawing(
    pattern: Pattern,
    values: dict[str, Value],
    given: Sequence[str] | None,
    wish: Wish,
    *,
    n: int | None,
    nq: int | None,
    head: int,
    seed: int,
) -> Drawing:
    """The tiles of both directions, of a pattern without stages.

    Raises:
        SpatError: as a call of these sizes would.
    """
    (found,) = drawings(pattern, values, given, wish, n=n, nq=nq, head=head, seed=seed)
    return found


def drawings(
    pattern: Pattern,
    values: dict[str, Value],
    given: Sequence[str] | None,
    wish: Wish,
    *,
    n: int | None,
    nq: int | None,
    head: int,
    seed: int,
) -> list[Drawing]:
    """The tiles of both directions; of a pattern with stages those of each softmax over what random queries and keys
    select.

    Raises:
        SpatError: as a call of these sizes would, or selections of so many tokens are not drawn (SP622).
    """
    if wish.target not in TARGETS:
        raise error("SP512", f"`{wish.target}` is not a target", help=f"Use one of {', '.join(TARGETS)}.")
    n = length_of(pattern, values, n, LENGTH, wish.layer)
    sizes = Sizes(batch=1, heads=wish.heads, groups=wish.groups, nq=nq or n, n=n, head_dim=wish.head_dim)
    inputs, generated = make_inputs(pattern, values, given, sizes, layer=wish.layer, seed=seed)
    key = key_of(pattern.checked, values, wish.layer, None, False)
    dtype = DTYPES[wish.dtype]
    called = dict[str, str]()
    if pattern.checked.graph is None:
        calls = [("", call_like(key, *shaped(sizes, wish.value_dim, dtype), inputs, wish.target))]
    else:
        refuse_many(pattern.name, n)
        calls, called = softmax_calls(key, *drawn(sizes, wish.value_dim, dtype, seed), inputs, wish.target)
        generated = (*generated, "q", "k")
    return [
        Drawing(title=title, call=call, head=head, kernels=_states(call, head), generated=generated, called=called)
        for title, call in calls
    ]


def refuse_many(name: str, n: int) -> None:
    """Refuse a picture of what the pattern ``name`` selects of too many tokens.  Raises `SpatError` (SP622)."""
    if n > MOST_SELECTED:
        raise error(
            "SP622",
            f"what `{name}` selects of {n:,} tokens is not computed for a picture",
            help=f"draw up to {MOST_SELECTED:,} of them: `-n {MOST_SELECTED}`",
        )


def _states(call: Call, head: int) -> tuple[tuple[Call, tuple[KernelPlan, ...], Tensor], ...]:
    return tuple(
        (part, alike, tile_states(part, alike[0], head=head))
        for part in parts_of(call, lambda _: ())
        for alike in _alike(part.plan.kernels)
    )


def _alike(kernels: Sequence[KernelPlan]) -> list[tuple[KernelPlan, ...]]:
    """Kernels that walk the same tiles, together."""
    found: dict[object, tuple[KernelPlan, ...]] = {}
    for each in kernels:
        same = (each.by, each.block_q, each.block_k, each.walk, each.boxes, each.classes)
        found[same] = (*found.get(same, ()), each)
    return list(found.values())


def picture(found: Drawing) -> Text:
    """All kernels, each with a row for every tile of its own side and with its walk in words."""
    parts = [_kernels(found, call, alike, states) for call, alike, states in found.kernels]
    return Text("\n").join([_legend(), *parts])


def _kernels(found: Drawing, call: Call, alike: tuple[KernelPlan, ...], states: Tensor) -> Text:
    kernel = alike[0]
    own, walked = ("key", "query") if kernel.by == "key" else ("query", "key")
    counts = [int((states == state).sum()) for state in (FULL, PARTIAL, EMPTY)]
    text = Text()
    text.append(" and ".join(each.kind for each in alike), "bold")
    text.append(f" of set {call.plan.place + 1}" if found.call.plan.more else "")
    text.append(f": tiles of {kernel.block_q} queries × {kernel.block_k} keys, head {found.head}")
    text.append(f", class 0 of {kernel.classes}" if kernel.classes > 1 else "")
    text.append("; {:,} full, {:,} partial, {:,} never read\n".format(*counts))
    step, marks = _shrunk(states)
    each = "" if step == 1 else f"; each mark stands for {step} × {step} tiles"
    text.append(f"  down: {own} tiles, across: {walked} tiles{each}\n", "dim")
    wide = 2 if marks.shape[1] <= MOST_COLUMNS // 2 else 1
    for number, row in enumerate(marks.tolist()):
        text.append(f"{number * step:6} ", "dim")
        for state in row:
            mark, colour = MARKS[state]
            text.append((mark if state == EMPTY else mark * wide).ljust(wide), colour)
        text.rstrip()
        text.append("\n")
    for line in (*found.words(call, kernel), *found.notes(kernel)):
        text.append(f"  {line}\n")
    return text


def _legend() -> Text:
    meanings = {FULL: "full, no mask needed", PARTIAL: "partial", EMPTY: "never read"}
    parts = [Text(MARKS[state][0], MARKS[state][1]).append(f" {what}", "default") for state, what in meanings.items()]
    return Text("   ").join(parts).append("\n")


def _shrunk(states: Tensor) -> tuple[int, Tensor]:
    """How many tiles a mark stands for along each side, and the marks: full or empty only where all of them are."""
    rows, columns = states.shape
    step = max(1, -(-rows // MOST_ROWS), -(-columns // MOST_COLUMNS))
    if step == 1:
        return 1, states
    padding = (0, -columns % step, 0, -rows % step)
    parts = [torch.nn.functional.pad(states, padding, value=value) for value in (EMPTY, FULL)]
    most, least = (part.unflatten(1, (-1, step)).unflatten(0, (-1, step)) for part in parts)
    most, least = most.amax((1, 3)), least.amin((1, 3))
    return step, torch.where(most == EMPTY, EMPTY, torch.where(least == FULL, FULL, PARTIAL))


def record(found: Drawing) -> dict[str, Any]:
    """The tiles for `--json`: for each tile of a kernel's own side those that it walks."""
    call = found.call
    return {
        "n": call.keys,
        "nq": call.q.shape[2],
        "head": found.head,
        "generated_inputs": list(found.generated),
        "kernels": [
            {
                "kinds": [each.kind for each in alike],
                "part": part.plan.place,
                "block_q": kernel.block_q,
                "block_k": kernel.block_k,
                "classes": kernel.classes,
                "walk": found.words(part, kernel),
                "notes": found.notes(kernel),
                "rows": [{"full": _where(row, FULL), "partial": _where(row, PARTIAL)} for row in states],
            }
            for part, alike, states in found.kernels
            for kernel in alike[:1]
        ],
    }


def _where(row: Tensor, state: int) -> list[int]:
    return [int(tile) for tile in (row == state).nonzero().flatten()]


def walked(
    key: str,
    sizes: Sizes,
    inputs: Mapping[str, Tensor],
    kind: str,
    *,
    head: int,
    dtype: str,
    target: str,
    chosen_by: tuple[Tensor, Tensor] | None = None,
) -> Walked:
    """What the kernel ``kind`` visits, for a picture; that of a later set of a union is called ``forward.2``.

    ``chosen_by`` are queries and keys of a pattern with stages.

    Raises:
        SpatError: there is no such kernel for this pattern (SP615), or as a call of these sizes would.
    """
    if chosen_by is None:
        call = call_like(key, *shaped(sizes, sizes.head_dim, DTYPES[dtype]), inputs, target)
    else:
        q, k = (each.to(DTYPES[dtype]) for each in chosen_by)
        call = _only_softmax(key, sizes, q, k, inputs, target)
    kernels = {
        f"{kernel.kind}.{part.plan.place + 1}" if part.plan.place else kernel.kind: (part, kernel)
        for part in parts_of(call, lambda _: ())
        for kernel in part.plan.kernels
    }
    if kind not in kernels:
        name = bound(key, sizes.heads, sizes.groups, sizes.head_dim).name
        kinds = ", ".join(f"`{each}`" for each in kernels)
        raise error("SP615", f"`{name}` has no kernel `{kind}` for {target}", help=f"it has {kinds}")
    call, kernel = kernels[kind]
    states = tile_states(call, kernel, head=head)
    return Walked(
        title=kind if kernel.classes == 1 else f"{kind}, class 0 of {kernel.classes}",
        state=(states.T if kernel.by == "key" else states).numpy(),
        query_rows=tile_rows(call, kernel, "q").numpy(),
        key_rows=tile_rows(call, kernel, "k").numpy(),
    )


def _only_softmax(key: str, sizes: Sizes, q: Tensor, k: Tensor, inputs: Mapping[str, Tensor], target: str) -> Call:
    """The softmax of a pattern with stages, if there is one and its tiles hold the rows of the mask."""
    calls, _ = softmax_calls(key, q, k, k, inputs, target)
    (title, call), *others = calls
    name = bound(key, sizes.heads, sizes.groups, sizes.head_dim).name
    if others:
        reason = f"has {len(calls)} softmaxes, {', '.join(f'`{each}`' for each, _ in calls)}"
    elif (call.q.shape[2], call.k.shape[2]) != (sizes.nq, sizes.n):
        reason = f"attends in `{title}` to other rows than its mask has"
    elif order_of(key, sizes.heads, sizes.groups, sizes.head_dim) is not None:
        reason = "is computed over tokens in the order of their tiles"
    else:
        return call
    help = f"`spdsl show --emit tiles {name}` draws the tiles of each softmax by themselves"
    raise error("SP615", f"`{name}` {reason}, so that its mask has no kernels of its own", help=help)
