"""Calls of patterns with stages that are like earlier ones: their steps are repeated, forward and backward.

From: the tensors of a call, and what carries it out.  To: output and LSE, differentiable.  The first call of a kind is
carried out as it is; the second is watched, and so is its backward (`spdsl.runtime.ways`); one at a time, and ever less
often while little comes of it (`spdsl.runtime.sights`).  A backward unlike the one that was watched carries the call
out again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakSet, ref

import torch
from torch import Tensor

from spdsl.runtime.checks import captured
from spdsl.runtime.deferred import check_earlier
from spdsl.runtime.notices import is_watched
from spdsl.runtime.seen import is_twice
from spdsl.runtime.shelf import SHELF
from spdsl.runtime.sights import Sights
from spdsl.runtime.watched import ROOM, Notes, noting
from spdsl.runtime.ways import Ways, ways_of

Found: TypeAlias = "tuple[Tensor, Tensor | None]"
Make: TypeAlias = Callable[[Sequence[Tensor]], Found]

_TIMES = 32
"""How many times the memory of the inputs may be held while a call is watched, beyond `ROOM`; all that are watched
may hold at most half of what is free."""

_open: WeakSet[Notes] = WeakSet()
"""Notes of calls whose backward may still come."""

_lock = threading.Lock()


@dataclass(kw_only=True, eq=False)
class WholeCalls:
    """Calls of one kind; ``trained`` says whether any tensor wants a gradient.

    ``kind_of`` tells kinds of tensors apart, and ``plain`` says whether operations on tensors do what they always do.
    Beside the steps stands which kind of backward they hold for.
    """

    make: Make
    trained: bool
    kind_of: Callable[[Tensor], Hashable]
    plain: Callable[[Sequence[Tensor]], bool]
    sights: Sights = field(default_factory=Sights)
    ways: tuple[Ways, Hashable] | None = None
    open: ref[Notes] | None = None

    def __call__(self, tensors: Sequence[Tensor]) -> Found:
        """Output and LSE."""
        check_earlier()
        capturing = captured(tensors[0])
        kept = self.ways  # read once: other threads call, too
        if is_watched() or (self.trained and _hooked()) or (kept is None and (capturing or not self.watches(tensors))):
            return self.make(tensors)
        if kept is not None:
            self.sights.repeats += 1
            SHELF.use(kept[0])
            if capturing:
                SHELF.pin(kept[0])
        if self.trained and (kept is None or kept[0].backward is not None):
            return _Whole.apply(self, kept, *tensors)  # type: ignore[no-any-return, no-untyped-call]
        if kept is not None:
            return _pair(kept[0].forward.play(tensors))
        notes = self.notes(tensors)
        found = self.watched(tensors, notes)
        self.keep(notes, ways_of(notes, len(notes.seen), tensors, _present(found)), None)
        return found

    def watches(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a call is watched."""
        notes = None if self.open is None else self.open()
        if (notes is not None and not notes.blind) or is_twice(tensors):
            return False
        return self.sights.is_due()

    def notes(self, tensors: Sequence[Tensor]) -> Notes:
        """Room for what is seen of a call."""
        room = ROOM + _TIMES * sum(each.untyped_storage().nbytes() for each in tensors)
        with _lock:
            if tensors[0].is_cuda:
                free, _ = torch.cuda.mem_get_info(tensors[0].device)
                room = min(room, free // 2 - sum(each.room for each in _open if not each.blind))
            notes = Notes(room=room)
            _open.add(notes)
        self.open = ref(notes)
        return notes

    def watched(self, tensors: Sequence[Tensor], notes: Notes) -> Found:
        """Output and LSE, with notes of how they are made, unless there is no memory for those."""
        try:
            with noting(notes):
                return self.make(tensors)
        except torch.OutOfMemoryError:
            notes.give_up()
        return self.make(tensors)

    def keep(self, notes: Notes, ways: Ways | None, place: Hashable) -> None:
        """Keep the steps of what was seen until its end."""
        self.ways = kept = None if ways is None or notes.blind else (ways, place)
        notes.give_up()
        if kept is None:
            self.sights.tries += 1
        else:
            tape, forget = kept[0].forward.tape, partial(_give_up, ref(self), ref(kept[0]))
            SHELF.put(kept[0], tape.device, kept[0].nbytes, forget)

    def forget(self, ways: Ways) -> None:
        """Do without these steps, if they are those that are kept."""
        kept = self.ways
        if kept is not None and kept[0] is ways:
            self.ways = None
            self.sights.lost()


@dataclass(slots=True, kw_only=True)
class _Seen:
    """A forward that was watched, with gradients of its own; ``middle`` is where its notes end."""

    notes: Notes
    middle: int
    leaves: list[Tensor]
    found: Found


def _give_up(kind: ref[WholeCalls], gone: ref[Ways]) -> None:
    """Others need the room."""
    here, ways = kind(), gone()
    if here is not None and ways is not None:
        here.forget(ways)


def _hooked() -> bool:
    """Whether somebody is handed what is saved for a backward, such as a checkpoint of activations: who counts or
    changes it has to see the same of every call."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None  # noqa: SLF001  # no public name


def _pair(results: Sequence[Tensor | None]) -> Found:
    out = results[0]
    assert out is not None
    return out, results[1] if len(results) > 1 else None


def _present(found: Found) -> list[Tensor]:
    return [each for each in found if each is not None]


class _Whole(torch.autograd.Function):
    """A call of some kind, with gradients."""

    @staticmethod
    def forward(ctx: Any, kind: WholeCalls, kept: tuple[Ways, Hashable] | None, *tensors: Tensor) -> Found:
        ctx.kind, ctx.kept, ctx.seen = kind, kept, None
        ctx.set_materialize_grads(False)
        if kept is not None:
            ways, _ = kept
            results = ways.forward.play(tensors)
            if ways.apart:
                ctx.mark_non_differentiable(*(results[at] for at in ways.apart))
            count = len(results) - ways.saved
            ctx.save_for_backward(*tensors, *results[count:])
            return _pair(results[:count])
        leaves = [each.detach().requires_grad_(each.requires_grad) for each in tensors]
        notes = kind.notes(tensors)
        with torch.enable_grad():
            found = kind.watched(leaves, notes)
        ctx.save_for_backward(*tensors)
        ends = _present(found)
        made = [each.detach() for each in ends]
        ctx.mark_non_differentiable(*(own for own, each in zip(made, ends, strict=True) if not each.requires_grad))
        if any(each.requires_grad for each in ends):
            ctx.seen = _Seen(notes=notes, middle=len(notes.seen), leaves=leaves, found=found)
        else:  # there will be no backward
            kind.keep(notes, ways_of(notes, len(notes.seen), leaves, ends), None)
        return _pair(made)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        kind, needs = ctx.kind, ctx.needs_input_grad[2:]
        given = [each for each in incoming if each is not None]
        if not given or not any(needs):
            return (None,) * (2 + len(needs))
        deterministic = torch.are_deterministic_algorithms_enabled()
        place = (needs, deterministic, *(None if each is None else kind.kind_of(each) for each in incoming))
        every = ctx.saved_tensors  # once: hooks unpack them each time
        tensors, saved = every[: len(needs)], every[len(needs) :]
        seen, ctx.seen = ctx.seen, None
        graph = torch.is_grad_enabled()  # of the gradients
        plain = kind.plain((*tensors, *given))
        if seen is not None and not graph:
            # What is made in a capture holds nothing before the graph is replayed.
            if not plain or is_twice((*tensors, *given)) or captured(tensors[0]):
                seen.notes.give_up()
                return None, None, *_gradients(seen.found, seen.leaves, incoming, graph=False)
            found = _watched(kind, seen, incoming, place)
            if found is not None:
                return None, None, *found
        elif ctx.kept is not None and plain and not graph:
            ways, known = ctx.kept
            if place == known:
                if captured(tensors[0]):
                    SHELF.pin(ways)  # the forward need not be part of the graph
                return None, None, *ways.backward.play((*tensors, *saved, *given))
            kind.forget(ways)
        return None, None, *_again(kind.make, tensors, needs, incoming, graph=graph)


def _watched(
    kind: WholeCalls, seen: _Seen, incoming: Sequence[Tensor | None], place: Hashable
) -> list[Tensor | None] | None:
    """The gradients of a call that was watched, and what was seen is kept; None where there is no memory for it."""
    notes, given = seen.notes, [each for each in incoming if each is not None]
    try:
        with noting(notes):
            found = _gradients(seen.found, seen.leaves, incoming, graph=False)
    except torch.OutOfMemoryError:
        kind.keep(notes, None, place)
        return None
    inputs = [each.detach() for each in seen.leaves]
    ways = ways_of(notes, seen.middle, inputs, _present(seen.found), given, found)
    kind.keep(notes, ways, place)
    return found


def _again(
    make: Make, tensors: Sequence[Tensor], needs: Sequence[bool], incoming: Sequence[Tensor | None], *, graph: bool
) -> list[Tensor | None]:
    """The gradients of a call that is carried out once more."""
    leaves = list(tensors)
    if not graph:
        leaves = [each.detach().requires_grad_(need) for each, need in zip(tensors, needs, strict=True)]
    with torch.autocast(tensors[0].device.type, enabled=False):  # there was none in the forward
        with torch.enable_grad():
            found = make(leaves)
        return _gradients(found, leaves, incoming, graph=graph)


def _gradients(
    found: Found, leaves: Sequence[Tensor], incoming: Sequence[Tensor | None], *, graph: bool
) -> list[Tensor | None]:
    """The gradients of the leaves that want one, as far as what was found depends on them."""
    pairs = [(end, each) for end, each in zip(found, incoming, strict=True) if end is not None and each is not None]
    pairs = [(end, each) for end, each in pairs if end.requires_grad]
    if not pairs:
        return [None] * len(leaves)
    ends, given = zip(*pairs, strict=True)
    wanted = [each for each in leaves if each.requires_grad]
    made = iter(torch.autograd.grad(ends, wanted, given, allow_unused=True, create_graph=graph))
    return [next(made) if each.requires_grad else None for each in leaves]
