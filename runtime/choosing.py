"""Which entries of rows of keys are chosen, as lists: one kernel for all selections.

From: keys, int32 in the order in which entries are chosen (`spdsl.codegen.chains.lower`), and how many to choose, or
what share.  To: the numbers of the chosen entries, ascending.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.codegen.chains.emit import emit_choose
from spdsl.codegen.chains.parts import ABSENT
from spdsl.codegen.load import load
from spdsl.runtime.plain import PROGRAMS, Launch, start, start_given
from spdsl.runtime.vendor import is_amd

KEYS = 1 << 25
"""Keys that are held at once, of four bytes each."""

WIDEST = 1 << 15
"""Keys of a row that are looked at in one step while entries are chosen; longer rows are gone through in such steps."""

OF_WARP = 512
"""Keys that a warp holds, where there are enough warps; of long rows twice as many, as each lane computes where to look
next."""

LONG = 2048
"""Keys of a long row, at least."""

REGISTERS = 64
"""The most registers of a thread where rows are neither short nor so long that it holds more keys than these, so that
twice as many programs share a multiprocessor."""

_COLUMNS = 1024
"""Numbers of which a program makes keys."""

AT_ONCE = 256
"""Keys of short rows that one program looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Entries are members of blocks, ``each`` of one: of ``blocks``, int32 ``[chunks, rows, width]``, ascending, whose
    rows are those of the lists that are written.  There are ``count`` members in all."""

    blocks: Tensor
    each: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Rows of keys, int32 ``[chunks, rows, pitch]`` at the start of ``keys``, of which so many columns exist.

    How many there are in each row says ``ends``, int32 ``[chunks, tiles]`` from its element ``ends_first`` on, for
    tiles of ``block`` rows.  With ``among`` rows have the keys of all members, and only those of blocks are entries.
    """

    keys: Tensor
    chunks: int
    rows: int
    pitch: int
    columns: int
    ends: Tensor
    block: int
    ends_first: int = 0
    among: Members | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where lists are written: those of the rows from ``first`` on, int32 ``[chunks, rows, width]``."""

    lists: Tensor
    first: int = 0


def choose(given: Keys, by: str, amounts: Tensor, room: Room | None, *, cut: bool = False) -> Tensor:
    """The lists of rows of keys, int32 ``[chunks, rows, width]``, in ``room``, or as wide as need be.

    ``amounts`` is one number, or one for each row: int32 where they are counts, float64 where they are shares.  With
    ``cut`` they are the cuts themselves, int32 ``[rows, 3]``: the last key that is chosen, how many entries with it,
    and how many in all.  Without room the host waits for the most that are chosen in a row.
    """
    rows, device = given.chunks * given.rows, given.keys.device
    wide = min(WIDEST, max(64, 1 << (given.columns - 1).bit_length()))
    # A row is held by as few warps as have room for it: within a warp, sums take no shared memory.
    each, held = max(1, AT_ONCE // wide), OF_WARP * (2 if wide >= LONG else 1)
    warps = max(1, min(16, wide // held))
    few = not is_amd() and OF_WARP < wide <= 16 * OF_WARP
    shape = {"ROWS": each, "WIDTH": wide, "ONE": given.columns <= wide, "BY": by, "BLOCK_R": given.block}
    fixed = {"keys": given.keys, "row_ends": given.ends, "ends_first": given.ends_first, "rows": rows}
    fixed |= {"amounts": amounts, "amount_stride": int(amounts.numel() > 1)}
    fixed |= {"pitch": given.pitch, "chunk_rows": given.rows}
    among = given.among
    if among is not None:
        fixed |= {"outer": among.blocks, "outer_width": among.blocks.shape[-1], "block_count": among.count}

    def run(room: Room, cuts: Tensor, *, find: bool, write: bool) -> None:
        values = {**fixed, **shape, "lists": room.lists, "width": room.lists.shape[-1], "FIND": find, "WRITE": write}
        values |= {"list_rows": room.lists.shape[1], "list_first": room.first}
        start(
            Launch(
                function=load(emit_choose(among.each if among else 0)).choose,
                grid=(-(-rows // each), 1, 1),
                values={**values, "cuts": cuts},
                options=options_of(warps, registers=REGISTERS if few else None),
                writes=("cuts", "lists"),
                device=device,
            )
        )

    if room is not None:
        run(room, amounts if cut else room.lists, find=not cut, write=True)  # what is found is not kept
        return room.lists
    cuts = amounts
    if not cut:
        cuts = torch.empty(rows, 3, dtype=torch.int32, device=device)
        run(Room(lists=torch.empty(1, 1, 1, dtype=torch.int32, device=device)), cuts, find=True, write=False)
    most = max(1, int(cuts[:, 2].max()))
    room = Room(lists=torch.empty(given.chunks, given.rows, most, dtype=torch.int32, device=device))
    run(room, cuts, find=False, write=True)
    return room.lists


@triton.jit(do_not_specialize=["columns", "pitch", "stride"])  # type: ignore[untyped-decorator]
def in_order(  # type: ignore[no-untyped-def]
    value, only, keys, columns, pitch, stride, LONG: tl.constexpr, ABSENT: tl.constexpr, COLUMNS: tl.constexpr
):
    """Keys of numbers: ints in their order, zeros of both signs one number."""
    row = tl.program_id(0 if LONG else 1).to(tl.int64)
    column = tl.program_id(1 if LONG else 0) * COLUMNS + tl.arange(0, COLUMNS)
    number = tl.load(value + row * columns + column, mask=column < columns, other=0.0) + 0.0
    there = tl.load(only + row * stride + column, mask=column < columns, other=0) != 0
    bits = number.to(tl.int32, bitcast=True)
    key = tl.where(there & (number == number), bits ^ ((bits >> 31) & 0x7FFFFFFF), ABSENT)
    tl.store(keys + row * pitch + column, key, mask=column < pitch)


def largest(value: Tensor, only: Tensor, count: int) -> Tensor:
    """The lists of the ``count`` largest of rows ``[…, columns]``, fp32, where ``only`` holds, int32 ``[…, count]``; a
    NaN is absent, and of equal ones the first are taken."""
    shape, columns, device = value.shape[:-1], value.shape[-1], value.device
    rows, pitch = math.prod(shape), columns + -columns % 16
    alike = only.numel() == only.shape[-1]  # for all rows
    there = only.reshape(-1).expand(columns) if alike else only.expand(value.shape)
    keys = torch.empty(1, rows, pitch, dtype=torch.int32, device=device)
    start_given(
        in_order,
        (-(-pitch // _COLUMNS), rows, 1) if rows <= PROGRAMS else (rows, -(-pitch // _COLUMNS), 1),
        (value.contiguous(), there.contiguous(), keys, columns, pitch, 0 if alike else columns),
        {"LONG": rows > PROGRAMS, "ABSENT": ABSENT, "COLUMNS": _COLUMNS},
        ("keys",),
        options_of(4),
        device,
    )
    ends = torch.full((1, 1), columns, dtype=torch.int32, device=device)
    held = Keys(keys=keys, chunks=1, rows=rows, pitch=pitch, columns=columns, ends=ends, block=rows)
    room = Room(lists=torch.empty(1, rows, count, dtype=torch.int32, device=device))
    amount = torch.full((1,), count, dtype=torch.int32, device=device)
    return choose(held, "count", amount, room).view(*shape, count)


def marked(keys: Tensor, columns: int, width: int | None) -> Tensor:
    """The lists of what is marked in keys ``[chunks, rows, pitch]``, int32 ``[chunks, rows, most]``.

    Entries that are not are `ABSENT`; ``width`` is the most of a row, where it is known.
    """
    chunks, rows, pitch = keys.shape
    ends = torch.full((chunks, 1), columns, dtype=torch.int32, device=keys.device)
    held = Keys(keys=keys, chunks=chunks, rows=rows, pitch=pitch, columns=columns, ends=ends, block=rows)
    room = None
    if width is not None:
        room = Room(lists=torch.empty(chunks, rows, max(1, width), dtype=torch.int32, device=keys.device))
    return choose(held, "mark", torch.zeros(1, dtype=torch.int32, device=keys.device), room)
