"""Times of kernels for the cost model: ``python -m benchmarks.calibrate --out raw.jsonl``.

Every subject is planned with each of the candidates and its kernels are timed alone, captured in CUDA graphs, so that
no host time counts.  Several processes plan and compile; a lock lets one at a time use the GPU.  The first line of the
result is about the machine, each other one a kernel's work, as the model sees it, with its time; what is there when
time runs out is kept.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

import spdsl
from benchmarks.subjects import Subject, checked, fitted
from spdsl.analysis.candidates import candidates
from spdsl.analysis.plan import plan as make_plan
from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.codegen.aot import compile_kernels
from spdsl.costs import work
from spdsl.kernels import plan_like
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_call
from spdsl.runtime.lists import lists_for
from spdsl.runtime.operator import with_batch
from spdsl.runtime.tape import Recorder
from spdsl.runtime.triton_engine import TritonEngine

Row = dict[str, Any]
KINDS: tuple[Kind, ...] = ("forward", "dq", "dkdv")
WANTED = {"dq": frozenset("q"), "dkdv": frozenset("kv"), "fused": frozenset("qkv")}


def plans_of(subject: Subject) -> list[tuple[Plan, tuple[Kind, ...]]]:
    """Plans that have every candidate of every kernel once, and the kernels of each that are to be timed."""
    base = call_of(subject, "cpu").plan
    pattern = base.problem.pattern
    sizes = {"head_dim": pattern.head_dim, "value_dim": base.problem.value_dim}
    tried: dict[Kind, tuple[Tiles, ...]] = {
        kind: candidates(kind, dtype="bf16", target="sm_90", default=getattr(base, kind), **sizes) for kind in KINDS
    }
    found: list[tuple[Plan, tuple[Kind, ...]]] = [(base, (*KINDS, *(("fused",) if base.fused else ())))]
    for turn in range(1, max(map(len, tried.values()))):
        kinds = tuple(kind for kind in KINDS if turn < len(tried[kind]))
        tiles = tuple((kind, tried[kind][turn]) for kind in kinds)
        found.append((make_plan(replace(base.problem, tiles=tiles), "sm_90"), kinds))
    return found


def call_of(subject: Subject, device: str, plan: Plan | None = None) -> Call:
    """A call of the subject, checked; on the CPU for counting alone, where tensors take no memory."""
    pattern = spdsl.loads(subject.pattern) if "{" in subject.pattern else spdsl.load(subject.pattern)
    attention = spdsl.compile(pattern, **subject.parameters)
    nq = subject.nq or subject.n
    shapes = [(1, subject.heads, rows, subject.dim) for rows in (nq, subject.n, subject.n)]
    one = torch.zeros((), dtype=torch.bfloat16)
    q, k, v = (one.expand(shape) for shape in shapes)
    if device != "cpu":
        q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes)
    chosen = plan_like(attention._key, q, k, v, "sm_90")  # noqa: SLF001  # the study looks inside
    plan = plan or chosen.plan
    tables = {name: each.to(device) for name, each in subject.inputs(subject.n).items()}
    given = {table.name: with_batch(table, tables[table.name]) for table in plan.problem.pattern.tables}
    call = Call(plan=plan, q=q, k=k, v=v, q_start=subject.n - nq, tables=given, parameters=chosen.variables)
    return check_call(call)


def timed(run: Callable[[], object], least: float = 1e-3) -> float:
    """Seconds of a run on the device: the median of four replays of a graph that holds several."""
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    repeats = max(1, min(20, int(least / (time.perf_counter() - start + 1e-6))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / repeats)
    return median(times[1:])


def build(family: int) -> int:
    """Compile what the subjects of one family need, and count the kernels."""
    subjects, count = families()[family], 0
    for plan, kinds in plans_of(subjects[0]):
        names = {name for kind in kinds for name in (kind, f"{kind}_combine", f"{kind}_intervals")}
        wanted = (*sorted(names), "delta", "intervals")
        try:
            count += len(compile_kernels(plan, "sm_90", wanted)[1])
        except Exception:
            traceback.print_exc()
    return count


def measure(family: int, out: Path, until: float) -> int:
    """Add the rows of the subjects of one family to a file, as long as there is time; returns how many."""
    subjects, count = families()[family], 0
    plans = plans_of(subjects[0])
    if time.time() < until:
        build(family)
    engine = TritonEngine()
    for subject in subjects:
        counted = [
            (plan, kind, work(call_of(subject, "cpu", plan), getattr(plan, kind)))
            for plan, kinds in plans
            for kind in kinds
        ]
        with FileLock(f"{out}.lock"):
            if time.time() > until:
                return count
            torch.manual_seed(0)
            call = call_of(subject, "cuda")
            lse = torch.full(call.q.shape[:3], 8.0, device="cuda")
            given = (torch.randn_like(call.q), lse, torch.randn_like(call.q))
            rows: list[Row] = [{"subject": subject.name, "role": subject.role, "works": [], **_dense(call)}]
            for plan, kind, found in counted:
                try:
                    seconds = _seconds(engine, replace(call, plan=plan), kind, given)
                except Exception as problem:
                    print(subject.name, kind, found.tiles, str(problem)[:150].replace("\n", " "), flush=True)
                    torch.cuda.synchronize()
                    continue
                about = {"subject": subject.name, "role": subject.role, "default": plan is plans[0][0]}
                rows.append(about | {"works": [asdict(found)], "seconds": seconds})
            with out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            count += len(rows)
            del call, given
            torch.cuda.empty_cache()
    return count


def _seconds(engine: TritonEngine, call: Call, kind: Kind, given: tuple[Tensor, Tensor, Tensor]) -> float:
    if kind == "forward":
        ready = lists_for(call, ("forward",))
        return timed(lambda: engine.forward(replace(ready, recorder=Recorder())))
    ready = replace(lists_for(call, ("fused",) if kind == "fused" else ("dq", "dkdv")), deterministic=kind != "fused")
    out, lse, d_out = given

    def run() -> object:
        return engine.backward(replace(ready, recorder=Recorder()), out, lse, d_out, None, WANTED[kind])

    return timed(run)


def _dense(call: Call) -> Row:
    """Seconds of torch's own attention at the shape of a call, with and without a causal mask."""
    found: Row = {"rows": call.q.shape[1] * call.q.shape[2], "n": call.q.shape[2], "head_dim": call.q.shape[3]}
    leaves = [each.detach().requires_grad_() for each in (call.q, call.k, call.v)]
    for name, causal in (("causal", True), ("full", False)):

        def run(causal: bool = causal) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)

        with torch.no_grad():
            found[f"{name}_forward"] = timed(run)
        out = run()
        grad = torch.ones_like(out)

        def back(out: Tensor = out, grad: Tensor = grad) -> object:
            return torch.autograd.grad(out, leaves, grad, retain_graph=True)

        back()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(3):
            back()
        end.record()
        torch.cuda.synchronize()
        found[f"{name}_backward"] = begin.elapsed_time(end) * 1e-3 / 3
    return found


