"""Patterns of which only the tile of a position counts: over tokens in the order of their tiles, as over a grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spdsl
from spdsl.pipeline import order_of
from spdsl.runtime.tile_order import in_tiles, out_of_tiles
from spdsl.semantics.tilewise import Tilewise
from tests.library.compare import relative_error

HEAD = "pattern tiles() {\n  grid (t: 2, y: 6, x: 4)\n  axis cub = (t, y, x) by (2, 3, 2)\n"
CHOSEN = "  let c = score(mean(Q, per = q.cub), mean(K, per = k.cub)) |> top(2)\n"


def order(text: str) -> Tilewise | None:
    found = order_of(spdsl.compile(spdsl.loads(text))._open_key, 1, 1, 8)
    return None if found is None else found[1]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_tokens_of_a_tile_stand_side_by_side(data: st.DataObject) -> None:
    """As a loop over all positions has them: tiles by their number, and within a tile positions by theirs."""
    axes = data.draw(st.integers(1, 3))
    tiles = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    counts = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    divided = data.draw(st.permutations(range(axes)))[: data.draw(st.integers(1, axes))]
    extents = [tile * count for tile, count in zip(tiles, counts, strict=True)]
    names = [f"a{at}" for at in range(axes)]
    grid = ", ".join(f"{name}: {extent}" for name, extent in zip(names, extents, strict=True))
    of = ", ".join(names[at] for at in divided)
    by = ", ".join(str(tiles[at]) for at in divided)
    of, by = (f"({of})", f"({by})") if len(divided) > 1 else (of, by)
    found = order(f"pattern p() {{\n  grid ({grid})\n  axis cub = {of} by {by}\n{CHOSEN}  keep c\n}}")
    assert found is not None

    def number(position: int) -> int:
        places, rest = [], position
        for extent in reversed(extents):
            rest, place = divmod(rest, extent)
            places.insert(0, place)
        tile = 0
        for at in divided:
            tile = tile * counts[at] + places[at] // tiles[at]
        return tile

    every = torch.arange(math.prod(extents))
    moved = in_tiles(every[None, :, None], 1, found)[0, :, 0]
    assert moved.tolist() == sorted(every.tolist(), key=lambda position: (number(position), position))
    assert torch.equal(out_of_tiles(moved, 0, found), every)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}{CHOSEN}  keep c and q >= k\n}}",
        f"{HEAD}{CHOSEN}  keep c and abs(q.x - k.x) < 2\n}}",
        f"{HEAD}{CHOSEN}  keep c\n  bias 0.1 * k\n}}",
        f"{HEAD}  let c = score(Q, K) |> top(3)\n  keep c\n}}",  # of equal scores the first position is chosen
        f"{HEAD.replace('(2, 3, 2)', '(2, 4, 2)')}{CHOSEN}  keep c\n}}",
        f"{HEAD}  input s: int[token] sorted\n{CHOSEN}  keep c and s[q] == s[k]\n}}",
    ],
)
def test_what_sees_more_than_tiles_stays_as_it_is(text: str) -> None:
    assert order(text) is None


@pytest.mark.parametrize("nq", [48, 12])
def test_results_are_those_of_the_grid(nq: int) -> None:
    """Inputs by tokens, by queries and by tiles, in strides of their own; fewer queries than tokens, too."""
    text = f"""{HEAD}  input near: float[h, q.cub, k.cub]
  input mark: float[token]
  input gate: float[h, q, d]
{CHOSEN}  let fine = attend {{ keep (c or near > 0.7) and mark[q] < mark[k] + 0.5  bias mark[k] }}
  return gate * fine + at(attend(mean(Q, per = q.cub), mean(K, per = k.cub), mean(V, per = k.cub)) {{ keep all }}, q)
}}"""
    assert order(text) is not None
    attn = spdsl.compile(spdsl.loads(text), backend="cpu")
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, n, 2, 8) for n in (nq, 48, 48))
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2).requires_grad_() for shape in shapes)
    inputs = {
        "near": torch.rand(2, 4, 4, generator=generator),
        "mark": torch.rand(48, generator=generator),
        "gate": torch.rand(2, nq, 8, generator=generator).requires_grad_(),
    }
    leaves = [q, k, v, inputs["gate"]]
    out = attn(q, k, v, **inputs)
    expected = attn.reference(q, k, v, **inputs)
    assert isinstance(out, Tensor)
    assert isinstance(expected, Tensor)
    d_out = torch.randn(out.shape, generator=generator)
    pairs = zip(
        (out, *torch.autograd.grad(out, leaves, d_out)),
        (expected, *torch.autograd.grad(expected, leaves, d_out.double())),
        strict=True,
    )
    for one, two in pairs:
        assert relative_error(one, two) <= 1e-5


@pytest.mark.parametrize(("width", "first"), [(8, 0), (8, 3), (5, 0)])
def test_gradients_of_the_order_go_back(width: int, first: int) -> None:
    """Rows that are copied sixteen bytes at a time, and such as cannot be."""
    found = order(f"{HEAD}{CHOSEN}  keep c\n}}")
    assert found is not None
    x = torch.randn(1, 48, 11, dtype=torch.float64)[..., first : first + width].half().requires_grad_()
    weight = torch.randn(1, 48, width).half()
    at = torch.arange(48)[:, None]
    moved = in_tiles(x, 1, found)
    assert torch.equal(moved, x[:, in_tiles(at, 0, found)[:, 0]])
    assert torch.equal(torch.autograd.grad(moved, x, in_tiles(weight, 1, found))[0], weight)
