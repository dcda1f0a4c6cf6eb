"""Expressions on tensors against the same on Python numbers."""

from __future__ import annotations

import random

import pytest
import torch

from spdsl.runtime.evaluate import TORCH_OPS, Tables, apply, evaluate, tables_for
from spdsl.runtime.philox import uniform
from spdsl.runtime.ranges import RANGE_OPS
from spdsl.runtime.seen import made_by, read_by
from spdsl.runtime.watched import Notes, noting
from spdsl.semantics.nodes import Noise, Table
from spdsl.semantics.ops import OPS
from tests.runtime.build import B, H, K, Q, const, load, op, table
from tests.runtime.programs import at, condition


def test_every_operation_has_its_meaning() -> None:
    assert TORCH_OPS.keys() == OPS.keys() == RANGE_OPS.keys()


INTS = [-(2**40), -1000, -17, -8, -7, -1, 0, 1, 2, 3, 7, 8, 9, 63, 64, 1023, 1024, 2**31, 2**40 + 1, 2**52, 10**15]


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.signature in ("int", "test") and op.arity == 1])
def test_functions_of_ints(name: str) -> None:
    dtype = "bool" if OPS[name].signature == "test" else "int"
    found = apply(name, [torch.tensor(INTS)], dtype)
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [OPS[name].fold(x) for x in INTS]


@pytest.mark.parametrize("name", ["floordiv", "mod"])
@pytest.mark.parametrize("divisor", [-64, -7, -1, 1, 3, 8, 64])
def test_division_floors(name: str, divisor: int) -> None:
    expected = [OPS[name].fold(x, divisor) for x in INTS]
    for y in (divisor, torch.tensor(divisor)):
        found = apply(name, [torch.tensor(INTS), y], "int")
        assert isinstance(found, torch.Tensor)
        assert found.tolist() == expected


def test_large_ints_compare_exactly_with_floats() -> None:
    x = torch.tensor([2**24, 2**24 + 1])
    assert evaluate(op("le", K, float(2**24)), {"k": x}).tolist() == [True, False]


def test_powers() -> None:
    k = torch.arange(-3, 4)
    assert evaluate(op("pow", 2.0, K), {"k": k}).tolist() == [2.0**x for x in range(-3, 4)]
    assert evaluate(op("pow", K, 3), {"k": k}).tolist() == [x**3 for x in range(-3, 4)]


def _given(n: int, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "doc": torch.randint(0, 5, (1, n), generator=rng).sort()[0].int(),
        "flag": torch.rand(1, n, generator=rng) < 0.1,
        "limit": torch.randint(-3, 9, (1, 4), generator=rng).int(),
        "pairs": torch.rand(1, 4, 4, generator=rng) < 0.4,
    }


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed: int) -> None:
    rng = random.Random(seed)
    expr = condition(rng, 4)
    n = 70
    given = _given(n, seed)
    points = [(rng.randrange(n), rng.randrange(n), rng.randrange(4)) for _ in range(60)]
    q, k, h = torch.tensor(points).T
    found = evaluate(expr, {"q": q, "k": k, "h": h, "g": h // 2}, Tables(values=given)).expand(60)
    assert found.tolist() == [bool(at(expr, {"q": a, "k": c, "h": d, "g": d // 2}, given)) for a, c, d in points]


def test_tables_have_a_batch_axis_unless_they_name_it() -> None:
    given = {"a": torch.arange(6).view(2, 3), "one": torch.arange(3).view(1, 3), "b": torch.tensor([5, 7])}
    env = {"b": torch.tensor([[0], [1]]), "h": torch.arange(3)}
    tables = Tables(values=given)
    assert evaluate(load("a", H), env, tables).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert evaluate(load("one", H), env, tables).tolist() == [0, 1, 2]
    assert evaluate(load("b", B), env, tables).tolist() == [[5], [7]]


def test_tables_of_queries_are_read_at_their_position() -> None:
    declared: tuple[Table, ...] = (table("gate", "float", "h", "q"),)
    tables = tables_for(declared, {"gate": torch.arange(10.0).view(1, 2, 5)})
    found = evaluate(load("gate", 1, Q, dtype="float"), {"q": torch.arange(20, 25), "q_start": 20}, tables)
    assert found.tolist() == [5.0, 6.0, 7.0, 8.0, 9.0]


def test_indices_stay_inside() -> None:
    tables = Tables(values={"a": torch.arange(3)[None]})
    assert evaluate(load("a", K), {"k": torch.tensor([-5, 0, 9])}, tables).tolist() == [0, 0, 2]


def test_noise_is_philox() -> None:
    drawn = evaluate(Noise(seed=const(3), per=(H, K)), {"h": torch.tensor([[0], [1]]), "k": torch.arange(4)})
    assert torch.equal(drawn, uniform(3, [torch.tensor([[0], [1]]), torch.arange(4)]))
    assert bool(((drawn >= 0) & (drawn < 1)).all())
    assert len(drawn.unique()) == 8


def test_numbers_of_the_host_come_from_what_is_asked_of_torch() -> None:
    """Who watches a call has to know where all tensors come from; on a GPU one made of a number did not say so."""
    expr = op("where", op("lt", Q, 3), Q, 0)
    notes = Notes(room=1 << 20)
    q = torch.arange(5)
    with noting(notes):
        found = evaluate(expr, {"q": q})
    assert found.tolist() == [0, 1, 2, 0, 0]
    known = {id(q)}
    for note in notes.seen:
        assert {id(each) for each in read_by(note)} <= known
        known |= {id(each) for each in made_by(note)}