def machine() -> Row:
    """Rates of the machine: matrix products, copies, and the start of a kernel inside a graph."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    y, one = torch.empty_like(x), torch.zeros(1, device="cuda")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "matrix_rate": 2 * 8192**3 / timed(lambda: a @ b),
        "copy_rate": 2 * x.numel() / timed(lambda: y.copy_(x)),
        "launch": timed(lambda: one.add_(1)),
    }


def families() -> list[list[Subject]]:
    """All subjects, those together that share kernels; the families with the most first."""
    found: dict[tuple[str, int], list[Subject]] = defaultdict(list)
    for subject in (*fitted(), *checked()):
        found[subject.family].append(subject)
    return sorted(found.values(), key=len, reverse=True)


def main() -> None:
    """Build, or build and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrate", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("calibration.jsonl"))
    parser.add_argument("--build", action="store_true", help="only compile")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300.0, help="after which nothing more is measured")
    arguments = parser.parse_args()
    groups, start = families(), time.time()
    print(f"{sum(map(len, groups))} subjects of {len(groups)} families", flush=True)
    if not arguments.build:
        about = {"machine": machine(), "torch": torch.__version__, "spdsl": spdsl.__version__}
        arguments.out.write_text(json.dumps(about) + "\n")
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        until, out = start + arguments.seconds, arguments.out.resolve()
        waiting = {
            pool.submit(build, number) if arguments.build else pool.submit(measure, number, out, until): group[0]
            for number, group in enumerate(groups)
        }
        for future in as_completed(waiting):
            first = waiting[future]
            try:
                print(first.name, first.dim, future.result(), f"{time.time() - start:.0f} s", flush=True)
            except Exception:
                traceback.print_exc()


if __name__ == "__main__":
    main()
