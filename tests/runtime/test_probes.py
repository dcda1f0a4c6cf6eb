"""The rows that a probe leaves, against the condition itself at every row."""

from __future__ import annotations

import pytest

import spdsl
from spdsl.runtime.evaluate import value_of
from spdsl.runtime.probes import probed_rows
from spdsl.semantics.graph import Softmax

PROBES = {
    "q >= n - 20": True,
    "q < 30 and q >= 11": True,
    "n - q < 20": True,
    "q >= 2 * n": True,
    "q % 4 == 0": False,
    "q >= n - 20 or q < 3": False,
}
"""Conditions, and whether they leave an interval of rows that is found."""


@pytest.mark.parametrize("text", PROBES)
@pytest.mark.parametrize(("nq", "n"), [(50, 50), (15, 50), (1, 1)])
def test_no_row_is_lost(text: str, nq: int, n: int) -> None:
    pattern = spdsl.loads(
        f"pattern some() {{ let seen = score(Q, K) |> only(causal and ({text})) |> softmax |> sum(over = q)\n"
        "  export best = seen |> top(3)\n  keep causal }"
    )
    bound = spdsl.compile(pattern).bind(1, 1, 16)
    assert bound.graph is not None
    (stage,) = (each for each in bound.graph.stages if isinstance(each, Softmax))
    found = probed_rows(stage.only, nq, n, n - nq)
    env = {"n": n, "nq": nq, "q_start": n - nq, "k": 0}
    kept = [row for row in range(nq) if value_of(stage.only, env | {"q": row + n - nq})]
    assert set(kept) <= set(found)
    if PROBES[text] and kept:
        assert found == range(kept[0], kept[-1] + 1)
    if not PROBES[text]:
        assert found == range(nq)
