"""Members that invite queries and keys, their invitations chosen by a kernel, in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch

import spdsl
from spdsl.runtime.ranking import best
from tests.interpreter.test_chains import dense

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


def test_the_largest_of_rows() -> None:
    """Ties go to the first, and zeros of both signs are one number."""
    from spdsl.runtime.choosing import largest

    kinds = torch.tensor([0.0, -0.0, 1.0, 1.0, -2.0, float("inf"), float("-inf"), float("nan")])
    generator = torch.Generator().manual_seed(0)
    value = kinds[torch.randint(0, len(kinds), (2, 3, 45), generator=generator)]
    only = torch.rand(2, 3, 45, generator=generator) < 0.6
    for count in (1, 6, 45):
        assert torch.equal(dense(largest(value, only, count), 45), best(value, only, None, count))


@pytest.mark.parametrize(
    ("batch", "heads", "groups", "n", "nq", "clusters", "width"),
    [(2, 2, 1, 50, 50, 2, 40), (1, 2, 2, 45, 21, 2, 9)],
)
def test_clusters(batch: int, heads: int, groups: int, n: int, nq: int, clusters: int, width: int) -> None:
    """Output and gradients; tiles of more and of fewer rows than a member has, and queries that are the last ones."""
    generator = torch.Generator().manual_seed(1)
    shapes = (heads, nq), (groups, n), (groups, n)
    given = [torch.randn(batch, *shape, 16, generator=generator).requires_grad_() for shape in shapes]
    mu = torch.randn(heads, clusters, 16, generator=generator)
    attn = spdsl.compile("routing", clusters=clusters, width=width, backend="triton")
    results = []
    for call in (attn, attn.reference):
        out = call(*given, mu=mu)
        assert isinstance(out, torch.Tensor)
        results.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found.double(), wanted.double(), atol=2e-5)


def test_other_conditions_are_left_to_torch() -> None:
    text = """pattern near(clusters: int in 1..) {
  input mu: float[h, c: clusters, d]
  let asks = score(Q, mu) |> top(6, over = q)
  let answers = score(K, mu) |> top(6, over = k)
  return mean(attend { keep q - k < 9 and asks and answers }, over = c)
}"""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, heads, 30, 16, generator=generator) for heads in (2, 1, 1))
    mu = torch.randn(2, 2, 16, generator=generator)
    attn = spdsl.compile(spdsl.loads(text), clusters=2, backend="triton")
    assert torch.allclose(attn(q, k, v, mu=mu), attn.reference(q, k, v, mu=mu).float(), atol=1e-5)
