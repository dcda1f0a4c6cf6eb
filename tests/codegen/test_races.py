"""Kernels with specialised warps keep accesses to shared memory in order, and every line that keeps it matters."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import prepare
from spdsl.codegen.blocks import Kernel
from spdsl.codegen.gluon import emit_gluon
from spdsl.runtime import picks
from spdsl.runtime.calls import Call
from spdsl.runtime.launch import Loaded
from spdsl.runtime.ranking import FAR
from tests.codegen.machine import Int, Pointer
from tests.codegen.race_machine import run, without

N, HEADS, GROUPS, DIM = 700, 2, 1, 128

PATTERNS: dict[str, dict[str, object]] = {
    "causal": {},
    "sliding_window": {"window": 100},
    "streaming": {"sinks": 64, "window": 100},
    "dilated": {"span": 200},
    "strided": {"local": 20, "stride": 16},
    "bigbird": {},
    "power": {"block": 64},
    "s2": {},
    "neighborhood_2d": {"extents": (20, 35), "window": (9, 13)},
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel as the run time starts it."""

    kernel: Kernel
    text: str
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]

    def programs(self, count: int) -> list[tuple[int, int, int]]:
        """Some of the programs, among them the first and the last."""
        chance = random.Random(0)
        others = [(chance.randrange(self.grid[0]), chance.randrange(self.grid[1]), 0) for _ in range(count - 2)]
        return [(0, 0, 0), (self.grid[0] - 1, self.grid[1] - 1, 0), *others]

    def run(self, text: str, seed: int, count: int = 5) -> bool:
        ran = [run(text, self.kernel.name, self.arguments, (at, self.grid), seed) for at in self.programs(count)]
        return any(ran)


def argument(kernel: Kernel, name: str, value: Any) -> Any:
    """What the machine is given for it: of tensors of numbers only that they are read."""
    block = next(each.block for each in kernel.arguments if each.name == name)
    if not isinstance(value, Tensor):
        return Int(value)
    counts = block is None and not value.is_floating_point()
    return Pointer(name, value.numpy() if counts else None)


def fuses(call: Call, wanted: frozenset[str]) -> bool:
    """As it is on a GPU."""
    fused = call.plan.fused
    return fused is not None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """Launches of kernels with specialised warps, which are not carried out."""
    found: list[Launch] = []

    def start(self: Loaded, call: Call, kernel: Kernel, grid: tuple[int, int, int], values: Mapping[str, Any]) -> None:
        if kernel.fetch is None:
            return
        arguments = {each.name: argument(kernel, each.name, values[each.name]) for each in kernel.arguments}
        text = emit_gluon(self.graph, kernel, "3.6.0").text
        found.append(Launch(kernel=kernel, text=text, grid=grid, arguments=arguments))

    monkeypatch.setattr(Loaded, "_start", start)
    monkeypatch.setattr(prepare, "choose_backend", lambda asked, device: "triton")
    monkeypatch.setattr(prepare, "target_of", lambda backend, device: "sm_90")
    monkeypatch.setattr(Call, "fuses", fuses)
    caches = (prepare._planned, prepare._settled)
    for cache in caches:
        cache.cache_clear()
    yield found
    for cache in caches:
        cache.cache_clear()


