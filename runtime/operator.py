"""The torch operators: ``spdsl::attend`` and its backward.

The operators carry tensors, numbers and one string, the key: the canonical text of the pattern with its parameters.
So a program that was exported loads in another process, and nothing that Dynamo traces reads a file.  How a key
becomes a plan is given from above (`install`), because planning begins with parsing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.few import few_keys, few_rows
from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.analysis.tiles import Shape
from spdsl.runtime import checks
from spdsl.runtime.calls import Call, Gradients
from spdsl.runtime.engines import engine_for
from spdsl.runtime.lists import lists_for
from spdsl.runtime.parts import kinds_of, settled
from spdsl.runtime.recorder import Recorder
from spdsl.runtime.stages import materialise
from spdsl.runtime.transforms import refuse_paged, second_derivative
from spdsl.semantics.free import LARGEST
from spdsl.semantics.nodes import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a call asks for: a key, the types and sizes that kernels are specialised on, and the gradients wanted.

    ``lengths`` are those of queries and keys, rounded up to powers of two: kernels do not depend on them, but tiles may
    have been chosen for them.  ``tiles`` are those that were.  ``few``, ``few_keys`` and ``page`` are those of
    `Problem`, the first two on any back end.
    """

    key: str
    dtype: torch.dtype
    heads: int
    groups: int
    head_dim: int
    value_dim: int
    shape: Shape
    device: torch.device
    tables: tuple[torch.dtype, ...]
    gradients: tuple[int, ...] = ()
    lengths: tuple[int, int] = (0, 0)
    tiles: tuple[tuple[Kind, Tiles], ...] = ()
    few: int = 0
    few_keys: bool = False
    page: int = 0


PAGED = "paged"
"""The operators' shape of calls whose keys lie in pages, ``[pages, groups, page, d]``; places have these after them."""


def rounded_up(number: int) -> int:
    """The next power of two, with the sign of the number."""
    size = 1 << (abs(number) - 1).bit_length() if number else 0
    return size if number >= 0 else -size


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan, the name of the engine that runs it, and the free parameters of the key in the order of their values.

    ``weighed``: whether each call's values have to be known before the plan is taken; ``room``: the largest magnitude
    of values for which the kernels' ints stay within 32 bits.
    """

    plan: Plan
    backend: str
    free: tuple[str, ...] = ()
    deterministic: bool = False
    weighed: bool = False
    room: int = LARGEST

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the operator's list of tables."""
        return tuple(table.name for table in self.plan.problem.pattern.tables)

    def parameters(self, values: Sequence[int]) -> dict[str, int]:
        """The values that the plan leaves open, by the names of their variables."""
        given = dict(zip(self.free, values, strict=False))
        return {each.variable: given[each.name] for each in self.plan.problem.pattern.free}


Prepare = Callable[[Request, tuple[int, ...]], Prepared]
_prepare: list[Prepare] = []


def install(prepare: Prepare) -> None:
    """Tell the operators how a request becomes a plan; the last call counts."""
    _prepare[:] = [prepare]


def _request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    key: str,
    shape: str,
    values: Sequence[int],
    gradients: tuple[int, ...] | None,
) -> Prepared:
    """The plan of a call, or with ``gradients`` (numbers of tables) that of its backward, which is the same for few
    queries as for many."""
    paged = shape == PAGED
    return _prepare[0](
        Request(
            key=key,
            dtype=q.dtype,
            heads=q.shape[1],
            groups=k.shape[1],
            head_dim=q.shape[3],
            value_dim=v.shape[3],
            shape="batched" if paged else shape,  # type: ignore[arg-type]  # a str in the operator's schema
            device=q.device,
            tables=tuple(table.dtype for table in tables),
            gradients=gradients or (),
            lengths=(rounded_up(q.shape[2]), rounded_up(k.shape[2])),
            few=few_rows(shape, q.shape[2], q.shape[1], k.shape[1]) if gradients is None else 0,
            few_keys=gradients is not None and few_keys(shape, q.shape[2], k.shape[2], k.shape[1]),
            page=k.shape[2] if paged else 0,
        ),
        tuple(values),
    )


def foresee_gradients(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], key: str, shape: str, values: Sequence[int]
) -> None:
    """Plan the gradients of the tables that want one, so that what cannot be trained is refused before any work.

    Raises:
        SpatError: a table is read in a way whose gradient cannot be summed (SP402), or through a reduction (SP290).
    """
    wanted = tuple(position for position, table in enumerate(tables) if table.requires_grad)
    if wanted and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _request(q, k, v, tables, key, shape, values, wanted)


