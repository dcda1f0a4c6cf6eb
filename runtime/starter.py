"""From the arguments of a launch to the start of one kernel, without doing again what an earlier launch has settled.

Triton looks at every argument in each launch to find the binary that was compiled for arguments like these.  A
`Starter` remembers the binary under a key of its own, which tells apart at least what Triton's does: types of tensors,
and whether addresses, and integers that are specialised, are multiples of 16, or 1.  Whatever has no such key goes
Triton's way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from spdsl.codegen.binaries import keeping, options_of
from spdsl.codegen.blocks import Argument, Kernel
from spdsl.codegen.gluon import layout_of
from spdsl.runtime.notes import STREAM, Entry, Grid, Mapped
from spdsl.runtime.traced import Traced
from spdsl.runtime.vendor import is_amd

_MOST = 64
"""Binaries that a starter remembers."""

_INT = 1 << 31
"""Integers below it are passed in 32 bits, whether specialised or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Makes the descriptors of one argument, which differ in their tensor alone."""

    argument: Argument
    pattern: dict[str, Any]
    type: type

    @staticmethod
    def of(argument: Argument, kernel: Kernel) -> Described:
        """For an argument with a block; a kernel with warps that fetch takes descriptors of Gluon."""
        assert argument.block is not None
        block = list(argument.block)
        if kernel.fetch is None:
            # What Triton checks of a descriptor holds by `aligned`; it is made once, and its fields are copied.
            made: Any = TensorDescriptor(_sample(block), block, _packed(block), block)
        else:
            from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as OfGluon

            made = OfGluon(_sample(block), block, _packed(block), block, layout_of(argument))
        return Described(argument=argument, pattern=vars(made), type=type(made))

    def __call__(self, tensor: Tensor) -> Any:
        """The descriptor of a tensor, or of a copy that the copy engine can read."""
        argument = self.argument
        assert argument.block is not None
        if argument.extents:
            tensor = _on_grid(tensor, argument.extents, len(argument.block))
        elif argument.classes is not None:
            tensor = _by_class(tensor, argument.classes)
        elif len(argument.block) == 1 and tensor.dim() != 1:
            tensor = tensor.reshape(-1)
        tensor, strides = aligned(tensor)
        found: Any = object.__new__(self.type)
        vars(found).update(self.pattern)
        found.base, found.shape, found.strides = tensor, list(tensor.shape), strides
        return found


def _sample(block: list[int]) -> Tensor:
    """A tensor that passes for one of any type; nothing reads it."""
    return torch.empty(block, dtype=torch.float32, device="meta")


def _packed(block: list[int]) -> list[int]:
    return list(torch.empty(block, device="meta").stride())


def _on_grid(tensor: Tensor, extents: tuple[int, ...], dims: int) -> Tensor:
    """The tensor with its rows split into those of a grid, in so many dimensions: if need be batch and heads are
    joined, which takes a copy where the heads of a sequence are not stored one after the other."""
    grid: Tensor = tensor.unflatten(2, extents)
    return grid if grid.dim() == dims else grid.flatten(0, 1)


def _by_class(tensor: Tensor, classes: int) -> Tensor:
    """The tensor with its rows split into those of residue classes, with zeros after the last in a copy if these differ
    in length."""
    short = -tensor.shape[2] % classes
    whole = torch.nn.functional.pad(tensor, (0, 0, 0, short)) if short else tensor
    split: Tensor = whole.unflatten(2, (whole.shape[2] // classes, classes))
    return split


def aligned(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """The tensor and its strides as the copy engine needs them: a copy if its address or strides are not multiples of
    16 bytes."""
    step = 16 // tensor.element_size()
    strides, shape = list(tensor.stride()), tensor.shape
    if strides[-1] != 1 or 0 in shape or 1 in shape or 0 in strides:
        if tensor.numel() == 0:
            tensor = tensor.new_zeros([max(1, size) for size in shape])  # no program reads it
        strides = [stride if size > 1 else step for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        strides[-1] = 1
    if tensor.data_ptr() % 16 or any(stride % step or stride <= 0 for stride in strides[:-1]):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        strides = list(tensor.stride())
    return tensor, strides


@dataclass(frozen=True, slots=True, kw_only=True)
class Starter:
    """Starts one kernel; ``function`` is what Triton launches."""

    kernel: Kernel
    function: Any
    names: tuple[str, ...]
    fixed: tuple[bool, ...]
    described: tuple[tuple[str, Described], ...]
    compiled: dict[Hashable, Any] = field(default_factory=dict)

    @staticmethod
    def of(kernel: Kernel, function: Any) -> Starter:
        """For the function of the generated file."""
        return Starter(
            kernel=kernel,
            function=function,
            names=tuple(argument.name for argument in kernel.arguments),
            fixed=tuple(argument.fixed for argument in kernel.arguments),
            described=tuple((each.name, Described.of(each, kernel)) for each in kernel.arguments if each.block),
        )

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Triton's launcher is given, in the order of the arguments."""
        found = {name: values[name] for name in self.names}
        for name, described in self.described:
            found[name] = described(found[name])
        return found

    def start(self, grid: Grid, given: Mapping[str, Any], stages: int, device: torch.device) -> None:
        """Launch on the current device, which is ``device`` if that is a GPU.

        Settings of Triton for debugging count as they were when a binary was first asked for.
        """
        arguments = tuple(given.values())
        key = launch_key(arguments, self.fixed)
        place = (key, stages, device)
        known = self._known(key, stages, device)
        if known is not None:
            known[grid](*arguments)
            return
        with keeping(self.function, device.index if device.type == "cuda" else None):
            made = self.function[grid](**given, **options_of(self.kernel.warps, stages, self.kernel.registers))
        # The interpreter gives back nothing.
        if key is not None and isinstance(made, CompiledKernel) and self.function.arg_names == list(self.names):
            if len(self.compiled) >= _MOST:
                self.compiled.clear()
            self.compiled[place] = made

    def _known(self, key: Hashable, stages: int, device: torch.device) -> Any:
        """The binary for arguments with this key; None if there is none, or if someone wants to see each launch."""
        return None if key is None or self.function.pre_run_hooks else self.compiled.get((key, stages, device))

    def entry(
        self, grid: Grid, values: Mapping[str, Any], given: Mapping[str, Any], stages: int, device: torch.device
    ) -> Entry | None:
        """The launch of an earlier `start` as a call of Triton's function in C, with addresses of tensors as arguments.

        None where that function is not what it is in the versions of Triton known here.
        """
        known = self._known(launch_key(tuple(given.values()), self.fixed), stages, device)
        copied = any(given[name].base.data_ptr() != values[name].data_ptr() for name, _ in self.described)
        if known is None or copied:
            return None
        metadata = getattr(known.metadata, "tensordesc_meta", None) or ()
        if len(metadata) != len(self.described):
            return None
        flat = _flattened(given, {name: (values[name], how) for name, how in self.described}, metadata)
        return flat_launch(known, grid, flat)


