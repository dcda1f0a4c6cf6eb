"""Launches that find their binary again: what tells arguments apart, and what does not."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from spdsl.codegen.blocks import Argument, Kernel
from spdsl.codegen.gluon import layout_of
from spdsl.runtime.starter import Described, Starter, aligned, launch_key

CPU = torch.device("cpu")
ARGUMENTS = (
    Argument(name="Q", type="*bf16", block=(1, 1, 16, 32)),
    Argument(name="LSE", type="*fp32"),
    Argument(name="q_stride_n", type="i64", fixed=True),
    Argument(name="n", type="i32"),
)
KERNEL = Kernel(
    name="some", doc="", arguments=ARGUMENTS, constants=(), body=(), block=16, warps=4, stages=2, fetch=None
)


class Binary(CompiledKernel):
    """A binary that writes down its launches."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *arguments: self.launches.append((grid, *arguments))


class Function:
    """What Triton launches: it makes a binary each time it is asked."""

    def __init__(self) -> None:
        self.arg_names = [argument.name for argument in ARGUMENTS]
        self.pre_run_hooks: list[object] = []
        self.made: list[Binary] = []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def run(**given: object) -> Binary:
            assert list(given)[:4] == self.arg_names
            self.made.append(Binary())
            return self.made[-1]

        return run


def values(**changed: object) -> dict[str, Any]:
    q = torch.empty(2, 3, 64, 32, dtype=torch.bfloat16)
    return {"Q": q, "LSE": torch.empty(8), "q_stride_n": 32, "n": 64, "unused": 1, **changed}


@pytest.fixture
def starter() -> Starter:
    return Starter.of(KERNEL, Function())


def start(starter: Starter, stages: int = 2, **changed: object) -> None:
    starter.start((1, 2, 3), starter.given(values(**changed)), stages, CPU)


def test_the_second_launch_finds_the_binary(starter: Starter) -> None:
    for length in (64, 65, 1 << 20, 1, 16):
        start(starter, n=length)
    (binary,) = starter.function.made
    assert [launch[0] for launch in binary.launches] == [(1, 2, 3)] * 4
    assert [launch[4] for launch in binary.launches] == [65, 1 << 20, 1, 16]


def test_what_tells_launches_apart(starter: Starter) -> None:
    start(starter)
    start(starter, LSE=torch.empty(9)[1:])
    start(starter, LSE=torch.empty(8, dtype=torch.float64))
    start(starter, Q=torch.empty(2, 3, 64, 32, dtype=torch.float16))
    start(starter, q_stride_n=1)
    start(starter, q_stride_n=33)
    start(starter, stages=1)
    assert len(starter.function.made) == 7
    assert len(starter.compiled) == 7
    start(starter, q_stride_n=64)  # a multiple of 16, as 32 is
    assert len(starter.function.made) == 7


def test_what_goes_the_way_of_triton(starter: Starter) -> None:
    for _ in range(2):
        start(starter, n=1 << 31)
        start(starter, n=True)
    assert len(starter.function.made) == 4
    start(starter)
    starter.function.pre_run_hooks.append(print)
    start(starter)
    assert len(starter.function.made) == 6
    assert not starter.function.made[-1].launches


def test_remembers_few(starter: Starter) -> None:
    for stages in range(200):
        start(starter, stages=stages)
    assert len(starter.function.made) == 200
    assert len(starter.compiled) <= 64


def test_is_as_fine_as_triton() -> None:
    """Arguments of one key are specialised alike by Triton."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import native_specialize_impl as specialise

    backend = make_backend(GPUTarget("cuda", 90, 32))
    chance = random.Random(3)
    memory = torch.empty(64)
    tensors: list[Tensor] = [memory, memory[1:], memory[4:], memory.half(), memory.half()[8:], memory.half()[3:]]
    tensors += [memory.int(), memory.long()[1:], memory.bool(), memory.to(torch.bfloat16)]
    numbers = [0, 1, 2, 16, 17, 32, 48, 1000, -1, -16, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 63, True, False]
    found: dict[object, list[Any]] = {}
    for _ in range(4000):
        arguments = (chance.choice(tensors), chance.choice(numbers), chance.choice(numbers))
        fixed = (False, True, False)
        key = launch_key(arguments, fixed)
        if key is None:
            continue
        shown = [
            specialise(type(backend), value, False, integer is not False, integer is not False)
            for value, integer in zip(arguments, (None, True, False), strict=True)
        ]
        assert found.setdefault(key, shown) == shown
    assert len(found) == 8 * 3  # types and alignments of tensors; 1, multiples of 16, others


def test_descriptors_are_those_of_triton() -> None:
    q = torch.empty(2, 3, 64, 48, dtype=torch.bfloat16)[..., :32]
    made = Described.of(ARGUMENTS[0], KERNEL)(q)
    assert made == TensorDescriptor(q, [2, 3, 64, 32], list(q.stride()), [1, 1, 16, 32])
    assert launch_key((made,), (False,)) == (torch.bfloat16,)
    fused = Described.of(ARGUMENTS[0], replace(KERNEL, fetch=()))(q)
    assert fused.layout == layout_of(ARGUMENTS[0])
    assert SimpleNamespace(**vars(fused)).block_shape == [1, 1, 16, 32]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(2, 3, 64, 32),
        torch.empty(1, 3, 64, 32),
        torch.empty(2, 3, 0, 32),
        torch.empty(2, 3, 64, 33)[..., 1:],
        torch.empty(2, 3, 64, 32).transpose(1, 2),
        torch.empty(1, 1, 64, 32).expand(2, 3, 64, 32),
        torch.empty(2, 3, 64, 32)[:, :, ::2],
    ],
)
def test_what_the_copy_engine_can_read(tensor: Tensor) -> None:
    found, strides = aligned(tensor)
    assert found.data_ptr() % 16 == 0
    assert strides[-1] == 1
    assert all(stride > 0 and stride * found.element_size() % 16 == 0 for stride in strides[:-1])
    assert all(a == b or size == 1 for a, b, size in zip(strides, found.stride(), found.shape, strict=True))
    if tensor.numel():
        assert found.shape == tensor.shape
