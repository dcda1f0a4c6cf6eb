"""Calls that do not go through torch's dispatcher, which takes longer than everything else that the host does.

From: the tensors of an `Attention`'s calls.  To: the results and gradients of the registered operators
(`spdsl.runtime.operator`), which stay for `torch.compile`, `torch.export` and whatever else watches the dispatcher.
The first call of each kind is carried out in full and recorded; later ones play its tape (`spdsl.runtime.tape`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spdsl.analysis.few import ROWS
from spdsl.runtime import operator
from spdsl.runtime.checks import captured
from spdsl.runtime.deferred import check_earlier
from spdsl.runtime.growing import Growing
from spdsl.runtime.notices import is_watched
from spdsl.runtime.recent import Recent, identity, weakly
from spdsl.runtime.recorder import Recorder
from spdsl.runtime.tape import Tape
from spdsl.runtime.traced import Trace
from spdsl.runtime.whole_calls import Found, Make, WholeCalls

T = TypeVar("T")

Pair: TypeAlias = tuple[Tensor, Tensor]
Tapes: TypeAlias = "Recent[Tape]"

_KINDS = 64
"""Kinds of calls that an `Attention` remembers, and kinds of gradients for each."""

_VALUES = 8
"""Tapes of one kind for different values of its tables."""

_ANY = "any values"
"""Where a tape stands that serves all values, or that nothing can be wrong with any."""

_PLAIN = (Tensor, torch.nn.Parameter)

_any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled  # noqa: SLF001  # torch has no public name for it


def plain(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are numbers in memory, at which nothing but autograd looks: no mode, no `torch.func`, no
    forward derivatives."""
    for each in tensors:
        if type(each) not in _PLAIN:
            return False
    if tensors[0].is_meta:
        return False
    own = int(is_watched())  # who watches has a mode of each kind
    # torch has no public names for these.
    return not (
        torch._C._len_torch_dispatch_stack() > own  # noqa: SLF001
        or torch._C._len_torch_function_stack() > own  # noqa: SLF001
        or torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
        or forward_ad._current_level >= 0  # noqa: SLF001
    )


