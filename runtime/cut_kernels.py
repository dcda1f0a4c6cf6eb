"""The cut of very long rows of keys, sought by many programs at once, some bits of a key in each step.

From: rows of keys, int32 in the order in which entries are chosen (`spdsl.codegen.chains.lower`), and how many to
choose, or what share.  To: for each row the last key that is chosen, and how many entries with it are.  Sums have an
order, so that a cut repeats.

On a GPU the programs of a row meet after each step, so that one launch finds the cuts of all rows.  They are as many as
run side by side, and start together or not at all.  Elsewhere each step is a launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.notes import Grid
from spdsl.runtime.plain import Launch, start
from spdsl.runtime.split import multiprocessors
from spdsl.runtime.vendor import is_amd

BITS = 3
"""Bits of a key that a step finds."""

TILE, TILES, WARPS = 512, 4, 16
"""Keys that a program looks at together, how many such tiles it asks for at once, and its warps."""

RANKED = 1024
"""Rows of a head that are looked at together where they share a cut."""


@triton.jit  # type: ignore[untyped-decorator]
def _number(key, BY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The place of a key among numbers from 0 on, as bits; of shares, forced ones have none."""
    number = key.to(tl.uint32, bitcast=True)
    if BY == "count":
        number = number ^ 0x80000000
    return number


@triton.jit
def _share(bits):  # type: ignore[no-untyped-def]
    """The number whose bits these are; 0 where they are those of a negative one."""
    return tl.where(bits < 0, 0, bits).to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit  # type: ignore[untyped-decorator]
