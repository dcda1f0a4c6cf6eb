"""From a plan to kernels that can be launched, and from a call to their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime.errors import OutOfResources

from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.codegen.blocks import BlockGraph, Kernel
from spdsl.codegen.emit import KernelSource, emit
from spdsl.codegen.frame import prefix_of
from spdsl.codegen.gluon import emit_gluon
from spdsl.codegen.load import load
from spdsl.codegen.lower import lower
from spdsl.codegen.tables import INTERVALS
from spdsl.diagnostics import error
from spdsl.runtime.calls import DTYPES, Call, GatheredItems, Lists, PickedItems, SpannedKeys
from spdsl.runtime.evenness import Rounds, heads_together, rounds_for
from spdsl.runtime.interval_kernels import interval_values
from spdsl.runtime.notices import is_watched
from spdsl.runtime.plain import PROGRAMS, on, too_wide
from spdsl.runtime.split import Split, split_of
from spdsl.runtime.starter import Starter
from spdsl.runtime.traced import concrete

_MOST = 256
"""Sizes of calls that are remembered."""

Value: TypeAlias = "Tensor | int"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The kernels of a plan: what they do, their text, the functions of the imported file, and what starts them, by
    name; ``flat`` remembers how many programs calls of some sizes start, and how many heads take turns."""

    plan: Plan
    graph: BlockGraph
    source: KernelSource
    functions: dict[str, Any]
    kernels: dict[str, Kernel]
    starters: dict[str, Starter]
    flat: dict[tuple[object, ...], tuple[Rounds, int]]

    def launch(self, name: str, call: Call, rows: int, heads: int, batch: int, values: Mapping[str, Value]) -> None:
        """Run a kernel of a call on ``rows`` rows of its own side for every head and sequence."""
        kernel = self.kernels[name]
        tiles = kernel.programs(rows)
        grid = (heads, tiles, batch) if kernel.heads_first else (tiles, heads, batch)
        self._start(call, kernel, grid, values)

    def intervals(self, call: Call, kind: str, values: Mapping[str, Value]) -> dict[str, Value]:
        """The intervals within which kernels of this kind walk, if they do; ``values`` are those of the call."""
        return interval_values(call, getattr(self.plan, kind), values, self.launch)

    def launch_split(self, kind: str, call: Call, values: Mapping[str, Value], name: str | None = None) -> None:
        """Run the kernel of this kind on all rows of a call: ``forward``, ``dq``, ``dkdv`` or ``fused``; or another
        that walks as it does, by its ``name``."""
        kernel, batch = self.kernels[name or kind], call.q.shape[0]
        tiles: KernelPlan = getattr(self.plan, kind)
        heads, rows = (call.k.shape[1], call.keys) if tiles.by == "key" else call.q.shape[1:3]
        heads = call.k.shape[1] if tiles.packed > 1 else heads
        if call.marks is not None and tiles.gathers("k" if tiles.by == "key" else "q"):
            rows = call.marks.rows.shape[-1]
        values = {**values, **call_values(call, kind)}
        lists = call.lists.get(kind)
        if isinstance(lists, PickedItems):
            self._launch_items(kernel, tiles, call, lists, values)
            return
        if isinstance(lists, GatheredItems):
            self._launch_gathered(kernel, call, lists, values)
            return
        if tiles.picks is not None:
            heads //= tiles.picks.heads
        if INTERVALS not in values:
            values.update(self.intervals(call, kind, values))
        if kernel.counted:
            self._start(call, kernel, self._flat_grid(kernel, call, tiles, values), values)
            return
        if not tiles.splits:
            self.launch(kernel.name, call, rows, heads, batch, values)
            return
        split = split_of(call, tiles, kernel.programs(rows), heads)
        long = split.long * heads * batch
        items = long * split.parts
        # Rows that are not cut leave their results themselves.
        held = items if split.parts > 1 and kernel.parts else 0
        values.update(split_values(split, items))
        values.update({name: call.empty((max(1, held * size),)) for name, size in kernel.parts})
        total = items + split.others * heads * batch
        self._start(call, kernel, self._rounds(kernel, call, rounds_for(call, tiles, total), total, values), values)
        if held:
            combine = self.kernels[f"{kind}_combine"]
            self._start(call, combine, (long * (kernel.block // combine.block), 1, 1), values)

    def _launch_items(
        self, kernel: Kernel, tiles: KernelPlan, call: Call, items: PickedItems, values: dict[str, Value]
    ) -> None:
        """Run a kernel whose programs do a part of a block's queries each, and the one that adds up the parts."""
        assert tiles.picks is not None
        values.update({name: call.empty((items.kept * size,)) for name, size in kernel.parts})
        parts = max(1, tiles.picks.block // tiles.block_k)
        self._start(call, kernel, (items.rows.shape[0], parts, 1), values)
        combine = self.kernels[f"{kernel.name}_combine"]
        self._start(call, combine, (items.row_parts.shape[0] * parts * (kernel.block // combine.block), 1, 1), values)

    def _launch_gathered(self, kernel: Kernel, call: Call, items: GatheredItems, values: dict[str, Value]) -> None:
        """Run a kernel whose programs own queries that have picked one block, and the one that puts these together."""
        types = {argument.name: argument.type for argument in kernel.arguments}
        for name, size in kernel.parts:
            dtype = DTYPES[types[name].removeprefix("*")]
            values[name] = call.empty((max(1, items.queries.shape[0] * size),), dtype)
        self._start(call, kernel, (items.rows.shape[0], 1, 1), values)
        batch, heads, nq, _ = call.q.shape
        self.launch(f"{kernel.name}_combine", call, nq, heads, batch, values)

    def _flat_grid(
        self, kernel: Kernel, call: Call, tiles: KernelPlan, values: dict[str, Value]
    ) -> tuple[int, int, int]:
        """The grid of a kernel that counts its tiles through, and may do several of them in one program; adds to
        ``values`` how many there are, and how many heads take turns."""
        count = kernel.programs(call.q.shape[2])
        total = count * call.q.shape[1] * call.q.shape[0]
        key = (kernel.name, *call.q.shape[:3], call.keys, call.q_start, *call.parameters.values())
        if key not in self.flat:
            if len(self.flat) >= _MOST:
                self.flat.clear()
            rounds = rounds_for(call, tiles, total)
            even = rounds.programs < total and not rounds.queued
            self.flat[key] = rounds, 1 if even else heads_together(call, total)
        rounds, together = self.flat[key]
        values |= {"tiles": count, "together": together}
        return self._rounds(kernel, call, rounds, total, values)

    def _rounds(
        self, kernel: Kernel, call: Call, rounds: Rounds, items: int, values: dict[str, Value]
    ) -> tuple[int, int, int]:
        """The grid of a kernel that may do several of its ``items`` in one program; adds to ``values`` how."""
        if not kernel.persistent:
            return items, 1, 1
        queue = (call.zeros if rounds.queued else call.empty)((1,), torch.int32)
        values |= {"all_items": items, "queue": queue, "queued": int(rounds.queued)}
        return rounds.programs, 1, 1

    def _start(self, call: Call, kernel: Kernel, grid: tuple[int, int, int], values: Mapping[str, Value]) -> None:
        if 0 in grid:
            return
        device, starter = call.q.device, self._starter(kernel)
        read = {name: values[name] for name in starter.names}
        given = starter.given(read)
        stages = _stages.get((id(self.plan), kernel.name), kernel.stages)
        told = {name: concrete(value) for name, value in given.items()}
        x, y, z = (concrete(size) for size in grid)
        if max(y, z) > PROGRAMS:
            pattern, (batch, heads) = self.plan.problem.pattern, call.q.shape[:2]
            which = f"`{kernel.name}` of `{pattern.name}` for {batch} sequences of {heads} heads"
            raise too_wide((x, y, z), which, pattern.span)
        # What the launcher itself does with tensors is no part of what is computed.
        with on(device), _disable_current_modes() if is_watched() else nullcontext():
            self._run(kernel, (x, y, z), told, stages, device)
        stages = _stages.get((id(self.plan), kernel.name), kernel.stages)
        call.recorder.started(starter, grid, read, given, stages, device)

    def _starter(self, kernel: Kernel) -> Starter:
        found = self.starters.get(kernel.name)
        if found is None:
            found = self.starters[kernel.name] = Starter.of(kernel, self._function(kernel))
        return found

    def _function(self, kernel: Kernel) -> Any:
        """What Triton launches; kernels in Gluon are written when they are first used."""
        if kernel.name not in self.functions:
            source = emit_gluon(self.graph, kernel)
            self.functions[kernel.name] = getattr(load(source), kernel.name)
        return self.functions[kernel.name]

    def _run(
        self, kernel: Kernel, grid: tuple[int, int, int], given: Mapping[str, Any], stages: int, device: torch.device
    ) -> None:
        """Run with as many pipeline stages as the device has shared memory for, and remember the number."""
        try:
            self._starter(kernel).start(grid, given, stages, device)
        except OutOfResources as short:
            if stages == 1:
                raise error(
                    "SP504",
                    f"the kernel `{kernel.name}` of `{self.plan.problem.pattern.name}` does not fit this GPU: {short}",
                    help='use smaller head dims, 16-bit types, or `backend="cpu"`',
                ) from short
            _stages[id(self.plan), kernel.name] = stages - 1
            self._run(kernel, grid, given, stages - 1, device)


_loaded: dict[int, Loaded] = {}
_stages: dict[tuple[int, str], int] = {}  # where the planned number did not fit the device


def loaded(plan: Plan) -> Loaded:
    """The kernels of ``plan``, written and imported when they are first asked for."""
    # By identity: hashing a plan takes longer than launching a kernel.  The entry keeps the plan alive.
    found = _loaded.get(id(plan))
    if found is None:
        graph = lower(plan)
        source = emit(graph)
        module = load(source)
        functions = {kernel.name: getattr(module, kernel.name) for kernel in graph.triton}
        found = _loaded[id(plan)] = Loaded(
            plan=plan,
            graph=graph,
            source=source,
            functions=functions,
            kernels={kernel.name: kernel for kernel in graph.kernels},
            starters={},
            flat={},
        )
    return found


def tensor_values(**tensors: Tensor) -> dict[str, Value]:
    """Tensors of four dimensions with the strides that kernels take; the last dimension must be contiguous."""
    values: dict[str, Value] = {}
    for name, tensor in tensors.items():
        values[name] = tensor
        values.update(zip(_stride_names(name), tensor.stride(), strict=False))
    return values


@cache
def _stride_names(name: str) -> tuple[str, ...]:
    return tuple(f"{prefix_of(name)}_stride_{axis}" for axis in "bhn")


def call_values(call: Call, kind: str) -> dict[str, Value]:
    """What every kernel may ask for besides tensors of queries and keys: lengths, tables and lists."""
    values: dict[str, Value] = {
        "nq": call.q.shape[2],
        "n": call.keys,
        "key_rows": call.keys,
        "q_start": call.q_start,
        **call.parameters,
    }
    if call.places is not None:
        values |= {"places": call.places, "places_stride": call.places.stride(0), "cache_rows": call.keys}
        values["page_count"] = call.k.shape[0]
    for table in call.plan.tables:
        values |= _table_values(table.name, call.tables[table.name], any(axis.kind == "b" for axis in table.axes))
    if kind in call.lists:
        values |= _list_values(call.lists[kind])
    if call.marks is not None:
        values |= _row_values(call.marks.rows)
    return values


def _row_values(rows: Tensor) -> dict[str, Value]:
    """Rows that tiles are gathered from, ``[batch or 1, groups or 1, rows]``."""
    batch, groups, count = rows.shape
    return {
        "marks": rows,
        "marks_stride_b": groups * count if batch > 1 else 0,
        "marks_stride_g": count if groups > 1 else 0,
        "marked_rows": count,
    }


def _table_values(name: str, tensor: Tensor, has_batch: bool) -> dict[str, Value]:
    values: dict[str, Value] = {f"t_{name}": tensor}
    strides, sizes = list(tensor.stride()), list(tensor.shape)
    if not has_batch:
        values[f"stride_{name}_b"] = strides.pop(0) if sizes.pop(0) > 1 else 0 * strides.pop(0)
    for axis, (stride, size) in enumerate(zip(strides, sizes, strict=True)):
        values[f"stride_{name}_{axis}"] = stride
        values[f"size_{name}_{axis}"] = size
    return values


def split_values(split: Split, items: int) -> dict[str, Value]:
    """How the programs of a kernel that splits long rows find their work."""
    values: dict[str, Value] = {
        "items": items,
        "parts": split.parts,
        "long_rows": split.long,
        "other_rows": split.others,
        "first_long": split.first,
    }
    if split.order is not None:
        batch, heads, rows = split.order.rows.shape
        values["row_order"] = split.order.rows
        values["order_stride_b"] = heads * rows if batch > 1 else 0
        values["order_stride_h"] = rows if heads > 1 else 0
    return values


def _list_values(lists: Lists) -> dict[str, Value]:
    if isinstance(lists, SpannedKeys):
        batch, groups, tiles, _ = lists.intervals.shape
        return {
            **_row_values(lists.rows),
            INTERVALS: lists.intervals,
            f"{INTERVALS}_stride_b": groups * tiles * 4 if batch > 1 else 0,
            f"{INTERVALS}_stride_h": tiles * 4,
        }
    if isinstance(lists, GatheredItems):
        return {
            "item_rows": lists.rows,
            "item_first": lists.first,
            "item_last": lists.last,
            "list_tiles": lists.queries,
            "list_entries": lists.entries,
            "most": lists.entries.shape[-1],
            "blocks": lists.blocks,
        }
    if isinstance(lists, PickedItems):
        return {
            "item_rows": lists.rows,
            "item_first": lists.first,
            "item_last": lists.last,
            "item_slots": lists.slots,
            "row_slots": lists.row_slots,
            "row_parts": lists.row_parts,
            "list_tiles": lists.queries,
            "blocks": lists.blocks,
            **({} if lists.bits is None else {"list_bits": lists.bits}),
            **({} if lists.ends is None else {"list_ends": lists.ends}),
        }
    begin, middle, end = (each.contiguous() for each in (lists.begin, lists.middle, lists.end))
    batch, heads, rows = begin.shape
    return {
        "list_begin": begin,
        "list_middle": middle,
        "list_end": end,
        "list_tiles": lists.tiles,
        **({} if lists.bits is None else {"list_bits": lists.bits}),
        **({} if lists.turns is None else {"list_turns": lists.turns}),
        "list_reach": lists.reach,
        "list_stride_b": heads * rows if batch > 1 else 0,
        "list_stride_h": rows if heads > 1 else 0,
    }


def lined(call: Call, tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous, copied if it is not."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return call.recorder.run(Tensor.contiguous, tensor)
