"""The Triton back end: runs the generated kernels of a plan on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.tiles import tiles_among
from spdsl.codegen.results import partial_pointer
from spdsl.runtime.calls import Call, Gradients
from spdsl.runtime.growing import opened
from spdsl.runtime.launch import Loaded, Value, call_values, lined, loaded, tensor_values
from spdsl.runtime.parts import kinds_of, parts_of
from spdsl.runtime.table_gradients import partial_shape, table_gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonEngine:
    """Runs plans through generated Triton kernels."""

    name: str = "triton"

    @torch.no_grad()
    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """Output ``[batch, heads, nq, dv]`` in the type of ``q`` and LSE ``[batch, heads, nq]`` in fp32."""
        return self.forward_together((call,))

    @torch.no_grad()
    def forward_together(self, calls: Sequence[Call]) -> tuple[Tensor, Tensor]:
        """Output and LSE of one softmax over the keys of all calls, which have the same queries; the plans of all but
        the first are `later` ones."""
        first = opened(_lined(calls[0]))
        batch, heads, nq, _ = first.q.shape
        out = first.empty((batch, heads, nq, first.v.shape[3]), first.q.dtype)
        lse = first.empty((batch, heads, nq))
        for call in (first, *map(_lined, calls[1:])):
            values = tensor_values(Q=call.q, K=call.k, V=call.v, O=out) | {"LSE": lse}
            values |= {} if call.open is None else call.open.strides
            for part in parts_of(call, lambda _: ("forward",)):
                loaded(part.plan).launch_split("forward", part, values)
        return out, lse

    @torch.no_grad()
    def backward(
        self, call: Call, out: Tensor, lse: Tensor, d_out: Tensor, d_lse: Tensor | None, wanted: frozenset[str]
    ) -> Gradients:
        """Gradients of those among ``q k v`` and the names of tables that are in ``wanted``."""
        return self.backward_together((call,), out, lse, d_out, d_lse, (wanted,))[0]

    @torch.no_grad()
    def backward_together(
        self,
        calls: Sequence[Call],
        out: Tensor,
        lse: Tensor,
        d_out: Tensor,
        d_lse: Tensor | None,
        wanted: Sequence[frozenset[str]],
    ) -> list[Gradients]:
        """The gradients of each of the calls of `forward_together`; that of the queries, with the last, is of all."""
        call = calls[0]
        run = call.recorder.run
        if d_out.dtype != call.q.dtype:
            d_out = run(partial(Tensor.to, dtype=call.q.dtype), d_out)
        rows: dict[str, Value] = {
            **tensor_values(O=lined(call, out), dO=lined(call, d_out)),
            "LSE": (held := run(Tensor.contiguous, lse)),
            "dLSE": held if d_lse is None else run(_plain, d_lse),
            "dlse_rows": 0 if d_lse is None else lse.shape[2],
            "LSE2": call.empty(lse.shape),
            "Delta": call.empty(lse.shape),
        }
        every: list[Gradients] = []
        for each, names in zip(map(_lined, calls), wanted, strict=True):
            found = _begun(each, every[-1].q if every else None, names)
            values = {**rows, **tensor_values(Q=each.q, K=each.k, V=each.v)}
            for part in parts_of(each, partial(kinds_of, wanted=names)):
                found = _added(part, found, values, names)
            every.append(found)
        return [_asked(found, names) for found, names in zip(every, wanted, strict=True)]


def _begun(call: Call, d_q: Tensor | None, wanted: frozenset[str]) -> Gradients:
    """What the kernels of a call add to: those of a later plan add to its keys' gradients, too."""
    adds = call.plan.place > 0 and bool(wanted & {"k", "v"})
    d_k, d_v = (call.zeros(each.shape, each.dtype) if adds else None for each in (call.k, call.v))
    return Gradients(q=d_q, k=d_k, v=d_v, tables={})


