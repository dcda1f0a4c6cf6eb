"""Times of kernels for the cost model: ``python -m benchmarks.calibrate --out raw.jsonl``.

Every subject is planned with each of the candidates and its kernels are timed alone, captured in CUDA graphs, so that
no host time counts.  ``--build`` plans, counts and compiles all that on the processors of the machine and leaves it in
``--folder``; without it, what is there, and with ``--wait`` what comes there meanwhile, is measured, the most
important first, by one process at a time, for as many seconds as are given.  The first line of the result is about the
machine, the others are dense attention at one shape, or a kernel's work, as the model sees it, with its time.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

import spdsl
from benchmarks.subjects import Subject, checked, drawn, fitted, suite, tuned
from benchmarks.timing import dense_run, dense_times, machine, seconds_of, started, union_times
from spdsl.analysis.candidates import candidates
from spdsl.analysis.plan import plan as make_plan
from spdsl.analysis.plans import Kind, Plan
from spdsl.analysis.work import Work
from spdsl.codegen.aot import compile_kernels
from spdsl.costs import is_causal, work
from spdsl.kernels import plan_like
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_call
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.parts import parts_of, settled

Row: TypeAlias = dict[str, Any]
Group: TypeAlias = Literal["main", "other", "backward"]

GROUPS: tuple[tuple[Group, tuple[Kind, ...]], ...] = (
    ("main", ("forward",)),
    ("other", ("forward",)),
    ("backward", ("dq", "dkdv")),
)
"""What is built and measured together: the plan's own kernels with candidates in their language, candidates in the
other, and those of the backward kernels, which come last of all."""

TARGET = "sm_90"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Some kernels of a family of subjects."""

    family: int
    group: Group

    @property
    def name(self) -> str:
        """What ``--tasks`` calls it."""
        return f"{self.group}-{self.family:03}"

    def file(self, folder: Path) -> Path:
        """What is known of it before anything runs."""
        return folder / f"{self.name}.pickle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A kernel that is compiled, and its counts for the subjects that it is for, by their numbers in the family: of all
    parts of a union together."""

    plan: Plan
    kind: Kind
    default: bool
    works: dict[int, tuple[Work, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The kernels of a task, and for every subject the values of its free parameters and whether it is causal."""

    kernels: tuple[Ready, ...]
    variables: tuple[dict[str, int], ...]
    causal: bool


def families() -> list[list[Subject]]:
    """All subjects, those together that share kernels; the families with the most first."""
    found: dict[tuple[object, ...], list[Subject]] = defaultdict(list)
    for subject in (*fitted(), *drawn(), *checked(), *suite(), *tuned()):
        found[subject.family].append(subject)
    return sorted(found.values(), key=len, reverse=True)


def tasks() -> list[Task]:
    """All tasks: of one family after the other the forward kernels, so that all candidates of a kernel are measured in
    one run, and then the backward ones."""
    numbers = range(len(families()))
    forward = [Task(family=family, group=group) for family in numbers for group in ("main", "other")]
    return forward + [Task(family=family, group="backward") for family in numbers]


def plans_of(base: Plan, group: Group, most: int) -> Iterator[tuple[Plan, Kind]]:
    """The kernels of a group: ``most`` candidates at most, each in a plan that has it."""
    if group == "main":
        yield base, "forward"
        if base.fused is not None:
            yield base, "fused"
    if base.more or base.stages:
        return  # parts of a union take their own tiles
    pattern = base.problem.pattern
    for kind in dict(GROUPS)[group]:
        own, found = getattr(base, kind), 0
        sizes = {"head_dim": pattern.head_dim, "value_dim": base.problem.value_dim}
        for tiles in candidates(kind, dtype=base.problem.dtype, target=TARGET, default=own, **sizes):
            known = kind == "forward" and tiles == own.tiles
            if known or (tiles.specialised != own.specialised) != (group == "other") or found == most:
                continue
            made = base if tiles == own.tiles else make_plan(replace(base.problem, tiles=((kind, tiles),)), TARGET)
            if base.together is None and made.together is not None:
                made = made.together  # what `settled` chose for the inputs
            if getattr(made, kind).tiles == tiles:
                found += 1
                yield made, kind


def call_of(subject: Subject, device: str, plan: Plan | None = None, variables: dict[str, int] | None = None) -> Call:
    """A call of the subject, checked; on the CPU for counting alone, where tensors take no memory."""
    counts = (subject.heads, subject.groups or subject.heads, subject.groups or subject.heads)
    shapes = [(subject.batch, heads, subject.n, subject.dim) for heads in counts]
    one = torch.zeros((), dtype=subject.dtype)
    q, k, v = (one.expand(shape) for shape in shapes)
    if device != "cpu":
        q, k, v = (torch.randn(shape, device=device, dtype=subject.dtype) for shape in shapes)
    if plan is None or variables is None:
        chosen = plan_like(attention_of(subject)._key, q, k, v, TARGET)  # noqa: SLF001  # the study looks inside
        plan, variables = chosen.plan, chosen.variables
    tables = {name: each.to(device) for name, each in subject.inputs(subject.n).items()}
    given = {table.name: with_batch(table, tables[table.name]) for table in plan.problem.pattern.tables}
    return settled(check_call(Call(plan=plan, q=q, k=k, v=v, tables=given, parameters=variables)))