def launch(name: str, n: int = N, **parameters: object) -> None:
    """Forward and backward of a pattern."""
    shapes = ((1, HEADS, n, DIM), *2 * ((1, GROUPS, n, DIM),))
    leaves = [torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    out = spdsl.compile(name, **PATTERNS[name] | parameters)(*leaves)
    torch.autograd.grad(out.sum(), leaves)  # type: ignore[union-attr]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_no_access_races(name: str, deterministic: bool, started: list[Launch]) -> None:
    launch(name, deterministic=deterministic)
    backward = "ordered" if deterministic else "fused"
    assert {each.kernel.name for each in started} == {"forward", backward}
    for each, seed in itertools.product(started, range(2)):
        each.run(each.text, seed)


PICKS = """
pattern picks() {
  axis blk = token by 64
  input chosen: bool[g, q, k.blk]
  keep causal and chosen
}
"""


def launch_picks(n: int = N) -> None:
    """Forward and backward of blocks that queries have picked, those of the own block and of the first."""
    q = torch.zeros(1, 16, n, DIM, dtype=torch.bfloat16, requires_grad=True)
    k, v = torch.zeros(2, 1, 1, n, DIM, dtype=torch.bfloat16).requires_grad_()
    own = torch.arange(n, dtype=torch.int32) // 64
    lists = torch.stack([torch.zeros_like(own), own.clamp(min=1)], -1)[None]
    lists[:, :64, 1] = FAR
    out = spdsl.compile(spdsl.loads(PICKS))(q, k, v, chosen=lists)
    torch.autograd.grad(out.sum(), (q, k))  # type: ignore[union-attr]


@pytest.mark.parametrize("parts", [False, True])
def test_no_access_to_picks_races(parts: bool, started: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    if parts:
        monkeypatch.setattr(picks, "LEAST", 16)
    launch_picks()
    (dkdv,) = started
    assert dkdv.kernel.name == "dkdv"
    for seed in range(3):
        dkdv.run(dkdv.text, seed)


TURNED = """
pattern turned() {
  axis blk = token by BLOCK
  input chosen: bool[h, q.blk, k.blk]
  keep causal and WHERE
}
"""


def launch_turned(block: int, where: str, n: int = N, **options: Any) -> None:
    """Forward and backward of blocks that runs of queries have picked, each head for itself: all but a few."""
    q = torch.zeros(1, HEADS, n, 64, dtype=torch.bfloat16, requires_grad=True)
    k, v = torch.zeros(2, 1, 1, n, 64, dtype=torch.bfloat16).requires_grad_()
    count = -(-n // block)
    query, key = torch.meshgrid(*2 * (torch.arange(count, dtype=torch.int32),), indexing="ij")
    lists = torch.where((key <= query) & ((query + key) % 3 > 0), key, FAR).sort(-1).values
    text = TURNED.replace("BLOCK", str(block)).replace("WHERE", where)
    out = spdsl.compile(spdsl.loads(text), **options)(q, k, v, chosen=lists.expand(HEADS, -1, -1))
    torch.autograd.grad(out.sum(), (q, k, v))  # type: ignore[union-attr]


WINDOW = "(q - k < 200 or chosen)"


@pytest.mark.parametrize(
    ("block", "where", "deterministic"),
    [
        (64, "chosen", False),
        (128, WINDOW, True),
        pytest.param(64, "chosen", True, marks=pytest.mark.slow),
        pytest.param(128, WINDOW, False, marks=pytest.mark.slow),
    ],
)
def test_no_access_to_listed_tiles_races(block: int, where: str, deterministic: bool, started: list[Launch]) -> None:
    launch_turned(block, where, deterministic=deterministic)
    found = [each for each in started if each.kernel.name == ("ordered" if deterministic else "fused")]
    assert [each.kernel.block for each in found] == [block] * (1 + ("or" in where))
    for each, seed in itertools.product(found, range(2)):
        each.run(each.text, seed)


DIVIDED = """
pattern divided() {
  axis blk = token by 64
  input chosen: bool[h, q.blk, k.blk]
  input own: bool[h, token]
  keep causal and (chosen or own[h, k])
}
"""


def test_no_access_of_later_sets_races(started: list[Launch]) -> None:
    """Where queries of a tile have picked nothing, what there is of them stays as it is."""
    n, count = 330, 6
    q, k, v = torch.zeros(3, 1, 1, n, 64, dtype=torch.bfloat16)
    query, key = torch.meshgrid(*2 * (torch.arange(count, dtype=torch.int32),), indexing="ij")
    lists = torch.where((key <= query) & ((query % 2 == 0) | (key > 1)), key, FAR).sort(-1).values
    own = (torch.arange(n) // 64 == 1) & (torch.arange(n) % 3 > 0)
    spdsl.compile(spdsl.loads(DIVIDED))(q, k, v, chosen=lists[None], own=own[None])
    first, later = (each for each in started if each.kernel.name == "forward")
    found = later.arguments["list_end"].data - later.arguments["list_begin"].data
    assert 0 in found
    assert found.any()
    for each, seed in itertools.product((first, later), range(2)):
        each.run(each.text, seed)


# Lines without which the text is wrong: a machine that misses one of them would miss a wrong template too.
NEEDED = (
    r"mbarrier\.(wait|arrive)\(.*|gl\.thread_barrier\(\)( *#.*)?|fence_async_shared\(\)|tma\.store_wait\(0\)( *#.*)?"
)

# Barriers that what comes with them makes superfluous: keys are overwritten after the values of the tile before were
# given back, behind a barrier of their own; a turn of the fused kernel ends with one.  Two of the warp that
# adds are for threads that this machine takes for one: the one that starts copies, and those that tell of their end.
SPARED = {"forward": 1, "fused": 1, "ordered": 3, "dkdv": 0}


@pytest.mark.parametrize(
    "kernel", [pytest.param(name, marks=pytest.mark.slow if name == "dkdv" else ()) for name in SPARED]
)
def test_every_line_that_keeps_order_matters(kernel: str, started: list[Launch]) -> None:
    """In long rows, which go round the rings, and programs that do several tiles."""
    if kernel == "dkdv":
        launch_picks()
    else:
        launch("sliding_window", 1300, window=420, deterministic=kernel == "ordered")
    (whole,) = (each for each in started if each.kernel.name == kernel)
    if whole.kernel.persistent:
        whole = replace(whole, grid=(3, 1, 1))  # every third item is one program's
    before, rest = whole.text.split("\ndef fetch(", 1)
    ours, after = rest.split(f"\ndef {kernel}(", 1)
    noticed, unnoticed = 0, []
    for line, text in without(ours, NEEDED):
        try:
            reached = [whole.run(f"{before}\ndef fetch({text}\ndef {kernel}({after}", seed, count=2) for seed in (0, 1)]
        except AssertionError:  # noqa: PERF203  # a race, which is looked for, or a number that nobody has told yet
            noticed += 1
        else:
            unnoticed += [line] * any(reached)
    assert noticed >= (6 if kernel == "dkdv" else 15)
    assert len(unnoticed) == SPARED[kernel], "\n".join(unnoticed)
    assert all("thread_barrier" in line for line in unnoticed), "\n".join(unnoticed)
