"""Patterns that select by scores: the reference against numpy definitions, the CPU against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import reference
from tests.library.cases import Case, Sizes
from tests.library.compare import TOLERANCE, relative_error, sizes_for
from tests.library.definitions import DEFINITIONS, dsa_index, seer_truth
from tests.library.selections import SELECTIONS

SHAPES = (
    Sizes(batch=1, heads=4, groups=2, nq=123, n=123),
    Sizes(batch=1, heads=3, groups=3, nq=33, n=33),
    Sizes(batch=1, heads=2, groups=1, nq=1, n=1),
)


def made(case: Case, shape: Sizes, *, d: int = 8, seed: int = 0) -> tuple[Any, list[Tensor], dict[str, Tensor]]:
    sizes = sizes_for(case, shape)
    generator = torch.Generator().manual_seed(seed + sizes.n)
    inputs = case.inputs(sizes, generator)
    q = torch.randn(sizes.batch, sizes.heads, sizes.nq, d, generator=generator)
    k, v = torch.randn(2, sizes.batch, sizes.groups, sizes.n, d, generator=generator)
    return spdsl.compile(case.name, **case.parameters), [q, k, v], inputs  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads}of{s.groups}x{s.n}")
@pytest.mark.parametrize("case", SELECTIONS, ids=lambda case: case.name)
def test_the_reference_is_the_definition(case: Case, shape: Sizes) -> None:
    if case.n is not None and shape.n < case.n:
        pytest.skip("a grid has one length")
    attn, tensors, inputs = made(case, shape)
    found = attn.reference(*tensors, **inputs)[0]
    arrays = [x[0].double().numpy() for x in tensors]
    given = {**case.parameters, **{name: table.double().numpy() for name, table in inputs.items()}}
    np.testing.assert_allclose(found.numpy(), DEFINITIONS[case.name](*arrays, given), rtol=1e-9, atol=1e-11)


EXPORTING = [case for case in SELECTIONS if case.name in ("seer_attention", "dsa")]


@pytest.mark.parametrize("case", EXPORTING, ids=lambda case: case.id)
def test_exports_are_those_of_the_definition(case: Case) -> None:
    attn, tensors, inputs = made(case, SHAPES[0])
    q, k, _ = (x[0].double().numpy() for x in tensors)
    given = {**case.parameters, **{name: table.double().numpy() for name, table in inputs.items()}}
    expected = seer_truth(q, k, given) if case.name == "seer_attention" else dsa_index(given, q.shape[1])
    ((_, exported),) = attn.exports(*tensors, **inputs).items()
    np.testing.assert_allclose(exported[0].numpy(), expected, rtol=1e-5, atol=1e-6)


LARGER = (
    Sizes(batch=2, heads=4, groups=4, nq=150, n=150),
    Sizes(batch=2, heads=6, groups=2, nq=203, n=203),
    Sizes(batch=1, heads=16, groups=1, nq=70, n=70),
    Sizes(batch=1, heads=4, groups=1, nq=50, n=170),
    Sizes(batch=1, heads=2, groups=2, nq=1, n=65),
)


@pytest.mark.parametrize("shape", LARGER, ids=lambda s: f"{s.heads}of{s.groups}x{s.nq}x{s.n}")
@pytest.mark.parametrize("case", SELECTIONS, ids=lambda case: case.name)
def test_cpu(case: Case, shape: Sizes) -> None:
    if case.n is not None and (shape.nq != shape.n or shape.n < case.n):
        pytest.skip("a grid has one length")
    check(case, shape)


def check(
    case: Case, shape: Sizes, *, dtype: torch.dtype = torch.float32, device: str = "cpu", backend: str | None = None
) -> None:
    """Assert that output, LSE and every gradient are within the tolerances of the design."""
    _, tensors, inputs = made(case, shape)
    attn = spdsl.compile(case.name, backend=backend, **case.parameters)  # type: ignore[arg-type]
    leaves = [x.to(device, dtype).requires_grad_() for x in tensors]
    inputs = {name: table.to(device) for name, table in inputs.items()}
    leaves += [inputs[name].requires_grad_() for name in case.trained]
    out = attn(*leaves[:3], **inputs)
    expected = attn.reference(*leaves[:3], **inputs)
    assert out.dtype == dtype
    assert isinstance(out, Tensor)
    assert isinstance(expected, Tensor)
    assert relative_error(out, expected) <= TOLERANCE[dtype]
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found = torch.autograd.grad(out, leaves, d_out)
    wanted = torch.autograd.grad(expected, leaves, d_out.double())
    for name, gradient, other in zip(("q", "k", "v", *case.trained), found, wanted, strict=True):
        assert relative_error(gradient, other) <= 2 * TOLERANCE[dtype], f"gradient of {name}"


def test_exports_have_gradients() -> None:
    case = next(case for case in SELECTIONS if case.name == "dsa")
    attn, tensors, inputs = made(case, SHAPES[0])
    leaves = [inputs[name].requires_grad_() for name in ("QI", "KI", "wt")]
    exported = attn.exports(*tensors, **inputs)["index"]
    expected = reference.exports(attn.bind(4, 2, 8), *tensors, tables=inputs, q_start=0)["index"]
    weight = torch.randn(exported.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((exported * weight).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    for gradient, other in zip(found, wanted, strict=True):
        assert relative_error(gradient, other) <= 2e-5


def test_places() -> None:
    case = next(case for case in SELECTIONS if case.name == "moba")
    attn, (q, k, v), _ = made(case, Sizes(batch=3, heads=2, groups=1, nq=40, n=160))
    starts = torch.tensor([0, 37, 110], dtype=torch.int32)
    given = {"k_start": starts, "k_len": 160 - starts}
    out, lse = attn(q, k, v, return_lse=True, **given)
    expected, expected_lse = attn.reference(q, k, v, return_lse=True, **given)
    assert relative_error(out, expected) <= 1e-5
    assert float((lse - expected_lse).abs().max()) <= 1e-4


def test_decoding_is_the_last_row() -> None:
    case = next(case for case in SELECTIONS if case.name == "quest")
    attn, (q, k, v), _ = made(case, Sizes(batch=1, heads=4, groups=2, nq=90, n=90))
    whole = attn(q, k, v)
    for t in (0, 7, 8, 41, 89):
        one = attn(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1])
        torch.testing.assert_close(one[:, :, 0], whole[:, :, t])
