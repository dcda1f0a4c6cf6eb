"""Random programs mean the same to the interpreter of the syntax tree and, checked and bound, to the reference."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl import reference
from spdsl.grammar.parse import parse
from spdsl.semantics.bind import bind
from spdsl.semantics.check import check
from tests.semantics.interpret import kept
from tests.semantics.programs import Example, examples
from tests.semantics.strategies import patterns, tables

COUNT = 100
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


def found(example: Example, nq: int) -> np.ndarray:
    checked = check(parse(example.text, "random.spat"))
    pattern = bind(checked, {}, layer=2, heads=example.heads, groups=example.groups, head_dim=64)
    tables = {name: torch.tensor(values) for name, values in example.tables.items()}
    return reference.mask(pattern, nq, example.n, tables=tables).numpy()


def expected(example: Example, nq: int) -> np.ndarray:
    program = parse(example.text, "random.spat")
    mask = np.zeros((example.heads, nq, example.n), bool)
    for h, row, k in np.ndindex(*mask.shape):
        mask[h, row, k] = kept(
            program,
            q=example.n - nq + row,
            k=k,
            n=example.n,
            h=h,
            nq=nq,
            heads=example.heads,
            groups=example.groups,
            layer=2,
            tables=example.tables,
        )
    return mask


@settings(max_examples=COUNT, deadline=None, suppress_health_check=SLOW)
@given(examples(), st.integers(1, 7))
def test_mask(example: Example, rows: int) -> None:
    nq = min(rows, example.n)
    np.testing.assert_array_equal(found(example, nq), expected(example, nq), err_msg=example.text)


@settings(max_examples=COUNT, deadline=None, suppress_health_check=SLOW)
@given(patterns(affine=False, depth=2, reductions=True), st.integers(1, 6))
def test_patterns_of_the_other_writer(text: str, n: int) -> None:
    arrays = {name: array.tolist() for name, array in tables(n, 2).items()} if "input" in text else {}
    example = Example(text=text, n=n, heads=2, groups=1, tables=arrays)
    np.testing.assert_array_equal(found(example, n), expected(example, n), err_msg=text)
