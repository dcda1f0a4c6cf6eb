"""Candidates of a kernel tried: built beside each other in processes, and timed on a device or on several.

From plans to seconds.  What is built is in the cache; what is timed is one kernel in one call, the first of a pattern
or those of its backward pass, with the kernels that go with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Condition
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.analysis.workers import Workers
from spdsl.codegen.builders import builders_for
from spdsl.pipeline import opened
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_call
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.lists import lists_for
from spdsl.runtime.parts import settled
from spdsl.runtime.recorder import Recorder

if TYPE_CHECKING:
    from spdsl.runtime.calls import Engine

Timer: TypeAlias = Callable[[Callable[[], object]], float]
Bench: TypeAlias = Callable[[Plan, Kind], float | None]
"""Times a kernel of a plan in a call: seconds, or None where it does not run."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """A candidate of a kernel in a plan that has it; ``predicted`` is None on a GPU of which there is no model."""

    kind: Kind
    tiles: Tiles
    plan: Plan
    predicted: float | None


def tried(
    trials: Sequence[Trial],
    benches: Sequence[Bench],
    target: str,
    keep: Callable[[Trial, float | None], None],
    *,
    builders: Workers | None = None,
    over: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,  # noqa: ARG005  # nobody listens
) -> dict[Trial, float | None]:
    """Build all, and time each on the first of the ``benches`` that is free: of those that are built the first.

    ``keep`` gets every time as soon as it is there, from whichever thread; once it is ``over``, nothing more is begun,
    and what is left has no time.  ``builders`` are those of `builders_for`, where they were started before.  ``tell``
    hears of every step.
    """
    idle: SimpleQueue[Bench] = SimpleQueue()
    for bench in benches:
        idle.put(bench)
    found: dict[Trial, float | None] = {}

    def time(turns: _Turns) -> None:
        if over():
            return
        trial, built = turns.next()
        try:
            tell(built.result())
        except CancelledError:  # something else failed, and builders were ended
            return
        except (OSError, EOFError, TimeoutError):
            pass  # a child that broke off: it is built where it is timed
        bench = idle.get()
        try:
            if not over():
                found[trial] = bench(trial.plan, trial.kind)
                keep(trial, found[trial])
                tell(f"measured {trial.kind} {text_of(trial.tiles)}")
        finally:
            idle.put(bench)

    with _threads(len(benches)) as timers, _building(trials, target, builders) as built:
        turns = _Turns(waiting=list(zip(trials, built, strict=True)))
        timed = [timers.submit(time, turns) for _ in trials]
        for done in as_completed(timed):
            done.result()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turns:
    """What is not timed yet, in order, and when it is built: one that takes long holds up no other."""

    waiting: list[tuple[Trial, Future[str]]]
    changed: Condition = field(default_factory=Condition)

    def __post_init__(self) -> None:
        # Futures that are cancelled tell those who asked to be called, but not those who `wait` for them.
        for _, built in tuple(self.waiting):
            built.add_done_callback(self._tell)

    def _tell(self, built: Future[str]) -> None:
        del built
        with self.changed:
            self.changed.notify_all()

    def next(self) -> tuple[Trial, Future[str]]:
        """The first that is built, or cancelled; waits until there is one."""
        with self.changed:
            while True:
                for at, (_, built) in enumerate(self.waiting):
                    if built.done():
                        return self.waiting.pop(at)
                self.changed.wait()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads of which, where the block is left early, none begins anything more."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="spdsl-trials")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _building(trials: Sequence[Trial], target: str, builders: Workers | None) -> Iterator[Sequence[Future[str]]]:
    """Every candidate in this order, when it is built, and what that was; some are made where they run."""
    from spdsl.codegen.aot import TARGETS

    if os.environ.get("TRITON_INTERPRET") == "1" or target not in TARGETS:
        yield [_at_once(f"{each.kind} {text_of(each.tiles)}") for each in trials]
        return
    with builders or builders_for(len(trials)) as workers:
        yield [workers.submit(build, made=each.plan, kind=each.kind, target=target) for each in trials]


def _at_once(text: str) -> Future[str]:
    found: Future[str] = Future()
    found.set_result(text)
    return found


def build(made: Plan, kind: Kind, target: str) -> str:
    """Compile a kernel and those that go with it into the cache; what cannot be compiled fails again when it is run.
    Returns what was done, to read."""
    from spdsl.codegen.aot import compile_kernels

    names = (kind, f"{kind}_combine", "delta") if kind != "forward" else (kind, f"{kind}_combine")
    text = f"compiled {kind} {text_of(getattr(made, kind).tiles)}"
    try:
        for part in made.every:
            compile_kernels(part, target, names)
    except Exception as refused:  # noqa: BLE001  # a candidate that cannot be built is not taken
        return f"{text}: {type(refused).__name__}"
    return text


def bench_of(
    key: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    timer: Timer | None = None,
    *,
    q_start: int | None = None,
) -> Bench:
    """Times kernels of a pattern in a call with these tensors, on their device; by default in graphs, so that no time
    of the host counts.  Queries are the last positions unless ``q_start`` says otherwise."""
    _, values = opened(key)

    def bench(made: Plan, kind: Kind) -> float | None:
        from spdsl.runtime.plain import on
        from spdsl.runtime.triton_engine import TritonEngine

        try:
            call = settled(call_of(made, values, q, k, v, tables, q_start))
            with on(q.device):  # events and graphs are those of the current device
                return (timer or _on_device)(_runner(TritonEngine(), call, kind))
        except Exception:  # noqa: BLE001  # too little shared memory, a compiler that gives up: no candidate
            return None

    return bench


def call_of(
    made: Plan,
    values: Sequence[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    q_start: int | None = None,
) -> Call:
    """The call of a plan with these tensors; ``values`` are those of its free parameters.

    Raises:
        SpatError: they do not fit.
    """
    pattern = made.problem.pattern
    given = {table.name: with_batch(table, tables[table.name]) for table in pattern.tables}
    names = {each.variable: value for each, value in zip(pattern.free, values, strict=True)}
    start = k.shape[2] - q.shape[2] if q_start is None else q_start
    return check_call(Call(plan=made, q=q, k=k, v=v, q_start=start, tables=given, parameters=names))


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


def text_of(tiles: Tiles) -> str:
    """Tiles to read."""
    kind = "Gluon" if tiles.specialised else "Triton"
    return f"{tiles.block_q}×{tiles.block_k}, {tiles.warps} warps, {tiles.stages} stages, {kind}"
