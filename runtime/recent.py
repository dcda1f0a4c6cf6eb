"""A small memory of results made from tensors, by content identity."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent(Generic[T]):
    """The ``size`` results used last.

    Each entry keeps what it was made from, so that no address in a key is used again.
    """

    size: int
    entries: OrderedDict[Hashable, tuple[T, object]] = field(default_factory=OrderedDict)

    def get(self, key: Hashable | None, sources: object, make: Callable[[], T]) -> T:
        """The result under ``key``, made if it is not there; None as key makes it every time."""
        if key is None:
            return make()
        if key not in self.entries:
            self.entries[key] = (make(), sources)
            if len(self.entries) > self.size:
                self.entries.popitem(last=False)
        self.entries.move_to_end(key)
        return self.entries[key][0]


def identity(*tensors: Tensor | None) -> Hashable | None:
    """What stays the same as long as the tensors hold the same numbers; None if that cannot be known."""
    if any(tensor is not None and tensor.is_inference() for tensor in tensors):
        # Inference tensors do not count their changes.
        return None
    return tuple(None if tensor is None else _identity(tensor) for tensor in tensors)


def _identity(tensor: Tensor) -> Hashable:
    place = (tensor.data_ptr(), tensor._version, str(tensor.device))  # noqa: SLF001  # torch has no public name for it
    return (*place, tensor.dtype, tuple(tensor.shape), tensor.stride())
