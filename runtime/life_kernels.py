"""Lifetimes of keys by kernels of their own, as `spdsl.runtime.lives` finds them by operations of torch.

A program has one run of queries: it seeks the last rank that each of these keeps among the buckets of ranks, then among
the keys of one bucket, and lists the keys that live.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import start_given
from spdsl.runtime.shared_keys import listed_keys

_WIDTH = 512
"""Keys that a program looks at together for a list."""


@triton.jit(do_not_specialize=["n", "most", "buckets", "first", "runs", "steps"])  # type: ignore[untyped-decorator]
def seek_last(  # type: ignore[no-untyped-def]
    rank,  # [rows, n], int32, the place of each key, the best first
    order,  # [rows, n], int32, the key of each place
    counts,  # [rows, runs, buckets], int32: keys before each run, of all buckets of ranks up to each
    last,  # [rows, n], int32
    n,
    most,
    buckets,
    first,
    runs,
    steps,
    RUN: tl.constexpr,
):
    """The rank of the last key that each query keeps, ``n`` where fewer than ``most`` exist; runs from ``first`` on."""
    NONE: tl.constexpr = 1073741824
    run, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place = tl.arange(0, RUN)
    query = (first + run) * RUN + place
    own = tl.load(rank + row * n + query, mask=query < n, other=n)
    own = tl.where(own < n, own, NONE)  # absent ones count nowhere
    # Keys of the run up to each query, [queries, keys].
    earlier = place[None, :] <= place[:, None]
    counted = counts + (row * runs + run) * buckets
    low = tl.zeros([RUN], tl.int32)
    high = low + buckets
    for _ in tl.range(0, steps):
        middle = (low + high) // 2
        before = tl.load(counted + middle, mask=low < high, other=0)
        more = tl.sum((earlier & (own[None, :] < (middle[:, None] + 1) * RUN)).to(tl.int32), 1)
        reached = (before + more >= most) | (low >= high)
        low = tl.where(reached, low, middle + 1)
        high = tl.where(reached, tl.minimum(middle, high), high)
    exist = low < buckets
    before = tl.load(counted + low - 1, mask=exist & (low > 0), other=0)
    before += tl.sum((earlier & (own[None, :] < low[:, None] * RUN)).to(tl.int32), 1)
    ranks = low[:, None] * RUN + place[None, :]
    key = tl.load(order + row * n + ranks, mask=exist[:, None] & (ranks < n), other=NONE)
    met = tl.cumsum((key <= query[:, None]).to(tl.int32), 1)
    found = low * RUN + tl.sum((met < (most - before)[:, None]).to(tl.int32), 1)
    tl.store(last + row * n + query, tl.where(exist, found, n), mask=query < n)


@triton.jit(do_not_specialize=["n", "runs", "width"])  # type: ignore[untyped-decorator]
def list_living(  # type: ignore[no-untyped-def]
    keys,  # [rows * n + 1], int32, those that ever live, row by row
    before,  # [rows, n + 1], int32, where those from each key on stand
    until,  # [rows, n], int32
    lists,  # [rows, runs, width], int32
    n,
    runs,
    width,
    RUN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The keys that live for any query of a run, ascending, and what stands for none."""
    FAR: tl.constexpr = 2147483647
    run, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = run * RUN
    first = tl.load(before + row * (n + 1))
    end = tl.load(before + row * (n + 1) + tl.minimum(start + RUN, n))
    into = lists + (row * runs + run) * width
    done = 0
    for at in tl.range(first, end, WIDTH):
        place = at + tl.arange(0, WIDTH)
        key = tl.load(keys + place, mask=place < end, other=0)
        lives = (tl.load(until + row * n + key, mask=place < end, other=0) > start).to(tl.int32)
        to = done + tl.cumsum(lives, 0) - lives
        tl.store(into + to, key, mask=(lives != 0) & (to < width))
        done += tl.sum(lives, 0)
    for at in tl.range(0, width, WIDTH):
        place = at + tl.arange(0, WIDTH)
        tl.store(into + place, FAR, mask=(place >= done) & (place < width))


def last_ranks(rank: Tensor, order: Tensor, counts: Tensor, last: Tensor, most: int, first: int, run: int) -> None:
    """Fill what `seek_last` finds for the runs of ``counts``, of ``run`` queries each, from ``first`` on."""
    rows, runs, buckets = counts.shape
    given = (rank, order, counts, last, rank.shape[1], most, buckets, first, runs, buckets.bit_length())
    start_given(seek_last, (runs, rows, 1), given, {"RUN": run}, ("last",), options_of(4), rank.device)


def living(until: Tensor, width: int, run: int) -> Tensor:
    """The keys that live for any query of each run, ascending, and then what stands for none: int32 ``[rows, runs,
    width]``, from ``until``, int32 ``[rows, n]``."""
    rows, n = until.shape
    runs = -(-n // run)
    before, keys = listed_keys((until > torch.arange(n, device=until.device))[None])
    lists = torch.empty(rows, runs, width, dtype=torch.int32, device=until.device)
    given = (keys, before, until, lists, n, runs, width)
    sizes = {"RUN": run, "WIDTH": _WIDTH}
    start_given(list_living, (runs, rows, 1), given, sizes, ("lists",), options_of(4), until.device)
    return lists
