"""Tapes of notes, whose launches are given addresses: what they make of other tensors is what the notes make."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from spdsl.runtime import tape, taping
from spdsl.runtime.arena import ALIGNED, Claim, offsets_of
from spdsl.runtime.notes import STREAM, Done, Entry, Grid, Note, Started, Taken, Viewed
from spdsl.runtime.seen import memory_of
from spdsl.runtime.tape import Address, Arena, Free
from spdsl.runtime.taping import tape_of

COUNT = 6


class Sum:
    """A kernel: ``out = a + b`` for some numbers, by addresses."""

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(values)

    def start(self, grid: Grid, given: Mapping[str, Any], stages: int, device: torch.device) -> None:
        self.launch(0, *(each.data_ptr() for each in given.values()))

    def launch(self, stream: int, *addresses: int) -> None:
        assert stream == 0
        a, b, out = (ctypes.cast(each, ctypes.POINTER(ctypes.c_float)) for each in addresses)
        for at in range(COUNT):
            out[at] = a[at] + b[at]

    def entry(self, grid: Grid, values: Mapping[str, Any], given: Any, stages: int, device: torch.device) -> Entry:
        return Entry(launch=self.launch, arguments=(STREAM, *values.values()))


def doubled(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:COUNT] * 2


class Program:
    """Notes of random steps; inputs do not begin where their memory does."""

    def __init__(self, seed: int) -> None:
        self.choose, self.notes = random.Random(seed), list[Note]()
        self.inputs = [torch.zeros(3 * COUNT)[COUNT:] for _ in range(2)]
        self.constant = torch.arange(2.0 * COUNT)
        self.known, self.taken = [*self.inputs, self.constant], list[Tensor]()
        for _ in range(16):
            self.choose.choice((self.view, self.double, self.sum, self.sum, self.sum))()
        self.results = self.choose.sample(self.known[3:], min(2, len(self.known) - 3))

    def view(self) -> None:
        of, skipped = self.choose.choice(self.known), self.choose.randrange(3)

        def look(tensor: Tensor) -> Tensor:
            flat = tensor.flatten()[min(skipped, tensor.numel() - COUNT) :]
            return flat.view(1, -1) if tensor.dim() == 1 and skipped == 0 else flat

        self.known.append(look(of))
        self.notes.append(Viewed(function=look, argument=of, result=self.known[-1]))

    def double(self) -> None:
        of = self.choose.choice(self.known)
        self.known.append(doubled(of))
        self.notes.append(Done(function=doubled, arguments=(of,), result=self.known[-1]))

    def sum(self) -> None:
        """Into new memory, which may hold zeros, or into what something else was in before."""
        a, b = (self.choose.choice(self.known) for _ in "ab")
        if not self.taken or self.choose.random() < 0.7:
            self.taken.append(torch.zeros(COUNT))
            self.known.append(self.taken[-1])
            zeroed = self.choose.random() < 0.4
            self.notes.append(Taken(result=self.taken[-1], zeroed=zeroed))
            if zeroed:
                return
            out = self.taken[-1]
        else:
            out = self.choose.choice(self.taken)
        values = {"a": a, "b": b, "out": out}
        device = a.device
        self.notes.append(Started(starter=Sum(), grid=(1, 1, 1), values=values, given=values, stages=0, device=device))

    def carried_out(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results of the notes one by one."""
        now = dict(zip(map(id, (*self.inputs, self.constant)), (*inputs, self.constant), strict=True))
        for note in self.notes:
            match note:
                case Taken(result=result):
                    now[id(result)] = torch.zeros_like(result)
                case Viewed(function=function, argument=argument, result=result):
                    now[id(result)] = function(now[id(argument)])
                case Done(function=function, arguments=(argument,), result=result):
                    now[id(result)] = function(now[id(argument)])
                case Started(values=values):
                    a, b, out = (now[id(each)] for each in values.values())
                    out[:COUNT] = a.flatten()[:COUNT] + b.flatten()[:COUNT]
                case _:
                    pytest.fail("another note")
        return [now[id(each)].flatten()[:COUNT] for each in self.results]


SMALL = 4 * COUNT


@pytest.mark.parametrize("same", [id, memory_of])
@pytest.mark.parametrize(("large", "freed"), [(SMALL + 1, SMALL + 1), (SMALL + 1, SMALL), (SMALL, SMALL)])
def test_random_programs(large: int, freed: int, same: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "current_stream", lambda device: 0)
    monkeypatch.setattr(taping, "LARGE", large)
    monkeypatch.setattr(taping, "FREED", freed)
    cleared = []

    def clear(address: int, bytes: int, stream: int) -> bool:
        cleared.append(stream)
        return len(cleared) % 2 == 0 and ctypes.memset(address, 0, bytes) == address  # else by torch

    monkeypatch.setattr(tape, "clear", clear)
    kinds = set[type]()
    for seed in range(100):
        program = Program(seed)
        given = (program.notes, program.inputs, [program.constant], program.results, torch.device("cpu"))
        made = tape_of(*given, same=same)
        assert made is not None
        inputs = [torch.randn(2 * COUNT, generator=torch.Generator().manual_seed(each)) for each in (seed, -1)]
        wanted = program.carried_out(inputs)
        for found in (made.play(inputs), made.play(inputs)):
            assert all(torch.equal(one.flatten()[:COUNT], two) for one, two in zip(found, wanted, strict=True)), seed
        monkeypatch.setattr(tape, "current_stream", lambda device: None)  # by name
        found = made.play(inputs)
        monkeypatch.setattr(tape, "current_stream", lambda device: 0)
        assert all(torch.equal(one.flatten()[:COUNT], two) for one, two in zip(found, wanted, strict=True)), seed
        kinds |= {type(each) for each in made.flat}
    assert Address in kinds
    assert (Arena in kinds) == (large > SMALL)
    assert large > SMALL or Free in kinds
    assert cleared


def test_parts_that_are_used_at_one_time_do_not_overlap() -> None:
    choose = random.Random(3)
    for _ in range(200):
        claims = []
        for _ in range(choose.randrange(1, 9)):
            first = choose.randrange(10)
            claims.append(Claim(bytes=choose.randrange(2000), first=first, last=choose.randrange(first, 12)))
        begins, size = offsets_of(claims)
        assert all(each % ALIGNED == 0 for each in begins)
        assert size <= sum(-(-each.bytes // ALIGNED) * ALIGNED for each in claims)
        for step in range(12):
            here = [
                (at, at + each.bytes)
                for at, each in zip(begins, claims, strict=True)
                if each.first <= step <= each.last
            ]
            assert all(end <= size for _, end in here)
            used = [byte for begin, end in here for byte in range(begin, end)]
            assert len(set(used)) == len(used)


def test_memory_is_used_again() -> None:
    claims = [Claim(bytes=1000, first=at, last=at + 1) for at in range(20)]
    assert offsets_of(claims)[1] == 2 * 1024