def attention_of(subject: Subject) -> spdsl.Attention:
    """The pattern of a subject with its parameters."""
    pattern = spdsl.loads(subject.pattern) if "{" in subject.pattern else spdsl.load(subject.pattern)
    return spdsl.compile(pattern, **subject.parameters)


def build(task: Task, folder: Path, until: float, most: int) -> int:
    """Plan, count and compile the kernels of a task, and run each once where there is a GPU; returns how many.

    A task that is not whole ``until`` then, or that is there, is left.
    """
    subjects = families()[task.family]
    if time.time() > until or not _wanted(task, subjects) or task.file(folder).exists():
        return 0
    calls = [call_of(subject, "cpu") for subject in subjects]
    kernels: list[Ready] = []
    counted: dict[tuple[object, ...], Work] = {}
    for members in _alike(calls):
        base = calls[members[0]].plan
        for plan, kind in plans_of(base, task.group, most):
            if time.time() > until:
                return 0  # what is compiled is kept; a later run goes on
            names = (kind, f"{kind}_combine", f"{kind}_intervals", "delta", "intervals")
            try:
                for part in plan.parts:
                    compile_kernels(part, TARGET, names)
                works = {number: tuple(_works(calls[number], plan, kind, counted)) for number in members}
            except Exception:
                traceback.print_exc()
                continue
            kernels.append(Ready(plan=plan, kind=kind, default=plan is base, works=works))
    variables = tuple(call.parameters for call in calls)
    causal = is_causal(calls[0].plan.problem.pattern)
    built = Built(kernels=tuple(kernels), variables=variables, causal=causal)
    if torch.cuda.is_available():
        built = replace(built, kernels=tuple(each for each in kernels if _runs(subjects, built, each)))
    aside = task.file(folder).with_suffix(".part")
    aside.write_bytes(pickle.dumps(built))
    aside.rename(task.file(folder))  # it appears whole
    return len(built.kernels)


def _wanted(task: Task, subjects: list[Subject]) -> bool:
    """Backward kernels of their own run where the fused one does not; a few families show them."""
    return task.group != "backward" or any(subject.role == "fit" for subject in subjects)


def _alike(calls: list[Call]) -> list[list[int]]:
    """The numbers of calls, those together whose plans compute the same: values of parameters may be part of it."""
    found: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, call in enumerate(calls):
        found[call.plan.keep, call.plan.bias, frozenset(call.parameters)].append(number)
    return list(found.values())


def _works(call: Call, plan: Plan, kind: Kind, counted: dict[tuple[object, ...], Work]) -> Iterator[Work]:
    """The work of a kernel, and of those of its kind in other parts; kernels that differ in warps and stages alone are
    counted once."""
    for part in parts_of(replace(call, plan=plan), lambda _: ()):
        kinds = (kind,) if kind != "fused" or part.plan.fused is not None else ("dq", "dkdv")
        for each in kinds:
            kernel = getattr(part.plan, each)
            key = (id(call), part.plan.place, each, replace(kernel, warps=0, stages=0))
            if key not in counted:
                counted[key] = work(part, kernel)
            yield replace(counted[key], tiles=kernel.tiles)


def _runs(subjects: list[Subject], built: Built, ready: Ready) -> bool:
    """Whether a kernel runs, tried on the smallest subject."""
    number = min(ready.works, key=lambda each: subjects[each].n * subjects[each].heads)
    try:
        call = call_of(subjects[number], "cuda", ready.plan, built.variables[number])
        started(call, ready.kind)()
        torch.cuda.synchronize()
    except Exception as problem:
        print(subjects[number].name, ready.kind, str(problem)[:150].replace("\n", " "), flush=True)
        return False
    return True


def _measure(subject: Subject, number: int, built: Built) -> Iterator[Row]:
    """The rows of a subject."""
    about = {"subject": subject.name, "role": subject.role, "shape": [str(each) for each in subject.shape]}
    about |= {"against": "causal" if built.causal else "full"}
    kernels = [each for each in built.kernels if number in each.works]
    if subject.role == "tune":
        kernels = [each for each in kernels if each.kind == "forward"]  # others have no candidates
    if not kernels:
        return
    torch.manual_seed(0)
    call = call_of(subject, "cuda", kernels[0].plan, built.variables[number])
    if call.plan.more:
        inputs = {name: each.cuda() for name, each in subject.inputs(subject.n).items()}
        times = union_times(attention_of(subject), call.q, call.k, call.v, inputs)
    for ready in kernels:
        try:
            if call.plan.more:
                seconds = times[ready.kind != "forward"]
            else:
                seconds = seconds_of(replace(call, plan=ready.plan), ready.kind)
        except Exception as problem:
            print(subject.name, ready.kind, str(problem)[:150].replace("\n", " "), flush=True)
            torch.cuda.synchronize()
            continue
        works = [asdict(each) for each in ready.works[number]]
        yield about | {"kind": ready.kind, "default": ready.default, "works": works, "seconds": seconds}


