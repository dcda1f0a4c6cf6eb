"""Run the text of a kernel with specialised warps as warps run it, side by side, and find accesses that race.

compute-sanitizer does not know how the groups of such a kernel wait for each other (it reports Triton's own start of
the warps as a race), so the order is checked here: vector clocks, as in dynamic race detectors (Flanagan and Freund,
FastTrack, PLDI 2009), over the accesses to shared memory.  What has a clock of its own:

- of each group of warps the thread that speaks for it, and all others: barriers of the group join both, what is told to
  a memory barrier is told by the one alone;
- each copy of the copy engine, which begins when it is asked for and ends when its bytes are counted, or waited for;
- each product of matrices, which reads shared memory until the group waits for it, warp by warp.

Two accesses to the same bytes, one of which writes, must be in order; what threads have written and the copy engine or
a product reads must have been fenced.  Groups take turns in an order drawn from a seed; a round in which all wait is a
deadlock.  Bytes that a barrier expects are counted.
"""

from __future__ import annotations

import inspect
import math
import random
import re
import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.codegen.gluon_machine import Machine, _compiled
from tests.codegen.machine import OPAQUE, Decorator, Int, Opaque
from tests.codegen.race_state import BYTES, Access, Allocation, Barrier, Clock, Group, RaceError, View, join


