"""The launches of softmaxes of items, and of their gradients: see `spdsl.runtime.item_kernels`.

From: tensors of a call, and items, which are lists of members or intervals of positions.  To: output and LSE of every
item, and gradients.  Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime import item_kernels as kernels
from spdsl.runtime import member_kernels as of_members
from spdsl.runtime.plain import start_given

LARGEST = 256
"""Features up to which a row of queries, keys or values is held by one program."""

_WIDE = 128
"""Features up to which tiles have 64 rows of 16 bits, so that two fit a multiprocessor; else half of them."""

_TILES, _ROWS, _NUMBERS = 64, 64, 1024
"""Tiles of keys, rows, and numbers of a program beside those that attend."""

_NARROW = 64
"""Features up to which four warps have the registers for a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Members that list queries and keys, int32 ``[batch, heads, members, most]``, what is past the last for none;
    ``causal``: keys up to each query."""

    queries: Tensor
    keys: Tensor
    causal: bool


@dataclass(frozen=True, slots=True)
class Stretches:
    """The first and the last key of each query of each member, int32 ``[batch, heads, members, nq]``.

    They are empty where the last comes before the first.  ``order``, int32 ``[batch, heads, items]``, is that of their
    first keys, which ``begins`` are, ascending.
    """

    low: Tensor
    high: Tensor
    order: Tensor
    begins: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """The launches of a call."""

    q: Tensor
    k: Tensor
    v: Tensor
    given: Lists | Stretches
    scale: float
    q_start: int

    @property
    def owners(self) -> int:
        """Heads of all sequences."""
        return self.q.shape[0] * self.q.shape[1]

    @property
    def items(self) -> int:
        """Items of a head."""
        match self.given:
            case Lists(queries=queries):
                return queries.shape[2] * queries.shape[3]
            case Stretches(order=order):
                return order.shape[2]

    @property
    def block(self) -> int:
        """Rows of a tile."""
        return 64 if self.q.element_size() == 2 and self.features <= _WIDE else 32

    @property
    def features(self) -> int:
        """Features of queries or of values, of whichever there are more."""
        return max(self.q.shape[-1], self.v.shape[-1])

    @property
    def tiles(self) -> int:
        """Tiles of items."""
        match self.given:
            case Lists(queries=queries):
                return int(queries.shape[2]) * -(-queries.shape[3] // self.block)
            case Stretches():
                return -(-self.items // self.block)

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows of items, their first and last keys, and lists of keys, as far as there are any."""
        match self.given:
            case Lists(queries=queries, keys=keys):
                return queries, queries, queries, keys
            case Stretches(order=order, low=low, high=high):
                return order, low, high, order

    @property
    def numbers(self) -> tuple[int, ...]:
        """Sizes, and where the first query stands."""
        width, keys, key_width = 0, 0, 0
        if isinstance(self.given, Lists):
            width, key_width = self.given.queries.shape[3], self.given.keys.shape[3]
            keys = self.given.keys.shape[2] * key_width
        return self.items, width, keys, key_width, self.q.shape[2], self.k.shape[2], self.q_start

    @property
    def strides(self) -> tuple[int, ...]:
        """Of batch, heads and rows."""
        return tuple(size for each in (self.q, self.k, self.v) for size in each.stride()[:3])

    @property
    def heads(self) -> tuple[int, int]:
        """Heads, and how many share keys."""
        return self.q.shape[1], self.q.shape[1] // self.k.shape[1]

    def start(
        self, kernel: Any, grid: tuple[int, int, int], arguments: tuple[object, ...], *writes: str, **others: bool
    ) -> None:
        """Launch one of the kernels that attend, or those of their gradients."""
        constants = {
            "LISTED": isinstance(self.given, Lists),
            "CAUSAL": isinstance(self.given, Lists) and self.given.causal,
            "EXACT": self.q.dtype == torch.float32,
            "D": self.q.shape[-1],
            "DV": self.v.shape[-1],
            "BLOCK_D": power(self.q.shape[-1]),
            "BLOCK_DV": power(self.v.shape[-1]),
            "BLOCK_M": self.block,
            "BLOCK_N": self.block,
            **others,
        }
        options = options_of(4 if self.features <= _NARROW else 8, 2)
        start_given(kernel, grid, arguments, constants, writes, options, self.q.device)

    def forward(
        self, dtype: torch.dtype = torch.float32, earlier: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Output ``[batch, heads, items, dv]`` and LSE.

        Where there is an ``earlier`` softmax of all members, ``[batch, heads, nq, …]``, it goes on from that.
        """
        shape = (*self.q.shape[:2], self.items)
        out = self.q.new_empty((*shape, self.v.shape[-1]), dtype=dtype)
        lse = self.q.new_empty(shape, dtype=torch.float32)
        before = (out, lse) if earlier is None else earlier
        tensors = (self.q, self.k, self.v, out, lse, *before, *self.rows)
        arguments = (*tensors, self.scale, *self.numbers, *self.heads, *self.strides)
        grid = (self.tiles, self.owners, 1)
        self.start(kernels.attend, grid, arguments, "out", "lse", LATER=earlier is not None)
        return out, lse

    def of_queries(self, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor, shares: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the query of each item, fp32 ``[batch, heads, items, d]``, and what `of_keys` needs of it."""
        d_q = self.q.new_empty((*lse.shape, self.q.shape[-1]), dtype=torch.float32)
        delta = torch.empty_like(lse)
        tensors = (self.q, self.k, self.v, out, lse, d_out, d_lse, shares, delta, d_q, *self.rows)
        arguments = (*tensors, self.scale, *self.numbers, *self.heads, *self.strides)
        self.start(kernels.of_queries, (self.tiles, self.owners, 1), arguments, "delta", "d_q", KNOWN=False)
        return d_q, delta

    def of_known(self, lse: Tensor, d_out: Tensor, delta: Tensor) -> Tensor:
        """As `of_queries`, where what `of_keys` needs is known."""
        d_q = self.q.new_empty((*lse.shape, self.q.shape[-1]), dtype=torch.float32)
        tensors = (self.q, self.k, self.v, d_out, lse, d_out, lse, lse, delta, d_q, *self.rows)
        arguments = (*tensors, self.scale, *self.numbers, *self.heads, *self.strides)
        self.start(kernels.of_queries, (self.tiles, self.owners, 1), arguments, "d_q", KNOWN=True)
        return d_q

    def of_keys(
        self,
        lse: Tensor,
        d_out: Tensor,
        shares: Tensor,
        delta: Tensor,
        earlier: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The gradients of keys and values: fp32 ``[batch, heads, listed, …]``, or as they are, added to those that
        there are from ``earlier`` on."""
        match self.given:
            case Lists(keys=keys):
                shape: tuple[int, ...] = (*keys.shape[:2], keys.shape[2] * keys.shape[3])
                dtype, tiles, starts = torch.float32, keys.shape[2] * -(-keys.shape[3] // self.block), keys
            case Stretches() as stretches:
                shape, dtype, tiles = self.k.shape[:3], self.k.dtype, -(-self.k.shape[2] // self.block)
                starts = met(stretches, tiles, self.block)
        if earlier is None:
            d_k, d_v = (self.q.new_empty((*shape, each.shape[-1]), dtype=dtype) for each in (self.k, self.v))
        else:
            d_k, d_v = earlier
        tensors = (self.q, self.k, self.v, lse, d_out, shares, delta, d_k, d_v, *self.rows, starts)
        arguments = (*tensors, self.scale, *self.numbers, tiles, *self.heads, *self.strides)
        grid = (tiles, shape[0] * shape[1], 1)
        self.start(kernels.of_keys, grid, arguments, "d_k", "d_v", ADDED=earlier is not None)
        return d_k, d_v


def power(number: int) -> int:
    """A size of tiles that holds so many."""
    return 1 << max(4, (number - 1).bit_length())


def met(stretches: Stretches, tiles: int, block: int) -> Tensor:
    """From which item on, and up to which, some may meet each tile of keys: int32 ``[batch, heads, tiles, 2]``."""
    longest = (stretches.high - stretches.low).amax((2, 3))
    found = torch.empty(*longest.shape, tiles, 2, dtype=torch.int32, device=longest.device)
    given = (stretches.begins, longest, found, stretches.order.shape[2], tiles, block)
    grid = (-(-tiles // _TILES), longest.numel(), 1)
    start_given(of_members.meet, grid, given, {"BLOCK": _TILES}, ("found",), options_of(4), found.device)
    return found


def from_members(d_out: Tensor, delta: Tensor, lse: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a softmax that members have in common, ``[batch, heads, nq, dv]``, and what `Launches.of_known`
    needs: of members ``[batch, heads, members, nq, …]``, and the LSE of what they have in common."""
    members, size = lse.numel() // max(1, log.numel()), d_out.shape[-1]
    made, less = d_out.new_empty((*log.shape, size)), torch.empty_like(log)
    given = (d_out, delta, lse, log, made, less, members, log.shape[2])
    sizes = {"DV": size, "BLOCK_DV": power(size), "ROWS": _ROWS}
    grid = (-(-log.shape[2] // _ROWS), log.shape[0] * log.shape[1], 1)
    writes = ("d_common", "delta_common")
    start_given(of_members.from_members, grid, given, sizes, writes, options_of(4), log.device)
    return made, less


def add_members(items: Tensor, shared: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The sum of numbers ``[batch, heads, members, …]`` over members, and of what they share."""
    found = items.new_empty((*items.shape[:2], *items.shape[3:]), dtype=dtype)
    size = found.shape[2:].numel()
    given = (items, items if shared is None else shared, found, items.shape[2], size)
    sizes = {"COMMON": shared is not None, "BLOCK": _NUMBERS}
    grid = (-(-size // _NUMBERS), items.shape[0] * items.shape[1], 1)
    start_given(of_members.add_members, grid, given, sizes, ("found",), options_of(4), items.device)
    return found


def readable(tensor: Tensor) -> Tensor:
    """A tensor whose features lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