def _add_step(  # type: ignore[no-untyped-def]
    keys,
    here,  # [2, COUNT], fp64: what the part has
    row,
    part,
    parts,
    pitch,
    total,
    prefix,
    step,
    BY: tl.constexpr,
    SIGNED: tl.constexpr,
    BITS: tl.constexpr,
    STEPS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """What the keys of a part weigh at or beyond the prefix with each number in its next bits, of those that begin as
    it does; and in the first step what comes before all others."""
    COUNT: tl.constexpr = 1 << BITS
    shift = tl.cast(BITS * (STEPS - 1 - step), tl.uint32)
    least = tl.arange(0, COUNT)[:, None]
    found = tl.zeros([COUNT, TILE], tl.int32 if BY == "count" else tl.float64)
    forced = tl.zeros([TILE], tl.float64)
    for first in range(part * TILE * TILES, total, parts * TILE * TILES):
        for each in tl.static_range(TILES):
            at = first + each * TILE + tl.arange(0, TILE)
            key = tl.load(keys + row * pitch + at, mask=at < total, other=-2147483648 if BY == "count" else 0)
            digit = (_number(key, BY) >> shift) - (prefix >> shift)
            digit = tl.where(digit < COUNT, digit.to(tl.int32), -1)
            if BY == "count":
                weight = (key != -2147483648).to(tl.int32)
            else:
                weight = _share(key)
                if not SIGNED:
                    forced += _share(~key)
            found += tl.where(digit[None, :] >= least, weight[None, :], 0)
    tl.store(here + tl.arange(0, COUNT), tl.sum(found, 1).to(tl.float64))
    tl.store(here + COUNT, tl.sum(forced, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _next_bits(  # type: ignore[no-untyped-def]
    sums,  # [parts, 2, COUNT], fp64: of all parts in this step
    parts,
    wanted,
    beyond,  # what there is beyond the prefix
    prefix,
    step,
    BY: tl.constexpr,
    BITS: tl.constexpr,
    STEPS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """More bits of the cut, the largest beyond and at which there is enough: what is wanted, beyond, and the bits.

    In the first step ``wanted`` is how many entries, or what share.
    """
    COUNT: tl.constexpr = 1 << BITS
    least, part = tl.arange(0, COUNT), tl.arange(0, PARTS)
    there = part < parts
    # Others have just written them.
    at = sums + part[:, None] * (2 * COUNT) + least[None, :]
    whole = tl.sum(tl.load(at, mask=there[:, None], other=0.0, cache_modifier=".cg"), 0)
    if step == 0:
        forced = sums + part * (2 * COUNT) + COUNT
        beyond = tl.sum(tl.load(forced, mask=there, other=0.0, cache_modifier=".cg"), 0)
        if BY == "mass":
            all = tl.sum(tl.where(least == 0, whole, 0.0), 0) + beyond
            wanted = tl.where(wanted >= 1.0, float("inf"), wanted) * all
            wanted = tl.where(all > 0, wanted, 0.0)
    whole += beyond
    digit = tl.sum(((whole >= wanted) & (least >= 1)).to(tl.int32), 0)
    beyond = tl.where(digit < COUNT - 1, tl.sum(tl.where(least == digit + 1, whole, 0.0), 0), beyond)
    prefix += digit.to(tl.uint32) << tl.cast(BITS * (STEPS - 1 - step), tl.uint32)
    return wanted, beyond, prefix


@triton.jit
def _meet(counter, awaited):  # type: ignore[no-untyped-def]
    """Wait until so many programs have come here, and see what they have written before."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")
    while tl.atomic_add(counter, 0, sem="acquire") < awaited:
        pass
    tl.debug_barrier()


@triton.jit(do_not_specialize=["total", "parts", "known"])  # type: ignore[untyped-decorator]
def seek_cuts(  # type: ignore[no-untyped-def]
    keys,  # [rows, pitch], int32
    amounts,  # [rows] or one number: how many entries to choose, or the share of the sum
    amount_stride,
    sums,  # [STEPS, rows, parts, 2, COUNT], fp64
    arrived,  # [rows], int32, zeros before: how often a program of the row has come to the end of a step
    cuts,  # [rows, 2], int32: the last key that is chosen, and how many entries with it
    pitch,
    total,  # keys of a row
    parts,  # programs of a row
    known,  # steps whose sums are there already; of one launch, none
    BY: tl.constexpr,
    SIGNED: tl.constexpr,
    TOGETHER: tl.constexpr,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """All steps, or the next one of rows whose programs do not run side by side."""
    STEPS: tl.constexpr = (31 + BITS) // BITS
    part, row = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    rows = tl.num_programs(0) // parts
    each = 2 << BITS
    wanted = tl.load(amounts + row * amount_stride).to(tl.float64)
    beyond, prefix = tl.zeros([], tl.float64), tl.zeros([], tl.uint32)
    last = STEPS if TOGETHER else known
    for step in range(last):
        here = sums + ((step * rows + row) * parts) * each
        if TOGETHER:
            _add_step(
                keys, here + part * each, row, part, parts, pitch, total, prefix, step,
                BY, SIGNED, BITS, STEPS, TILE, TILES,
            )  # fmt: skip
            _meet(arrived + row, (step + 1) * parts)
        wanted, beyond, prefix = _next_bits(here, parts, wanted, beyond, prefix, step, BY, BITS, STEPS, PARTS)
    if last < STEPS:
        here = sums + ((last * rows + row) * parts + part) * each
        _add_step(
            keys, here, row, part, parts, pitch, total, prefix, last,
            BY, SIGNED, BITS, STEPS, TILE, TILES,
        )  # fmt: skip
    elif part == 0:
        if BY == "count":
            cut = (prefix ^ 0x80000000).to(tl.int32, bitcast=True)
            # What is absent is not chosen.
            ties = tl.where(cut == -2147483648, 0.0, wanted - beyond)
        else:
            cut = tl.minimum(prefix, 2147483647).to(tl.int32, bitcast=True)
            share = _share(cut)
            ties = tl.where(cut > 0, tl.ceil((wanted - beyond) / tl.where(cut > 0, share, 1.0)), 0.0)
        tl.store(cuts + row * 2, cut)
        tl.store(cuts + row * 2 + 1, tl.minimum(tl.maximum(ties, 0.0), 2147483646.0).to(tl.int32))


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


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def share_ties(  # type: ignore[no-untyped-def]
    cuts,  # [owners, 2], int32
    counts,  # [owners, rows, 2], int32
    found,  # [owners, rows, 3], int32: the cut, how many entries of the row with it, and how many of the row in all
    rows,
    WIDTH: tl.constexpr,
):
    """Of the entries at a cut, the first rows have the first."""
    owner = tl.program_id(0).to(tl.int64)
    cut, left = tl.load(cuts + owner * 2), tl.load(cuts + owner * 2 + 1).to(tl.int64)
    for first in range(0, rows, WIDTH):
        row = first + tl.arange(0, WIDTH)
        there, at = row < rows, owner * rows + row
        above = tl.load(counts + at * 2, mask=there, other=0)
        equal = tl.load(counts + at * 2 + 1, mask=there, other=0).to(tl.int64)
        ties = tl.minimum(tl.maximum(left - (tl.cumsum(equal, 0) - equal), 0), equal).to(tl.int32)
        tl.store(found + at * 3, cut, mask=there)
        tl.store(found + at * 3 + 1, ties, mask=there)
        tl.store(found + at * 3 + 2, above + ties, mask=there)
        left -= tl.sum(equal, 0)


def cuts_of(keys: Tensor, by: str, amounts: Tensor, *, signed: bool = False) -> Tensor:
    """The cuts of rows of keys ``[rows, total]``: int32 ``[rows, 2]``, the last key and how many entries with it.

    ``amounts`` as in `choose`.  With ``signed`` keys are those of numbers also where shares are asked for: what is
    below 0 has none.
    """
    (rows, total), device, steps = keys.shape, keys.device, (31 + BITS) // BITS
    parts = max(1, min(multiprocessors(device) // rows, -(-total // (TILE * TILES))))
    together = parts == 1 or (device.type == "cuda" and not is_amd())
    sums = torch.empty(steps, rows, parts, 2, 1 << BITS, dtype=torch.float64, device=device)
    arrived = torch.zeros(rows, dtype=torch.int32, device=device)
    cuts = torch.empty(rows, 2, dtype=torch.int32, device=device)
    given = {"keys": keys, "amounts": amounts, "amount_stride": int(amounts.numel() > 1), "sums": sums}
    given |= {"arrived": arrived, "cuts": cuts, "pitch": keys.stride(0), "total": total, "parts": parts}
    given |= {"BY": by, "SIGNED": signed, "TOGETHER": together, "BITS": BITS, "TILE": TILE, "TILES": TILES}
    given |= {"PARTS": 1 << (parts - 1).bit_length()}
    options = options_of(WARPS) | ({"launch_cooperative_grid": True} if together and parts > 1 else {})
    for known in range(1 if together else steps + 1):
        start(
            Launch(
                function=seek_cuts,
                grid=(parts * rows, 1, 1),
                values={**given, "known": known},
                options=options,
                writes=("sums", "arrived", "cuts"),
                device=device,
            )
        )
    return cuts


def cuts_by_row(keys: Tensor, cuts: Tensor, by: str, columns: int) -> Tensor:
    """The cuts of the rows of keys ``[owners, rows, pitch]`` that are ranked together: int32 ``[owners * rows, 3]``.

    Each has the last key, how many entries of the row with it are chosen, the first rows first, and how many in all.
    """
    owners, rows, pitch = keys.shape
    counts = torch.empty(owners, rows, 2, dtype=torch.int32, device=keys.device)
    found = torch.empty(owners * rows, 3, dtype=torch.int32, device=keys.device)
    given = {"keys": keys, "cuts": cuts, "counts": counts, "rows": rows, "pitch": pitch}
    given |= {"columns": columns, "BY": by}
    start_kernel(count_chosen, (rows * owners, 1, 1), {**given, "WIDTH": 1024}, ("counts",), keys.device)
    given = {"cuts": cuts, "counts": counts, "found": found, "rows": rows, "WIDTH": RANKED}
    start_kernel(share_ties, (owners, 1, 1), given, ("found",), keys.device)
    return found


def start_kernel(
    function: object, grid: Grid, values: dict[str, object], writes: tuple[str, ...], device: torch.device
) -> None:
    """Launch on the device of the tensors."""
    start(Launch(function=function, grid=grid, values=values, options=options_of(8), writes=writes, device=device))
