"""Softmaxes along an axis of members by kernels, in Triton's interpreter: the numbers of torch, corners included.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def by_torch(value: Tensor, only: Tensor) -> Tensor:
    """A NaN is absent, infinite scores share all there is, and where there is nothing shares are 0."""
    value = value.masked_fill(~only | value.isnan(), -torch.inf)
    largest = value.amax(2, keepdim=True).detach()
    value = torch.where(largest == torch.inf, torch.where(value == torch.inf, 0.0, -torch.inf), value)
    empty = largest == -torch.inf
    return torch.where(empty, 0.0, torch.softmax(torch.where(empty, 0.0, value), 2))


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, of what is not used
@pytest.mark.parametrize("filtered", [False, True])
def test_shares_and_gradients(filtered: bool) -> None:
    from spdsl.runtime.share_kernels import shares_among

    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 3, 5, 40, generator=generator)
    value[0, 0, 1, ::3], value[0, 1, 2, ::4] = torch.nan, -torch.inf
    value[1, 2, 0, ::5], value[1, 2, 3, ::5] = torch.inf, torch.inf
    only = torch.rand(2, 1, 5, 40, generator=generator) < (0.6 if filtered else 1.0)
    only[0, :, :, 10] = only[0, :, :, 10] & (not filtered)
    weight = torch.randn(value.shape, generator=generator)
    value.requires_grad_()
    found, wanted = shares_among(value, only if filtered else None, 2), by_torch(value, only)
    torch.testing.assert_close(found, wanted)
    gradients = (torch.autograd.grad(each, value, weight)[0] for each in (found, wanted))
    torch.testing.assert_close(*gradients)
