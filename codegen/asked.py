"""Kernels that launches ask for while nothing is run: what each is compiled from, and later its binary.

From: calls whose launches would compile, on a GPU that is stood in for (`spdsl.runtime.absent`).  To: the sources as
Triton itself made them of the arguments, so that what is compiled of them is what launches on that GPU will look for.
Whether a kernel fits is known once it has been compiled; launches that come later are told, as a run would tell them,
and ask for a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from triton.compiler import CompiledKernel
from triton.runtime.errors import OutOfResources

from spdsl.codegen.binaries import asking, compile_kept


@dataclass(slots=True, kw_only=True, eq=False)
class AskedKernel:
    """A kernel; ``calls`` are those that launch it, and ``made`` is its binary once there is one."""

    source: Any
    target: Any
    options: Mapping[str, Any]
    calls: list[str] = field(default_factory=list)
    made: CompiledKernel | None = None

    def compile(self) -> None:
        """Make the binary, or take it from the cache."""
        self.made = compile_kept(self.source, self.target, self.options)

    def fits(self, room: int) -> bool:
        """Whether it has been compiled, and programs with so much shared memory hold it."""
        return self.made is not None and self.made.metadata.shared <= room


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launched:
    """Stands in the place of Triton's own kernel, and is launched, which does nothing."""

    kernel: AskedKernel
    room: int
    function: None = None
    packed_metadata: None = None

    def launch_metadata(self, *arguments: object) -> None:
        """Nobody is told of launches."""

    def run(self, *arguments: object) -> None:  # noqa: ARG002  # nothing is run
        """A launch.

        Raises:
            OutOfResources: the kernel needs more shared memory than there is.
        """
        made = self.kernel.made
        if made is not None and not self.kernel.fits(self.room):
            raise OutOfResources(made.metadata.shared, self.room, "shared memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The kernels that were asked for, by their keys in the cache; ``room`` is the shared memory of a program, in
    bytes, and ``device`` the number of the GPU, under which Triton remembers kernels."""

    room: int
    device: int
    kernels: dict[str, AskedKernel] = field(default_factory=dict)

    @contextmanager
    def during(self, call: str) -> Iterator[None]:
        """While this lasts, launches of this thread ask here, for the ``call`` of this name."""

        def ask(key: str, source: Any, target: Any, options: Mapping[str, Any]) -> _Launched:
            found = self.kernels.setdefault(key, AskedKernel(source=source, target=target, options=options))
            if call not in found.calls:
                found.calls.append(call)
            functions.append(source.fn)
            return _Launched(kernel=found, room=self.room)

        functions: list[Any] = []
        try:
            with asking(ask):
                yield
        finally:
            for each in functions:
                each.device_caches.pop(self.device, None)  # the next call asks again

    @property
    def waiting(self) -> tuple[AskedKernel, ...]:
        """Those that have not been compiled."""
        return tuple(each for each in self.kernels.values() if each.made is None)

    def compile(self, workers: int) -> Iterator[str]:
        """Compile side by side what has not been; yields the name of each as it is done."""
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            named = {pool.submit(each.compile): each.source.name for each in self.waiting}
            for done in as_completed(named):
                done.result()
                yield named[done]
