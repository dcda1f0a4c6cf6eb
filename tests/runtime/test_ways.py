"""What of a computation is repeated for other tensors, and what is done once: results are those of doing all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spdsl.runtime import ways

Make = Callable[[Tensor], Tensor]


def _settled(x: Tensor) -> Tensor:
    """Memory that is filled before anybody reads it."""
    table = torch.zeros(4)
    other = torch.empty_like(table)
    table[torch.tensor([1, 3])] = 5.0
    other.copy_(table * 2)
    return x + other


def _again(x: Tensor) -> Tensor:
    """Memory that holds one thing for its first reader and another for its second."""
    table = torch.zeros(4)
    first = x + table
    table.fill_(7.0)
    return first * table


def _mixed(x: Tensor) -> Tensor:
    """Memory in which constants and numbers of the input stand side by side."""
    room = torch.zeros(8)
    room[:4] = 3.0
    room[4:] = x
    return room * 2


def _looked_at(x: Tensor) -> Tensor:
    """Memory that is written through another look at it after it was read."""
    room = torch.zeros(2, 2)
    look = room.view(4)
    first = x * room.flatten()
    look.add_(1.0)
    return first + look + x


def _returned(x: Tensor) -> Tensor:
    """A result that is filled with constants first: each call has one of its own."""
    room = torch.full((4,), 2.0)
    room[:2] += x[:2]
    return room


@pytest.mark.parametrize("make", [_settled, _again, _mixed, _looked_at, _returned])
def test_only_what_depends_on_tensors_is_repeated(make: Make) -> None:
    one = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found, way = ways.watch(lambda: (make(one),), (one,))
    assert torch.equal(found[0], make(one))
    assert way is not None
    for other in (torch.tensor([0.5, -1.0, 9.0, 2.0]), torch.zeros(4)):
        results = [way.play((other,))[0] for _ in range(2)]
        for each in results:
            assert each is not None
            assert torch.equal(each, make(other))
            each.fill_(11.0)  # nobody else reads it
    assert make is not _settled or len(way.tape.flat) == 1


def _large(x: Tensor) -> Tensor:
    """More than is read of it."""
    table = torch.zeros(64)
    table.fill_(2.0)
    return x + table[:4]


def test_what_is_too_much_to_keep_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(4)
    for kept, constants in ((1 << 20, 256), (100, 0)):
        monkeypatch.setattr(ways, "KEPT", kept)
        _, way = ways.watch(lambda: (_large(one),), (one,))
        assert way is not None
        assert way.nbytes == constants
        found = way.play((2 * one,))[0]
        assert found is not None
        assert torch.equal(found, torch.full((4,), 4.0))


def test_what_is_large_is_made_of_what_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what takes too much room is made anew, and not what is made of that."""

    def make(x: Tensor) -> Tensor:
        line = torch.arange(8.0)
        table = line[:, None].expand(8, 32).contiguous() * 2
        return (x * table).sum(1) + table.amax(1)

    one = torch.ones(8, 32)
    monkeypatch.setattr(ways, "KEPT", 100)
    _, way = ways.watch(lambda: (make(one),), (one,))
    assert way is not None
    assert way.nbytes == 2 * 32  # the line, and the largest numbers of the table
    other = torch.arange(256.0).view(8, 32)
    found = way.play((other,))[0]
    assert found is not None
    assert torch.equal(found, make(other))


def test_what_is_large_and_depends_on_a_number_is_not_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(x: Tensor) -> Tensor:
        return x + torch.arange(64.0)[torch.arange(64) % 2 == 0]

    one = torch.ones(32)
    for kept in (1 << 20, 100):
        monkeypatch.setattr(ways, "KEPT", kept)
        _, way = ways.watch(lambda: (make(one),), (one,))
        assert (way is None) == (kept == 100)
