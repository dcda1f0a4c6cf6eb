"""Orders of tokens on grids, against tables made by hand and grids that the language names."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spdsl
from spdsl.diagnostics import SpatError
from spdsl.layouts import tiled, z_order

EXTENTS = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def test_a_small_picture() -> None:
    assert z_order(4, 4).places.view(4, 4).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert tiled((4, 6), (2, 3)).places.view(4, 6).tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]


@settings(deadline=None)
@given(EXTENTS)
def test_z_order_by_hand(extents: list[int]) -> None:
    """Coordinates written in binary, one digit of each axis after the other, the first axis first."""

    def code(place: tuple[int, ...]) -> str:
        return "".join("".join(digits) for digits in zip(*(f"{x:05b}" for x in place), strict=True))

    places = list(itertools.product(*map(range, extents)))
    expected = sorted(range(len(places)), key=lambda at: code(places[at]))
    assert z_order(*extents).order.tolist() == expected


@settings(deadline=None)
@given(EXTENTS, st.data())
def test_tiles_by_hand(extents: list[int], data: st.DataObject) -> None:
    tile = [data.draw(st.integers(1, 5)) for _ in extents]
    places = list(itertools.product(*map(range, extents)))
    expected = sorted(range(len(places)), key=lambda at: [x // size for x, size in zip(places[at], tile, strict=True)])
    assert tiled(extents, tile).order.tolist() == expected


@settings(deadline=None, max_examples=30)
@given(EXTENTS)
def test_back_and_forth(extents: list[int]) -> None:
    layout = z_order(*extents)
    x = torch.arange(2 * math.prod(extents) * 3).view(2, -1, 3)
    assert torch.equal(layout.restore(layout.arrange(x)), x)
    assert torch.equal(layout.arrange(x.mT, dim=-1).mT, layout.arrange(x))


@pytest.mark.parametrize("layout", [z_order(16, 16), tiled((16, 16), (4, 4))])
def test_blocks_are_squares(layout: object) -> None:
    """Blocks of 16 tokens in either order are the 4 × 4 tiles that a pattern with a grid names, in row-major order."""
    by_grid = spdsl.loads("""pattern squares() {
      grid (y: 16, x: 16)
      axis square = (y, x) by (4, 4)
      keep q.square == k.square
    }""")
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 256, 8, generator=generator)
    truth = spdsl.compile(by_grid)(q, k, v)
    local = spdsl.compile(spdsl.loads("pattern p() { axis blk = token by 16 keep q.blk == k.blk }"))
    found = local(*(layout.arrange(each) for each in (q, k, v)))
    torch.testing.assert_close(layout.restore(found), truth)


@pytest.mark.parametrize(
    "make",
    [
        lambda: z_order(),
        lambda: z_order(4, 0),
        lambda: tiled((4, 4), (2,)),
        lambda: tiled((4, 4), (2, 0)),
        lambda: z_order(4, 4).arrange(torch.zeros(1, 15, 2)),
        lambda: z_order(4, 4).restore(torch.zeros(1, 2, 16)),
    ],
)
def test_mistakes(make: object) -> None:
    with pytest.raises(SpatError) as caught:
        make()
    assert caught.value.code == "SP353"
