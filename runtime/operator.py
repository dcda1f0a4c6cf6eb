"""The torch operators: ``spdsl::attend`` and its backward.

The operators carry tensors, numbers and one string, the key: the canonical text of the pattern with its parameters.
So a program that was exported loads in another process, and nothing that Dynamo traces reads a file.  How a key
becomes a plan is told in `spdsl.runtime.requests`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from spdsl.runtime import checks
from spdsl.runtime.calls import Call, Gradients
from spdsl.runtime.engines import engine_for
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.lists import lists_for
from spdsl.runtime.parts import kinds_of, settled
from spdsl.runtime.recorder import Recorder
from spdsl.runtime.requests import PAGED, Prepared, request
from spdsl.runtime.stages import materialise
from spdsl.runtime.transforms import refuse_paged, second_derivative


def foresee_gradients(
    q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor], key: str, shape: str, values: Sequence[int]
) -> None:
    """Plan the gradients of the tables that want one, so that what cannot be trained is refused before any work.

    Raises:
        SpatError: a table is read in a way whose gradient cannot be summed (SP402), or through a reduction (SP290).
    """
    wanted = tuple(position for position, table in enumerate(tables) if table.requires_grad)
    if wanted and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        request(q, k, v, tables, key, shape, values, wanted)


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
    prepared = request(q, k, v, tables, key, shape, values, None)
    call = ready(prepared, q, k, v, tables, places, q_start, values, recorder)
    with no_autocast(q.device.type):
        return engine_for(prepared.backend).forward(call)


def ready(
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
    """A call with all that its forward needs, checked."""
    call = _call(prepared, q, k, v, tables, places, q_start, values, recorder)
    call = settled(checks.check_call(call, narrow=prepared.backend != "cpu"))
    call = lists_for(call, ("forward",))
    call.hold()
    return call


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
    prepared = request(q, k, v, tables, key, shape, values, gradients)
    names = ("q", "k", "v", *prepared.inputs)
    asked = frozenset(names[each] for each in wanted)
    call = ready_backward(prepared, q, k, v, tables, places, q_start, values, asked, recorder)
    recorder.read(out, lse, d_out, *(() if d_lse is None else (d_lse,)))
    with no_autocast(q.device.type):
        found = engine_for(prepared.backend).backward(call, out, lse, d_out, d_lse, asked)
    tensors = (q, k, v, *tables)
    return [gradient_of(found, names[each], tensors[each]) for each in wanted]


def ready_backward(
    prepared: Prepared,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    places: Tensor | None,
    q_start: int,
    values: Sequence[int],
    asked: frozenset[str],
    recorder: Recorder,
) -> Call:
    """A call with all that its backward needs for the gradients that are asked for."""
    call = settled(materialise(_call(prepared, q, k, v, tables, places, q_start, values, recorder)))
    call = lists_for(call, kinds_of(call, asked))
    call.hold()
    return call


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
) -> bool:
    """Check the values of the tables of a call that is known to fit in all else.

    Returns:
        Whether those of another call of its kind have to be checked.

    Raises:
        SpatError: as `spdsl.runtime.checks.check_values`.
    """
    prepared = request(q, k, v, tables, key, shape, values, None)
    call = _call(prepared, q, k, v, tables, places, q_start, values, Recorder())
    return checks.check_values(materialise(call), narrow=prepared.backend != "cpu")


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


def no_autocast(device: str) -> AbstractContextManager[object]:
    """While this lasts, the types of the tensors are the types computed in."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def gradient_of(found: Gradients, name: str, tensor: Tensor) -> Tensor:
    """The gradient of a tensor; of tables, which a call sees with a batch axis, the gradients have one too."""
    gradient = {"q": found.q, "k": found.k, "v": found.v, **found.tables}[name]
    assert gradient is not None
    return gradient if gradient.dim() == tensor.dim() else gradient.view_as(tensor)


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
