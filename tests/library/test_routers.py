"""Hierarchies, routers and reuse: the reference against numpy definitions, the CPU against the reference."""

from __future__ import annotations

import numpy as np
import pytest

import spdsl
from spdsl import reference
from tests.library.cases import Case, Sizes
from tests.library.routed import EXPORTED, ROUTED
from tests.library.routers import ROUTERS
from tests.library.test_selections import check, made

SHAPES = (
    Sizes(batch=1, heads=4, groups=2, nq=75, n=75),
    Sizes(batch=1, heads=2, groups=1, nq=1, n=1),
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.heads}of{s.groups}x{s.n}")
@pytest.mark.parametrize("case", ROUTERS, ids=lambda case: case.id)
def test_the_reference_is_the_definition(case: Case, shape: Sizes) -> None:
    attn, tensors, inputs = made(case, shape)
    found = attn.reference(*tensors, **inputs)[0]
    arrays = [x[0].double().numpy() for x in tensors]
    given = {**case.parameters, **{name: table.double().numpy() for name, table in inputs.items()}}
    np.testing.assert_allclose(found.numpy(), ROUTED[case.name](*arrays, given), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", [case for case in ROUTERS if case.name in EXPORTED], ids=lambda case: case.id)
def test_exports_are_those_of_the_definition(case: Case) -> None:
    attn, tensors, inputs = made(case, SHAPES[0])
    q, k, _ = (x[0].double().numpy() for x in tensors)
    given = {**case.parameters, **{name: table.double().numpy() for name, table in inputs.items()}}
    expected = EXPORTED[case.name](q, k, given)
    bound = attn.bind(4, 2, 8)
    (name,) = attn.exports(*tensors, **inputs)
    np.testing.assert_array_equal(attn.exports(*tensors, **inputs)[name][0].numpy(), expected)
    wanted = reference.exports(bound, *tensors, tables=inputs, q_start=0)[name]
    np.testing.assert_array_equal(wanted[0].numpy(), expected)


LARGER = (
    Sizes(batch=2, heads=4, groups=2, nq=101, n=101),
    Sizes(batch=1, heads=3, groups=1, nq=20, n=83),
)


@pytest.mark.parametrize("shape", LARGER, ids=lambda s: f"{s.heads}of{s.groups}x{s.nq}x{s.n}")
@pytest.mark.parametrize("case", ROUTERS, ids=lambda case: case.id)
def test_cpu(case: Case, shape: Sizes) -> None:
    check(case, shape)


def test_every_case_has_a_definition() -> None:
    assert {case.name for case in ROUTERS} == set(ROUTED)
    assert all(spdsl.load(name).name == name for name in ROUTED)
