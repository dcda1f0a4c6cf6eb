"""The forward with specialised warps against the reference and against Triton: all walks, types, ragged sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import prepare
from spdsl.codegen.blocks import Kernel
from spdsl.runtime.calls import Call
from spdsl.runtime.launch import Loaded
from tests.library.compare import poisoned, relative_error

pytestmark = pytest.mark.gpu

Inputs = Callable[[tuple[int, ...]], dict[str, Tensor]]
NONE: Inputs = lambda size: {}  # noqa: E731

SIZES = ((1, 4, 4, 1024, 1024), (2, 4, 2, 1000, 1000), (1, 4, 1, 333, 777), (1, 2, 2, 65, 65), (3, 2, 1, 70, 700))
DIMS = ((64, 64), (128, 128), (128, 64), (72, 40), (256, 256), (192, 128))

PATTERNS: dict[str, tuple[dict[str, object], Inputs]] = {
    "full": ({}, NONE),
    "causal": ({}, NONE),
    "sliding_window": ({"window": 100}, NONE),
    "streaming": ({"sinks": 64, "window": 256}, NONE),
    "s2": ({}, NONE),
    "strided": ({}, NONE),
    "power": ({"block": 64}, NONE),
    "log_sparse": ({}, NONE),
    "dilated": ({"span": 400}, NONE),
    "bigbird": ({}, NONE),
    "alibi": ({}, lambda size: {"slope": torch.linspace(0.01, 0.5, size[1], device="cuda")}),
    "softcap": ({}, NONE),
    "block_local": ({}, NONE),
    "documents": ({}, lambda size: {"doc": torch.arange(size[4], device="cuda") // 97}),
    "prefix_lm": ({}, lambda size: {"prefix": torch.full((size[0],), 50, device="cuda", dtype=torch.int32)}),
    "longformer": ({}, lambda size: {"is_global": torch.arange(size[4], device="cuda") % 300 == 0}),
}
GRIDS: dict[str, dict[str, object]] = {
    "neighborhood_1d": {"extents": (1000,), "window": (65,)},
    "neighborhood_2d": {"extents": (36, 44), "window": (9, 13)},
    "neighborhood_3d": {"extents": (9, 14, 20), "window": (3, 5, 7)},
}
SINKS = """pattern rests(window: int in 1..) {
  input rest: float[h]
  keep 0 <= q - k < window
  sink_logit rest[h]
}
"""


def hopper() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("these kernels are for Hopper")


@contextmanager
def noting(ran: list[str]) -> Iterator[None]:
    """Collects the names of kernels in Gluon that start in calls that are carried out, not played."""
    start = Loaded._start

    def noted(self: Loaded, call: Call, kernel: Kernel, *rest: object) -> None:
        if kernel.fetch is not None:
            ran.append(kernel.name)
        start(self, call, kernel, *rest)  # type: ignore[arg-type]

    Loaded._start = noted  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Loaded._start = start  # type: ignore[method-assign]


@contextmanager
def in_triton() -> Iterator[None]:
    """Kernels of a machine that has none with specialised warps."""
    target_of = prepare.target_of
    caches = (prepare._planned, prepare._settled)
    prepare.target_of = lambda backend, device: "sm_100"
    try:
        for cache in caches:
            cache.cache_clear()
        yield
    finally:
        prepare.target_of = target_of
        for cache in caches:
            cache.cache_clear()


def tensors(size: tuple[int, ...], dims: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    batch, heads, groups, nq, n = size
    torch.manual_seed(0)
    shapes = ((batch, heads, nq, dims[0]), (batch, groups, n, dims[0]), (batch, groups, n, dims[1]))
    return [torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes]


def check(attn: spdsl.Attention, given: list[Tensor], inputs: dict[str, Tensor]) -> None:
    ran: list[str] = []
    with noting(ran), poisoned():
        out, lse = attn(*given, return_lse=True, **inputs)
        again, lse_again = attn(*given, return_lse=True, **inputs)
    assert len(ran) in (1, 2), "one kernel, or one for each of two sets; the second call is played"
    assert set(ran) == {"forward"}
    assert torch.equal(out, again), "runs differ"
    assert torch.equal(lse, lse_again), "runs differ"
    wanted, wanted_lse = attn.reference(*given, return_lse=True, **inputs)
    assert not out.isnan().any()
    assert relative_error(out, wanted.double()) < (1e-2 if given[0].dtype == torch.bfloat16 else 2e-3)
    kept = wanted_lse > float("-inf")
    assert torch.equal(lse > float("-inf"), kept.to(lse.device))
    assert (lse - wanted_lse.to(lse))[kept.to(lse.device)].abs().max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATTERNS)
def test_equals_the_reference(name: str, size: tuple[int, ...]) -> None:
    hopper()
    parameters, inputs = PATTERNS[name]
    dtype = torch.float16 if size[0] == 2 else torch.bfloat16
    check(spdsl.compile(name, **parameters), tensors(size, (128, 128), dtype), inputs(size))


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("name", ["causal", "streaming", "bigbird", "dilated"])
def test_dims(name: str, dims: tuple[int, int]) -> None:
    hopper()
    parameters, inputs = PATTERNS[name]
    check(spdsl.compile(name, **parameters), tensors(SIZES[1], dims, torch.bfloat16), inputs(SIZES[1]))


@pytest.mark.parametrize("dims", [(128, 128), (64, 64)])
@pytest.mark.parametrize("name", GRIDS)
def test_grids(name: str, dims: tuple[int, int]) -> None:
    hopper()
    n = torch.Size(GRIDS[name]["extents"]).numel()  # type: ignore[arg-type]
    check(spdsl.compile(name, **GRIDS[name]), tensors((2, 4, 2, n, n), dims, torch.bfloat16), {})


def test_sinks_and_positions_before_the_first() -> None:
    hopper()
    attn = spdsl.compile(spdsl.loads(SINKS), window=70)
    given = tensors((2, 4, 2, 300, 500), (128, 128), torch.float16)
    check(attn, given, {"rest": torch.randn(4, device="cuda")})
    out, lse = spdsl.compile("causal")(*given, q_start=-90, return_lse=True)  # type: ignore[misc]
    assert out[:, :, :90].eq(0).all()
    assert lse[:, :, :90].eq(float("-inf")).all()
    assert not out.isnan().any()


@pytest.mark.parametrize("name", PATTERNS)
def test_equals_triton_on_long_sequences(name: str) -> None:
    """Where rows are cut into parts, and rings go round many times."""
    hopper()
    parameters, inputs = PATTERNS[name]
    size = (1, 4, 2, 8200, 8200)
    given, more = tensors(size, (128, 128), torch.bfloat16), inputs(size)
    ran: list[str] = []
    with noting(ran), poisoned():
        out, lse = spdsl.compile(name, **parameters)(*given, return_lse=True, **more)
    assert set(ran) == {"forward"}
    with in_triton():
        other, other_lse = spdsl.compile(name, **parameters)(*given, return_lse=True, **more)
    assert relative_error(out, other.double()) < 5e-3
    assert torch.equal(lse == float("-inf"), other_lse == float("-inf"))
    assert (lse - other_lse).nan_to_num(0.0).abs().max() < 1e-3
