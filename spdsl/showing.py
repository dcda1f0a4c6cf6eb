"""How patterns show themselves in notebooks: a small picture of the mask as SVG, and the text beside it.

From a pattern and parameters.  To one piece of HTML that needs nothing else: no scripts, no network, no matplotlib.
Where queries and keys decide, the picture is of random ones: with values that are the rows of an identity matrix, the
reference's output is what each key weighs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spdsl.analysis.plan import grid_length
from spdsl.diagnostics import SpatError
from spdsl.pipeline import Value
from spdsl.samples import Sizes, drawn, sample_inputs
from spdsl.semantics.features import has_other_features

if TYPE_CHECKING:
    from spdsl.api import Pattern

SHADES = ("#d3e2f0", "#a3c4e2", "#6f9fcd", "#2f6fb0")
"""Squares of which few pairs are kept, up to all of them."""
PAPER = "#f4f5f7"
MOST_SQUARES = 128
SHORTEST, LONGEST, LONGEST_CHOSEN = 256, 2048, 512
"""Tokens of a picture, unless the pattern says how many there are; the last where queries and keys decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The mask of head 0, bool ``[n, n]``, and which of its inputs were made up."""

    mask: Tensor
    made_up: tuple[str, ...]

    @property
    def kept(self) -> float:
        """The share of the pairs that is kept."""
        return self.mask.double().mean().item()


def look(
    pattern: Pattern,
    parameters: Mapping[str, Any] | None = None,
    *,
    layer: int | None = None,
    n: int | None = None,
    known: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Sight:
    """The mask of a pattern at a length that shows its parameters, or at ``n``; inputs that are not ``known`` are made
    up.

    Raises:
        SpatError: a parameter that is missing or does not fit, or a pattern that needs ``layer``.
    """
    given = dict(parameters or {})
    n = n or _length(pattern, given, layer)
    sizes = Sizes(batch=1, heads=1, groups=1, nq=n, n=n, head_dim=32)
    checked = pattern.checked
    inputs: dict[str, Any] = dict(sample_inputs(checked, given, sizes, layer=layer, seed=seed, known=known))
    made_up = tuple(name for name in inputs if name not in (known or {}))
    if checked.graph is None:
        mask = pattern.mask(n, n, layer=layer, **given, **inputs)
        return Sight(mask=mask[0] if mask.ndim == 3 else mask[0, 0], made_up=made_up)
    q, k, _ = drawn(sizes, n, torch.float64, seed)
    return Sight(mask=chosen(pattern, given, q, k, inputs, layer=layer)[0], made_up=(*made_up, "q", "k"))


def chosen(
    pattern: Pattern,
    parameters: Mapping[str, Any],
    q: Tensor,
    k: Tensor,
    inputs: Mapping[str, Any],
    *,
    layer: int | None = None,
) -> Tensor:
    """Which keys weigh something for each query, bool ``[heads, nq, n]``.

    ``q`` is ``[1, heads, nq, d]`` and ``k`` ``[1, groups, n, d]``.

    Raises:
        SpatError: as a call with them would.
    """
    from spdsl.api import compile

    attn = compile(pattern, layer=layer, **parameters)
    n, head_dim = k.shape[2:]
    # Values that meet vectors of queries and keys have their size: so many keys are looked at, at once.
    size = n if has_other_features(attn.bind(q.shape[1], k.shape[1], head_dim)) else head_dim
    found = []
    for values in torch.eye(n, -(-n // size) * size, dtype=torch.float64).split(size, -1):
        values = values.expand(1, k.shape[1], -1, -1)
        weights = attn.reference(q.double(), k.double(), values, **inputs)
        assert isinstance(weights, Tensor), "no LSE was asked for"
        found.append(weights[0] != 0)
    return torch.cat(found, -1)[..., :n]


def _length(pattern: Pattern, parameters: Mapping[str, Any], layer: int | None) -> int:
    """That of an unnamed grid; else eight times the largest parameter, as a power of two."""
    from spdsl.semantics.bind import bind

    bound = bind(pattern.checked, dict(parameters), layer=layer, heads=1, groups=1, head_dim=32)
    places = grid_length(bound)
    if places is not None:
        return min(places, 2 * LONGEST)
    values = [each for _, value in bound.parameters for each in (value if isinstance(value, tuple) else (value,))]
    largest = max((each for each in values if type(each) is int), default=0)
    most = LONGEST if pattern.checked.graph is None else LONGEST_CHOSEN
    return min(max(1 << (8 * max(1, largest) - 1).bit_length(), SHORTEST), most)


def svg(mask: Tensor, *, label: str = "mask", size: int = 192) -> str:
    """A bool mask ``[queries, keys]`` as an SVG, ``size`` pixels wide: the first query above, the first key on the
    left."""
    rows, columns = mask.shape
    step = -(-max(rows, columns) // MOST_SQUARES)
    padded = torch.nn.functional.pad(mask.float(), (0, -columns % step, 0, -rows % step))
    kept = padded.unflatten(1, (-1, step)).unflatten(0, (-1, step)).sum((1, 3))
    # Squares at the edges have fewer pairs.
    heights, widths = (
        torch.full((-(-length // step),), step).scatter_(
            0, torch.tensor([-(-length // step) - 1]), (length - 1) % step + 1
        )
        for length in (rows, columns)
    )
    shares = kept / (heights[:, None] * widths)
    # The square root keeps thin diagonals visible; only what is kept whole has the last shade.
    shades = (shares.sqrt() * (len(SHADES) - 1)).ceil().clamp(max=len(SHADES) - 1).int()
    shades = torch.where(shares >= 1, len(SHADES), shades)
    down, across = shades.shape
    paths = [f'<path fill="{SHADES[number - 1]}" d="{"".join(path)}"/>' for number, path in _paths(shades)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" width="{size}" '
        f'height="{max(1, round(size * down / across))}" viewBox="0 0 {across} {down}" shape-rendering="crispEdges">'
        f'<rect width="{across}" height="{down}" fill="{PAPER}"/>{"".join(paths)}</svg>'
    )


def _paths(shades: Tensor) -> Iterator[tuple[int, list[str]]]:
    """For each shade the rectangles that have it: runs of a row, as long as the rows below have the same run."""
    rectangles: dict[int, list[str]] = {}
    open_runs: dict[tuple[int, int, int], int] = {}
    rows = shades.tolist()
    for y, row in enumerate([*rows, []]):
        runs, x = set(), 0
        for shade, members in groupby(row):
            wide = len(list(members))
            if shade:
                runs.add((x, wide, shade))
            x += wide
        for run in open_runs.keys() - runs:
            left, wide, shade = run
            top = open_runs.pop(run)
            rectangles.setdefault(shade, []).append(f"M{left} {top}h{wide}v{y - top}h-{wide}z")
        for run in runs - open_runs.keys():
            open_runs[run] = y
    yield from sorted((shade, sorted(parts)) for shade, parts in rectangles.items())


def html(pattern: Pattern, parameters: Mapping[str, Any] | None = None, *, layer: int | None = None) -> str:
    """A picture of the mask and the text, as notebooks show them; where there is no mask to draw, it says why."""
    given = {**pattern.parameters, **(parameters or {})}
    shown = [f"{name}={'…' if value is None else _value(value)}" for name, value in given.items()]
    title = f"{pattern.name}({', '.join(shown + [f'layer={layer}'] * (layer is not None))})"
    lines = [f"<b>{escape(title)}</b>"]
    picture = ""
    try:
        sight = look(pattern, parameters, layer=layer)
    except SpatError as reason:
        lines.append(f"no picture: {escape(reason.message)}" + (f"; {escape(reason.help)}" if reason.help else ""))
    else:
        picture = svg(sight.mask, label=f"mask of {title}")
        n = len(sight.mask)
        lines.append(f"{n:,} queries (down) × {n:,} keys: {sight.kept:.2%} of the pairs kept")
        if sight.made_up:
            lines.append(f"{', '.join(map(escape, sight.made_up))}: made up, at random")
    text = f'<pre style="margin:0.6em 0 0">{escape(pattern.to_spat().rstrip())}</pre>'
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:1.2em;align-items:flex-start">'
        f"{picture}<div>{'<br>'.join(lines)}{text}</div></div>"
    )


def _value(value: Value) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))})"
    return str(value).lower() if isinstance(value, bool) else str(value)
