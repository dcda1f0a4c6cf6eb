"""What a computation without decisions does on the device, seen by watching torch, and repeated for other tensors.

From: a function that makes tensors from tensors.  To: its result, and steps that make the same of tensors laid out
alike: operations of torch as the dispatcher was asked for them, and launches.  What does not depend on the tensors is
done once and kept.  A function whose course depends on numbers of the tensors (it reads one on the host, or asks for
as much room as there are some) has no steps: it is `blind`.

In contrast to `spdsl.runtime.tape`, whose recorder is told of everything, nothing has to be told here but launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from triton import knobs

from spdsl.runtime.notes import Stream
from spdsl.runtime.notices import watched
from spdsl.runtime.plain import Launch, on, start
from spdsl.runtime.tape import current_stream

ROOM = 1 << 28
"""Bytes that are held, beyond as many as the tensors have, while a computation is watched."""

KEPT = 1 << 24
"""Bytes of what does not depend on the tensors, and is kept with the steps."""

_DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """An operation that the dispatcher was asked for."""

    function: Any
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    result: Any

    def reads(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return _tensors((self.arguments, self.named))

    def makes(self) -> list[Tensor]:
        """The tensors among the results."""
        return _tensors(self.result)

    def writes(self) -> list[Tensor]:
        """The tensors among the arguments that are changed."""
        found = []
        for place, declared in enumerate(self.function._schema.arguments):  # noqa: SLF001  # torch has no other way
            if declared.alias_info is not None and declared.alias_info.is_write:
                given = self.arguments[place] if place < len(self.arguments) else self.named.get(declared.name)
                found += _tensors(given)
        return found


_Note: TypeAlias = "_Asked | Launch"


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_flatten(tree)[0] if isinstance(each, Tensor)]


def _read(note: _Note) -> list[Tensor]:
    return note.reads() if isinstance(note, _Asked) else _tensors(dict(note.values))


def _written(note: _Note) -> list[Tensor]:
    return note.writes() if isinstance(note, _Asked) else [note.values[name] for name in note.writes]


def _storage(tensor: Tensor) -> int:
    """What tells storages apart, as long as all of them live."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  # torch has no public name


@dataclass(slots=True)
class Notes:
    """What was seen; ``room`` is how many bytes more may be held."""

    room: int
    seen: list[_Note] = field(default_factory=list)
    storages: set[int] = field(default_factory=set)
    blind: bool = False

    def add(self, note: _Note) -> None:
        """One more."""
        if self.blind:
            return
        self.seen.append(note)
        for tensor in note.makes() if isinstance(note, _Asked) else ():
            if _storage(tensor) not in self.storages:
                self.storages.add(_storage(tensor))
                self.room -= tensor.untyped_storage().nbytes()
        if self.room < 0:
            self.give_up()

    def give_up(self) -> None:
        """Something is not seen, or too much is held."""
        self.blind = True
        self.seen.clear()


