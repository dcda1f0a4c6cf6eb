"""One call of a fast path against the float64 reference: output, LSE and every gradient, on poisoned memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

import spdsl
from tests.library.cases import Case, Sizes

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def sizes_for(case: Case, shape: Sizes) -> Sizes:
    """``shape`` with the length that the case dictates, if any."""
    if case.n is None:
        return shape
    return Sizes(batch=shape.batch, heads=shape.heads, groups=shape.groups, nq=min(shape.nq, case.n), n=case.n)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; infinite if anything found is not a finite number."""
    found, expected = found.detach().double(), expected.detach().double()
    if not torch.isfinite(found).all():
        return float("inf")
    norm = float(expected.norm())
    return float((found - expected).norm()) / norm if norm > 0 else float(found.norm())


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is allocated and not written reads as NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def check(
    case: Case,
    shape: Sizes,
    *,
    d: int,
    dv: int,
    dtype: torch.dtype,
    device: str = "cpu",
    backend: str | None = None,
    seed: int = 0,
    **places: int | Tensor,
) -> None:
    """Assert that a call and its gradients are within the tolerances of the design."""
    sizes = sizes_for(case, shape)
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: value.to(device) for name, value in case.inputs(sizes, generator).items()}

    def leaf(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype).requires_grad_()

    q = leaf(sizes.batch, sizes.heads, sizes.nq, d)
    k = leaf(sizes.batch, sizes.groups, sizes.n, d)
    v = leaf(sizes.batch, sizes.groups, sizes.n, dv)
    for name in case.trained:
        inputs[name].requires_grad_()
    leaves = [q, k, v, *(inputs[name] for name in case.trained)]
    attn = spdsl.compile(case.name, backend=backend, **case.parameters)
    with poisoned():
        out, lse = attn(q, k, v, return_lse=True, **places, **inputs)
    expected, expected_lse = attn.reference(q, k, v, return_lse=True, **places, **inputs)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    seen = torch.isfinite(expected_lse)
    assert torch.equal(seen, torch.isfinite(lse))
    assert relative_error(out, expected) <= TOLERANCE[dtype]
    if seen.any():
        assert float((lse[seen].detach().double() - expected_lse[seen].detach()).abs().max()) <= (
            1e-4 if dtype == torch.float32 else 1e-3
        )
    d_out = torch.randn(out.shape, generator=generator).to(device, dtype)
    d_lse = torch.where(seen, torch.randn(lse.shape, generator=generator).to(device), 0.0)
    with poisoned():
        found = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
    wanted = torch.autograd.grad((expected, expected_lse), leaves, (d_out.double(), d_lse.double()))
    for name, gradient, reference in zip(("q", "k", "v", *case.trained), found, wanted, strict=True):
        assert relative_error(gradient, reference) <= 2 * TOLERANCE[dtype], f"gradient of {name}"
