"""What `race_machine` remembers: accesses and their clocks, shared memory, its barriers, groups of warps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.codegen.machine import OPAQUE, Int

if TYPE_CHECKING:
    from tests.codegen.race_machine import Racing

BYTES = {"int32": 4, "int64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

Clock = dict[str, int]


class RaceError(AssertionError):
    """Two accesses without an order, a deadlock, or bytes that do not add up."""


def join(into: Clock, other: Clock) -> None:
    for who, time in other.items():
        into[who] = max(into.get(who, 0), time)


@dataclass(slots=True)
class Access:
    """One access to the bytes ``low`` to ``high`` of an allocation."""

    who: str
    time: int
    step: int
    writes: bool
    by_threads: bool
    what: str
    fenced: bool = False

    def before(self, clock: Clock) -> bool:
        return clock.get(self.who, 0) >= self.time


@dataclass(slots=True)
class Allocation:
    """Shared memory as it was asked for, the accesses to each of its parts, and the ints in it."""

    number: int
    bytes: int
    accesses: dict[tuple[int, int], list[Access]] = field(default_factory=dict)
    ints: dict[int, Int] = field(default_factory=dict)
    counts: bool = False


@dataclass(slots=True)
class Barrier:
    """A barrier in memory: how many must arrive in a phase, and the clocks of those that did, phase by phase."""

    count: int = 0
    left: int = 0
    bytes: int = 0
    released: list[Clock] = field(default_factory=lambda: [{}])

    @property
    def phase(self) -> int:
        return len(self.released) - 1

    def advance(self) -> None:
        if self.left == 0 and self.bytes == 0:
            self.left = self.count
            self.released.append({})


@dataclass(slots=True)
class Group:
    """Warps that run one function."""

    name: str
    run: Callable[[], None]
    speaker: Clock = field(default_factory=dict)
    others: Clock = field(default_factory=dict)
    written: list[Access] = field(default_factory=list)
    products: list[tuple[str, str]] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    may_go: Callable[[], bool] | None = None
    done: bool = False

    def __post_init__(self) -> None:
        self.speaker, self.others = {f"{self.name}:speaker": 1}, {f"{self.name}:others": 1}

    @property
    def sides(self) -> tuple[tuple[str, Clock], tuple[str, Clock]]:
        return (f"{self.name}:speaker", self.speaker), (f"{self.name}:others", self.others)


@dataclass(frozen=True, slots=True)
class View:
    """A part of shared memory."""

    machine: Racing
    allocation: Allocation
    low: int
    high: int
    parts: int

    def index(self, at: Any) -> View:
        size = (self.high - self.low) // self.parts
        if not 0 <= int(at) < self.parts:
            raise RaceError(f"{self.machine.here()}: place {int(at)} of {self.parts}")
        low = self.low + int(at) * size
        return View(self.machine, self.allocation, low, low + size, 1)

    def reinterpret(self, kind: str, shape: list[Any], layout: Any) -> View:
        sizes = [int(x) for x in shape]
        assert math.prod(sizes) * BYTES[kind] == self.high - self.low, "a view of another size"
        return View(self.machine, self.allocation, self.low, self.high, sizes[0])

    _reinterpret = reinterpret

    def reshape(self, shape: Any) -> View:
        return self

    def permute(self, order: Any) -> View:
        return self

    def store(self, value: Any) -> None:
        self.machine.by_threads(self, writes=True)
        if isinstance(value, Int):
            self.allocation.ints[self.low] = value

    def load(self, layout: Any) -> Any:
        self.machine.by_threads(self, writes=False)
        if self.allocation.counts and self.low not in self.allocation.ints:
            raise RaceError(f"{self.machine.here()}: a number that nobody has told yet")
        return self.allocation.ints.get(self.low, OPAQUE)
