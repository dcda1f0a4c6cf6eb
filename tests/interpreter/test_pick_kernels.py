"""The kernels that make lists of what has been picked, in Triton's interpreter, against operations of torch.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.diagnostics import SpatError
from spdsl.runtime import (
    checks,
    noted_runs,
    noted_unions,
    pick_kernels,
    picks,
    piece_kernels,
    plain,
    turned_kernels,
    turned_lists,
)
from spdsl.runtime.runs import joined_lists, pieces_of, runs_of
from tests.runtime.test_picks import lists

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


United = Callable[[Tensor, int, int], tuple[Tensor, Tensor, Tensor, Tensor]]


@pytest.mark.parametrize("united", [pick_kernels.united, noted_unions.united], ids=["sorted", "noted"])
@pytest.mark.parametrize(("positions", "queries", "most", "blocks"), [(4, 10, 3, 7), (32, 40, 5, 3), (1, 5, 2, 9)])
def test_unions(positions: int, queries: int, most: int, blocks: int, united: United) -> None:
    _same_unions(lists((2, 2, queries, most), blocks, positions), positions, blocks, united)


def test_unions_of_long_lists_some_tiles_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noted_unions, "HELD", 3 * 1216)
    monkeypatch.setattr(noted_unions, "STEP", 64)
    _same_unions(lists((1, 2, 37, 50), 1201, 16), 16, 1201, noted_unions.united)


def _same_unions(table: Tensor, positions: int, blocks: int, united: United) -> None:
    wanted = picks.unions(table, positions, blocks)
    begin, end, tiles, bits = united(table, positions, blocks)
    assert torch.equal(end - begin, wanted.end - wanted.begin)
    assert wanted.bits is not None
    ends = zip(begin.flatten().tolist(), end.flatten().tolist(), wanted.begin.flatten().tolist(), strict=True)
    for first, last, other in ends:
        assert torch.equal(tiles[first:last], wanted.tiles[other : other + last - first])
        assert torch.equal(bits[first:last], wanted.bits[other : other + last - first])


@pytest.mark.parametrize(("size", "queries", "most"), [(4, 30, 3), (32, 70, 5)])
def test_lists_of_pieces(size: int, queries: int, most: int) -> None:
    """Runs of one query to more than a tile, two that no query is of, and queries at negative positions."""
    table = torch.tensor([0] * 3 + [1] + [2] * 6 + [4] * 50 + [6] * 9, dtype=torch.int32)
    pieces = pieces_of(runs_of(table, queries, -2), 7, size, aligned=True)
    given = lists((2, 2, 7, most), 11, 3)
    wanted = joined_lists(pieces, given, size, queries, 11)
    found = piece_kernels.joined_lists(pieces, given, size, queries, 11)
    for one, two in zip(found[:2], wanted[:2], strict=True):
        assert torch.equal(one, two)
    for first, last in zip(*(each.flatten().tolist() for each in found[:2]), strict=True):
        assert torch.equal(found[2][first:last], wanted[2][first:last])
        exist = wanted[2][first:last] < 11
        assert torch.equal(found[3][first:last], torch.where(exist, wanted[3][first:last], 0))


def test_bounds() -> None:
    table = lists((2, 2, 40, 3), 5, 1)
    wanted = picks.as_they_are(table, 5)
    begin, end = pick_kernels.bounds(table, 5)
    assert torch.equal(begin, wanted.begin)
    assert torch.equal(end, wanted.end)


@pytest.mark.parametrize(("runs", "blocks"), [(1, 5), (70, 40)])
def test_runs_of_long_lists(runs: int, blocks: int) -> None:
    """As those that are sorted, each block's with room for all; heads may share lists."""
    table = lists((2, 1, runs, 3), blocks, runs).expand(2, 2, -1, -1)
    wanted = picks.transposed(table, blocks)
    begin, end, listed = noted_runs.by_block(table, blocks)
    ends = zip(begin.tolist(), end.tolist(), wanted.starts[:-1].tolist(), wanted.starts[1:].tolist(), strict=True)
    for first, last, other, behind in ends:
        assert torch.equal(listed[first:last], wanted.runs[other:behind])


