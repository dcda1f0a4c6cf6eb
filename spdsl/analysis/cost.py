"""How long a kernel takes: a sum of its work over the multiprocessors, its start, and its end.

    time = start + (program·P + full·F + masked·M + …) / multiprocessors + end

P, F and M are exact counts (`Work`), the costs are those of a `DeviceProfile`.  The end is the time in which not all
multiprocessors have work: part of the longest program, or of the last turn of programs that are alike.  There is one
list of terms; times are its sum, and formulas its sympy expression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from spdsl.analysis.device import DensePass, DeviceProfile, Rate
from spdsl.analysis.sharing import as_cut, busiest, cut_parts, from_a_queue, held, program_share
from spdsl.analysis.work import Work

if TYPE_CHECKING:
    import sympy

Bound: TypeAlias = Literal["start of a kernel", "longest row", "matrix products", "masking", "memory", "programs"]

PROBE = 4e-7
"""Seconds of one step of a search in a sorted table: two reads that wait for each other."""


COPY, FILL, SUMS = 4, 2, 2
"""Starts that a copy of rows takes, filling up a list of numbers, and scaling the sums of dQ, which are cleared by the
kernel before: small kernels that wait for each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One kind of work: how much there is of it (``count``), its ``cost`` in seconds of a multiprocessor, and how much
    of it the longest program does."""

    symbol: str
    words: str
    count: float
    cost: float
    longest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The time of a kernel in seconds, its parts, and what bounds it.

    ``floor`` is the least time: useful products at the measured matrix rate, or results and operands at the copy rate.
    """

    seconds: float
    start: float
    spread: float
    end: float
    floor: float
    bound: Bound
    terms: tuple[Term, ...]
    near: bool

    @property
    def formula(self) -> sympy.Expr:
        """The time in terms of the counts P, F, M, …; numbers are seconds."""
        return formula(self)


def estimate(work: Work, device: DeviceProfile, *, pairs: int | None = None, size: int = 0) -> Estimate:
    """The time of a kernel's ``work`` on ``device``.

    ``pairs`` are those that the pattern keeps, ``size`` the bytes that the kernel reads and writes at least; both only
    for the floor.
    """
    if work.reads:
        return _of_reading(work, device)
    rate, near = rate_for(work, device)
    together = _together(work, device)
    work = as_cut(work, device.multiprocessors)
    terms = terms_of(work, rate, device.multiprocessors)
    spread = sum(each.count * each.cost for each in terms) / device.multiprocessors
    busiest = sum(held(work, each.count, each.longest, device.multiprocessors, rate) * each.cost for each in terms)
    end = busiest - spread
    start = device.launch + _before(work, device) + together
    useful = work.flops if pairs is None else work.flops * pairs / max(1, _area(work) * work.touched)
    floor = max(useful / device.matrix_rate, size / device.copy_rate)
    return Estimate(
        seconds=start + spread + end,
        start=start,
        spread=spread,
        end=end,
        floor=floor,
        bound=_bound(work, terms, start, spread, end, device),
        terms=terms,
        near=near,
    )


def _of_reading(work: Work, device: DeviceProfile) -> Estimate:
    """The time of a kernel for few queries, and of the one that adds up its parts: that of reading keys and values."""
    spread = work.reads / device.copy_rate
    start = 2 * device.launch + _before(work, device)
    cost = device.multiprocessors / device.copy_rate
    return Estimate(
        seconds=start + spread,
        start=start,
        spread=spread,
        end=0.0,
        floor=spread,
        bound="memory" if spread > start else "start of a kernel",
        terms=(Term(symbol="B", words="bytes of keys and values", count=work.reads, cost=cost, longest=0.0),),
        near=False,
    )


def formula(found: Estimate) -> sympy.Expr:
    """The expression whose value is ``found.seconds``, the counts of its terms left open as symbols."""
    import sympy  # half a second, which calls that only take a choice should not wait for

    total = sympy.Float(found.start + found.end)
    work = sum(each.count * each.cost for each in found.terms)
    for each in found.terms:
        if each.count:
            total += sympy.Float(each.cost * (found.spread / work if work else 0.0)) * sympy.Symbol(each.symbol)
    return total


def terms_of(work: Work, rate: Rate, multiprocessors: int) -> tuple[Term, ...]:
    """The kinds of work of a kernel with their costs."""
    own = rate.program * program_share(work, multiprocessors) + (rate.cut if work.before.searched else 0.0)
    share = work.masked / work.touched if work.touched else 0.0
    longest = work.longest or (work.touched / work.programs if work.programs else 0.0)
    masking = rate.operation * work.operations + rate.load * work.loads
    every = rate.extra * work.extra + (rate.listed if work.listed else 0.0)
    return (
        Term(symbol="P", words="programs", count=work.programs, cost=own, longest=1),
        Term(symbol="F", words="full tiles", count=work.full, cost=rate.full + every, longest=longest * (1 - share)),
        Term(
            symbol="M",
            words="masked tiles",
            count=work.masked,
            cost=rate.masked + masking + every,
            longest=longest * share,
        ),
    )


def rate_for(work: Work, device: DeviceProfile) -> tuple[Rate, bool]:
    """The costs for a kernel, and whether they are those of a neighbour, scaled by the work of a tile."""
    same = [each for each in device.rates if each.kind == work.kind]
    exact = [each for each in same if _matches(each, work)]
    if exact:
        return exact[0], False
    nearest = min(same, key=lambda each: _distance(each, work))
    return _scaled(nearest, work), True


def _matches(rate: Rate, work: Work) -> bool:
    width = max(work.head_dim, work.value_dim)
    return (rate.tiles, rate.head_dim, rate.descriptors) == (work.tiles, width, work.descriptors)