def _call(
    prepared: Prepared,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    q_start: int,
    values: Sequence[int],
    recorder: Recorder,
) -> Call:
    plan = prepared.plan
    given = {
        table.name: with_batch(table, tensor) for table, tensor in zip(plan.problem.pattern.tables, tables, strict=True)
    }
    recorder.read(q, k, v, *given.values(), *(() if places is None else (places,)))
    return Call(
        plan=plan,
        q=q,
        k=k,
        v=v,
        q_start=q_start,
        places=places,
        tables=given,
        parameters=prepared.parameters(values),
        deterministic=prepared.deterministic,
        recorder=recorder,
    )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    key: str,
    shape: str,
    q_start: int,
    values: Sequence[int],
    recorder: Recorder,
) -> tuple[Tensor, Tensor]:
    """Output and LSE, as `attend`; the recorder notes what is done on the device."""
    prepared = _request(q, k, v, tables, key, shape, values, None)
    call = _call(prepared, q, k, v, tables, places, q_start, values, recorder)
    call = settled(checks.check_call(call, narrow=prepared.backend != "cpu"))
    call = lists_for(call, ("forward",))
    call.hold()
    with _no_autocast(q.device.type):
        return engine_for(prepared.backend).forward(call)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    key: str,
    shape: str,
    q_start: int,
    values: Sequence[int],
    wanted: Sequence[int],
    recorder: Recorder,
) -> list[Tensor]:
    """The gradients asked for, as `attend_backward`; the recorder notes what is done on the device."""
    gradients = tuple(each - 3 for each in wanted if each >= 3)
    prepared = _request(q, k, v, tables, key, shape, values, gradients)
    names = ("q", "k", "v", *prepared.inputs)
    asked = frozenset(names[each] for each in wanted)
    call = settled(materialise(_call(prepared, q, k, v, tables, places, q_start, values, recorder)))
    call = lists_for(call, kinds_of(call, asked))
    recorder.read(out, lse, d_out, *(() if d_lse is None else (d_lse,)))
    call.hold()
    with _no_autocast(q.device.type):
        found = engine_for(prepared.backend).backward(call, out, lse, d_out, d_lse, asked)
    tensors = (q, k, v, *tables)
    return [_shaped(_gradient(found, names[each]), tensors[each]) for each in wanted]


def check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    key: str,
    shape: str,
    q_start: int,
    values: Sequence[int],
) -> None:
    """Check the values of the tables of a call that is known to fit in all else.

    Raises:
        SpatError: as `spdsl.runtime.checks.check_values`.
    """
    prepared = _request(q, k, v, tables, key, shape, values, None)
    call = _call(prepared, q, k, v, tables, places, q_start, values, Recorder())
    checks.check_values(materialise(call), narrow=prepared.backend != "cpu")


def with_batch(table: Table, tensor: Tensor) -> Tensor:
    """The input with a leading batch axis, unless it names one or has one already."""
    names_batch = any(axis.kind == "b" for axis in table.axes)
    return tensor if names_batch or tensor.dim() > len(table.axes) else tensor.unsqueeze(0)


@torch.library.custom_op("spdsl::attend", mutates_args=())
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    key: str,
    shape: str,
    q_start: int,
    values: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Sparse attention: output ``[batch, heads, nq, dv]`` and LSE ``[batch, heads, nq]`` (fp32, natural log).

    ``values`` are those of the parameters that ``key`` leaves open, in its order.  ``shape`` is a `Shape` or `PAGED`.
    """
    return forward(q, k, v, tables, places, key, shape, q_start, values, Recorder())


@attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    key: str,
    shape: str,
    q_start: int,
    values: Sequence[int],
) -> tuple[Tensor, Tensor]:
    out = q.new_empty((q.shape[0], q.shape[1], q.shape[2], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("spdsl::attend_backward", mutates_args=())
def attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    key: str,
    shape: str,
    q_start: int,
    values: Sequence[int],
    wanted: Sequence[int],
) -> list[Tensor]:
    """The gradients asked for: 0, 1, 2 are q, k, v and 3 + i is table i, in this order."""
    if shape == PAGED:
        raise refuse_paged("gradients")
    settings = (key, shape, q_start, values, wanted)
    return backward(q, k, v, tables, places, out, lse, d_out, d_lse, *settings, Recorder())


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """The types of the tensors are the types computed in."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _shaped(gradient: Tensor, tensor: Tensor) -> Tensor:
    """Of tables, which a call sees with a batch axis, the gradients have one too."""
    return gradient if gradient.dim() == tensor.dim() else gradient.view_as(tensor)


def _gradient(found: Gradients, name: str) -> Tensor:
    gradient = {"q": found.q, "k": found.k, "v": found.v, **found.tables}[name]
    assert gradient is not None
    return gradient


@attend_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    key: str,
    shape: str,
    q_start: int,
    values: Sequence[int],
    wanted: Sequence[int],
) -> list[Tensor]:
    tensors = [q, k, v, *tables]
    return [tensors[each].new_empty(tensors[each].shape) for each in wanted]


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # type: ignore[type-arg]
    q, k, v, tables, places, key, shape, q_start, values = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, *([] if places is None else [places]), *tables)
    ctx.has_places, ctx.settings = places is not None, (key, shape, q_start, values)  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _backward(ctx, d_out: Tensor | None, d_lse: Tensor | None):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, *rest = ctx.saved_tensors
    places = rest.pop(0) if ctx.has_places else None
    needs = [*ctx.needs_input_grad[:3], *_listed(ctx.needs_input_grad[3], len(rest))]
    wanted = [position for position, need in enumerate(needs) if need]
    # An empty list counts as one of tensors, a list of ints as a number.
    none: tuple[object, ...] = (None,) * 4 + ((None,) if ctx.settings[-1] else ([],))
    if not wanted or (d_out is None and d_lse is None):
        return None, None, None, [None] * len(rest), *none
    if d_out is None:
        d_out = torch.zeros_like(out)
    found = attend_backward(q, k, v, rest, places, out, lse, d_out, d_lse, *ctx.settings, wanted)
    by_position = dict(zip(wanted, found, strict=True))
    tables = [by_position.get(3 + i) for i in range(len(rest))]
    return by_position.get(0), by_position.get(1), by_position.get(2), tables, *none


def _listed(needs: object, count: int) -> list[bool]:
    return list(needs) if isinstance(needs, (list, tuple)) else [bool(needs)] * count


def _refuse(ctx, *gradients):  # type: ignore[no-untyped-def]
    raise second_derivative()


attend.register_autograd(_backward, setup_context=_setup)
attend_backward.register_autograd(_refuse)