def flat_launch(known: Any, grid: Grid, arguments: Iterable[object]) -> Entry | None:
    """A compiled kernel as a call of Triton's function in C, with these arguments of its own; None where that function
    is not what it is in the versions of Triton known here."""
    launcher = known.run
    launch = _function_of(launcher)
    if launch is None:
        return None
    return Entry(
        launch=launch,
        arguments=(
            *grid,
            STREAM,
            known.function,
            launcher.launch_cooperative_grid,
            launcher.launch_pdl,
            *(None, None),  # memory of the launcher's own, which `_function_of` refuses
            known.packed_metadata,
            *(None, None, None),  # what hooks are told, and the hooks: with these, launches go by name
            *arguments,
        ),
    )


_FORMAT = "iiiKKppOOOOOO"
"""What Triton's function takes before the arguments of the kernel; see `flat_launch`."""


def _function_of(launcher: Any) -> Callable[..., object] | None:
    """The function of a launcher that takes descriptors as they are passed to the device."""
    from triton.backends.nvidia import driver

    if getattr(driver, "_BASE_ARGS_FORMAT", None) != _FORMAT or not hasattr(launcher, "launch_pdl"):
        return None
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return None
    launch: Any = launcher.launch
    code = getattr(launch, "__code__", None)
    # Where there are descriptors, Triton wraps the function in one that makes them anew in every launch.
    if code is not None and "launcher" in code.co_freevars:
        launch = launch.__closure__[code.co_freevars.index("launcher")].cell_contents
    return launch  # type: ignore[no-any-return]


def _flattened(
    given: Mapping[str, Any], described: Mapping[str, tuple[Tensor, Described]], metadata: Iterable[Any]
) -> Iterator[object]:
    """The arguments of a kernel as Triton's function takes them: descriptors with shapes and strides behind them."""
    from triton.backends.nvidia.driver import make_tensordesc_arg

    settings = iter(metadata)
    for name, value in given.items():
        if name not in described:
            yield value
            continue
        tensor, how = described[name]
        map = OnDevice(described=how, make=partial(make_tensordesc_arg, metadata=next(settings)))
        yield Mapped(tensor=tensor, map=map)
        yield from map.make(value)[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """Makes descriptors of one argument as they are passed to the device."""

    described: Described
    make: Callable[[Any], list[object]]

    def of(self, tensor: Tensor) -> object:
        """The descriptor of a tensor."""
        return self.make(self.described(tensor))[0]


def launch_key(arguments: tuple[Any, ...], fixed: tuple[bool, ...]) -> Hashable | None:
    """What decides which binary runs, at least as fine as Triton's rules; None for what these do not cover here.

    ``fixed`` says which arguments are specialised.  On AMD, Triton also looks at sizes of memory.
    """
    if is_amd():
        return None
    parts: list[Hashable] = []
    for value, specialised in zip(arguments, fixed, strict=True):
        if isinstance(value, Tensor):
            parts.append((value.dtype, value.data_ptr() % 16 == 0))
        elif type(value) is int or type(value) is Traced:
            if not -_INT <= value < _INT:
                return None
            parts.append((value == 1, value % 16 == 0) if specialised else None)
        elif type(value) is float:
            parts.append(None)  # always passed in 32 bits
        elif hasattr(value, "block_shape"):
            # Blocks and layouts belong to the argument.
            parts.append(value.base.dtype)
        else:
            return None
    return tuple(parts)