class _Mode(TorchDispatchMode):
    def __init__(self, notes: Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes = notes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        self.notes.add(_Asked(function=func, arguments=args, named=dict(kwargs or {}), result=result))
        return result


@contextmanager
def _counted() -> Iterator[list[object]]:
    """One element for each launch of Triton's, if it tells of them; the interpreter does not."""
    found: list[object] = []
    hook = knobs.runtime.launch_enter_hook
    if not hasattr(hook, "add"):
        yield found
        return
    hook.add(found.append)
    try:
        yield found
    finally:
        hook.remove(found.append)


def watch(make: Callable[[], Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, Steps | None]:
    """What ``make`` makes of the inputs, and how to make it of others; None where that is not known."""
    notes = Notes(room=ROOM + sum(each.untyped_storage().nbytes() for each in inputs))
    with _Mode(notes), watched(notes.add), _counted() as counted:
        result = make()
    if result.is_cuda and counted and len(counted) != sum(isinstance(note, Launch) for note in notes.seen):
        notes.give_up()  # somebody has launched something without a notice
    steps = None if notes.blind else _steps(notes.seen, list(inputs), result)
    notes.give_up()
    return result, steps


# ---------------------------------------------------------------- from notes to steps

Step: TypeAlias = Callable[[list[Any]], None]
"""Reads and fills the places of tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps over numbered tensors, of which the first are inputs; ``named`` launches by name, as hooks need it."""

    flat: tuple[Step, ...]
    named: tuple[Step, ...]
    places: list[Any]
    result: int
    device: torch.device

    def play(self, inputs: Sequence[Tensor]) -> Tensor:
        """The result for other inputs that are laid out alike."""
        with on(self.device):
            return self._played(inputs)

    @torch.no_grad()
    def _played(self, inputs: Sequence[Tensor]) -> Tensor:
        places, steps = self.places.copy(), self.flat
        places[: len(inputs)] = inputs
        if steps is not self.named:
            stream = current_stream(self.device)
            places[-1] = stream
            steps = self.named if stream is None else steps
        for step in steps:
            step(places)
        found: Tensor = places[self.result]
        return found


def _steps(notes: list[_Note], inputs: list[Tensor], result: Tensor) -> Steps | None:
    if not _comes_from(notes, inputs):
        return None
    changing = _changing(notes, inputs)
    if _storage(result) not in changing or any(result is each for each in inputs):
        return None
    kept = _needed([note for note in notes if _is_among(note, changing)], result)
    asked = [note for note in notes if isinstance(note, _Asked) and _is_among(note, changing)]
    unlike = any(isinstance(note, _Asked) and _is_unlike(note) for note in notes)
    if unlike or any(_decides(note) for note in asked):
        return None
    numbers = _Numbers.of(notes, inputs, kept)
    if numbers is None:
        return None
    last = {number: at for at, note in enumerate(kept) for number in numbers.of_note(note)}
    end = numbers[result]
    passing = numbers.passing - {end}
    dead = [tuple(number for number in passing if last[number] == here) for here in range(len(kept))]
    named = tuple(_step(note, numbers, dead[at], flat=False) for at, note in enumerate(kept))
    flat = tuple(_step(note, numbers, dead[at], flat=True) for at, note in enumerate(kept))
    alike = all(isinstance(note, _Asked) or note.entry() is None for note in kept)
    return Steps(
        flat=named if alike else flat,
        named=named,
        places=[*numbers.places, None],
        result=end,
        device=result.device,
    )


def _comes_from(notes: list[_Note], inputs: list[Tensor]) -> bool:
    """Whether all that is read was made before the eyes of who watched: of the inputs, or of numbers."""
    known = {id(each) for each in inputs}
    for note in notes:
        if any(id(each) not in known and not (each.is_cpu and each.numel() == 1) for each in _read(note)):
            return False
        known |= {id(each) for each in _results(note)}
    return True


def _is_unlike(note: _Asked) -> bool:
    """Whether an operation draws numbers, or puts other memory in the place of a tensor's, as Triton's interpreter does
    when it launches without a notice."""
    return (
        torch.Tag.nondeterministic_seeded in note.function.tags or note.function.overloadpacket is torch.ops.aten.set_
    )


def _decides(note: _Asked) -> bool:
    """Whether the host may know a number of a tensor after an operation."""
    makes, reads = note.makes(), note.reads()
    tells = not makes and not note.writes()
    leaves = any(each.is_cpu for each in makes) and not all(each.is_cpu for each in reads)
    return tells or leaves or bool(_DECIDING & set(note.function.tags))


def _changing(notes: list[_Note], inputs: list[Tensor]) -> set[int]:
    """The storages whose numbers depend on the inputs, and those in which anything is written."""
    found = {_storage(each) for each in inputs}
    found |= {_storage(each) for note in notes for each in _written(note)}
    before = 0
    while len(found) > before:
        before = len(found)
        for note in notes:
            if isinstance(note, _Asked) and _is_among(note, found):
                found |= {_storage(each) for each in note.makes()}
    return found


def _is_among(note: _Note, storages: set[int]) -> bool:
    touched = [*_read(note), *(note.makes() if isinstance(note, _Asked) else ())]
    return any(_storage(each) in storages for each in touched)


def _needed(notes: list[_Note], result: Tensor) -> list[_Note]:
    """The notes without which the result were another, in their order."""
    wanted, found = {_storage(result)}, list[_Note]()
    for note in reversed(notes):
        makes = [*(note.makes() if isinstance(note, _Asked) else ()), *_written(note)]
        if any(_storage(each) in wanted for each in makes):
            wanted |= {_storage(each) for each in _read(note)}
            found.append(note)
    return found[::-1]


@dataclass(slots=True, kw_only=True)
class _Numbers:
    """The places of tensors: inputs, what is kept, and ``passing`` results of steps."""

    by_id: dict[int, int]
    places: list[Any]
    passing: frozenset[int]

    @staticmethod
    def of(notes: list[_Note], inputs: list[Tensor], kept: list[_Note]) -> _Numbers | None:
        """Places for all tensors of the notes that are kept; None if one of them came from nowhere."""
        made = {id(each): each for note in kept if isinstance(note, _Asked) for each in note.makes()}
        constant = {id(each): each for note in notes if isinstance(note, _Asked) for each in note.makes()}
        by_id = {id(each): number for number, each in enumerate(inputs)}
        places: list[Any] = [None] * len(inputs)
        passing, held = set[int](), 0
        for each in (tensor for note in kept for tensor in (*_read(note), *_results(note))):
            if id(each) in by_id:
                continue
            by_id[id(each)] = len(places)
            if id(each) in made:
                passing.add(len(places))
                places.append(None)
            elif id(each) in constant or (each.is_cpu and each.numel() == 1):
                held += each.untyped_storage().nbytes()
                places.append(each)
            else:
                return None
        return _Numbers(by_id=by_id, places=places, passing=frozenset(passing)) if held <= KEPT else None

    def __getitem__(self, tensor: Tensor) -> int:
        return self.by_id[id(tensor)]

    def of_note(self, note: _Note) -> Iterator[int]:
        """The places that a step reads or fills."""
        return (self[each] for each in (*_read(note), *_results(note)))


def _results(note: _Note) -> list[Tensor]:
    return note.makes() if isinstance(note, _Asked) else []


# ---------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True)
class _Place:
    """Stands for the tensor of this number in the arguments of a step."""

    number: int


def _step(note: _Note, numbers: _Numbers, dead: tuple[int, ...], *, flat: bool) -> Step:
    if isinstance(note, Launch):
        return _flat(note, numbers, dead) if flat and note.entry() is not None else _named(note, numbers, dead)
    arguments, named = tree_map_only(Tensor, lambda each: _Place(numbers[each]), (note.arguments, dict(note.named)))
    targets = tuple(numbers[each] if isinstance(each, Tensor) else None for each in tree_flatten(note.result)[0])
    return _operation(note.function, arguments, named, targets, dead)


def _operation(
    function: Any,
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    targets: tuple[int | None, ...],
    dead: tuple[int, ...],
) -> Step:
    direct = tuple((at, each.number) for at, each in enumerate(arguments) if isinstance(each, _Place))
    leaves, shape = tree_flatten((arguments, dict(named)))
    nested = sum(isinstance(each, _Place) for each in leaves) != len(direct)
    plain = list(arguments)

    def step(places: list[Any]) -> None:
        if nested:
            filled = [places[each.number] if isinstance(each, _Place) else each for each in leaves]
            given, rest = tree_unflatten(filled, shape)
            made = function(*given, **rest)
        else:
            given = plain.copy()
            for at, number in direct:
                given[at] = places[number]
            made = function(*given, **named)
        if len(targets) == 1:
            if targets[0] is not None:
                places[targets[0]] = made[0] if isinstance(made, list | tuple) else made
        else:
            for target, each in zip(targets, tree_flatten(made)[0], strict=True):
                if target is not None:
                    places[target] = each
        for number in dead:
            places[number] = None

    return step


def _named(launch: Launch, numbers: _Numbers, dead: tuple[int, ...]) -> Step:
    rest = {name: value for name, value in launch.values.items() if not isinstance(value, Tensor)}
    # In the order of the arguments, as they were given.
    given = tuple((name, numbers[value]) for name, value in launch.values.items() if isinstance(value, Tensor))

    def step(places: list[Any]) -> None:
        start(replace(launch, values={**rest, **{name: places[number] for name, number in given}}))
        for number in dead:
            places[number] = None

    return step


def _flat(launch: Launch, numbers: _Numbers, dead: tuple[int, ...]) -> Step:
    entry = launch.entry()
    assert entry is not None
    tensors = tuple((at, numbers[each]) for at, each in enumerate(entry.arguments) if isinstance(each, Tensor))
    (stream,) = (at for at, each in enumerate(entry.arguments) if isinstance(each, Stream))
    plain, function = list(entry.arguments), entry.launch

    def step(places: list[Any]) -> None:
        given = plain.copy()
        for at, number in tensors:
            given[at] = places[number].data_ptr()
        given[stream] = places[-1]
        function(*given)
        for number in dead:
            places[number] = None

    return step
