"""Measuring the best few candidates of every kernel of a call, once.

From a pattern and tensors to a `Tuned`: the model puts the candidates in order, the first of them are compiled side by
side and timed one after the other, and the fastest is kept for all calls like these (`Situation`).  Every time is kept
as soon as it is there, so that an interrupted tuning goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.candidates import MOST
from spdsl.analysis.device import DeviceProfile
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.cache.entries import digest
from spdsl.cache.store import store
from spdsl.choices import Situation, candidate_times, mode, record_of, variants
from spdsl.costs import device_for
from spdsl.diagnostics import SpatError, error
from spdsl.pipeline import bound, opened, refuse_stages
from spdsl.prepare import choose_backend, precision, target_of
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_call
from spdsl.runtime.lists import lists_for
from spdsl.runtime.operator import with_batch
from spdsl.runtime.parts import settled
from spdsl.runtime.recorder import Recorder
from spdsl.runtime.requests import rounded_up

if TYPE_CHECKING:
    from spdsl.runtime.calls import Engine

Timer: TypeAlias = Callable[[Callable[[], object]], float]
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
    share: tuple[int, int] = (0, 1),
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
        share: which of how many processes this is, each of which measures its share of the candidates on a GPU of its
            own; one that comes after them finds all times, and chooses.
        timer: seconds that a run takes; by default the device's, the median of many.
        watch: is told of the progress.

    Raises:
        SpatError: there is nothing to measure on (SP521), or a call would fail.
    """
    refuse_stages(key)
    started, situation = time.monotonic(), situation_of(key, q, k, v)
    base = plan(situation.problem(), situation.target)
    _refuse(q)
    call = _call(base, key, q, k, v, tables)
    device = _device(situation)
    kinds: list[Kind] = ["forward"]
    if backward and base.fused is None:
        kinds += ["dq", "dkdv"]
    tasks = [each for kind in kinds for each in _ordered(kind, base, call, device, situation.target)]
    results = store().results
    known = {task: results.get("timing", _timing_key(situation, task.kind, task.tiles)) for task in tasks}
    number, count = share
    tasks = [task for place, task in enumerate(tasks) if place % count == number or known[task] is not None]
    waiting = [task for task in tasks if known[task] is None]
    steps, done = 2 * len(tasks), 2 * (len(tasks) - len(waiting))
    for text in _compiled([task.plan for task in waiting], [task.kind for task in waiting], situation.target):
        done += 1
        watch(f"compiled {text}", done, steps)
    found: list[Measured] = []
    complete = True
    timer = timer or _on_device
    for task in tasks:
        time_of = known[task]
        if time_of is None:
            if budget is not None and time.monotonic() - started > budget and found:
                complete = False
                continue
            time_of = {"seconds": _time(call, task, timer)}
            results.put("timing", _timing_key(situation, task.kind, task.tiles), time_of)
            done += 1
            watch(f"measured {task.kind} {text_of(task.tiles)}", done, steps)
        found.append(
            Measured(
                kind=task.kind,
                tiles=task.tiles,
                predicted=task.predicted,
                seconds=time_of["seconds"],
                own=task.tiles == getattr(base, task.kind).tiles,
            )
        )
    tuned = Tuned(situation=situation, measured=tuple(found), complete=complete)
    if count == 1:
        _keep(tuned)
    return tuned


def on_first_use(key: str, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor]) -> None:
    """Tune before the first call of its kind, if ``SPDSL_TUNE=first`` asks for it; never while a graph is captured or a
    compiler traces, nor where a call is about to fail."""
    if mode() != "first" or not _is_on_gpu(q):
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    kind: Kind
    tiles: Tiles
    plan: Plan
    predicted: float | None


def _device(situation: Situation) -> DeviceProfile | None:
    try:
        return device_for(situation.target, situation.gpu)
    except SpatError:
        return None


def _refuse(q: Tensor) -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if q.device.type != "cuda" and not interpreted:
        raise error("SP521", "there is no GPU to measure on", help="tune on the machine that will run the kernels")


def _call(base: Plan, key: str, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor]) -> Call:
    _, values = opened(key)
    pattern = base.problem.pattern
    given = {table.name: with_batch(table, tables[table.name]) for table in pattern.tables}
    names = {each.variable: value for each, value in zip(pattern.free, values, strict=True)}
    start = k.shape[2] - q.shape[2]
    return check_call(Call(plan=base, q=q, k=k, v=v, q_start=start, tables=given, parameters=names))