def kind_of(tensor: Tensor) -> Hashable:
    """What decides how a tensor is read: shape, layout, type, device, alignment, and how the dispatcher sees it."""
    keys = torch._C._dispatch_keys(tensor).raw_repr()  # noqa: SLF001
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, keys, tensor.data_ptr() & 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of call, and the tapes of its calls.

    Tensors come in one order: q, k, v, ``tables`` inputs, and places if there are any.  ``settings`` is what the
    operators are given besides: key, shape class, position of the first query, values of free parameters.  ``trained``
    says whether any tensor wants a gradient.  Tapes that hold for other lengths of keys, too, go to ``growing``.
    ``made``: tables are made anew for every call, so that a tape which holds what was made of their values would never
    be played again.
    """

    settings: tuple[str, str, int, tuple[int, ...]]
    tables: int
    trained: bool
    growing: Growing | None = None
    made: bool = False
    outputs: Tapes = field(default_factory=lambda: Recent(size=_VALUES))
    gradients: dict[Hashable, Tapes] = field(default_factory=dict)
    checked: Recent[bool] = field(default_factory=lambda: Recent(size=_KINDS))

    def __call__(self, tensors: Sequence[Tensor]) -> Pair:
        """Output and LSE."""
        if self.trained:
            return _Attend.apply(self, *tensors)  # type: ignore[no-any-return, no-untyped-call]
        return self.forward(tensors)

    def forward(self, tensors: Sequence[Tensor]) -> Pair:
        """Output and LSE, which autograd does not see."""
        if is_watched():  # who watches has to see what a tape does
            return operator.forward(*self._parts(tensors), *self.settings, Recorder())
        same = self._same(tensors)
        tape = _known(self.outputs, same)
        if tape is not None:
            self._check(tensors, same)
            out, lse = tape.play(tensors)
            return out, lse
        recorder, given = Recorder(trace=None if self.growing is None else Trace()), self._parts(tensors)
        found = operator.forward(*given, *self.settings, recorder)
        tape = recorder.tape(found, tensors[0].device)
        if tape is not None and tape.numbers is not None and self.growing is not None:
            self.growing.keep(tape)
        else:
            self._keep(self.outputs, tape, tensors, same)
        return found

    def backward(
        self, tensors: Sequence[Tensor], results: Pair, d_out: Tensor, d_lse: Tensor | None, wanted: tuple[int, ...]
    ) -> list[Tensor]:
        """The gradients that are wanted, by the order of the tensors."""
        if is_watched():
            given = (*self._parts(tensors), *results, d_out, d_lse)
            return operator.backward(*given, *self.settings, wanted, Recorder())
        saved = tuple((each.stride(), each.data_ptr() & 15) for each in (*tensors, *results))
        kinds = kind_of(d_out), None if d_lse is None else kind_of(d_lse)
        place = (wanted, torch.are_deterministic_algorithms_enabled(), kinds, saved)
        tapes = self.gradients.get(place)
        if tapes is None:
            if len(self.gradients) >= _KINDS:
                self.gradients.clear()
            tapes = self.gradients[place] = Recent(size=_VALUES)
        same, more = self._same(tensors), (*results, d_out, *(() if d_lse is None else (d_lse,)))
        tape = _known(tapes, same)
        if tape is not None:
            return tape.play((*tensors, *more))
        recorder, parts = Recorder(), self._parts(tensors)
        out, lse, incoming, *last = (each.detach() for each in more)
        more_given = (out, lse, incoming, last[0] if last else None)
        found = operator.backward(*parts, *more_given, *self.settings, wanted, recorder)
        self._keep(tapes, recorder.tape(found, d_out.device), tensors, same)
        return found

    def _same(self, tensors: Sequence[Tensor]) -> Hashable | None:
        """What tells values of the tables apart."""
        return identity(*tensors[3:]) if len(tensors) > 3 else ()

    def _parts(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor | None]:
        """The tensors as the operators take them.  Each is an object of its own, by which a recorder knows it."""
        q, k, v, *rest = (each.detach() for each in tensors)
        return q, k, v, rest[: self.tables], rest[self.tables] if len(rest) > self.tables else None

    def _check(self, tensors: Sequence[Tensor], same: Hashable | None) -> None:
        """Raise what earlier calls have found, and look at values that are new."""
        check_earlier()
        known = self.checked.entries
        if self.tables and _ANY not in known and (same is None or same not in known) and not captured(tensors[0]):
            again = operator.check_values(*self._parts(tensors), *self.settings)
            self.checked.get(same if again else _ANY, weakly(*tensors[3:]), lambda: True)

    def _keep(self, tapes: Tapes, tape: Tape | None, tensors: Sequence[Tensor], same: Hashable | None) -> None:
        if tape is not None and not (self.made and tape.constant):
            tapes.get(same if tape.constant else _ANY, weakly(*tensors[3:]), lambda: tape)


def _known(tapes: Tapes, same: Hashable | None) -> Tape | None:
    found = tapes.entries.get(_ANY) or tapes.entries.get(same)
    return None if found is None else found[0]


class Direct:
    """The kinds of calls of one `Attention`; of patterns with stages, of whole calls.

    ``key`` and ``values`` are as the operators take them, ``names`` those of inputs, ``made`` is as `Kind` has it.
    """

    def __init__(self, key: str, values: tuple[int, ...], names: tuple[str, ...], *, made: bool = False) -> None:
        self._key, self._values, self._names, self._made = key, values, names, made
        self._kinds: dict[Hashable, Kind] = {}
        self._whole: dict[Hashable, WholeCalls] = {}
        self._growing: dict[Hashable, Growing] = {}

    @property
    def is_new(self) -> bool:
        """Whether no call is known yet."""
        return not (self._kinds or self._whole)

    def __reduce__(self) -> tuple[Callable[..., Direct], tuple[str, tuple[int, ...], tuple[str, ...]]]:
        """Copies, also in other processes, begin without known calls."""
        return partial(Direct, made=self._made), (self._key, self._values, self._names)

    def recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: Mapping[str, Tensor],
        places: Tensor | None = None,
        start: int | None = None,
    ) -> Found | None:
        """The results of a call if there was one of its kind; all checks of that one hold for it.

        Keys are those that exist; where there are no ``places``, queries are the last positions unless ``start`` says
        more.
        """
        names = self._names
        tensors: tuple[Tensor, ...] = (q, k, v)
        if names or inputs:
            if len(inputs) != len(names) or not all(name in inputs for name in names):
                return None
            tensors += tuple(inputs[name] for name in names)
        if places is not None:
            tensors += (places,)
        if not _repeatable(tensors):
            return None
        if start is None and places is None and q.shape[-2] > k.shape[-2]:
            return None  # it is refused, whereas one that says where such queries begin is not
        first = k.shape[-2] - q.shape[-2] if start is None else start
        if self._growing:
            growing = self._growing.get(_growing_place(tensors))
            if growing is not None:
                check_earlier()
                found = growing.play(tensors, first)
                if found is not None:
                    out, lse = found
                    return out, lse
        place = _place(tensors, first)
        kind = self._kinds.get(place) or self._whole.get(place)
        return None if kind is None else kind(tensors)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], places: Tensor | None, shape: str, start: int
    ) -> Pair:
        """As the operator of this name, for tensors that have been checked."""
        tensors = (q, k, v, *tables, *(() if places is None else (places,)))
        if not plain(tensors):
            return operator.attend(q, k, v, tables, places, self._key, shape, start, self._values)  # type: ignore[no-any-return]
        place = _place(tensors, start)
        kind = self._kinds.get(place)
        if kind is None:
            trained = _is_trained(tensors)
            growing = None if tables else self._grows(tensors)
            settings = (self._key, shape, start, self._values)
            kind = Kind(settings=settings, tables=len(tables), trained=trained, growing=growing, made=self._made)
            _remember(self._kinds, place, kind)
        return kind(tensors)

    def whole(self, make: Make, tensors: tuple[Tensor, ...], start: int, beside: Hashable | None = None) -> Found:
        """What ``make`` makes of the tensors, by the steps of an earlier call of the kind if there are any.

        ``beside`` is what else ``make`` reads, the same object in all calls of a kind.
        """
        if not _repeatable(tensors):
            return make(tensors)
        place = _place(tensors, start) if beside is None else (beside, *_place(tensors, start))
        kind = self._whole.get(place)
        if kind is None:
            kind = WholeCalls(make=make, trained=_is_trained(tensors), kind_of=kind_of, plain=_repeatable)
            _remember(self._whole, place, kind)
        return kind(tensors)

    def _grows(self, tensors: tuple[Tensor, ...]) -> Growing | None:
        """Where tapes of calls with longer keys are kept, for calls that may have one."""
        place = _growing_place(tensors)
        if place is None:
            return None
        if place not in self._growing and len(self._growing) >= _KINDS:
            self._growing.clear()
        return self._growing.setdefault(place, Growing())


def _remember(kinds: dict[Hashable, T], place: Hashable, kind: T) -> None:
    if len(kinds) >= _KINDS:
        kinds.clear()
    kinds[place] = kind


def _repeatable(tensors: Sequence[Tensor]) -> bool:
    """Whether operations on the tensors do what they do elsewhere: `plain`, and not with types of `torch.autocast`."""
    return plain(tensors) and not (_any_autocast() and torch.is_autocast_enabled(tensors[0].device.type))


def _is_trained(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def _place(tensors: tuple[Tensor, ...], start: int) -> tuple[Hashable, ...]:
    """What tells kinds apart; places come last, so that their presence shows in the number of tensors."""
    trained = tuple(each.requires_grad for each in tensors) if torch.is_grad_enabled() else None
    return start, trained, *map(kind_of, tensors)


def _growing_place(tensors: tuple[Tensor, ...]) -> Hashable | None:
    """What tells calls of few queries apart besides the number of keys and their strides; None for other calls."""
    q, k, v, *rest = tensors
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or q.shape[2] > ROWS[-1] or k.shape[2] != v.shape[2]:
        return None
    if _is_trained(tensors):
        return None
    return kind_of(q), _fixed(k), _fixed(v), *map(kind_of, rest)


def _fixed(tensor: Tensor) -> Hashable:
    """As `kind_of`, for a tensor whose rows may become more."""
    batch, heads, _, width = tensor.shape
    keys = torch._C._dispatch_keys(tensor).raw_repr()  # noqa: SLF001
    last, address = tensor.stride(3), tensor.data_ptr()
    return batch, heads, width, last, tensor.dtype, tensor.device, keys, address & 15


class _Attend(torch.autograd.Function):
    """A call of some kind, with gradients."""

    @staticmethod
    def forward(ctx: Any, kind: Kind, *tensors: Tensor) -> Pair:
        out, lse = kind.forward(tensors)
        ctx.kind = kind
        ctx.save_for_backward(*tensors, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * len(needs)
        wanted = tuple(number for number, need in enumerate(needs[1:]) if need)
        if wanted and (d_out is not None or d_lse is not None):
            *tensors, out, lse = ctx.saved_tensors
            if d_out is None:
                d_out = torch.zeros_like(out)
            for number, found in zip(
                wanted, _gradients(ctx.kind, tensors, (out, lse), d_out, d_lse, wanted), strict=True
            ):
                grads[number + 1] = found
        return tuple(grads)


def _gradients(
    kind: Kind, tensors: Sequence[Tensor], results: Pair, d_out: Tensor, d_lse: Tensor | None, wanted: tuple[int, ...]
) -> list[Tensor]:
    incoming = (d_out,) if d_lse is None else (d_out, d_lse)
    if torch.is_grad_enabled() or not plain((*tensors, *incoming)):
        # A graph of the gradients: the operator refuses to be differentiated again.
        q, k, v, *rest = tensors
        tables, places = rest[: kind.tables], rest[kind.tables] if len(rest) > kind.tables else None
        return operator.attend_backward(q, k, v, tables, places, *results, d_out, d_lse, *kind.settings, list(wanted))  # type: ignore[no-any-return]
    return kind.backward(tensors, results, d_out, d_lse, wanted)
