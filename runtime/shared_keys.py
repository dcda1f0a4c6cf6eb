"""Keys that all queries of a head share, as kernels by query walk them: listed on the device, and counted up to each.

From: a condition on keys, by heads.  To: the keys for which it holds, ascending, in one list for each head, and for
each key how many of them stand before it, so that a tile of queries finds those of an interval without a search.  The
host waits for nothing: there is room for every key.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import PickWalk
from spdsl.codegen.binaries import options_of
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.checks import refuse_many
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.of_tables import made_of_tables
from spdsl.runtime.pairs import Pairs, pairs_of
from spdsl.runtime.plain import start_given
from spdsl.runtime.ranking import counted
from spdsl.runtime.recent import ByContent
from spdsl.runtime.row_parts import WIDTH, count_before, leave_count, own_part, parts_of
from spdsl.semantics.nodes import Expr, Load
from spdsl.semantics.rewrite import walk

_passing: ByContent[TileList] = ByContent(size=6)
"""Lists that are kept from the forward to the backward."""


def shared_keys(call: Call, where: Expr) -> TileList:
    """The keys for which ``where`` holds: ``tiles`` has those of each head one after the other, with room for all, and
    ``begin``, int32 ``[batch or 1, heads or 1, n + 1]``, says where in there the keys from each position on stand.

    The recorder notes how they are made, so that a tape makes them of other tables.
    """
    names = {node.table for node in walk(where) if isinstance(node, Load)}
    return made_of_tables(call, names, where, _passing, partial(_lists, where))


def _lists(where: Expr, pairs: Pairs, tables: Tables) -> TileList:
    env = pairs.extents() | pairs.outer(1) | {"k": torch.arange(pairs.keys, device=pairs.device)}
    found = evaluate(where, env, tables)
    batch, heads, _ = torch.broadcast_shapes((1, 1, pairs.keys), found.shape)
    before, keys = listed_keys(found.expand(batch, heads, pairs.keys))
    return TileList(begin=before, middle=before, end=before, tiles=keys)


def listed_keys(found: Tensor) -> tuple[Tensor, Tensor]:
    """Of bools ``[batch, heads, n]``: where the keys from each position on stand, and the keys.

    These are int32 ``[batch, heads, n + 1]`` and ``[batch * heads * n + 1]``; what stands behind the last key of a head
    is nothing, as is the last element.  Raises `SpatError` (SP510) for 2^31 keys of all heads or more.
    """
    batch, heads, n = found.shape
    rows = batch * heads
    refuse_many(rows * n, "keys of all heads")
    before = torch.empty(batch, heads, n + 1, dtype=torch.int32, device=found.device)
    keys = torch.empty(rows * n + 1, dtype=torch.int32, device=found.device)
    if found.device.type == "cuda":
        list_by_kernels(found, before, keys)
        return before, keys
    first = torch.arange(rows, dtype=torch.int32, device=found.device).view(batch, heads, 1) * n
    before[..., :1] = first
    before[..., 1:] = first + counted(found)
    at = torch.where(found, before[..., :-1], rows * n).flatten().long()
    key = torch.arange(n, dtype=torch.int32, device=found.device).expand(found.shape)
    return before, keys.scatter_(0, at, key.flatten())


def numbers_before(found: Tensor) -> Tensor:
    """Of bools ``[…, n]`` how many are true before each, and then all, int32 ``[…, n + 1]``."""
    if found.device.type == "cuda":
        before = torch.empty(*found.shape[:-1], found.shape[-1] + 1, dtype=torch.int32, device=found.device)
        list_by_kernels(found, before, None)
        return before
    return torch.nn.functional.pad(counted(found), (1, 0))


def list_by_kernels(found: Tensor, before: Tensor, keys: Tensor | None) -> None:
    """Fill both in two launches; without ``keys``, each head counts from 0 on."""
    n, rows, device = found.shape[-1], found.shape[:-1].numel(), found.device
    parts = parts_of(n)
    counts = torch.empty(rows, parts, dtype=torch.int32, device=device)
    marks, sizes = found.contiguous().view(torch.uint8), {"PARTS": parts, "WIDTH": WIDTH}
    start_given(count_keys, (rows * parts, 1, 1), (marks, counts, n), sizes, ("counts",), options_of(4), device)
    given, listed = (marks, counts, before, before if keys is None else keys, n), {"LIST": keys is not None}
    start_given(list_keys, (rows * parts, 1, 1), given, sizes | listed, ("before", "keys"), options_of(4), device)


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def count_keys(found, counts, n, PARTS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many keys of a part of a head there are."""
    part, row, begin, end = own_part(n, PARTS)
    met = tl.zeros([WIDTH], tl.int32)
    for first in range(begin, end, WIDTH):
        at = first + tl.arange(0, WIDTH)
        met += (tl.load(found + row * n + at, mask=at < end, other=0) != 0).to(tl.int32)
    leave_count(counts, row, part, met, PARTS)


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def list_keys(  # type: ignore[no-untyped-def]
    found, counts, before, keys, n, PARTS: tl.constexpr, WIDTH: tl.constexpr, LIST: tl.constexpr
):
    """Number the keys of a part of a head, and list them."""
    part, row, begin, end = own_part(n, PARTS)
    earlier = count_before(counts, row, part, PARTS)
    place_of = earlier + (row * n).to(tl.int32) if LIST else earlier
    for first in range(begin, end, WIDTH):
        at = first + tl.arange(0, WIDTH)
        is_one = (tl.load(found + row * n + at, mask=at < end, other=0) != 0).to(tl.int32)
        place = place_of + tl.cumsum(is_one, 0) - is_one
        tl.store(before + row * (n + 1) + at, place, mask=at < end)
        if LIST:
            tl.store(keys + place, at, mask=is_one != 0)
        place_of += tl.sum(is_one, 0)
    # Whoever has the last key, or would have it, says where the list ends.
    tl.store(before + row * (n + 1) + n, place_of, mask=part == PARTS - 1)


def shared_turns(call: Call, kernel: KernelPlan, lists: TileList) -> Tensor:
    """How many tiles of its list each tile of queries meets, ``[batch or 1, heads or 1, tiles of queries]``."""
    assert isinstance(kernel.walk, PickWalk)
    pairs, touched = pairs_of(call), kernel.walk.bounds.touched
    tile = torch.arange(-(-pairs.queries // kernel.queries), device=pairs.device)
    env = pairs.extents() | {"i": tile}
    low, high = (torch.as_tensor(evaluate(end, env), device=tile.device) for end in (touched.lo, touched.hi))
    first, last = (lists.begin[..., end.clamp(0, pairs.keys).expand(tile.shape).long()] for end in (low, high))
    return (last - first).clamp(min=0).add(kernel.block_k - 1).div(kernel.block_k, rounding_mode="floor")