def _ordered(kind: Kind, base: Plan, call: Call, device: DeviceProfile | None, target: str) -> list[_Task]:
    """The candidates to measure, the most promising first, and always the plan's own."""
    plans = variants(kind, base, target)
    own = getattr(base, kind).tiles
    if device is None:
        return [_Task(kind=kind, tiles=tiles, plan=plans[tiles], predicted=None) for tiles in list(plans)[:MOST]]
    times = candidate_times(kind, base, call, device, target)
    best = sorted(times, key=lambda tiles: times[tiles])[:MOST]
    order = best if own in best else [*best[:-1], own]
    return [_Task(kind=kind, tiles=tiles, plan=plans[tiles], predicted=times[tiles]) for tiles in order]


def _compiled(plans: Sequence[Plan], kinds: Sequence[Kind], target: str) -> Any:
    """Compile all kernels side by side, into the cache; what cannot be compiled fails again when it is run."""
    if os.environ.get("TRITON_INTERPRET") == "1" or not plans:
        return
    from spdsl.codegen.aot import TARGETS, compile_kernels

    if target not in TARGETS:
        return

    def one(made: Plan, kind: Kind) -> str:
        names = (kind, f"{kind}_combine", "delta") if kind != "forward" else (kind, f"{kind}_combine")
        try:
            for part in made.every:
                compile_kernels(part, target, names)
        except Exception as refused:  # noqa: BLE001  # a candidate that cannot be built is not taken
            return f"{kind} {text_of(getattr(made, kind).tiles)}: {type(refused).__name__}"
        return f"{kind} {text_of(getattr(made, kind).tiles)}"

    with ThreadPoolExecutor(max_workers=min(len(plans), os.cpu_count() or 1)) as pool:
        for future in as_completed([pool.submit(one, *each) for each in zip(plans, kinds, strict=True)]):
            yield future.result()


def _time(call: Call, task: _Task, timer: Timer) -> float | None:
    """Seconds of the kernel, with the one before a backward pass and those of a union's other parts; None where it does
    not run."""
    from spdsl.runtime.plain import on
    from spdsl.runtime.triton_engine import TritonEngine

    engine = TritonEngine()
    try:
        call = settled(replace(call, plan=task.plan))
        with on(call.q.device):  # events and graphs are those of the current device
            return timer(_runner(engine, call, task.kind))
    except Exception:  # noqa: BLE001  # too little shared memory, a compiler that gives up: no candidate
        return None


def _runner(engine: Engine, call: Call, kind: Kind) -> Callable[[], object]:
    if kind == "forward":
        ready = lists_for(call, ("forward",))
        return lambda: engine.forward(_unseen(ready))
    ready = replace(lists_for(call, ("dq", "dkdv")), deterministic=True)
    out = torch.zeros((*call.q.shape[:3], call.v.shape[3]), dtype=call.q.dtype, device=call.q.device)
    lse = torch.zeros(call.q.shape[:3], dtype=torch.float32, device=call.q.device)
    wanted = frozenset("q") if kind == "dq" else frozenset("kv")
    return lambda: engine.backward(_unseen(ready), out, lse, out, None, wanted)


def _unseen(call: Call) -> Call:
    """The call with a recorder of its own, so that results of earlier runs are not held."""
    return replace(call, recorder=Recorder())


def _on_device(run: Callable[[], object]) -> float:
    """The median time of a run on the device, in seconds: in a graph, so that no time of the host counts."""
    from triton.testing import do_bench, do_bench_cudagraph

    try:
        return float(do_bench_cudagraph(run, rep=20, return_mode="median")) * 1e-3
    except RuntimeError:  # something in the run cannot be captured
        return float(do_bench(run, warmup=10, rep=50, return_mode="median")) * 1e-3


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


def _timing_key(situation: Situation, kind: Kind, tiles: Tiles) -> str:
    return digest("timing", situation.identity, kind, repr(tiles))


def text_of(tiles: Tiles) -> str:
    """Tiles to read."""
    kind = "Gluon" if tiles.specialised else "Triton"
    return f"{tiles.block_q}×{tiles.block_k}, {tiles.warps} warps, {tiles.stages} stages, {kind}"
