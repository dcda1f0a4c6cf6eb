"""How much memory the steps of repeated calls hold in all: of those used last, as much as there is room for.

What steps hold does not depend on the tensors of a call: positions, amounts, tiles of what is fixed.  Where steps are
kept (`spdsl.runtime.repeated`, `spdsl.runtime.whole_calls`) their number is bounded, and here their bytes are.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from weakref import ref

import torch

from spdsl.cache.store import bytes_of

SHARE = 64
"""One part in so many of a GPU's memory is room for all steps, unless ``SPDSL_STEPS_LIMIT`` says how many bytes."""

_ON_HOST = 1 << 28
"""Bytes of room where there is no GPU."""


def limit(device: torch.device) -> int:
    """The bytes that steps may hold on a device.

    Raises:
        SpatError: ``SPDSL_STEPS_LIMIT`` is no number of bytes (SP509).
    """
    given = os.environ.get("SPDSL_STEPS_LIMIT")
    return bytes_of(given) if given else _share(device)


@lru_cache(maxsize=64)
def _share(device: torch.device) -> int:
    if device.type != "cuda":
        return _ON_HOST
    return int(torch.cuda.get_device_properties(device).total_memory) // SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    steps: ref[object]
    device: torch.device
    nbytes: int
    forget: Callable[[], object]


@dataclass(slots=True)
class Shelf:
    """What holds memory, by identity, in the order of use; whoever keeps it is asked to forget it.

    ``pinned`` are those that graphs read: they stay, and count, as long as the process runs.
    """

    entries: OrderedDict[int, _Entry] = field(default_factory=OrderedDict)
    pinned: dict[int, object] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, steps: object, device: torch.device, nbytes: int, forget: Callable[[], object]) -> None:
        """Count what steps hold, as long as they live; have those forgotten for which there is no room now.

        ``forget`` must not keep the steps alive.
        """
        if not nbytes:
            return
        most = limit(device)
        with self.lock:
            self.entries.pop(id(steps), None)  # of others that had this identity, with their place
            self.entries[id(steps)] = _Entry(steps=ref(steps), device=device, nbytes=nbytes, forget=forget)
            alive = [(place, each) for place, each in self.entries.items() if each.steps() is not None]
            here = [(place, each) for place, each in alive if each.device == device]
            held = sum(each.nbytes for _, each in here)
            fixed = sum(each.nbytes for place, each in here if place in self.pinned)
            if fixed + nbytes > most and id(steps) not in self.pinned:
                here = here[-1:]  # no room can be made for these
            forgotten = dict[int, _Entry]()
            for place, each in here:
                if held > most and place not in self.pinned:
                    held -= each.nbytes
                    forgotten[place] = each
            self.entries.clear()
            self.entries.update((place, each) for place, each in alive if place not in forgotten)
        for each in forgotten.values():
            each.forget()

    def pin(self, steps: object) -> None:
        """A graph is captured with these."""
        self.pinned[id(steps)] = steps

    def use(self, steps: object) -> None:
        """These are the last to be forgotten."""
        if id(steps) in self.entries:
            with self.lock:
                if id(steps) in self.entries:
                    self.entries.move_to_end(id(steps))


SHELF = Shelf()
