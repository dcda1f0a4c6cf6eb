"""Measuring the best few candidates of every kernel of a call, once.

From a pattern and tensors to a `Tuned`: the model puts the candidates in order, the first of them are built and timed
(`spdsl.trials`), and the fastest is kept for all calls like these (`Situation`).  Every time is kept as soon as it is
there, so that an interrupted tuning goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.candidates import MOST
from spdsl.analysis.device import DeviceProfile
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.analysis.workers import Workers
from spdsl.cache.entries import digest
from spdsl.cache.store import store
from spdsl.choices import Situation, candidate_times, mode, record_of, variants
from spdsl.costs import device_for
from spdsl.diagnostics import SpatError, error
from spdsl.pipeline import bound, opened, refuse_stages
from spdsl.prepare import choose_backend, precision, target_of
from spdsl.runtime.calls import Call
from spdsl.runtime.notices import is_watched
from spdsl.runtime.requests import rounded_up
from spdsl.trials import Bench, Timer, Trial, bench_of, call_of, tried

Watch: TypeAlias = Callable[[str, int, int], None]
"""Is told what is being done, how many steps are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One candidate of a kernel: its predicted and its measured time in seconds, None where it does not run.

    ``predicted`` is None on a GPU of which there is no model.  ``own`` says that it is what the plan takes by itself.
    """

    kind: Kind
    tiles: Tiles
    predicted: float | None
    seconds: float | None
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was measured.  ``complete`` says that nothing was left out for lack of time."""

    situation: Situation
    measured: tuple[Measured, ...]
    complete: bool

    @property
    def best(self) -> dict[Kind, Measured]:
        """The fastest candidate of every kernel."""
        found: dict[Kind, Measured] = {}
        for each in self.measured:
            if each.seconds is not None:
                before = found.get(each.kind)
                if before is None or before.seconds is None or each.seconds < before.seconds:
                    found[each.kind] = each
        return found


def tune(
    key: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    *,
    backward: bool = True,
    budget: float | None = None,
    others: Sequence[Bench] = (),
    builders: Workers | None = None,
    timer: Timer | None = None,
    watch: Watch = lambda text, done, steps: None,  # noqa: ARG005  # nobody watches
) -> Tuned:
    """Measure the kernels of calls like this one, and keep the best tiles.

    Args:
        key: the pattern with all its parameters.
        q: as in a call, as are ``k`` and ``v``; their values do not matter.
        k: see ``q``.
        v: see ``q``.
        tables: the inputs by name.
        backward: measure the kernels of the backward pass too, where there are several candidates.
        budget: seconds after which no other candidate is begun.
        others: benches beside that of this process and device, on other devices of the same kind.
        builders: processes that compile, where they were started before (`spdsl.codegen.builders`); they are ended.
        timer: seconds that a run takes; by default the device's, the median of many.
        watch: is told of the progress, from whichever thread.

    Raises:
        SpatError: there is nothing to measure on (SP521), or a call would fail.
    """
    refuse_stages(key)
    situation = situation_of(key, q, k, v)
    base = plan(situation.problem(), situation.target)
    refuse_without_gpu(q)
    call = call_of(base, opened(key)[1], q, k, v, tables)
    kinds: list[Kind] = ["forward"]
    if backward and base.fused is None:
        kinds += ["dq", "dkdv"]
    return tune_kernels(
        situation,
        [(kind, call) for kind in kinds],
        lambda: (bench_of(key, q, k, v, tables, timer), *others),
        budget=budget,
        builders=builders,
        watch=watch,
    )


def tune_kernels(
    situation: Situation,
    wanted: Sequence[tuple[Kind, Call]],
    benches: Callable[[], Sequence[Bench]],
    *,
    budget: float | None = None,
    builders: Workers | None = None,
    watch: Watch = lambda text, done, steps: None,  # noqa: ARG005  # nobody watches
) -> Tuned:
    """Measure these kernels of calls of a kind, each in a call of its plan, on ``benches`` that are made if there is
    something to measure, and keep the best tiles; the rest is as `tune` has it."""
    started, device = time.monotonic(), _device(situation)
    trials = [each for kind, call in wanted for each in _ordered(kind, call.plan, call, device, situation.target)]
    own = {kind: getattr(call.plan, kind).tiles for kind, call in wanted}
    results = store().results
    kept = {trial: results.get("timing", _timing_key(situation, trial)) for trial in trials}
    times = {trial: value["seconds"] for trial, value in kept.items() if value is not None}
    waiting = [trial for trial in trials if trial not in times]

    def keep(trial: Trial, seconds: float | None) -> None:
        results.put("timing", _timing_key(situation, trial), {"seconds": seconds})
        times[trial] = seconds

    def over() -> bool:
        return budget is not None and time.monotonic() - started > budget and bool(times)

    if waiting:
        steps = _Steps(watch=watch, done=2 * len(times), of=2 * len(trials))
        watch("compiling", steps.done, steps.of)
        tried(waiting, benches(), situation.target, keep, builders=builders, over=over, tell=steps.tell)
    found = [
        Measured(
            kind=trial.kind,
            tiles=trial.tiles,
            predicted=trial.predicted,
            seconds=times[trial],
            own=trial.tiles == own[trial.kind],
        )
        for trial in trials
        if trial in times
    ]
    tuned = Tuned(situation=situation, measured=tuple(found), complete=len(found) == len(trials))
    _keep(tuned)
    return tuned


