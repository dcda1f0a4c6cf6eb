"""Keys in pages: results are those of the same keys side by side, on the CPU; and what is refused.

The same cases run in Triton's interpreter in `tests/interpreter/test_pages.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from tests.library.cases import CASES, Case, Sizes
from tests.library.compare import poisoned, relative_error

LENGTHS = (171, 90, 33)


def paged(x: Tensor, page: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys ``[batch, groups, n, d]`` in pages that lie anywhere, and the table of each sequence's pages.

    Rows and pages that no sequence uses hold NaN; the table names no page there.
    """
    batch, groups, n, d = x.shape
    each = -(-n // page)
    order = torch.randperm(batch * each + 3, generator=generator)[: batch * each].view(batch, each)
    pages = torch.full((batch * each + 3, page, groups, d), torch.nan, dtype=x.dtype)
    for b, length in enumerate(LENGTHS[:batch]):
        for row in range(length):
            pages[order[b, row // page], row % page] = x[b, :, row]
        order[b, -(-length // page) :] = 1 << 20
    return pages, order.int()


def compare(case: Case, *, page: int, nq: int, backend: str, dtype: torch.dtype = torch.float32, **more: Any) -> None:
    """A call with pages against one with keys side by side, by the reference."""
    sizes = Sizes(batch=len(LENGTHS), heads=6, groups=2, nq=nq, n=171)
    generator = torch.Generator().manual_seed(0)
    inputs = case.inputs(sizes, generator)
    q = torch.randn(sizes.batch, sizes.heads, nq, 16, generator=generator).to(dtype)
    k, v = (torch.randn(sizes.batch, sizes.groups, sizes.n, d, generator=generator).to(dtype) for d in (16, 24))
    k_len = torch.tensor(LENGTHS, dtype=torch.int32)
    state = generator.get_state()
    k_pages, table = paged(k, page, generator)
    v_pages, _ = paged(v, page, generator.set_state(state))
    attn = spdsl.compile(case.name, backend=backend, **case.parameters)
    more_rows = -sizes.n % page
    padded = {
        name: torch.cat([x, x[..., -1:].expand(*x.shape[:-1], more_rows)], -1) if x.shape[-1:] == (sizes.n,) else x
        for name, x in inputs.items()
    }
    with poisoned():
        out, lse = attn(q, k_pages, v_pages, pages=table, k_len=k_len, return_lse=True, **padded, **more)
    expected, expected_lse = attn.reference(q, k, v, k_len=k_len, return_lse=True, **inputs, **more)
    assert relative_error(out, expected) <= (1e-5 if dtype == torch.float32 else 2e-3)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-3, rtol=1e-4)


PATTERNS = ("streaming", "documents", "dilated", "alibi", "power", "head_modes")


def case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("page", [16, 64, 24])
@pytest.mark.parametrize("name", PATTERNS)
def test_pages(name: str, page: int) -> None:
    compare(case(name), page=page, nq=2, backend="cpu")


def test_many_queries() -> None:
    compare(case("streaming"), page=16, nq=33, backend="cpu")


def test_the_reference_reads_pages() -> None:
    q, k = torch.randn(1, 2, 1, 8), torch.randn(4, 16, 1, 8)
    table = torch.tensor([[2, 0]], dtype=torch.int32)
    side_by_side = torch.cat([k[2], k[0]])[None].transpose(1, 2)
    attn = spdsl.compile("causal")
    expected = attn.reference(q, side_by_side, side_by_side, k_len=20)
    torch.testing.assert_close(attn.reference(q, k, k, pages=table, k_len=20), expected)
    torch.testing.assert_close(attn(q, k, k, pages=table, k_len=20).double(), expected, atol=1e-5, rtol=1e-5)  # type: ignore[union-attr]


TABLE = torch.zeros(2, 3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"pages": torch.zeros(1, 3, dtype=torch.int32)}, "SP303"),
        ({"pages": torch.zeros(2, 3)}, "SP303"),
        ({"pages": [[0, 1], [2, 3]]}, "SP303"),
        ({"pages": TABLE, "k_start": 1}, "SP352"),
        ({"pages": TABLE + 9}, "SP303"),
        ({"pages": TABLE, "k_len": 99}, "SP303"),
    ],
)
def test_refused(given: dict[str, Any], code: str) -> None:
    q, k = torch.zeros(2, 2, 1, 8), torch.zeros(4, 16, 1, 8)
    with pytest.raises(spdsl.SpatError) as caught:
        spdsl.compile("causal")(q, k, k, **given)
    assert caught.value.code == code
    assert caught.value.help


def test_gradients_and_stages_are_refused() -> None:
    q, k = torch.zeros(2, 2, 1, 8, requires_grad=True), torch.zeros(4, 16, 1, 8)
    with pytest.raises(spdsl.SpatError, match="SP352"):
        spdsl.compile("causal")(q, k, k, pages=TABLE)
    with pytest.raises(spdsl.SpatError, match="SP352"):
        spdsl.compile("moba")(q.detach(), k, k, pages=TABLE)


def test_compiled_and_exported() -> None:
    attn = spdsl.compile("streaming", window=8, sinks=2)
    q, k, lengths = torch.randn(2, 2, 1, 8), torch.randn(8, 16, 1, 8), torch.tensor([20, 33], dtype=torch.int32)
    table = torch.arange(6, dtype=torch.int32).view(2, 3)

    def step(q: Tensor, k: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
        return attn(q, k, k, pages=table, k_len=lengths) * 2  # type: ignore[operator]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, table, lengths), step(q, k, table, lengths))
