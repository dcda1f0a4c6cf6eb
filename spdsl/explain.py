"""How a call is computed: walks, tiles, and the pairs kept over the pairs computed.  Counts are exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import Interval, ListWalk, Residues, Slot, SlotWalk
from spdsl.arguments import first_query
from spdsl.kernels import plan_like
from spdsl.runtime.calls import Call, TileList
from spdsl.runtime.checks import check_call, check_tensors, raise_pending
from spdsl.runtime.evaluate import evaluate, tables_for
from spdsl.runtime.lists import tile_lists, walk_lists
from spdsl.runtime.operator import with_batch
from spdsl.runtime.pairs import pairs_of
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.show import print_expr

_CHUNK_PAIRS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """One kernel: tile sizes, its walk in words, and how many tiles it visits over batch and heads."""

    kind: str
    block_q: int
    block_k: int
    walk: tuple[str, ...]
    notes: tuple[str, ...]
    touched: int
    full: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `Attention.explain` tells.  ``pairs`` are kept by the pattern, over ``batch`` and ``heads``."""

    pattern: str
    target: str
    shape: str
    batch: int
    heads: int
    nq: int
    n: int
    pairs: int
    kernels: tuple[KernelReport, ...]

    @property
    def kept(self) -> float:
        """Pairs kept over all pairs."""
        return self.pairs / max(1, self.batch * self.heads * self.nq * self.n)

    def as_dict(self) -> dict[str, object]:
        """The report for `--json`."""
        return asdict(self) | {"kept": self.kept}

    def text(self) -> str:
        """The report as lines to read."""
        lines = [
            f"{self.pattern} for {self.target}, {self.shape}; {self.batch} × {self.heads} heads",
            f"queries: {self.nq:,}, keys: {self.n:,}",
            f"pairs kept: {self.pairs:,} of {self.batch * self.heads * self.nq * self.n:,} ({self.kept:.2%})",
        ]
        for kernel in self.kernels:
            computed = kernel.touched * kernel.block_q * kernel.block_k
            useful = self.pairs / computed if computed else 1.0
            lines.append(
                f"{kernel.kind}: tiles of {kernel.block_q} × {kernel.block_k}, {kernel.touched:,} touched, "
                f"{kernel.full:,} of them full; {useful:.1%} of the pairs computed are kept"
            )
            lines += [f"  {line}" for line in (*kernel.walk, *kernel.notes)]
        return "\n".join(lines)


def explain(
    key: str, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor], target: str | None = None
) -> Report:
    """Count what the kernels for tensors like these visit.

    Raises:
        SpatError: as a call with these tensors would.
    """
    check_tensors(q, k, v)
    target = target or ("cpu" if q.device.type == "cpu" else "sm_90")
    plan = plan_like(key, q, k, v, target)
    given = {table.name: with_batch(table, tables[table.name]) for table in plan.problem.pattern.tables}
    start = first_query(plan.problem.pattern.attend, q.shape[2], k.shape[2])
    call = check_call(Call(plan=plan, q=q, k=k, v=v, q_start=start, tables=given))
    raise_pending()
    return Report(
        pattern=plan.problem.pattern.name,
        target=target,
        shape=plan.problem.shape,
        batch=q.shape[0],
        heads=q.shape[1],
        nq=q.shape[2],
        n=k.shape[2],
        pairs=count_pairs(call),
        kernels=tuple(_kernel(call, kernel) for kernel in (plan.forward, plan.dq, plan.dkdv)),
    )


