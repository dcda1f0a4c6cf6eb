"""Unions whose sets are computed one after the other, in Triton's interpreter, against the float64 reference.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import spdsl
from spdsl.runtime import parts, split
from tests.library.cases import Case, Inputs, Sizes
from tests.library.compare import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")


@dataclass(frozen=True, kw_only=True)
class Program:
    """The body of a pattern, how many sets it is computed as, and its float inputs, which all get gradients."""

    text: str
    sets: int = 2
    inputs: Callable[[Sizes, torch.Generator], Inputs] = lambda sizes, generator: {}
    trained: tuple[str, ...] = ()


def floats(**shapes: Callable[[Sizes], tuple[int, ...]]) -> Callable[[Sizes, torch.Generator], Inputs]:
    return lambda sizes, generator: {
        name: torch.randn(shape(sizes), generator=generator) for name, shape in shapes.items()
    }


def marked(share: float) -> Callable[[Sizes, torch.Generator], Inputs]:
    """A table ``seen`` of its own for every sequence."""

    def make(sizes: Sizes, generator: torch.Generator) -> Inputs:
        return {"seen": torch.rand(sizes.batch, sizes.n, generator=generator) < share}

    return make


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked rows are gathered however close they stand."""
    monkeypatch.setattr(parts, "SPREAD", 0)


SEEN = "input seen: bool[token]"

PROGRAMS = {
    "global tokens": Program(text=f"{SEEN}\n  keep abs(q - k) < 12 or seen[q] or seen[k]", sets=3, inputs=marked(0.05)),
    "no global tokens": Program(
        text=f"{SEEN}\n  keep abs(q - k) < 12 or seen[q] or seen[k]", sets=3, inputs=marked(0.0)
    ),
    "all are global": Program(text=f"{SEEN}\n  keep causal and (q - k < 9 or seen[k])", inputs=marked(1.0)),
    "some of each kind": Program(
        text=f"{SEEN}\n  keep causal and (q - k < 9 or seen[k] and k > 30 or (q - k) % 8 == 3 or seen[q])\n"
        "  sink_logit 0.3",
        sets=4,
        inputs=marked(0.1),
    ),
    "last of each block": Program(text="keep causal and (q // 16 == k // 16 or k % 16 >= 14)"),
    "biased": Program(
        text=f"{SEEN}\n  input lean: float[h, token]\n"
        "  keep abs(q - k) < 5 or seen[q] or seen[k]  bias lean[h, k] + lean[h, q]",
        sets=3,
        inputs=lambda sizes, generator: (
            marked(0.1)(sizes, generator) | {"lean": torch.randn(sizes.heads, sizes.n, generator=generator)}
        ),
        trained=("lean",),
    ),
    "keys of heads": Program(
        text="input own: bool[h, token]\n  keep causal and (q - k < 9 or own[h, k] and k > 3)",
        inputs=lambda sizes, generator: {"own": torch.rand(sizes.heads, sizes.n, generator=generator) < 0.1},
    ),
    "strided": Program(text="keep causal and (q - k < 20 or (q - k) % 8 == 0)"),
    "sinks and dilated": Program(text="keep causal and (k < 5 or (q - k < 90 and (q - k) % 4 == 0))"),
    "two strides": Program(
        text="keep abs(q - k) < 7 or (abs(q - k) < 60 and (q - k) % 4 == 1) or k % 16 == q % 16", sets=3
    ),
    "global rows": Program(text="keep q < 3 or k < 2 or (q - k) % 6 == 0"),
    "nothing for some": Program(text="keep k < q - 40 and (k < 3 or (q - k) % 5 == 2)"),
    "by head": Program(text="keep causal and (q - k < 9 or (q % 8 == h % 8 and k % 8 == h % 8))"),
    "sink": Program(
        text="input rest: float[h]\n  keep causal and (q - k < 9 or (q - k) % 8 == 0)  sink_logit rest[h]",
        inputs=floats(rest=lambda sizes: (sizes.heads,)),
        trained=("rest",),
    ),
    "slope": Program(
        text="input slope: float[h]\n  keep causal and (q - k < 9 or (q - k) % 8 == 0)  bias slope[h] * (k - q) / 64",
        inputs=floats(slope=lambda sizes: (sizes.heads,)),
        trained=("slope",),
    ),
    "by key": Program(
        text="input lean: float[h, token]\n"
        "  keep causal and (q - k < 9 or (q - k) % 8 == 3)  bias lean[h, k]  softcap 9.0",
        inputs=floats(lean=lambda sizes: (sizes.heads, sizes.n)),
        trained=("lean",),
    ),
    "by pair": Program(
        text="input lean: float[h, token, token]\n"
        "  keep causal and (q - k < 9 or (q - k) % 8 == 0)  bias lean[h, q, k]",
        inputs=floats(lean=lambda sizes: (sizes.heads, sizes.n, sizes.n)),
        trained=("lean",),
    ),
}


