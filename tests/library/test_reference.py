"""The reference against loops in plain Python, and its gradients against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spdsl import reference
from spdsl.diagnostics import SpatError
from spdsl.reference.operations import OPERATIONS
from spdsl.semantics.nodes import BoundPattern
from spdsl.semantics.ops import OPS
from tests.library.bound import library, program

RICH = """
pattern rich(window: int = 3) {
  input lean: float[h]
  input far: float[64]
  input rest: float[h]
  return attend {
    keep causal and q - k < window or k == 1
    bias lean[h] * (k - q) + far[abs(q - k)]
    scale 0.7
    softcap 2.5
    sink_logit rest[h] + 0.25
  }
}
"""
# Rows 0 … 2 keep nothing.
SPARSE = "pattern sparse() { keep 3 <= q and q % 2 == k % 2 and k < 5 }"


def naive(
    kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    cap: float | None,
    bias: Any = None,
    sink: Any = None,
) -> tuple[Tensor, Tensor]:
    """One query at a time, one key at a time; ``bias(h, row, column)`` and ``sink(h)`` are Python functions."""
    batch, heads, nq, _ = q.shape
    out, lse = torch.zeros(batch, heads, nq, v.shape[3], dtype=torch.float64), torch.zeros(batch, heads, nq).double()
    for b in range(batch):
        for h in range(heads):
            g = h * k.shape[1] // heads
            for row in range(nq):
                weights: dict[int, float] = {}
                for column in range(k.shape[2]):
                    if kept[b, h, row, column]:
                        logit = scale * float(q[b, h, row] @ k[b, g, column])
                        logit = logit if cap is None else cap * math.tanh(logit / cap)
                        weights[column] = math.exp(logit + (bias(h, row, column) if bias else 0.0))
                total = sum(weights.values()) + (math.exp(sink(h)) if sink else 0.0)
                lse[b, h, row] = math.log(total) if total else -math.inf
                for column, weight in weights.items():
                    out[b, h, row] += weight / total * v[b, g, column]
    return out, lse


def tensors(
    batch: int, heads: int, groups: int, nq: int, n: int, d: int = 5, dv: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(nq * 100 + n)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return draw(batch, heads, nq, d), draw(batch, groups, n, d), draw(batch, groups, n, dv)


def rich(heads: int, groups: int) -> tuple[BoundPattern, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(heads)
    tables = {
        name: torch.randn(size, generator=generator).double()
        for name, size in (("lean", heads), ("far", 64), ("rest", heads))
    }
    return program(RICH, heads=heads, groups=groups), tables


@pytest.mark.parametrize(("batch", "heads", "groups", "nq", "n"), [(1, 1, 1, 1, 1), (2, 4, 2, 6, 6), (1, 6, 2, 3, 9)])
def test_every_clause(batch: int, heads: int, groups: int, nq: int, n: int) -> None:
    pattern, tables = rich(heads, groups)
    q, k, v = tensors(batch, heads, groups, nq, n)
    out, lse = reference.attend(pattern, q, k, v, tables=tables)
    kept = reference.mask(pattern, nq, n, tables=tables, batch=batch)

    def bias(h: int, row: int, column: int) -> float:
        position = n - nq + row
        return float(tables["lean"][h] * (column - position) + tables["far"][abs(position - column)])

    expected, expected_lse = naive(
        kept, q, k, v, scale=0.7, cap=2.5, bias=bias, sink=lambda h: float(tables["rest"][h]) + 0.25
    )
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


@pytest.mark.parametrize("name", ["full", "causal", "sliding_window", "log_sparse"])
@pytest.mark.parametrize(("heads", "groups", "nq", "n"), [(2, 2, 7, 7), (4, 1, 2, 9)])
def test_plain_patterns(name: str, heads: int, groups: int, nq: int, n: int) -> None:
    pattern = library(name, heads=heads, groups=groups, **({"window": 3} if name == "sliding_window" else {}))
    q, k, v = tensors(2, heads, groups, nq, n)
    out, lse = reference.attend(pattern, q, k, v)
    expected, expected_lse = naive(
        reference.mask(pattern, nq, n, batch=2), q, k, v, scale=1 / math.sqrt(q.shape[3]), cap=None
    )
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_gradients_of_every_clause() -> None:
    pattern, tables = rich(2, 1)
    leaves = [x.requires_grad_() for x in (*tensors(2, 2, 1, 3, 5), *tables.values())]

    def call(q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        return reference.attend(pattern, q, k, v, tables=dict(zip(tables, given, strict=True)))

    assert torch.autograd.gradcheck(call, leaves)


def test_gradients_with_empty_rows() -> None:
    pattern = program(SPARSE, heads=2, groups=2)
    q, k, v = (x.requires_grad_() for x in tensors(1, 2, 2, 6, 6))

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = reference.attend(pattern, q, k, v)
        return out, torch.where(torch.isfinite(lse), lse, 0.0)

    assert torch.autograd.gradcheck(call, (q, k, v))


def test_an_empty_row_gives_zeros() -> None:
    q, k, v = (x.requires_grad_() for x in tensors(1, 2, 2, 6, 6))
    out, lse = reference.attend(program(SPARSE, heads=2, groups=2), q, k, v)
    assert (out[:, :, :3] == 0).all()
    assert (lse[:, :, :3] == -math.inf).all()
    assert torch.isfinite(lse[:, :, 3:]).all()
    gradients = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][:, :, :3] == 0).all()


def test_an_empty_row_with_a_sink_has_its_logit() -> None:
    text = "pattern p() { input rest: float[h] return attend { keep k < q sink_logit rest[h] } }"
    pattern = program(text, heads=2, groups=2)
    rest = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    out, lse = reference.attend(pattern, *tensors(1, 2, 2, 4, 4), tables={"rest": rest})
    torch.testing.assert_close(lse[0, :, 0], rest)
    assert (out[:, :, 0] == 0).all()
    (gradient,) = torch.autograd.grad(lse[0, :, 0].sum(), rest)
    torch.testing.assert_close(gradient, torch.ones(2, dtype=torch.float64))


def test_keys_that_do_not_exist_may_hold_anything() -> None:
    pattern = library("causal")
    q, k, v = tensors(2, 1, 1, 4, 4)
    out, lse = reference.attend(pattern, q, k, v)
    padded_k, padded_v = (torch.nn.functional.pad(x, (0, 0, 2, 3), value=math.nan).requires_grad_() for x in (k, v))
    starts, lengths = torch.tensor([2, 2]), torch.tensor([4, 4])
    again, lse_again = reference.attend(pattern, q, padded_k, padded_v, k_start=starts, k_len=lengths)
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(lse_again, lse)
    gradients = torch.autograd.grad(again.sum() + lse_again.sum(), (padded_k, padded_v))
    assert all(torch.isfinite(gradient).all() and (gradient[:, :, :2] == 0).all() for gradient in gradients)


def test_inputs_that_name_the_batch_where_each_sequence_has_a_length() -> None:
    text = """
    pattern routed() {
      input route: bool[b, h]
      axis blk = token by 4
      let chosen = score(Q, mean(K, per = k.blk)) |> only(k.blk < q.blk) |> top(1)
      keep causal and (if route then chosen or k.blk == q.blk else q - k < 2)
    }"""
    pattern = program(text, heads=2, groups=1, head_dim=5)
    q, k, v = tensors(2, 2, 1, 3, 11)
    route = torch.tensor([[True, False], [False, True]])
    whole, _ = reference.attend(pattern, q, k, v, tables={"route": route}, k_len=torch.tensor([11, 7]))
    for batch, length in enumerate((11, 7)):
        some = slice(batch, batch + 1)
        own = q[some], k[some, :, :length], v[some, :, :length]
        alone, _ = reference.attend(pattern, *own, tables={"route": route[some]})
        torch.testing.assert_close(whole[some], alone)


def test_a_grid_of_half_the_keys_covers_no_odd_number() -> None:
    pattern = program("pattern halves() { grid (half: 2, i: n // 2)  keep q.half == k.half }")
    assert reference.attend(pattern, *tensors(1, 1, 1, 6, 6))[0].shape == (1, 1, 6, 3)
    with pytest.raises(SpatError, match="2 × 3 = 6 places, but there are 7 keys"):
        reference.attend(pattern, *tensors(1, 1, 1, 7, 7))


def test_rows_before_the_first_position_are_padding() -> None:
    pattern = library("causal")
    q, k, v = tensors(2, 1, 1, 4, 4)
    out, lse = reference.attend(pattern, q, k, v, k_len=torch.tensor([4, 2]))
    alone, lse_alone = reference.attend(pattern, q[1:, :, 2:], k[1:, :, :2], v[1:, :, :2])
    torch.testing.assert_close(out[1:, :, 2:], alone)
    torch.testing.assert_close(lse[1:, :, 2:], lse_alone)
    assert (out[1, :, :2] == 0).all()
    assert (lse[1, :, :2] == -math.inf).all()


def test_more_queries_than_keys() -> None:
    q, k, v = tensors(1, 1, 1, 5, 3)
    assert reference.attend(library("full"), q, k, v)[0].shape == (1, 1, 5, 3)
    with pytest.raises(SpatError, match="5 queries but only 3 keys"):
        reference.attend(library("causal"), q, k, v)
    assert reference.attend(library("causal"), q, k, v, q_start=0)[0].shape == (1, 1, 5, 3)


# ---------------------------------------------------------------- tables


def test_a_table_may_have_a_batch_axis() -> None:
    pattern = library("documents")
    doc = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    both = reference.mask(pattern, 4, 4, tables={"doc": doc})
    assert both.shape == (2, 1, 4, 4)
    for row in range(2):
        assert torch.equal(both[row], reference.mask(pattern, 4, 4, tables={"doc": doc[row]}))
    assert torch.equal(both[:1], reference.mask(pattern, 4, 4, tables={"doc": doc[:1]}))


def test_a_read_outside_a_table_is_told() -> None:
    pattern = program("pattern p() { input t: int[4] keep t[q - k + 3] > 0 }")
    table = torch.ones(4, dtype=torch.int32)
    with pytest.raises(SpatError, match=r"`t` is read at (-1|4) on axis 0, which has 4 elements") as caught:
        reference.mask(pattern, 5, 5, tables={"t": table})
    assert caught.value.code == "SP320"
    assert caught.value.span is not None


@pytest.mark.parametrize(
    "keep",
    [
        "0 <= q - k < 4 and t[q - k] > 0",
        "not (0 <= q - k < 4) or t[q - k] > 0",
        "(if 0 <= q - k < 4 then t[q - k] else 0) > 0",
        "any(0 <= q - k < 4 and t[q - k] > 0, over = k)",
        "k < q and any(t[k] > 0, over = k) or k == q",
    ],
)
def test_a_guarded_read_is_fine(keep: str) -> None:
    table = torch.ones(4, dtype=torch.int32)
    n = 4 if "over = k) or" in keep else 6
    reference.mask(program(f"pattern p() {{ input t: int[4] keep {keep} }}"), n, n, tables={"t": table})


def test_a_bias_is_read_where_pairs_are_kept() -> None:
    text = "pattern p() { input t: float[4] keep 0 <= q - k < 4 bias t[q - k] }"
    q, k, v = tensors(1, 1, 1, 9, 9)
    table = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    out, _ = reference.attend(program(text), q, k, v, tables={"t": table})
    assert torch.isfinite(torch.autograd.grad(out.sum(), table)[0]).all()
    with pytest.raises(SpatError, match="read at 4"):
        reference.attend(program(text.replace("< 4 bias", "< 5 bias")), q, k, v, tables={"t": table})


def test_division_by_zero_is_told() -> None:
    pattern = program("pattern p() { input t: int[token] keep q % t[k] == 0 }")
    assert reference.mask(pattern, 3, 3, tables={"t": torch.tensor([1, 2, 3])}).any()
    with pytest.raises(SpatError, match="division by zero") as caught:
        reference.mask(pattern, 3, 3, tables={"t": torch.tensor([1, 0, 3])})
    assert caught.value.code == "SP321"


def test_a_table_of_queries_has_a_row_for_each_query() -> None:
    pattern = program("pattern p() { input t: bool[q] keep t[q] and causal }")
    table = torch.tensor([True, False])
    assert reference.mask(pattern, 2, 5, tables={"t": table})[0].tolist() == [[True] * 4 + [False], [False] * 5]


# ---------------------------------------------------------------- operations


def test_every_operation_has_a_function() -> None:
    assert OPERATIONS.keys() == OPS.keys()


@pytest.mark.parametrize(
    "op", [op for op in OPS.values() if op.signature in ("int", "test", "arith") and op.name != "pow"]
)
def test_operations_are_those_of_python(op: Any) -> None:
    values = [0, 1, 2, 3, 5, 7, 8, 63, 64, 1000, 2**31, 2**53 - 1, 2**53 + 1, 2**60, -1, -2, -7, -8, -(2**40)]
    for x in values:
        for y in values if op.arity == 2 else (None,):
            if (y == 0 and op.name in ("floordiv", "mod")) or (op.name == "mul" and abs(x * y) >= 2**62):
                continue
            args = (x,) if y is None else (x, y)
            found = OPERATIONS[op.name](*(torch.tensor([arg]) for arg in args)).item()
            assert found == op.fold(*args), (op.name, args)