def count_pairs(call: Call) -> int:
    """The pairs that a call keeps, over batch and heads: full tiles by their area, masked ones pair by pair."""
    plan = call.plan
    lists = _lists(call, plan.forward)
    batch, heads, _, _ = call.q.shape
    grid = TileGrid.of(plan.forward)
    weight = (batch // lists.begin.shape[0]) * (heads // lists.begin.shape[1])
    where = _rows_of(lists)
    total = 0
    step = max(1, _CHUNK_PAIRS // (grid.block_q * grid.block_k))
    for start in range(0, len(where), step):
        at, tiles = where[start : start + step], lists.tiles[start : start + step].long()
        total += int(_count(call, at, tiles, grid).sum())
    return total * weight


def _rows_of(lists: TileList) -> Tensor:
    """For every listed tile, the (batch, head, row) it belongs to."""
    counts = (lists.end - lists.begin).flatten().long()
    owners = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    order = torch.repeat_interleave(lists.begin.flatten().long(), counts)
    before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    within = torch.arange(len(owners), device=counts.device) - before
    placed = torch.empty_like(owners)
    placed[order + within] = owners
    return torch.stack(torch.unravel_index(placed, lists.begin.shape), dim=1)


def _count(call: Call, at: Tensor, tiles: Tensor, grid: TileGrid) -> Tensor:
    numbers = grid.within(at[:, 2, None, None], tiles[:, None, None], call.q_start)
    rows = numbers["i"] * grid.block_q + torch.arange(grid.block_q, device=at.device)[None, :, None]
    rows = rows * grid.modulus + numbers["q_class"]
    k = numbers["j"] * grid.block_k + torch.arange(grid.block_k, device=at.device)[None, None, :]
    k = k * grid.modulus + numbers["k_class"]
    q = rows + call.q_start
    pairs = pairs_of(call)
    head = at[:, 1, None, None]
    group = head // (pairs.heads // pairs.groups)
    env = pairs.extents() | {"b": at[:, 0, None, None], "h": head, "g": group, "q": q, "k": k}
    kept = evaluate(call.plan.keep, env, tables_for(call.plan.tables, call.tables))
    exists = (rows < call.q.shape[2]) & (k < call.k.shape[2]) & (q >= 0)
    return (kept & exists).sum((1, 2))


def _lists(call: Call, kernel: KernelPlan) -> TileList:
    match kernel.walk:
        case SlotWalk() as walk:
            return walk_lists(call, walk, TileGrid.of(kernel))
        case ListWalk():
            grid = TileGrid.of(kernel)
            return tile_lists(call, by=grid.by, block_q=grid.block_q, block_k=grid.block_k)


def _kernel(call: Call, kernel: KernelPlan) -> KernelReport:
    lists = _lists(call, kernel)
    weight = (call.q.shape[0] // lists.begin.shape[0]) * (call.q.shape[1] // lists.begin.shape[1])
    return KernelReport(
        kind=kernel.kind,
        block_q=kernel.block_q,
        block_k=kernel.block_k,
        walk=describe(kernel),
        notes=kernel.notes,
        touched=int((lists.end - lists.begin).sum()) * weight,
        full=int((lists.middle - lists.begin).sum()) * weight,
    )


def describe(kernel: KernelPlan) -> tuple[str, ...]:
    """The walk of a kernel in lines: one for each slot, or the reason why tiles are listed."""
    match kernel.walk:
        case SlotWalk(slots=slots):
            lines = tuple(_slot(slot) for slot in slots) or ("no tile is touched",)
            return lines if kernel.residues is None else (_residues(kernel.residues), *lines)
        case ListWalk(reason=reason):
            return (f"tiles are listed at run time: {reason}",)


def _residues(residues: Residues) -> str:
    apart = f"(q - k) % {residues.modulus} == {residues.shift}: the rows of a tile are {residues.modulus} apart"
    return f"{apart}, from row q_class or k_class on"


def _slot(slot: Slot) -> str:
    text = f"tiles {_interval(slot.touched)}"
    if slot.phase is not None:
        text += f" with (t - {print_expr(slot.phase)}) % {slot.step} < {slot.run}"
    if slot.filter is not None:
        text += f" where {print_expr(slot.filter)}"
    return f"{text}, full in {_interval(slot.full)}" if slot.full is not None else f"{text}, all masked"


def _interval(interval: Interval) -> str:
    return f"[{print_expr(interval.lo)}, {print_expr(interval.hi)})"
