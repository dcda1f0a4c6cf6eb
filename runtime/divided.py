"""Keys that heads have marked, beside blocks that queries pick: which of them are met in tiles, decided from numbers.

From: a call whose plan divides such keys.  To: the call with tables of the keys that are gathered and of those that are
met in the tiles of their blocks, and with lists of the tiles of the latter that nothing has picked.  The host waits for
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.analysis.plans import Divided
from spdsl.codegen.binaries import options_of
from spdsl.runtime.calls import Call
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.noted_runs import WIDTH, noted
from spdsl.runtime.of_tables import made_of_tables
from spdsl.runtime.pairs import Pairs
from spdsl.runtime.plain import start_given
from spdsl.runtime.ranking import FAR, as_lists
from spdsl.runtime.recent import ByContent
from spdsl.semantics.nodes import Load
from spdsl.semantics.rewrite import walk

GATHERED = 2.5
"""How many keys of a tile cost as much as one that is gathered: on an H200 some 2 forward, and 5 backward, where other
heads of the group look at it, too."""

MASKED = 0.3
"""What more a tile costs that has gathered keys to leave out: on an H200 nearly as much again forward, and nothing
backward."""

ROOM = 1 << 23
"""Tiles of all heads up to which there is room for lists of them; or so many that they take no more memory than queries
of 16 bits."""

BLOCKS, ROWS = 16, 64
"""Blocks and runs of queries that a program counts together."""

_recent: ByContent[Shares] = ByContent(size=4)
"""Those of a moment ago, for the backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Which keys are ``gathered`` and which are ``met``, bools ``[batch, heads, n]``; ``more`` are lists of blocks,
    int32 ``[batch, heads, runs of queries, most]``."""

    gathered: Tensor
    met: Tensor
    more: Tensor

    @property
    def nbytes(self) -> int:
        """The size of the tensors."""
        return sum(each.nbytes for each in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.gathered, self.met, self.more


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Of each run of queries the first block that the rest of the set keeps something of, and the first after the last:
    int32 ``[runs]``."""

    low: Tensor
    high: Tensor