def _asked(found: Gradients, wanted: frozenset[str]) -> Gradients:
    q, k, v = (x if name in wanted else None for name, x in (("q", found.q), ("k", found.k), ("v", found.v)))
    return replace(found, q=q, k=k, v=v)


def _added(call: Call, before: Gradients, values: Mapping[str, Value], wanted: frozenset[str]) -> Gradients:
    """The gradients with those of the pairs of ``call``, whose kernels add to what is there already."""
    kernels = loaded(call.plan)
    batch, heads, nq, _ = call.q.shape
    partials = {
        position: call.zeros(partial_shape(gradient, call))
        for position, gradient in enumerate(call.plan.gradients)
        if gradient.table in wanted
    }
    if partials:
        call.recorder.give_up()  # where their sums belong is computed from values
    values = {**values, **_partial_values(call, partials)}
    if call.plan.fused is not None:
        values |= _sums(call, wanted, values)
    if not call.plan.place:
        kernels.launch("delta", call, nq, heads, batch, values | call_values(call, "delta"))
    d_q, d_k, d_v = before.q, before.k, before.v
    if call.fuses(wanted):
        d_q, d_k, d_v = _fused(call, kernels, values, before)
    else:
        by = {call.plan.gradients[position].by for position in partials}
        if "q" in wanted or by & {"none", "query", "pair"}:
            d_q = call.empty(call.q.shape, call.q.dtype) if d_q is None else d_q
            kernels.launch_split("dq", call, values | tensor_values(dQ=d_q))
        if wanted & {"k", "v"} or "key" in by:
            # Keys outside the places of a batched call get no gradient, and no program writes them.
            make = call.empty if call.places is None else call.zeros
            d_k = make(call.k.shape, call.k.dtype) if d_k is None else d_k
            d_v = make(call.v.shape, call.v.dtype) if d_v is None else d_v
            kernels.launch_split("dkdv", call, values | tensor_values(dK=d_k, dV=d_v))
        if "distance" in by:
            rows = nq + call.k.shape[2] - 1
            kernels.launch("distances", call, rows, heads, batch, values | call_values(call, "distances"))
    tables = table_gradients(call, partials, wanted)
    added = {name: tables[name] + before.tables[name] if name in before.tables else tables[name] for name in tables}
    return Gradients(q=d_q, k=d_k, v=d_v, tables=added)


def _sums(call: Call, wanted: frozenset[str], values: Mapping[str, Value]) -> dict[str, Value]:
    """Memory that the first kernel fills with zeros, where the fused one adds up dQ in fp32."""
    assert call.plan.fused is not None
    if not call.fuses(wanted):
        return {"Sums": values["LSE2"], "sums_rows": 0}
    # That kernel runs once, for the first of several parts.
    make = call.zeros if call.plan.place else call.empty
    sums = make(_whole(call.q, call.plan.fused.classes))
    return {"Sums": sums, "sums_rows": sums.shape[2]}


