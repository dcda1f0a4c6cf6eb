"""Whether what a benchmark times is right: some rows of it, against what does not share its kernels.

Lists are compared with those that torch makes of fp32 numbers for the same rows, where only near ties may differ, and
outputs with the reference in float64.  While that is looked at, memory that nobody has written holds NaN and the
largest ints, so that what a kernel leaves out shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

import spdsl
from spdsl.runtime import graphs, inputs
from spdsl.runtime.memo import Memo
from spdsl.semantics.graph import Select, on_side
from spdsl.semantics.nodes import BoundPattern

NEAR = 1e-4
"""Values within this share of each other are a near tie."""

TOLERANCE = 2e-2
"""Relative error of outputs in bf16: twice what one sum may have, as branches are added up."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN and the largest ints; kernels take their reproducible forms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def lists_are_right(pattern: BoundPattern, call: graphs.Inputs, some: int = 48) -> dict[str, float]:
    """Of so many rows of every selection, the shares that differ, all of them by near ties.

    Raises:
        AssertionError: a list has what it should not have, or lacks something.
    """
    with poisoned():
        found = graphs.selections(pattern, call)
    arrays = inputs.arrays_of(pattern, call, grad=False)
    shares = {}
    for name, lists in found.items():
        stage = arrays.stages[name]
        side = on_side(stage.axes, "q")
        assert side is not None
        rows = torch.linspace(0, arrays.lines.size(side) - 1, some, device=lists.device).long().unique()
        wanted = arrays.array(name, rows, Memo())
        chosen = _dense(lists[..., rows, :], wanted.shape[-1]).expand(wanted.shape)
        differ = chosen != wanted
        if bool(differ.any()):
            assert isinstance(stage, Select), f"{name} differs in {int(differ.any(-1).sum())} rows"
            value = arrays.full(stage.value, stage.axes, rows, Memo()).expand(wanted.shape)
            high = torch.where(differ, value, -torch.inf).amax(-1)
            low = torch.where(differ, value, torch.inf).amin(-1)
            apart = (high - low)[differ.any(-1)] / torch.maximum(high.abs(), low.abs())[differ.any(-1)]
            assert float(apart.max()) <= NEAR, f"{name}: values {float(apart.max()):.1e} apart are exchanged"
        shares[name] = round(float(differ.any(-1).float().mean()), 4)
    return shares


def _dense(lists: Tensor, columns: int) -> Tensor:
    """The sets that lists name, which ascend."""
    later, last = lists[..., 1:], torch.iinfo(torch.int32).max
    assert bool(((later > lists[..., :-1]) | (later == last)).all()), "a list does not ascend"
    assert bool(((lists >= 0) & ((lists < columns) | (lists == last))).all()), "a list names what there is not"
    room = torch.zeros(*lists.shape[:-1], columns + 1, dtype=torch.bool, device=lists.device)
    return room.scatter_(-1, lists.long().clamp(max=columns), True)[..., :columns]


MOST = 32768
"""Keys that the reference is given: it holds which windows share which positions as a matrix."""


def output_is_right(
    attn: spdsl.Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Mapping[str, Tensor],
    places: int = 3,
    run: int = 2,
) -> float:
    """The median error of runs of rows at some places, relative to the reference; of long sequences, rows at the
    beginning, which do not depend on what follows.  Queries are chosen for by themselves, or by runs of ``run``.

    Queries that exchange near ties may be further off: of all rows no more than one in ten is.

    Raises:
        AssertionError: more rows are.
    """
    with torch.no_grad(), poisoned():
        out = attn(q, k, v, **inputs)
    n, errors = min(q.shape[2], MOST), []
    tables = attn.bind(q.shape[1], k.shape[1], q.shape[3]).tables
    from_end = {
        table.name: place - len(table.axes)
        for table in tables
        for place, axis in enumerate(table.axes)
        if axis.kind == "q"
    }
    for place in torch.linspace(n // 3, n - run, places).long().tolist():
        first = place // run * run
        rows = slice(first, first + run)
        own = {
            name: table.narrow(from_end[name], first, run) if name in from_end else table
            for name, table in inputs.items()
        }
        wanted = attn.reference(q[:, :, rows], k[:, :, :n], v[:, :, :n], q_start=first, **own)
        assert isinstance(out, Tensor)
        assert isinstance(wanted, Tensor)
        error = (out[:, :, rows].double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        errors.append(error.flatten())
    every = torch.cat(errors)
    off = float((~(every <= TOLERANCE)).float().mean())
    assert off <= 0.1, f"{off:.0%} of the rows looked at are more than {TOLERANCE} off"
    return round(float(every.median()), 5)