class Racing(Machine):
    """Stands in for the languages of Gluon while the groups of one program take turns."""

    bfloat16, float16 = "bfloat16", "float16"

    def __init__(self, program: tuple[int, int, int], grid: tuple[int, int, int], seed: int) -> None:
        super().__init__(program, grid, 1, ())
        self._chance = random.Random(seed)
        self._turn = threading.Condition()
        self._groups: list[Group] = []
        self._current: Group | None = None  # type: ignore[assignment]
        self._failure: BaseException | None = None
        self._barriers: dict[tuple[int, int], Barrier] = {}
        self._allocations = 0
        self._steps = 0
        self.went_on = False

    # Memory.

    def allocate_shared_memory(self, kind: str, shape: list[Any], layout: Any) -> Any:  # type: ignore[override]
        sizes = [int(x) for x in shape]
        self._allocations += 1
        size = math.prod(sizes) * BYTES[kind]
        return View(self, Allocation(self._allocations, size, counts=kind == "int32"), 0, size, sizes[0])

    def here(self) -> str:
        """The line of the generated text that runs now."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename != "<generated>":
            frame = frame.f_back
        group = self._current
        return f"{group.name if group else 'start'}, line {frame.f_lineno if frame else '?'}"

    def _check(self, view: View, access: Access, clock: Clock) -> None:
        for (low, high), earlier in view.allocation.accesses.items():
            if low >= view.high or high <= view.low:
                continue
            for other in earlier:
                if not (access.writes or other.writes) or access.step == other.step:
                    continue  # threads write different elements of a tile
                if not other.before(clock):
                    raise RaceError(f"{access.what} races with {other.what}")
                unfenced = other.writes and other.by_threads and not other.fenced
                if unfenced and not access.by_threads and not access.writes:
                    raise RaceError(f"{access.what} reads what {other.what} wrote, without a fence")

    def _keep(self, view: View, *accesses: tuple[Access, Clock]) -> None:
        """Check accesses of one step, and keep them for those to come."""
        for access, clock in accesses:
            self._check(view, access, clock)
        kept = view.allocation.accesses.setdefault((view.low, view.high), [])
        if accesses[0][0].writes:
            # What is in order with these is in order with all that comes after them.
            kept[:] = [other for other in kept if not all(other.before(clock) for _, clock in accesses)]
        kept += [access for access, _ in accesses]

    def by_threads(self, view: View, *, writes: bool) -> None:
        """An access by all threads of the group that runs."""
        group = self._group()
        self._steps += 1
        found = []
        for who, clock in group.sides:
            clock[who] += 1
            what = f"the {'write' if writes else 'read'} of {self.here()}"
            access = Access(who=who, time=clock[who], step=self._steps, writes=writes, by_threads=True, what=what)
            found.append((access, clock))
            if writes:
                group.written.append(access)
        self._keep(view, *found)

    def _asynchronous(self, view: View, start: Clock, *, writes: bool, kind: str) -> str:
        self._steps += 1
        who = f"{kind} {self._steps}"
        what = f"the {kind} of {self.here()}"
        access = Access(who=who, time=1, step=self._steps, writes=writes, by_threads=False, what=what)
        self._keep(view, (access, start))
        return who

    # Groups that take turns.

    def _group(self) -> Group:
        assert self._current is not None, "outside of the groups"
        return self._current

    def warp_specialize(self, parts: list[Any], warps: list[int], registers: list[int]) -> None:
        for number, (function, arguments) in enumerate(parts):
            self._groups.append(Group(name=f"{function.__name__} {number}", run=lambda f=function, a=arguments: f(*a)))  # type: ignore[misc]
        threads = [threading.Thread(target=self._thread, args=(group,), daemon=True) for group in self._groups]
        with self._turn:
            for thread in threads:
                thread.start()
            self._choose()
            self._turn.wait_for(lambda: self._failure is not None or all(group.done for group in self._groups))
        if self._failure is not None:
            raise self._failure
        for group in self._groups:
            if group.products or group.copies or group.numbers:
                raise RaceError(
                    f"{group.name} ends while {len(group.products)} products and {len(group.copies)} copies run"
                )

    def _thread(self, group: Group) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._current is group or self._failure is not None)
            try:
                if self._failure is None:
                    group.run()
            except BaseException as failure:  # noqa: BLE001  # raised again by the thread that started this one
                self._failure = self._failure or failure
            group.done = True
            self._choose()

    def _choose(self) -> None:
        ready = [each for each in self._groups if not each.done and (each.may_go is None or each.may_go())]
        if not ready and not all(each.done for each in self._groups) and self._failure is None:
            self._failure = RaceError(f"a deadlock of {', '.join(each.name for each in self._groups if not each.done)}")
        self._current = self._chance.choice(ready) if ready else None
        self._turn.notify_all()

    def _pause(self, may_go: Callable[[], bool] | None = None) -> None:
        """Let another group have its turn; come back when ``may_go``."""
        group = self._group()
        group.may_go = may_go
        self._choose()
        self._turn.wait_for(lambda: self._current is group or self._failure is not None)
        group.may_go = None
        if self._failure is not None:
            raise RaceError("another group failed")

    def thread_barrier(self) -> None:
        group = self._group()
        join(group.speaker, group.others)
        join(group.others, group.speaker)

    barrier = thread_barrier

    # Barriers in memory.

    def _barrier(self, view: View) -> Barrier:
        return self._barriers.setdefault((view.allocation.number, view.low), Barrier())

    def init(self, view: View, count: Any) -> None:
        barrier = self._barrier(view)
        barrier.count = barrier.left = int(count)

    def arrive(self, view: View, count: Any = 1) -> None:
        group, barrier = self._group(), self._barrier(view)
        if barrier.left < int(count):
            raise RaceError(f"{self.here()}: more arrive than the barrier counts")
        group.speaker[f"{group.name}:speaker"] += 1
        join(barrier.released[-1], group.speaker)
        group.speaker[f"{group.name}:speaker"] += 1
        barrier.left -= int(count)
        barrier.advance()
        self._pause()

    def expect(self, view: View, count: Any) -> None:
        barrier = self._barrier(view)
        barrier.bytes += int(count)
        self.arrive(view)

    def wait(self, view: View, parity: Any) -> None:
        group, barrier = self._group(), self._barrier(view)
        bit = int(parity)
        self._pause(lambda: barrier.phase & 1 != bit)
        for clock in barrier.released[:-1]:
            join(group.speaker, clock)
            join(group.others, clock)

    # The copy engine.

    def async_copy_global_to_shared(self, tensor: Any, at: list[Any], view: View, memory: View) -> None:  # type: ignore[override]
        group, barrier = self._group(), self._barrier(view)
        who = self._asynchronous(memory, group.speaker, writes=True, kind="copy")
        size = memory.high - memory.low
        if barrier.bytes < size:
            raise RaceError(f"{self.here()}: more bytes than the barrier expects")
        barrier.bytes -= size
        barrier.released[-1][who] = 1
        barrier.advance()
        self._pause()

    async_load = async_copy_global_to_shared

    def async_copy_shared_to_global(self, tensor: Any, at: list[Any], memory: View) -> None:
        group = self._group()
        group.copies.append(self._asynchronous(memory, group.speaker, writes=False, kind="copy back"))
        self._pause()

    async_store = add_to_memory = async_atomic_add = async_copy_shared_to_global

    def store_wait(self, running: Any) -> None:
        group = self._group()
        for who in group.copies:
            group.speaker[who] = 1
        group.copies.clear()

    def fence_async_shared(self) -> None:
        group = self._group() if self._groups else None
        for access in group.written if group else ():
            access.fenced = True
        if group:
            group.written.clear()

    def inline_asm_elementwise(self, text: str, constraints: str, given: list[Any], *more: Any) -> Any:
        if "bulk.wait_group" in text:
            self.store_wait(0)
        elif "popc" in text:
            return Int(np.vectorize(lambda bits: int(bits).bit_count())(given[0].value))
        elif "ld.acquire" in text:
            return Int((1 << 31) - 1)  # other programs have had their turn
        return Int(0)

    # Copies of numbers, each of which a thread asks for; a barrier is told of them by every thread of the warp.

    def copy_numbers(self, memory: View, pointer: Any, mask: Any = None) -> None:
        group = self._group()
        # Threads copy different elements: what is in order for all of them counts.
        known = {who: min(time, group.others.get(who, 0)) for who, time in group.speaker.items()}
        group.numbers.append(self._asynchronous(memory, known, writes=True, kind="copy"))

    def arrive_with_numbers(self, view: View, increment_count: bool) -> None:
        assert not increment_count
        group, barrier = self._group(), self._barrier(view)
        barrier.released[-1].update(dict.fromkeys(group.numbers, 1))
        group.numbers.clear()
        self.arrive(view, 32)

    # Products of matrices.

    def warpgroup_mma(self, left: Any, right: Any, acc: Any, **more: Any) -> Opaque:
        group = self._group()
        for operand in (left, right):
            if isinstance(operand, View):
                names = [self._asynchronous(operand, clock, writes=False, kind="product") for _, clock in group.sides]
                group.products.append((names[0], names[1]))
            else:
                group.products.append(("", ""))
        return OPAQUE

    def warpgroup_mma_wait(self, running: int, deps: tuple[Any, ...]) -> Any:
        group = self._group()
        count = len(group.products) - 2 * int(running)
        for speaker, others in group.products[: max(count, 0)]:
            group.speaker[speaker] = group.others[others] = 1
        del group.products[: max(count, 0)]
        return super().warpgroup_mma_wait(running, deps)

    def gone(self) -> None:
        self.went_on = True

    # Numbers.

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if any(isinstance(x, Opaque | float) for x in (condition, a, b)):
            return OPAQUE
        return super().where(condition, a, b)

    def cast(self, value: Any, kind: str) -> Any:
        return Int(value).to(kind) if isinstance(value, int) else value.to(kind)

    def sum(self, value: Any, axis: int) -> Any:
        return Int(value.value.sum(axis)) if isinstance(value, Int) else OPAQUE


def run(text: str, kernel: str, arguments: Mapping[str, Any], at: tuple[Any, Any], seed: int) -> bool:
    """Run the program ``at = (program, grid)`` of a kernel; whether it came to a line that is gone.

    Raises:
        RaceError: Two accesses without an order, a deadlock, or bytes that do not add up.
    """
    machine = Racing(*at, seed)
    names: dict[str, Any] = {"gl": machine, "tma": machine, "mbarrier": machine, "gluon": Decorator()}
    numbers = {"async_copy_global_to_shared": machine.copy_numbers, "mbarrier_arrive": machine.arrive_with_numbers}
    names["async_copy"] = SimpleNamespace(**numbers)
    names |= {"range": machine.range, "builtin": lambda function: machine.add_to_memory}
    for name in ("warpgroup_mma", "warpgroup_mma_wait", "fence_async_shared"):
        names[name] = getattr(machine, name)
    exec(_compiled(text), names)  # noqa: S102  # our own text
    names[kernel](**arguments)
    return machine.went_on


def without(text: str, pattern: str) -> list[tuple[str, str]]:
    """Each line that matches, and the text in which it is missing."""
    lines = text.split("\n")
    found = [number for number, line in enumerate(lines) if re.fullmatch(pattern, line.strip())]
    return [
        (
            f"{at}: {lines[at].strip()}",
            "\n".join([*lines[:at], re.sub(r"\S.*", "gl.gone()", lines[at]), *lines[at + 1 :]]),
        )
        for at in found
    ]