class _Steps:
    """Counts what is told, from several threads."""

    def __init__(self, *, watch: Watch, done: int, of: int) -> None:
        self.watch, self.done, self.of, self.lock = watch, done, of, threading.Lock()

    def tell(self, text: str) -> None:
        """One step more."""
        with self.lock:
            self.done += 1
            self.watch(text, self.done, self.of)


def on_first_use(key: str, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor]) -> None:
    """Tune before the first call of its kind, if ``SPDSL_TUNE=first`` asks for it; never while a graph is captured or a
    compiler traces, nor where a call is about to fail."""
    if mode() != "first" or not _is_on_gpu(q) or is_watched():  # a GPU that is stood in for measures nothing
        return
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return
    try:
        situation = situation_of(key, q, k, v)
        if situation.identity in _tried or store().result("tuning", situation.identity) is not None:
            return
        _tried.add(situation.identity)
        tune(key, q.detach(), k.detach(), v.detach(), tables)
    except SpatError:
        return  # the call itself says what is wrong with it


def _is_on_gpu(q: Tensor) -> bool:
    """Whether it is a tensor with values on a GPU, and not one that only stands for such."""
    return q.device.type == "cuda" and type(q) in (Tensor, torch.nn.Parameter)


_tried: set[str] = set()


def situation_of(key: str, q: Tensor, k: Tensor, v: Tensor) -> Situation:
    """What a call with these tensors is like."""
    backend = choose_backend(json.loads(key)["backend"], q.device)
    open_key, values = opened(key)
    types = {"float": "float32", "int": "int32", "bool": "bool"}
    situation = Situation(
        key=open_key,
        near=tuple(map(rounded_up, values)),
        dtype=precision(q.dtype),
        heads=q.shape[1],
        groups=k.shape[1],
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        shape="square" if q.shape[2] == k.shape[2] else "offset",
        tables=(),
        lengths=(rounded_up(q.shape[2]), rounded_up(k.shape[2])),
        gpu=torch.cuda.get_device_name(q.device) if q.device.type == "cuda" else q.device.type,
        target=target_of(backend, q.device),
    )
    declared = bound(open_key, situation.heads, situation.groups, situation.head_dim).tables
    return replace(situation, tables=tuple(types[table.dtype] for table in declared))


def _device(situation: Situation) -> DeviceProfile | None:
    try:
        return device_for(situation.target, situation.gpu)
    except SpatError:
        return None


def refuse_without_gpu(q: Tensor) -> None:
    """Refuse to measure where there is nothing to measure on.  Raises `SpatError` (SP521)."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if q.device.type != "cuda" and not interpreted:
        raise error("SP521", "there is no GPU to measure on", help="tune on the machine that will run the kernels")


def _ordered(kind: Kind, base: Plan, call: Call, device: DeviceProfile | None, target: str) -> list[Trial]:
    """The candidates to measure, the most promising first, and always the plan's own."""
    plans = variants(kind, base, target)
    own = getattr(base, kind).tiles
    if device is None:
        return [Trial(kind=kind, tiles=tiles, plan=plans[tiles], predicted=None) for tiles in list(plans)[:MOST]]
    times = candidate_times(kind, base, call, device, target)
    best = sorted(times, key=lambda tiles: times[tiles])[:MOST]
    order = best if own in best else [*best[:-1], own]
    return [Trial(kind=kind, tiles=tiles, plan=plans[tiles], predicted=times[tiles]) for tiles in order]


def _keep(tuned: Tuned) -> None:
    best = tuned.best
    if not best:
        return
    store().results.put(
        "tuning",
        tuned.situation.identity,
        {
            "tiles": record_of(tuple((kind, each.tiles) for kind, each in best.items())),
            "seconds": {kind: each.seconds for kind, each in best.items()},
            "gpu": tuned.situation.gpu,
            "lengths": tuned.situation.lengths,
            "complete": tuned.complete,
        },
    )


def _timing_key(situation: Situation, trial: Trial) -> str:
    return digest("timing", situation.identity, trial.kind, repr(trial.tiles))