def _distance(rate: Rate, work: Work) -> tuple[float, ...]:
    def apart(a: float, b: float) -> float:
        return abs(a - b) / min(a, b)

    width = max(work.head_dim, work.value_dim)
    return (
        2.0 * (rate.descriptors != work.descriptors)
        + 4.0 * (rate.tiles.specialised != work.tiles.specialised)
        + apart(rate.tiles.block_q, work.tiles.block_q)
        + apart(rate.tiles.block_k, work.tiles.block_k)
        + apart(rate.tiles.warps, work.tiles.warps)
        + apart(rate.head_dim, width)
        + 0.1 * apart(rate.tiles.stages, work.tiles.stages),
    )


_FP32 = 12.0
"""How many times longer products of fp32 take than those of 16-bit types, without tensor cores."""


def _scaled(rate: Rate, work: Work) -> Rate:
    """The costs of a neighbour, by the sizes of the tile."""
    area = work.tiles.block_q * work.tiles.block_k / (rate.tiles.block_q * rate.tiles.block_k)
    width = max(work.head_dim, work.value_dim)
    products = area * width / rate.head_dim * (_FP32 if work.dtype == "fp32" else 1.0)
    own = work.tiles.block_k if work.kind in ("dkdv", "fused") else work.tiles.block_q
    before = rate.tiles.block_k if work.kind in ("dkdv", "fused") else rate.tiles.block_q
    return replace(
        rate,
        tiles=work.tiles,
        head_dim=width,
        program=rate.program * own / before,
        cut=rate.cut * own / before,
        full=rate.full * products,
        masked=rate.masked * products,
        operation=rate.operation * area,
        load=rate.load * area,
        extra=rate.extra * area,
    )


def _together(work: Work, device: DeviceProfile) -> float:
    """What puts the parts of long rows together: a kernel that reads what each of them has written, in fp32."""
    parts = cut_parts(work, device.multiprocessors)
    own = work.tiles.block_k if work.kind in ("dkdv", "fused") else work.tiles.block_q
    width = {"forward": work.value_dim, "dq": work.head_dim}.get(work.kind, work.head_dim + work.value_dim)
    return device.launch + parts * own * width * 4 * 2 / device.copy_rate if parts else 0.0


def _before(work: Work, device: DeviceProfile) -> float:
    """What runs ahead of the kernel itself, and beside it: the fused backward clears its sums of dQ and scales them in
    the end."""
    before = work.before
    starts = COPY * before.copies + FILL * before.filled + from_a_queue(work, device.multiprocessors)  # it is cleared
    found = starts * device.launch + before.bytes / device.copy_rate
    if before.searched:
        found += device.launch + PROBE * math.log2(before.searched + 1)
    if work.kind == "fused":
        found += SUMS * device.launch + work.rows * work.head_dim * (4 + 4 + 2) / device.copy_rate
    return found


DENSE_ROWS = 128
"""Rows of a tile of dense attention."""


DENSE_PRODUCTS = {"forward": 1.0, "backward": 2.5}
"""Products of dense attention in forward passes: two of a forward one, five of a backward one."""


def dense_seconds(
    heads: int, nq: int, n: int, head_dim: int, value_dim: int, device: DeviceProfile, *, causal: bool
) -> tuple[float, float]:
    """Forward and backward of dense attention over ``heads`` (of the whole batch).

    With ``causal`` the queries are the last positions.
    """
    width = max(head_dim, value_dim)
    nearest = min(device.dense, key=lambda each: abs(each.head_dim - width))
    one = 2 * (head_dim + value_dim) * DENSE_ROWS**2 * device.multiprocessors

    def seconds(own: int, other: int, name: str, found: DensePass) -> float:
        held = dense_held(heads, own, other, found.tail, found.ragged, device.multiprocessors, causal=causal)
        return found.start + (held[0] + found.program * held[1]) * DENSE_PRODUCTS[name] * one / found.rate

    return seconds(nq, n, "forward", nearest.forward), seconds(n, nq, "backward", nearest.backward)


def dense_held(
    heads: int, own: int, other: int, tail: float, ragged: float, multiprocessors: int, *, causal: bool
) -> tuple[float, float]:
    """Tiles and programs that the busiest multiprocessor does in a pass of dense attention, whose programs own tiles of
    ``own`` rows and walk those of ``other``; shared among multiprocessors as those of `held`."""
    mine, walked = math.ceil(own / DENSE_ROWS), math.ceil(other / DENSE_ROWS)
    short, long = sorted((mine, walked))
    # Each of the last positions keeps those before it, whichever side programs own.
    touched = short * (long - short) + short * (short + 1) / 2 if causal else mine * walked
    programs = heads * mine
    beyond = ragged if not causal and (own % DENSE_ROWS or other % DENSE_ROWS) else 1.0
    tiles, whole = (
        busiest(programs, count, longest, multiprocessors, alike=not causal, tail=tail)
        for count, longest in ((heads * touched, walked), (programs, 1))
    )
    return tiles * beyond, whole


def delta_seconds(work: Work, device: DeviceProfile) -> float:
    """The kernel before a backward pass, which multiplies output and its gradient row by row."""
    return device.launch + work.rows * (2 * 2 * work.value_dim + 16) / device.copy_rate


def _area(work: Work) -> int:
    return work.tiles.block_q * work.tiles.block_k


def _bound(work: Work, terms: Sequence[Term], start: float, spread: float, end: float, device: DeviceProfile) -> Bound:
    if start > spread + end:
        return "start of a kernel"
    if end > spread:
        return "longest row"
    shares = {each.symbol: each.count * each.cost for each in terms}
    products = work.flops / device.matrix_rate
    if products > 0.5 * spread:
        return "matrix products"
    return "programs" if shares["P"] > max(shares["F"], shares["M"]) else "masking"
