"""What a call of a pattern with stages would launch on a GPU that is not there.

From: a key and tensors of which shapes and types count.  To: its launches and operations of torch, noted on a GPU that
is stood in for (`spdsl.runtime.absent`): nothing is compiled, and nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spdsl import staged
from spdsl.analysis.candidates import SHARED_BYTES
from spdsl.analysis.device import DeviceProfile
from spdsl.codegen.asked import Asked
from spdsl.runtime.absent import AbsentGpu, standing_in
from spdsl.runtime.notes import Started
from spdsl.runtime.numbers import Assumed
from spdsl.runtime.seen import tensors_in

_UNKNOWN = 32
"""What is taken for a number that only a run knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A kernel of ours, its programs and its arguments by name; tensors have no numbers."""

    name: str
    programs: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation of torch, and the bytes that it reads and writes."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """What a call launches.  ``decided``: functions that read a number which only a run knows."""

    kernels: tuple[Launched, ...]
    operations: tuple[Operation, ...]
    decided: tuple[str, ...]


def launches_of(
    key: str,
    tensors: Sequence[Tensor],
    tables: Mapping[str, Tensor],
    start: int,
    gpu: DeviceProfile,
) -> Launches | None:
    """The launches of a call for tensors like q, k and v, without gradients; None where the host has to read what only
    a run knows."""
    absent = AbsentGpu(name=gpu.name, target=gpu.target, multiprocessors=gpu.multiprocessors)
    asked, assumed = Asked(room=SHARED_BYTES[gpu.target], device=absent.place), Assumed(number=_UNKNOWN)
    kernels, operations = list[Launched](), list[Operation]()

    def tell(note: object) -> None:
        if isinstance(note, Started):
            x, y, z = note.grid
            kernels.append(Launched(name=_name(note), programs=x * y * z, values=note.values))

    try:
        with standing_in(absent, "inference", asked, assumed, tell) as device, torch.no_grad():
            q, k, v = (torch.empty(each.shape, dtype=each.dtype, device=device) for each in tensors)
            given = {name: torch.empty(each.shape, dtype=each.dtype, device=device) for name, each in tables.items()}
            with _Operations(operations):
                staged.attend(q, k, v, given, None, key, start)
    except (RuntimeError, NotImplementedError):
        return None
    return Launches(kernels=tuple(kernels), operations=tuple(operations), decided=tuple(sorted(assumed.places)))


def _name(note: Started) -> str:
    function = getattr(note.starter, "function", None)
    function = getattr(note.starter, "kernel", None) if function is None else function
    return str(getattr(function, "__name__", None) or getattr(function, "name", "kernel"))


class _Operations(TorchDispatchMode):
    """Notes operations on tensors without numbers."""

    def __init__(self, found: list[Operation]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        read, made = tensors_in((args, kwargs or {})), tensors_in(result)
        storages = {each.untyped_storage()._cdata for each in read}  # noqa: SLF001  # torch has no public name
        name = func.name().removeprefix("aten::").partition(".")[0]
        looks = all(each.untyped_storage()._cdata in storages for each in made)  # noqa: SLF001
        changes = name.endswith("_") and not name.startswith("_")
        if any(each.is_meta for each in (*read, *made)) and not name.startswith("empty") and (changes or not looks):
            self.found.append(Operation(name=name, bytes=sum(held_bytes(each) for each in (*read, *made))))
        return result


def held_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, entries that stand for several once."""
    held = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        held *= size if stride else 1
    return held * tensor.element_size()