def case(name: str, folder: Path) -> Case:
    program = PROGRAMS[name]
    path = folder / "union.spat"
    path.write_text(f"pattern union() {{\n  {program.text}\n}}\n")
    return Case(name=str(path), inputs=program.inputs, trained=program.trained)


def assert_sets(name: str, path: str, shape: Sizes) -> None:
    """The kernels for such a call are those of as many sets, each with a file of its own."""
    q = torch.empty(shape.batch, shape.heads, shape.nq, 16)
    k = torch.empty(shape.batch, shape.groups, shape.n, 16)
    first, *others = spdsl.compile(path).kernels(q, k, k).values()
    assert len(others) == PROGRAMS[name].sets - 1
    assert "before" not in first
    assert all("# of the pairs before" in other for other in others)


@pytest.mark.parametrize("name", PROGRAMS)
def test_square(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=1, heads=4, groups=2, nq=131, n=131)
    assert_sets(name, case(name, tmp_path).name, shape)
    check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton")


@pytest.mark.parametrize("name", ["two strides", "global rows", "by key", "some of each kind"])
def test_fewer_queries(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=2, heads=2, groups=2, nq=39, n=142)
    assert_sets(name, case(name, tmp_path).name, shape)
    check(case(name, tmp_path), shape, d=24, dv=8, dtype=torch.float32, backend="triton")


@pytest.mark.parametrize("name", ["two strides", "nothing for some"])
def test_places_of_each_sequence(name: str, tmp_path: Path) -> None:
    shape = Sizes(batch=3, heads=4, groups=2, nq=30, n=141)
    check(
        case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton",
        q_start=torch.tensor([5, 60, 101], dtype=torch.int32),
        k_start=torch.tensor([3, 0, 10], dtype=torch.int32),
        k_len=torch.tensor([50, 141, 131], dtype=torch.int32),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["sinks and dilated", "global rows", "global tokens"])
def test_long_rows_in_parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a long row go on from the set before once, not each."""
    monkeypatch.setattr(split, "parts_for", lambda rows, turns, least, device: 3)
    shape = Sizes(batch=1, heads=2, groups=1, nq=300, n=300)
    check(case(name, tmp_path), shape, d=16, dv=16, dtype=torch.float32, backend="triton")


def test_half_precision(tmp_path: Path) -> None:
    shape = Sizes(batch=1, heads=2, groups=1, nq=300, n=300)
    check(case("two strides", tmp_path), shape, d=16, dv=16, dtype=torch.float16, backend="triton")


CLAUSES = (
    "q - k < {a}", "abs(q - k) <= {a}", "k < {a}", "q < {a}", "q // 16 == k // 16", "(q - k) % {m} == {r}",
    "abs(q - k) < 70 and (q - k) % {m} == {r}", "q % {m} == k % {m}", "seen[k]", "seen[q]", "seen[k] and q > k + {a}",
    "k % {m} == {r}", "q % {m} == {r} and k >= {a}", "doc[q] == doc[k]",
)  # fmt: skip
COMMON = ("", "causal and ", "k < q + {a} and ", "doc[q] == doc[k] and ", "not seen[q] and ")


def drawn(chance: random.Random) -> str:
    """A random union."""

    def filled(text: str) -> str:
        m = chance.choice((4, 5, 8, 16))
        return text.format(a=chance.choice((0, 1, 7, 30)), m=m, r=chance.randrange(m))

    parts = " or ".join(filled(f"({each})") for each in chance.sample(CLAUSES, chance.randint(2, 4)))
    tail = chance.choice(("", "  sink_logit 0.3", "  softcap 6.0"))
    inputs = f"{SEEN}\n  input doc: int[token] sorted\n"
    return f"{inputs}  keep {filled(chance.choice(COMMON))}({parts}){tail}"


def _tables(sizes: Sizes, generator: torch.Generator) -> Inputs:
    doc = (torch.rand(sizes.n, generator=generator) < 0.05).cumsum(0).int()
    return marked(0.1)(sizes, generator) | {"doc": doc}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("SPDSL_EXAMPLES", "60"))))
def test_random_unions(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    path = tmp_path / "union.spat"
    path.write_text(f"pattern union() {{\n  {drawn(chance)}\n}}\n")
    nq, n = chance.choice(((90, 90), (40, 101), (1, 70)))
    shape = Sizes(batch=chance.choice((1, 2)), heads=2, groups=chance.choice((1, 2)), nq=nq, n=n)
    check(Case(name=str(path), inputs=_tables), shape, d=16, dv=16, dtype=torch.float32, backend="triton")