def with_divided(call: Call) -> Call:
    """The call with the tables that are made of its marked keys, if its plan has any."""
    divided = call.plan.problem.divided
    if divided is None or divided.tables[0].name in call.tables:
        return call
    divided = _one(divided)
    names = {divided.lists, *(node.table for node in walk(divided.where) if isinstance(node, Load))}
    room = max(ROOM, call.q.numel() // 2)
    found = made_of_tables(call, names, divided, _recent, partial(_shares, divided, room))
    made = {table.name: tensor for table, tensor in zip(divided.tables, found.tensors, strict=True)}
    return replace(call, tables={**call.tables, **made})


@lru_cache(maxsize=256)
def _one(divided: Divided) -> Divided:
    """One object of equal ones: plans of both ways have their own, and what is made is known by it."""
    return divided


def _shares(divided: Divided, room: int, pairs: Pairs, tables: Tables) -> Shares:
    lists = tables.values[divided.lists]
    lists = lists if lists.dim() == 4 else lists.unsqueeze(1)
    env = pairs.extents() | pairs.outer(1) | {"k": torch.arange(pairs.keys, device=pairs.device)}
    marks = evaluate(divided.where, env, tables)
    batch, runs = max(lists.shape[0], marks.shape[0] if marks.dim() == 3 else 1), lists.shape[2]
    marks = marks.expand(batch, pairs.heads, pairs.keys).contiguous()
    blocks = -(-pairs.keys // divided.block)
    if not 0 < batch * pairs.heads * runs * blocks <= room:
        more = torch.full((batch, pairs.heads, runs, 1), FAR, dtype=torch.int32, device=pairs.device)
        return Shares(gathered=marks, met=torch.zeros_like(marks), more=more)
    ends = _ends(divided, runs, pairs)
    return (by_kernels if pairs.device.type == "cuda" else by_torch)(lists, marks, ends, divided.block)


def _ends(divided: Divided, runs: int, pairs: Pairs) -> Ends:
    run = torch.arange(runs, device=pairs.device)
    env = pairs.extents() | {"i": run}
    touched = divided.touched
    low, high = (evaluate(end, env).to(run.device).expand(runs).int().contiguous() for end in (touched.lo, touched.hi))
    return Ends(low=low, high=high)


def by_torch(lists: Tensor, marks: Tensor, ends: Ends, block: int) -> Shares:
    """The shares of ``marks``, bools ``[batch, heads, n]``, beside ``lists``, int32 ``[batch or 1, heads or 1, runs,
    most]``."""
    batch, heads, n = marks.shape
    blocks, runs = -(-n // block), lists.shape[2]
    at = lists.expand(batch, heads, -1, -1).clamp(max=blocks).long()
    picked = torch.zeros(batch, heads, runs, blocks + 1, dtype=torch.bool, device=marks.device)
    picked = picked.scatter_(-1, at, value=True)[..., :blocks]
    column = torch.arange(blocks, device=marks.device)
    touched = (column >= ends.low[:, None]) & (column < ends.high[:, None])
    count = torch.nn.functional.pad(marks, (0, -n % block)).unflatten(-1, (blocks, block)).sum(-1)
    missing = touched & ~picked
    walked, met = (each.sum(-2).float() * block for each in (missing, touched & picked))
    pays = (count > 0) & (walked <= count.float() * touched.sum(-2).float() * GATHERED + met * MASKED)
    met = marks & pays.repeat_interleave(block, -1)[..., :n]
    return Shares(gathered=marks & ~met, met=met, more=as_lists(missing & pays[..., None, :], blocks))


def by_kernels(lists: Tensor, marks: Tensor, ends: Ends, block: int) -> Shares:
    """As `by_torch`, in three launches."""
    batch, heads, n = marks.shape
    blocks, runs, owners, device = -(-n // block), lists.shape[2], batch * heads, marks.device
    picked = noted(lists, batch, heads, blocks)
    pitch = picked.shape[2]
    gathered, met = (torch.empty_like(marks) for _ in range(2))
    pays = torch.empty(owners, pitch, dtype=torch.uint8, device=device)
    bytes_of = (each.view(torch.uint8) for each in (marks, gathered, met))
    sizes = {"BLOCK": block, "POWER": 1 << (block - 1).bit_length(), "BLOCKS": BLOCKS, "ROWS": ROWS}
    start_given(
        divide_keys,
        (owners * -(-blocks // BLOCKS), 1, 1),
        (picked, ends.low, ends.high, *bytes_of, pays, runs, blocks, pitch, n),
        {**sizes, "GATHERED": GATHERED, "MASKED": MASKED},
        ("gathered", "met", "pays"),
        options_of(4),
        device,
    )
    more = torch.empty(batch, heads, runs, blocks, dtype=torch.int32, device=device)
    listed = (picked, ends.low, ends.high, pays, more, runs, blocks, pitch)
    start_given(list_more, (owners * runs, 1, 1), listed, {"WIDTH": WIDTH}, ("more",), options_of(4), device)
    return Shares(gathered=gathered, met=met, more=more)


@triton.jit(do_not_specialize=["runs", "blocks", "pitch", "n"])  # type: ignore[untyped-decorator]
def divide_keys(  # type: ignore[no-untyped-def]
    noted,  # [batch * heads, runs, pitch], bytes
    low,  # [runs]
    high,
    marks,  # [batch * heads, n], bytes
    gathered,
    met,
    pays,  # [batch * heads, pitch], bytes: whether the marked keys of a block are met in its tiles
    runs,
    blocks,
    pitch,
    n,
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    GATHERED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Divide the keys of some blocks of a head by what walking the tiles that are not picked would cost."""
    groups = tl.cdiv(blocks, BLOCKS)
    owner = (tl.program_id(0) // groups).to(tl.int64)
    block = tl.program_id(0) % groups * BLOCKS + tl.arange(0, BLOCKS)
    touched = tl.zeros([BLOCKS], tl.int32)
    missing = tl.zeros([BLOCKS], tl.int32)
    for first in range(0, runs, ROWS):
        run = first + tl.arange(0, ROWS)
        begin = tl.load(low + run, mask=run < runs, other=0)
        end = tl.load(high + run, mask=run < runs, other=0)
        meets = (block[None, :] >= begin[:, None]) & (block[None, :] < end[:, None]) & (block < blocks)[None, :]
        at = noted + (owner * runs + run)[:, None] * pitch + block[None, :]
        picked = tl.load(at, mask=meets, other=0) != 0
        touched += tl.sum(meets.to(tl.int32), 0)
        missing += tl.sum((meets & ~picked).to(tl.int32), 0)
    inner = tl.arange(0, POWER)[None, :]
    key = block[:, None] * BLOCK + inner
    exists = (inner < BLOCK) & (key < n)
    mark = tl.load(marks + owner * n + key, mask=exists, other=0) != 0
    count = tl.sum(mark.to(tl.int32), 1)
    cost = count.to(tl.float32) * touched.to(tl.float32) * GATHERED
    cost += (touched - missing).to(tl.float32) * BLOCK * MASKED
    worth = (count > 0) & (missing.to(tl.float32) * BLOCK <= cost)
    tl.store(pays + owner * pitch + block, worth.to(tl.uint8), mask=block < pitch)
    tl.store(met + owner * n + key, (mark & worth[:, None]).to(tl.uint8), mask=exists)
    tl.store(gathered + owner * n + key, (mark & ~worth[:, None]).to(tl.uint8), mask=exists)


@triton.jit(do_not_specialize=["runs", "blocks", "pitch"])  # type: ignore[untyped-decorator]
def list_more(  # type: ignore[no-untyped-def]
    noted,  # [batch * heads, runs, pitch], bytes
    low,  # [runs]
    high,
    pays,  # [batch * heads, pitch], bytes
    more,  # [batch * heads, runs, blocks], int32
    runs,
    blocks,
    pitch,
    WIDTH: tl.constexpr,
):
    """List the blocks of a run of queries that are walked for their marked keys alone."""
    row = tl.program_id(0).to(tl.int64)
    owner, run = row // runs, row % runs
    begin = tl.load(low + run)
    end = tl.minimum(tl.load(high + run), blocks)
    done = 0
    for first in range(0, blocks, WIDTH):
        block = first + tl.arange(0, WIDTH)
        meets = (block >= begin) & (block < end)
        worth = tl.load(pays + owner * pitch + block, mask=meets, other=0) != 0
        picked = tl.load(noted + row * pitch + block, mask=meets, other=0) != 0
        wanted = meets & worth & ~picked
        place = done + tl.cumsum(wanted.to(tl.int32), 0) - 1
        tl.store(more + row * blocks + place, block, mask=wanted)
        done += tl.sum(wanted.to(tl.int32), 0)
    for first in range(0, blocks, WIDTH):
        at = first + tl.arange(0, WIDTH)
        tl.store(more + row * blocks + at, tl.full([WIDTH], 2147483647, tl.int32), mask=(at >= done) & (at < blocks))
