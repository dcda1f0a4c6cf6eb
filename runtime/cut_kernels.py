"""The cut of very long rows of keys, sought by many programs at once: four bits of a key in each step.

From: rows of keys, int32 in the order in which entries are chosen (`spdsl.codegen.chains.lower`), and how many to
choose, or what share.  To: for each row the last key that is chosen, and how many entries with it are.  Sums have an
order, so that a cut repeats.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.notes import Grid
from spdsl.runtime.plain import Launch, start

STEPS = 8
"""Steps of four bits."""

PARTS, TILE, LEAST = 256, 256, 4
"""Programs of a row, at most, the keys that one looks at together, and how many times it does at least."""


@triton.jit  # type: ignore[untyped-decorator]
def _order(key, BY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The place of a key among numbers from 0 on; of shares, forced ones have none."""
    number = key.to(tl.int64)
    if BY == "count":
        number += 2147483648
    return number


@triton.jit  # type: ignore[untyped-decorator]
def _weight(key, BY: tl.constexpr, SIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """What a key counts for: one, or the number whose bits it is; forced ones are inverted, unless keys are signed."""
    if BY == "count":
        weight = (key != -2147483648).to(tl.float64)
    elif SIGNED:
        weight = tl.where(key < 0, 0, key).to(tl.float32, bitcast=True).to(tl.float64)
    else:
        weight = tl.where(key < 0, ~key, key).to(tl.float32, bitcast=True).to(tl.float64)
    return weight


@triton.jit(do_not_specialize=["total", "shift"])  # type: ignore[untyped-decorator]
def sum_beyond(  # type: ignore[no-untyped-def]
    keys,  # [rows, pitch], int32
    prefixes,  # [rows], int64: the bits of the cut that are known
    sums,  # [rows, parts, 32], fp64: what a part has at or beyond each of 17 numbers; later not what is beyond the last
    pitch,
    total,  # keys of a row
    shift,
    BY: tl.constexpr,
    SIGNED: tl.constexpr,
    FIRST: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
):
    """What the keys of a row weigh at or beyond the prefix, and it with 1 to 15 in its next four bits.

    After the first step few keys begin as the cut does: tiles without any are only read.
    """
    part, row = tl.program_id(0) % PARTS, (tl.program_id(0) // PARTS).to(tl.int64)
    prefix = tl.load(prefixes + row)
    step = tl.arange(0, 32)
    found = tl.zeros([TILE, 32], tl.float64)
    for first in range(part * TILE, total, PARTS * TILE):
        at = first + tl.arange(0, TILE)
        key = tl.load(keys + row * pitch + at, mask=at < total, other=-2147483648 if BY == "count" else 0)
        weight = _weight(key, BY, SIGNED)
        digit = (_order(key, BY) - prefix) >> shift
        digit = tl.minimum(tl.maximum(digit, -1), 16).to(tl.int32)
        if BY == "mass":
            digit = tl.where(key < 0, 16, digit)
        if FIRST:
            found += tl.where(digit[:, None] >= step[None, :], weight[:, None], 0.0)
        else:
            digit = tl.where(digit == 16, -1, digit)
            if tl.max(digit, 0) >= 0:
                found += tl.where(digit[:, None] >= step[None, :], weight[:, None], 0.0)
    tl.store(sums + (row * PARTS + part) * 32 + step, tl.sum(found, 0))


@triton.jit(do_not_specialize=["shift"])  # type: ignore[untyped-decorator]
def next_bits(  # type: ignore[no-untyped-def]
    sums,  # [rows, parts, 32], fp64
    amounts,  # [rows] or one number: how many entries to choose, or the share of the sum
    amount_stride,
    prefixes,  # [rows], int64
    state,  # [rows, 2], fp64: what is wanted, and what there is beyond the cut
    cuts,  # [rows, 2], int32: the last key that is chosen, and how many entries with it
    shift,
    BY: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Four bits more of the cut, the largest beyond and at which there is enough."""
    row = tl.program_id(0).to(tl.int64)
    step = tl.arange(0, 32)
    part = tl.arange(0, PARTS)
    whole = tl.sum(tl.load(sums + (row * PARTS + part[:, None]) * 32 + step[None, :]), 0)
    if FIRST:
        wanted = tl.load(amounts + row * amount_stride).to(tl.float64)
        if BY == "mass":
            all = tl.sum(tl.where(step == 0, whole, 0.0), 0)
            wanted = tl.where(wanted >= 1.0, float("inf"), wanted) * all
            wanted = tl.where(all > 0, wanted, 0.0)
        beyond = tl.sum(tl.where(step == 16, whole, 0.0), 0)
        prefix = tl.zeros([], tl.int64)
    else:
        wanted = tl.load(state + row * 2)
        beyond = tl.load(state + row * 2 + 1)
        whole += beyond
        prefix = tl.load(prefixes + row)
    enough = (whole >= wanted) & (step >= 1) & (step < 16)
    digit = tl.sum(enough.to(tl.int64), 0)
    beyond = tl.where(digit < 15, tl.sum(tl.where(step == digit + 1, whole, 0.0), 0), beyond)
    prefix += digit << shift
    tl.store(prefixes + row, prefix)
    tl.store(state + row * 2, wanted)
    tl.store(state + row * 2 + 1, beyond)
    if LAST:
        if BY == "count":
            cut = (prefix - 2147483648).to(tl.int32)
            # What is absent is not chosen.
            ties = tl.where(cut == -2147483648, 0.0, wanted - beyond)
        else:
            cut = tl.minimum(prefix, 2147483647).to(tl.int32)
            each = cut.to(tl.float32, bitcast=True).to(tl.float64)
            ties = tl.where(cut > 0, tl.ceil((wanted - beyond) / tl.where(cut > 0, each, 1.0)), 0.0)
        ties = tl.minimum(tl.maximum(ties, 0.0), 2147483646.0).to(tl.int32)
        tl.store(cuts + row * 2, cut)
        tl.store(cuts + row * 2 + 1, ties)


@triton.jit(do_not_specialize=["rows", "columns"])  # type: ignore[untyped-decorator]
def count_chosen(  # type: ignore[no-untyped-def]
    keys,  # [owners, rows, pitch], int32
    cuts,  # [owners, 2], int32
    counts,  # [owners, rows, 2], int32: entries beyond the cut, and those at it
    rows,
    pitch,
    columns,
    BY: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """How many entries of a row are chosen for sure, and how many are tied."""
    row = tl.program_id(0).to(tl.int64)
    owner = row // rows
    cut = tl.load(cuts + owner * 2)
    above = tl.zeros([WIDTH], tl.int32)
    equal = tl.zeros([WIDTH], tl.int32)
    for first in range(0, columns, WIDTH):
        at = first + tl.arange(0, WIDTH)
        key = tl.load(keys + row * pitch + at, mask=at < columns, other=-2147483648 if BY == "count" else 0)
        if BY == "count":
            above += (key > cut).to(tl.int32)
            equal += ((key == cut) & (key != -2147483648)).to(tl.int32)
        else:
            above += ((key > cut) | (key < 0)).to(tl.int32)
            equal += ((key == cut) & (key > 0)).to(tl.int32)
    tl.store(counts + row * 2, tl.sum(above, 0))
    tl.store(counts + row * 2 + 1, tl.sum(equal, 0))


def parts_of(count: int, width: int, most: int) -> int:
    """How many programs share ``count`` entries, of which each looks at ``width`` together: a power of two."""
    return min(most, 1 << max(0, -(-count // width) - 1).bit_length())


def cuts_of(keys: Tensor, by: str, amounts: Tensor, *, signed: bool = False) -> Tensor:
    """The cuts of rows of keys ``[rows, total]``: int32 ``[rows, 2]``, the last key and how many entries with it.

    ``amounts`` as in `choose`.  With ``signed`` keys are those of numbers also where shares are asked for: what is
    below 0 has none.
    """
    (rows, total), device = keys.shape, keys.device
    parts = parts_of(total, LEAST * TILE, PARTS)
    prefixes = torch.zeros(rows, dtype=torch.int64, device=device)
    sums = torch.empty(rows, parts, 32, dtype=torch.float64, device=device)
    state = torch.empty(rows, 2, dtype=torch.float64, device=device)
    cuts = torch.empty(rows, 2, dtype=torch.int32, device=device)
    for step in range(STEPS):
        shift = 4 * (STEPS - 1 - step)
        given = {"keys": keys, "prefixes": prefixes, "sums": sums, "pitch": keys.stride(0), "total": total}
        given |= {"shift": shift, "BY": by, "SIGNED": signed, "FIRST": step == 0, "PARTS": parts, "TILE": TILE}
        start_kernel(sum_beyond, (parts * rows, 1, 1), given, ("sums",), device)
        given = {"sums": sums, "amounts": amounts, "amount_stride": int(amounts.numel() > 1), "prefixes": prefixes}
        given |= {"state": state, "cuts": cuts, "shift": shift, "BY": by, "FIRST": step == 0}
        given |= {"LAST": step == STEPS - 1, "PARTS": parts}
        start_kernel(next_bits, (rows, 1, 1), given, ("prefixes", "state", "cuts"), device)
    return cuts


def cuts_by_row(keys: Tensor, cuts: Tensor, by: str, columns: int) -> Tensor:
    """The cuts of the rows of keys ``[owners, rows, pitch]`` that are ranked together: int32 ``[owners * rows, 3]``.

    Each has the last key, how many entries of the row with it are chosen, the first rows first, and how many in all.
    """
    owners, rows, pitch = keys.shape
    counts = torch.empty(owners, rows, 2, dtype=torch.int32, device=keys.device)
    given = {"keys": keys, "cuts": cuts, "counts": counts, "rows": rows, "pitch": pitch}
    given |= {"columns": columns, "BY": by}
    start_kernel(count_chosen, (rows * owners, 1, 1), {**given, "WIDTH": 1024}, ("counts",), keys.device)
    above, equal = counts.long().unbind(-1)
    left = cuts[:, 1:] - (equal.cumsum(-1) - equal)
    ties = torch.minimum(left.clamp(min=0), equal)
    last = cuts[:, :1].expand(owners, rows)
    found: Tensor = torch.stack([last, ties.int(), (above + ties).int()], -1)
    return found.view(-1, 3)


def start_kernel(
    function: object, grid: Grid, values: dict[str, object], writes: tuple[str, ...], device: torch.device
) -> None:
    """Launch on the device of the tensors."""
    start(Launch(function=function, grid=grid, values=values, options=options_of(8), writes=writes, device=device))