def _fused(
    call: Call, kernels: Loaded, values: Mapping[str, Value], before: Gradients
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV by one kernel, which adds to dQ in fp32; those of later parts are added to what is there."""
    assert call.plan.fused is not None
    classes, rows, sums = call.plan.fused.classes, call.q.shape[2], values["Sums"]
    assert isinstance(sums, Tensor)
    d_k, d_v = (
        call.empty(_whole(each, classes), each.dtype) if found is None else found
        for each, found in ((call.k, before.k), (call.v, before.v))
    )
    boxes = call.plan.fused.boxes
    numbers = {name: _quadruples(call, values[name], classes, boxes) for name in ("LSE2", "Delta")}
    given = {**values, **numbers, **tensor_values(dK=d_k, dV=d_v), "dQ": sums}
    if call.repeats:
        turns = _turns(call, kernels)
        turns |= kernels.intervals(call, "fused", call_values(call, "fused"))
        kernels.launch_split("fused", call, turns, name="touched")
        kernels.launch_split("fused", call, given | turns, name="ordered")
    else:
        kernels.launch_split("fused", call, given)
    d_q = call.empty(call.q.shape, call.q.dtype) if before.q is None else before.q
    eights = call.q.shape[3] // 8
    sizes = {"count": rows * eights, "sums_of_head": sums.shape[2] * eights}
    batch, heads, _, width = call.q.shape
    kernels.launch("scaled", call, rows * width, heads, batch, {**values, "dQ": d_q, **sizes})
    if d_k.shape != call.k.shape:
        d_k, d_v = (call.recorder.run(partial(_first_rows, rows=call.k.shape[2]), each) for each in (d_k, d_v))
    return d_q, d_k, d_v


def _turns(call: Call, kernels: Loaded) -> dict[str, Value]:
    """Memory for the order in which rows of keys add to tiles of dQ."""
    assert call.plan.fused is not None
    batch, heads, rows, _ = call.q.shape
    boxes = call.plan.fused.boxes
    tiles = tiles_among(rows, call.plan.fused.block_q, call.plan.fused.classes)
    tiles = tiles if boxes is None else math.prod(boxes.counts("q"))
    words = -(-kernels.kernels["touched"].programs(call.k.shape[2]) // 32)
    turns = call.zeros((batch, heads, tiles, 1 + words), torch.int32)
    return {"Turns": turns, "q_tiles": tiles, "words": words}


def _first_rows(tensor: Tensor, rows: int) -> Tensor:
    return tensor[:, :, :rows].contiguous()


def _whole(tensor: Tensor, classes: int) -> tuple[int, ...]:
    """The shape of a tensor with so many rows that all residue classes have as many."""
    batch, heads, rows, width = tensor.shape
    return batch, heads, -(-rows // classes) * classes, width


def _quadruples(call: Call, rows: Value, classes: int, boxes: Boxes | None) -> Value:
    """Numbers of rows ``[batch, heads, nq]`` as the copy engine reads them: those of each residue class together, their
    number a multiple of 4, or those of each box; what is added is infinite, as are the exponents of rows without keys.
    """
    assert isinstance(rows, Tensor)
    if boxes is not None:
        return call.recorder.run(partial(_by_box, extents=boxes.extents, box=boxes.box("q")), rows)
    if classes == 1 and rows.shape[2] % 4 == 0:
        return rows
    return call.recorder.run(partial(_by_class, classes=classes), rows)


def _by_box(rows: Tensor, extents: tuple[int, ...], box: tuple[int, ...]) -> Tensor:
    dims = len(extents)
    short = [-extent % size for extent, size in zip(extents, box, strict=True)]
    pad = [each for size in reversed(short) for each in (0, size)]
    found = torch.nn.functional.pad(rows.unflatten(2, extents), pad, value=math.inf) if any(short) else rows
    counts = [(extent + size) // each for extent, size, each in zip(extents, short, box, strict=True)]
    parts = [each for pair in zip(counts, box, strict=True) for each in pair]
    order = [0, 1, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2)]
    return found.reshape(*rows.shape[:2], *parts).permute(order).contiguous()


def _by_class(rows: Tensor, classes: int) -> Tensor:
    found = torch.nn.functional.pad(rows, (0, -rows.shape[2] % (4 * classes)))
    return found if classes == 1 else found.unflatten(2, (-1, classes)).transpose(2, 3).contiguous()


def _lined(call: Call) -> Call:
    """Tensors as kernels read them."""
    q, k, v = (lined(call, each) for each in (call.q, call.k, call.v))
    return call if q is call.q and k is call.k and v is call.v else replace(call, q=q, k=k, v=v)


def _plain(rows: Tensor) -> Tensor:
    return rows.float().contiguous()


def _partial_values(call: Call, partials: Mapping[int, Tensor]) -> dict[str, Value]:
    """Memory for the sums of every gradient of the plan; those not wanted are thrown away."""
    return {
        partial_pointer(position): partials[position]
        if position in partials
        else call.empty(partial_shape(gradient, call))
        for position, gradient in enumerate(call.plan.gradients)
    }
