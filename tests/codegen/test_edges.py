"""Clauses about pairs as bounds of rows: the same pairs are kept, with one comparison for each edge."""

from __future__ import annotations

import pytest
import torch

from spdsl.codegen.edges import with_edges
from spdsl.codegen.expressions import text_of
from spdsl.runtime.evaluate import evaluate
from spdsl.semantics.nodes import Expr, Extent, Side
from tests.runtime.build import CAUSAL, K, Q, load, op

N = Extent(name="n")
DISTANCE = op("sub", Q, K)
WINDOW = op("and", CAUSAL, op("lt", DISTANCE, 9))
EXIST = op("lt", K, N)


@pytest.mark.parametrize(
    ("keep", "walked", "text"),
    [
        (op("and", CAUSAL, EXIST), "k", "k < tl.minimum(q + 1, n)"),
        (op("and", WINDOW, EXIST), "k", "(k >= q - 8) & (k < tl.minimum(q + 1, n))"),
        (WINDOW, "q", "(q >= k) & (q < k + 9)"),
        (op("le", op("abs", DISTANCE), 5), "k", "(k >= q - 5) & (k < q + 6)"),
        (op("gt", 5, op("abs", DISTANCE)), "k", "(k >= q - 4) & (k < q + 5)"),
        (op("gt", op("abs", DISTANCE), 5), "k", "tl.abs(q - k) > 5"),
        (op("or", WINDOW, op("lt", K, 4)), "k", "(k >= q - 8) & (k < q + 1) | (k < 4)"),
        (op("not", CAUSAL), "k", "~(k < q + 1)"),
        (op("lt", op("neg", K), op("neg", Q)), "k", "k >= q + 1"),
        (op("lt", op("sub", op("floordiv", Q, 4), op("floordiv", K, 4)), 2), "k", "(k >> 2) >= (q >> 2) - 1"),
        (op("lt", op("mul", Q, K), 30), "k", "q * k < 30"),
        (op("eq", Q, K), "k", "q == k"),
        (op("lt", Q, N), "k", "q < n"),
    ],
)
def test_edges(keep: Expr, walked: Side, text: str) -> None:
    found = with_edges(keep, walked)
    assert text_of(found) == text
    env = {"q": torch.arange(-3, 40)[:, None], "k": torch.arange(-3, 40)[None, :], "n": 31}
    assert torch.equal(evaluate(found, env), evaluate(keep, env))


def test_tables_are_compared_as_they_are() -> None:
    """The largest int has no successor."""
    keep = op("le", K, load("end", Q))
    assert with_edges(keep, "k") == keep
