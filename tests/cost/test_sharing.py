"""How programs share multiprocessors, against programs that are given out one by one."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

import pytest

from spdsl.analysis.cost import estimate, rate_for
from spdsl.analysis.device import profile_for
from spdsl.analysis.plans import Tiles
from spdsl.analysis.sharing import held, program_share
from spdsl.analysis.work import Before, Work

H200 = profile_for("NVIDIA H200", "sm_90")
TILES = Tiles(block_q=128, block_k=128, warps=4, stages=2, specialised=True)
MANY = H200.multiprocessors


def lengths(rows: int, window: int) -> list[int]:
    """Tiles that each row of a head walks: causal ones where the window is as long."""
    return [min(row + 1, window) for row in range(rows)]


def work(heads: int, own: Sequence[int], *, even: bool = False) -> Work:
    """A forward kernel of so many heads alike, whose rows are as long."""
    return Work(
        kind="forward",
        tiles=TILES,
        head_dim=128,
        value_dim=128,
        dtype="bf16",
        descriptors=True,
        programs=heads * len(own),
        full=heads * sum(own),
        masked=0,
        longest=max(own),
        operations=0,
        loads=0,
        extra=0,
        listed=False,
        rows=heads * len(own) * 128,
        heads=heads,
        even=even,
    )


def tiles_held(done: Work) -> float:
    rate = replace(rate_for(done, H200)[0], alone=1.0)
    return held(done, done.full, done.longest, MANY, rate)


@pytest.mark.parametrize("heads", [4, 16, 32])
@pytest.mark.parametrize(("rows", "window"), [(16, 16), (16, 7), (32, 32), (32, 9), (64, 64), (64, 40), (100, 3)])
def test_the_longest_first_and_each_takes_the_next(heads: int, rows: int, window: int) -> None:
    """As the device gives out programs, to whoever is free; what one takes beside its tiles counts, too."""
    own = lengths(rows, window)
    free = [0.0] * MANY
    for length in sorted(own * heads, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + length + 3.0)
    done = work(heads, own)
    rate = replace(rate_for(done, H200)[0], alone=1.0)
    programs = held(done, done.programs, 1, MANY, rate)
    assert tiles_held(done) + 3.0 * programs == pytest.approx(max(free), rel=0.12)


@pytest.mark.parametrize("heads", [16, 32])
@pytest.mark.parametrize(("rows", "window"), [(64, 33), (64, 5), (128, 2), (96, 17), (128, 60)])
def test_tiles_that_are_counted_through(heads: int, rows: int, window: int) -> None:
    """Every multiprocessor does the tiles that stand so many places apart, head by head, the last row first."""
    own = lengths(rows, window)
    order = [length for _ in range(heads) for length in reversed(own)]
    most = max(sum(order[start::MANY]) for start in range(MANY))
    done = work(heads, own, even=True)
    assert tiles_held(done) == pytest.approx(most, rel=0.04)
    assert program_share(done, MANY) < 1.0


def test_few_programs_are_not_counted_through() -> None:
    own = lengths(16, 7)
    assert tiles_held(work(16, own, even=True)) == tiles_held(work(16, own)) == 14
    assert program_share(work(16, own, even=True), MANY) == 1.0


def test_a_program_that_is_alone_waits_for_itself() -> None:
    """Where costs are shares of several programs: in a turn that is not full, and where the longest is all that is
    left."""
    alone, shared = (replace(H200, rates=tuple(replace(each, alone=times) for each in H200.rates)) for times in (2, 1))
    few = work(2, lengths(16, 16))
    rate = rate_for(few, shared)[0]
    assert estimate(few, alone).seconds == pytest.approx(H200.launch + 2 * (rate.program + 16 * rate.full))
    assert estimate(few, shared).seconds == pytest.approx(H200.launch + rate.program + 16 * rate.full)


def test_what_is_left_in_the_end_depends_on_who_starts_first() -> None:
    """Where a table says how long rows are, a long one may come last."""
    causal = work(16, lengths(64, 64))
    tables = (replace(causal, listed=True), replace(causal, before=Before(searched=8192)))
    tails = replace(H200, rates=tuple(replace(each, tail=0.5, cut=0.0, listed=0.0) for each in H200.rates))
    assert all(tiles_held(each) >= tiles_held(causal) for each in tables)
    times = [estimate(each, tails) for each in (causal, *tables)]
    assert times[1].end == times[2].end > 2 * times[0].end > 0