@pytest.mark.parametrize("runs", [1, 40])
def test_transpose(runs: int) -> None:
    table = lists((2, 2, runs, 3), 5, runs)
    wanted = picks.transposed(table, 5)
    starts, runs_of, entries = pick_kernels.sorted_picks(table, 5)
    assert torch.equal(starts, wanted.starts)
    assert torch.equal(runs_of, wanted.runs)
    assert torch.equal(entries, wanted.entries)
    values = torch.arange(table.numel()).view(table.shape) + 1
    assert torch.equal(pick_kernels.carried(values, entries), picks.carried(values, wanted))


@pytest.mark.parametrize(("size", "least"), [(3, 1), (3, 0), (100, 1)])
def test_items(size: int, least: int) -> None:
    given = picks.transposed(lists((2, 2, 40, 3), 5, 1), 5)
    wanted = picks.items_of(given, size, least)
    found = pick_kernels.items_of(given.starts, len(given.runs), size, least)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("block", "keys", "n", "most"), [(1, 64, 300, 40), (4, 32, 130, 6), (8, 16, 20, 3)])
def test_tiles_and_bits_of_keys(block: int, keys: int, n: int, most: int) -> None:
    table = lists((1, 2, 9, most), -(-n // block), n)
    for one, other in zip(
        pick_kernels.coarser(table, block, keys, n), picks.coarser(table, block, keys, n), strict=True
    ):
        assert torch.equal(one, other)


def test_more_lists_than_a_gpu_starts_programs_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "PROGRAMS", 0)
    with pytest.raises(SpatError, match=r"`unite` would start 6 × 1 × 1 programs") as caught:
        pick_kernels.united(lists((2, 1, 10, 3), 7, 4), 4, 7)
    assert caught.value.code == "SP510"


def test_a_call_says_of_which_pattern_lists_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "NUMBERED", 2)
    x = torch.randn(1, 1, 16, 16)
    with pytest.raises(SpatError) as caught:
        spdsl.compile("moba", block=4, picks=2, backend="triton")(x, x, x)
    assert (caught.value.code, caught.value.place[:10]) == ("SP510", "moba.spat:")


@pytest.mark.parametrize("held", [2, 4])
@pytest.mark.parametrize(("runs", "most", "blocks"), [(5, 7, 11), (3, 2, 4)])
def test_runs_by_tiles_of_several_blocks(held: int, runs: int, most: int, blocks: int) -> None:
    _same_runs(lists((2, 3, runs, most), blocks, held), blocks, held)


def test_runs_by_some_tiles_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turned_kernels, "HELD", 5 * 16)
    monkeypatch.setattr(turned_kernels, "STEP", 16)
    _same_runs(lists((1, 2, 9, 20), 31, 5), 31, 4)


def _same_runs(table: Tensor, blocks: int, held: int) -> None:
    picked = (table[..., None] == torch.arange(-(-blocks // held) * held)).any(-2).unflatten(-1, (-1, held))
    wanted = (picked << torch.arange(held)).sum(-1, dtype=torch.int32).transpose(-1, -2).flatten(0, 2)
    by_torch = turned_lists.by_tiles(table, blocks, held)
    assert by_torch.bits is not None
    of_torch = (by_torch.begin, by_torch.end, by_torch.tiles, by_torch.bits)
    ways = (turned_kernels.bits_by_tile(table, blocks, held), of_torch)
    for begin, end, runs, bits in ways:
        for row, first, last in zip(wanted, begin.flatten().tolist(), end.flatten().tolist(), strict=True):
            assert torch.equal(runs[first:last].long(), row.nonzero().flatten())
            assert torch.equal(bits[first:last], row[row != 0])
