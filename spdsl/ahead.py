"""The kernels of whole calls of a pattern, compiled for a GPU that need not be present.

From: a pattern with stages and the sizes of its calls.  To: all kernels that such calls launch — selections, lists,
attention over them, what puts results together, and the backward pass —, compiled.  There is no second list of what a
call launches: the call itself is carried out on a GPU that is stood in for (`spdsl.runtime.absent`), and its launches
are noted.  It is carried out again as long as that brings kernels which are not known yet, as where one does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from spdsl.analysis.candidates import SHARED_BYTES
from spdsl.analysis.device import DeviceProfile
from spdsl.api import Attention
from spdsl.choices import Choice, choosing
from spdsl.codegen.asked import Asked, AskedKernel
from spdsl.codegen.builders import processors
from spdsl.diagnostics import error
from spdsl.runtime.absent import AbsentGpu, standing_in
from spdsl.runtime.numbers import Assumed
from spdsl.samples import Sizes

Watch: TypeAlias = Callable[[str, int, int | None], None]
"""Is told what is being done, how many steps are done, and of how many."""

Trained: TypeAlias = Literal["nothing", "tensors", "all"]
"""Of what a call has gradients: of nothing, of q, k and v, or of float inputs, too."""

_ROUNDS = 8
"""How often calls are carried out at most; each time they ask for smaller kernels in the place of some."""

_ASSUMED = (32, 33)
"""What is taken for a number that only a run knows: Triton has other binaries for multiples of 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """The kernels of calls of one kind, those that fit the GPU, with their keys in the cache.

    ``decided`` are the functions of the run time that read a number of a tensor, of which two values were assumed;
    ``choices`` are the tiles that calls will find.
    """

    kernels: tuple[tuple[str, AskedKernel], ...]
    decided: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Calls of one kind: ``inputs`` are like the pattern's, of which shapes and types count, on any device; ``told`` is
    added to what the calls are named."""

    attention: Attention
    sizes: Sizes
    value_dim: int
    dtype: torch.dtype
    inputs: Mapping[str, Tensor]
    backward: bool
    told: str = ""


def ahead(wanted: Sequence[Wanted], gpu: DeviceProfile, *, by_model: bool, watch: Watch | None = None) -> Ahead:
    """Compile the kernels of all such calls for a GPU; ``by_model`` lets the model choose tiles for it.

    Raises:
        SpatError: as a call with these sizes would, or the host has to read what only a run knows (SP519).
    """
    absent = AbsentGpu(name=gpu.name, target=gpu.target, multiprocessors=gpu.multiprocessors)
    asked = Asked(room=SHARED_BYTES[gpu.target], device=absent.place)
    decided = set[str]()
    with choosing(by_model=by_model) as choices:
        for _ in range(_ROUNDS):
            for each in wanted:
                decided |= _asked(each, absent, asked)
            if not asked.waiting:
                break
            done, steps = len(asked.kernels) - len(asked.waiting), len(asked.kernels)
            for name in asked.compile(processors()):
                done += 1
                if watch is not None:
                    watch(f"compiled {name}", done, steps)
    return Ahead(
        kernels=tuple((key, each) for key, each in asked.kernels.items() if each.fits(asked.room)),
        decided=tuple(sorted(decided)),
        choices=tuple(choices),
    )


def _asked(wanted: Wanted, gpu: AbsentGpu, asked: Asked) -> set[str]:
    """What such calls assume; they have asked for their kernels."""
    found = set[str]()
    for number in _ASSUMED:
        assumed = Assumed(number=number)
        carried_out(wanted, gpu, asked, assumed)
        found |= assumed.places
        if not assumed.places:
            break
    return found


def carried_out(wanted: Wanted, gpu: AbsentGpu, asked: Asked, assumed: Assumed) -> None:
    """Calls as a process makes them first: without gradients, with those of q, k and v, and with those of all."""
    pattern = wanted.attention.pattern
    calls: list[tuple[str, Trained]] = [("inference", "nothing")]
    if wanted.backward:
        calls.append(("training", "tensors"))
    if wanted.backward and any(each.is_floating_point() for each in wanted.inputs.values()):
        calls.append(("training with inputs", "all"))
    try:
        for name, trained in calls:
            with standing_in(gpu, f"{name}{wanted.told}", asked, assumed) as device:
                _call(wanted, device, trained)
    except (RuntimeError, NotImplementedError) as refused:
        first = (str(refused).splitlines() or [type(refused).__name__])[0]
        raise error(
            "SP519",
            f"calls of `{pattern.name}` read numbers that only a run knows, so that their kernels cannot be told: "
            f"{first}",
            pattern.checked.span,
            help="run it on the GPU once, and carry the cache: `spdsl cache export`",
        ) from refused


def _call(wanted: Wanted, device: torch.device, trained: Trained) -> None:
    sizes, backward = wanted.sizes, trained != "nothing"

    def like(heads: int, rows: int, dim: int) -> Tensor:
        return torch.empty(sizes.batch, heads, rows, dim, dtype=wanted.dtype, device=device, requires_grad=backward)

    q, k = like(sizes.heads, sizes.nq, sizes.head_dim), like(sizes.groups, sizes.n, sizes.head_dim)
    v = like(sizes.groups, sizes.n, wanted.value_dim)
    inputs = {name: torch.empty(each.shape, dtype=each.dtype, device=device) for name, each in wanted.inputs.items()}
    for each in inputs.values():
        each.requires_grad_(trained == "all" and each.is_floating_point())
    given = wanted.attention
    # Another object: what calls of this one remember is of other devices.
    attention = Attention(given.pattern, given.parameters, layer=given.layer, deterministic=given.deterministic)
    with torch.set_grad_enabled(backward):
        out: Tensor = attention(q, k, v, **inputs)  # type: ignore[assignment, arg-type]
    if backward:
        leaves = [each for each in (q, k, v, *inputs.values()) if each.requires_grad]
        torch.autograd.grad(out, leaves, torch.empty_like(out), allow_unused=True)