def _beside_dense(subjects: list[Subject]) -> list[Subject]:
    """Those that are compared with dense attention."""
    return [subject for subject in subjects if subject.role != "tune"]


def work_through(mine: list[Task], folder: Path, pipe: Any) -> None:
    """A process that measures some tasks when it is told to: it takes a task, the number of one of its subjects
    and whether dense attention of this shape is meant, and answers with rows.  What it can do before, it does before.
    """
    groups = families()
    built: dict[Task, Built] = {}

    def prepare(task: Task) -> None:
        found = pickle.loads(task.file(folder).read_bytes())  # noqa: S301  # what `build` wrote
        kernels = tuple(each for each in found.kernels if _runs(groups[task.family], found, each))
        built[task] = replace(found, kernels=kernels)
        if task.group == "main":
            for subject in _beside_dense(groups[task.family]):
                dense_run(subject, causal=found.causal)()  # cuDNN plans for every shape, at the first call of it

    for task in mine:
        if task.file(folder).exists():
            try:
                prepare(task)
            except Exception:
                traceback.print_exc()
    torch.cuda.empty_cache()
    pipe.send(sum(len(each.kernels) for each in built.values()))
    while (asked := pipe.recv()) is not None:
        rows: list[Row] = []
        try:
            task, number, dense = asked
            if task not in built:
                prepare(task)
            if dense:
                rows = [dense_times(groups[task.family][number], causal=built[task].causal)]
            else:
                rows = list(_measure(groups[task.family][number], number, built[task]))
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()
        pipe.send(rows)


def measure(
    todo: list[Task], folder: Path, out: Path, jobs: int, until: float, roles: Sequence[str], *, wait: bool
) -> None:
    """Measure what is built for subjects of these roles, or with ``wait`` what comes, until time is over."""
    context, groups = get_context("spawn"), families()
    pipes, processes = [], []
    for number in range(jobs):
        here, there = context.Pipe()
        process = context.Process(target=work_through, args=(todo[number::jobs], folder, there), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    counts = [pipe.recv() for pipe in pipes]
    about = {"machine": machine(), "torch": torch.__version__, "spdsl": spdsl.__version__}
    print(f"{sum(counts)} kernels are ready, {until - time.time():.0f} s left", flush=True)
    lost: list[Any] = []
    begin, left = time.time(), dict(enumerate(todo))
    with out.open("w") as file:

        def ask(pipe: Any, what: object) -> None:
            if pipe in lost:
                return
            try:
                pipe.send(what)
                file.writelines(json.dumps(row) + "\n" for row in pipe.recv())
            except (EOFError, OSError):
                print(f"the process that was asked for {what} has ended", flush=True)
                lost.append(pipe)
            file.flush()

        file.write(json.dumps(about) + "\n")
        while left and time.time() < until:
            ready = next((place for place, task in left.items() if task.file(folder).exists()), None)
            if ready is None:
                if not wait:
                    break
                time.sleep(0.2)
                continue
            task = left.pop(ready)
            whole = True
            wanted = [each for each in enumerate(groups[task.family]) if each[1].role in roles]
            for number, subject in wanted:
                if whole := time.time() < until:
                    ask(pipes[ready % jobs], (task, number, False))
                    if task.group == "main" and _beside_dense([subject]):
                        ask(pipes[ready % jobs], (task, number, True))
            print(f"{time.time() - begin:.1f} s: {task.name} {'done' if whole else 'cut'}", flush=True)
    print("left:", *(task.name for task in left.values()), flush=True)
    for pipe in pipes:
        if pipe not in lost:
            pipe.send(None)


def main() -> None:
    """Build, or measure what is built."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrate", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("calibration.jsonl"))
    parser.add_argument("--folder", type=Path, default=Path("calibration"), help="what is built")
    parser.add_argument("--build", action="store_true", help="only plan and compile")
    parser.add_argument("--wait", action="store_true", help="also measure what another process builds meanwhile")
    parser.add_argument("--tasks", nargs="+", help="these alone, as `left` named them")
    parser.add_argument("--roles", nargs="+", default=("fit", "check", "suite", "tune"), help="subjects to measure")
    parser.add_argument("--most", type=int, default=12, help="candidates of a kernel in each language")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300.0, help="after which nothing more is begun")
    arguments = parser.parse_args()
    start, until = time.time(), time.time() + arguments.seconds
    todo = [task for task in tasks() if arguments.tasks is None or task.name in arguments.tasks]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.build:
        measure(todo, arguments.folder, arguments.out, arguments.jobs, until, arguments.roles, wait=arguments.wait)
        return
    print(f"{len(todo)} tasks for {sum(map(len, families()))} subjects", flush=True)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(build, task, arguments.folder, until, arguments.most): task for task in todo}
        for future in as_completed(waiting):
            failed = future.exception()
            found = f"failed: {failed}" if failed else future.result()
            print(waiting[future], found, f"{time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
