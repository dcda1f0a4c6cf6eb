"""A GPU that is not there: while it is stood in for, calls take the very path they take on it, as far as the start of
each kernel.

From: a GPU as torch describes it.  To: what its host does for a call, without a device.  Tensors of the GPU that
kernels or the caller fill have no numbers: they are those of torch's device ``meta``, which autograd knows everywhere.
What the host makes of positions and sizes alone has numbers, which are here (`spdsl.runtime.numbers`).  A mode for
functions of torch lets both say that they are of the GPU, whose number no machine has, so that nothing which is
remembered by device is mistaken for what a real one was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import RLock
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.fx.experimental import _config

from spdsl.codegen.asked import Asked
from spdsl.runtime.deferred import noted_apart
from spdsl.runtime.notices import watched
from spdsl.runtime.numbers import Assumed, Standing
from spdsl.runtime.seen import Note
from spdsl.runtime.vendor import working_for

_FIRST = 100
"""Numbers of GPUs from here on stand for absent ones."""

_MANY = 28
"""Torch knows numbers up to 127."""

_run_backward: Callable[..., Any] = torch.autograd._engine_run_backward  # type: ignore[attr-defined]  # noqa: SLF001


_numbers: dict[AbsentGpu, int] = {}
"""Which GPU has which number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentGpu:
    """A GPU as torch describes it: its name, its target (``sm_90``), its multiprocessors, and its memory in bytes;
    ``place`` is the number of its device."""

    name: str
    target: str
    multiprocessors: int
    memory: int = 80 << 30

    @property
    def place(self) -> int:
        """One that no machine has, and another for each kind of GPU, up to so many kinds."""
        return _FIRST + _numbers.setdefault(self, len(_numbers)) % _MANY

    @property
    def is_amd(self) -> bool:
        """Whether it is one of AMD's."""
        return self.target.startswith("gfx")


@contextmanager
def standing_in(
    gpu: AbsentGpu,
    call: str,
    asked: Asked,
    assumed: Assumed,
    tell: Callable[[Note], None] = lambda note: None,  # noqa: ARG005  # nobody is told
) -> Iterator[torch.device]:
    """While this lasts, there is this GPU and no other for this thread; yields its device.

    Notes which kernels the ``call`` of this name has ``asked`` for, and what is ``assumed``; ``tell`` is told of every
    launch.  Other threads go on as they were, unless they want a GPU stood in for, too: they wait until this ends.
    """
    with _one_at_a_time:
        device = torch.device("cuda", gpu.place)
        standing = Standing(device=device, assumed=assumed, tell=tell)
        with ExitStack() as stack:
            for name, answer in _answers(gpu).items():
                stack.enter_context(_here(torch.cuda, name, answer))
            stack.enter_context(patch.object(torch.cuda, "Event", _events(torch.cuda.Event)))
            # A mode is taken away from what a function of torch calls, as the engine of gradients calls ours.
            stack.enter_context(_here(torch.autograd, "_engine_run_backward", standing.during(_run_backward)))
            stack.enter_context(noted_apart())
            stack.enter_context(_config.patch(meta_nonzero_assume_all_nonzero=True))  # type: ignore[attr-defined]
            stack.enter_context(working_for(amd=gpu.is_amd))
            stack.enter_context(_driver(gpu))
            stack.enter_context(asked.during(call))
            # As whoever watches it has a mode, is told of launches, and is served nothing that was made before.
            stack.enter_context(watched(standing))
            stack.enter_context(standing)
            token = _standing.set(True)
            try:
                yield device
            finally:
                _standing.reset(token)


_one_at_a_time = RLock()
"""Whoever stands in: what is put in the place of torch's functions is taken away in turn."""

_standing: ContextVar[bool] = ContextVar("_standing", default=False)
"""Whether this thread has a GPU stood in for."""


def _here(owner: object, name: str, answer: Callable[..., Any]) -> AbstractContextManager[object]:
    """While this lasts, a function answers so in this thread, and as before in others."""
    theirs = getattr(owner, name)

    def answered(*args: Any, **kwargs: Any) -> Any:
        return (answer if _standing.get() else theirs)(*args, **kwargs)

    return patch.object(owner, name, answered)


def _events(theirs: type) -> type:
    """The class of events, which makes other ones in threads with a GPU stood in for."""

    class Kind(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return _Event() if _standing.get() else theirs(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, _Event | theirs)

    return Kind("Event", (), {})


def _answers(gpu: AbsentGpu) -> Mapping[str, Any]:
    """What torch is asked about a GPU."""
    major, minor = (9, 4) if gpu.is_amd else divmod(int(gpu.target.removeprefix("sm_")), 10)
    properties = SimpleNamespace(
        gcnArchName=gpu.target,
        name=gpu.name,
        multi_processor_count=gpu.multiprocessors,
        total_memory=gpu.memory,
        major=major,
        minor=minor,
    )
    return {
        "current_device": lambda: gpu.place,
        "get_device_name": lambda device=None: gpu.name,  # noqa: ARG005
        "get_device_capability": lambda device=None: (major, minor),  # noqa: ARG005
        "get_device_properties": lambda device=None: properties,  # noqa: ARG005
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "mem_get_info": lambda device=None: (gpu.memory, gpu.memory),  # noqa: ARG005
    }


class _Event:
    """What has been asked of a GPU that is not there never ends."""

    def record(self, stream: object = None) -> None:
        """Nothing."""

    def query(self) -> bool:
        """Not yet."""
        return False


@contextmanager
def _driver(gpu: AbsentGpu) -> Iterator[None]:
    """While this lasts, Triton takes the GPU for the one that this thread works for."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    amd = GPUTarget("hip", gpu.target, 64)
    target = amd if gpu.is_amd else GPUTarget("cuda", int(gpu.target.removeprefix("sm_")), 32)
    theirs = driver._active  # noqa: SLF001  # without asking for one where there is none
    ours = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: gpu.place,
        get_current_stream=lambda device: 0,  # noqa: ARG005
    )

    class Active:
        def __getattr__(self, name: str) -> Any:
            others = (driver.default if theirs is None else theirs) if not _standing.get() else ours
            return getattr(others, name)

    with patch.object(driver, "_active", Active()):
        yield
