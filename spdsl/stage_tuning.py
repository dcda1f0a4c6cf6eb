"""Tuning the softmaxes of a pattern with stages, each over what the pattern itself selects.

From a pattern and tensors to a `Tuned` for each softmax: the call is carried out once, its softmaxes are noted with
the lists and tables that its selections made, and the candidates of their kernels are built and timed over these, as
those of a pattern without stages are (`spdsl.tuning`).  Calls of the kind find what was fastest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spdsl import staged
from spdsl.analysis.few import few_keys, few_rows
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Kind
from spdsl.analysis.workers import Workers
from spdsl.arguments import first_query
from spdsl.choices import Situation
from spdsl.pipeline import bound, opened
from spdsl.prepare import choose_backend, precision, target_of
from spdsl.runtime.calls import Call
from spdsl.runtime.graphs import noting_parts
from spdsl.runtime.in_turn import Part
from spdsl.runtime.requests import rounded_up
from spdsl.trials import Bench, Timer, bench_of, call_of
from spdsl.tuning import Tuned, Watch, refuse_without_gpu, tune_kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedStages:
    """What was measured of each softmax, by its name."""

    softmaxes: tuple[tuple[str, Tuned], ...]

    @property
    def complete(self) -> bool:
        """Whether nothing was left out for lack of time."""
        return all(each.complete for _, each in self.softmaxes)


def tune_stages(
    key: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    *,
    backward: bool = True,
    budget: float | None = None,
    builders: Workers | None = None,
    timer: Timer | None = None,
    watch: Watch = lambda text, done, steps: None,  # noqa: ARG005  # nobody watches
) -> TunedStages:
    """Measure the kernels of the softmaxes of calls like this one, and keep the best tiles.

    Args:
        key: a pattern with stages and all its parameters.
        q: as in a call, as are ``k`` and ``v``; what stages select of them is what kernels are timed over.
        k: see ``q``.
        v: see ``q``.
        tables: the inputs by name.
        backward: measure the kernels of the backward pass too, where there are several candidates.
        budget: seconds after which no other candidate is begun.
        builders: processes that compile for the first softmax, where they were started before; they are ended.
        timer: seconds that a run takes; by default the device's, the median of many.
        watch: is told of the progress.

    Raises:
        SpatError: there is nothing to measure on (SP521), or a call would fail.
    """
    refuse_without_gpu(q)
    started, open_key = time.monotonic(), opened(key)[0]
    start = first_query(bound(open_key, q.shape[1], k.shape[1], q.shape[3]).attend, q.shape[2], k.shape[2])
    with torch.no_grad(), noting_parts() as parts:
        staged.attend(q, k, v, tables, None, open_key, start)
    found = []
    for number, (softmax, part) in enumerate(parts.items()):
        name = str(json.loads(softmax)["softmax"])

        def tell(text: str, done: int, steps: int, told: str = f"{name} ({number + 1} of {len(parts)})") -> None:
            watch(f"{told}: {text}", done, steps)

        left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
        asked = _wanted(part, backward=backward)
        bench = partial(_bench, part, timer)
        own = builders if number == 0 else None
        found.append((name, tune_kernels(situation_of_part(part), asked, bench, budget=left, builders=own, watch=tell)))
    return TunedStages(softmaxes=tuple(found))


def _wanted(part: Part, *, backward: bool) -> list[tuple[Kind, Call]]:
    """The kernels of a softmax that have candidates, each in a call of its plan."""
    situation = situation_of_part(part)
    queries, heads, keys, groups = part.q.shape[2], part.q.shape[1], part.k.shape[2], part.k.shape[1]
    problem = situation.problem()

    def call(few: int, keys_are_few: bool) -> Call:
        made = plan(replace(problem, few=few, few_keys=keys_are_few), situation.target)
        return call_of(made, (), part.q, part.k, part.v, _tables(part), part.q_start)

    found: list[tuple[Kind, Call]] = [("forward", call(few_rows(part.shape, queries, heads, groups), False))]
    if backward:
        both = call(0, few_keys(part.shape, queries, keys, groups))
        if both.plan.fused is None:
            found += [("dq", both), ("dkdv", both)]
    return found


def _bench(part: Part, timer: Timer | None) -> tuple[Bench]:
    return (bench_of(part.key, part.q, part.k, part.v, _tables(part), timer, q_start=part.q_start),)


def _tables(part: Part) -> dict[str, Tensor]:
    names = (table.name for table in bound(part.key, part.q.shape[1], part.k.shape[1], part.q.shape[3]).tables)
    return dict(zip(names, part.tables, strict=True))


def situation_of_part(part: Part) -> Situation:
    """What calls of a softmax are like, as they ask for tiles."""
    q, k, v = part.q, part.k, part.v
    backend = choose_backend(json.loads(part.key)["backend"], q.device)
    return Situation(
        key=part.key,
        near=(),
        dtype=precision(q.dtype),
        heads=q.shape[1],
        groups=k.shape[1],
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        shape=part.shape,  # type: ignore[arg-type]  # a str in the schema of operators
        tables=tuple(str(each.dtype).removeprefix("torch.") for each in part.tables),
        lengths=(rounded_up(q.shape[2]), rounded_up(k.shape[2])),
        gpu=torch.cuda.get_device_name(q.device) if q.device.type == "cuda" else q.device.type,
        target=target_of(backend, q.device),
    )
