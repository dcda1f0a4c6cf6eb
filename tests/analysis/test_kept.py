"""Plans from the cache are those that planning makes, and nothing else is ever taken for one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import spdsl
from spdsl.analysis import kept, worker
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.cache.store import store
from spdsl.pipeline import bound
from spdsl.semantics.nodes import Expr

TEXT = "pattern p(window: int) {\n  keep causal and q - k < window\n}\n"


pytestmark = pytest.mark.usefixtures("cache")


def problem(text: str = TEXT, *, heads: int = 2, **parameters: int) -> Problem:
    attention = spdsl.compile(spdsl.loads(text), **(parameters or {"window": 100}))
    bound.cache_clear()  # texts that differ in places alone share a key
    pattern = bound(attention._key, heads, heads, 64)
    return Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square", tables=())


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Problem, str], tuple[Plan, bool]]:
    """A plan, and whether it was made and not found."""
    made: list[Problem] = []

    def making(problem: Problem, target: str) -> Plan:
        made.append(problem)
        return plan(problem, target)

    monkeypatch.setattr(kept, "plan", making)

    def ask(problem: Problem, target: str) -> tuple[Plan, bool]:
        made.clear()
        return kept.kept_plan(problem, target), bool(made)

    return ask


def test_a_plan_is_made_once(planned: Callable[[Problem, str], tuple[Plan, bool]]) -> None:
    first, made = planned(problem(), "sm_90")
    assert made
    second, made = planned(problem(), "sm_90")
    assert not made
    assert second == first == plan(problem(), "sm_90")
    assert repr(second) == repr(first)
    assert second.keep.span == first.keep.span is not None


def test_whatever_decides_a_plan_makes_another(
    planned: Callable[[Problem, str], tuple[Plan, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(problem(), "sm_90")
    others = [
        (problem(), "sm_80"),
        (problem(window=101), "sm_90"),
        (problem(heads=4), "sm_90"),
        (replace(problem(), dtype="fp32"), "sm_90"),
        (replace(problem(), shape="offset"), "sm_90"),
        (problem(TEXT.replace("  keep", "\n  keep")), "sm_90"),  # messages quote another line
    ]
    assert [planned(*other)[1] for other in others] == [True] * len(others)
    monkeypatch.setattr(kept, "code", lambda: "another compiler")
    assert planned(problem(), "sm_90")[1]


def test_another_process_finds_it() -> None:
    kept.kept_plan(problem(), "sm_90")
    program = """
import sys
from spdsl.analysis import kept
from tests.analysis.test_kept import problem
kept.plan = None
found = kept.kept_plan(problem(), "sm_90")
assert not any(each.split(".")[0] == "islpy" for each in sys.modules), "isl is loaded"
print(repr(found))
"""
    words = [sys.executable, "-c", program]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert shown.stdout.strip() == repr(plan(problem(), "sm_90"))


def test_what_time_has_decided_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_CLOCK", 0.0)
    kept.kept_plan(problem(), "sm_90")
    assert not list(store().keys())


def test_what_the_worker_lost_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(problem: Problem, target: str) -> Plan:
        monkeypatch.setattr(worker, "_losses", worker.losses() + 1)
        return plan(problem, target)

    monkeypatch.setattr(kept, "plan", losing)
    kept.kept_plan(problem(), "sm_90")
    assert not list(store().keys())


def test_a_cache_that_cannot_be_used_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "open"))
    assert kept.kept_plan(problem(), "sm_90") == plan(problem(), "sm_90")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("taken",)


@pytest.mark.parametrize("content", [pickle.dumps(_Evil()), pickle.dumps(spdsl.loads), pickle.dumps(Path())])
def test_nothing_but_plans_is_read(content: bytes) -> None:
    import io

    with pytest.raises(pickle.UnpicklingError):
        kept._Reader(io.BytesIO(content)).load()


def test_every_class_of_a_plan_is_read() -> None:
    """Of patterns of every kind; what `_Reader` refuses would be planned again by every process."""
    texts = {"documents": (("doc", "int32"),), "power": (), "dilated": (), "alibi": (("slope", "float32"),)}
    for name, tables in texts.items():
        attention = spdsl.compile(name)
        pattern = bound(attention._key, 2, 2, 64)
        given = Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square", tables=tables)
        assert isinstance(kept.kept_plan(given, "sm_90").keep, Expr)
        assert len(list(store().keys())) == 1 + list(texts).index(name)
        assert kept.kept_plan(given, "sm_90") == plan(given, "sm_90")


def test_what_cannot_be_read_is_planned(
    planned: Callable[[Problem, str], tuple[Plan, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(problem(), "sm_90")

    def refuse(self: object, module: str, name: str) -> object:
        raise pickle.UnpicklingError(name)

    monkeypatch.setattr(kept._Reader, "find_class", refuse)
    found, made = planned(problem(), "sm_90")
    assert made
    assert found == plan(problem(), "sm_90")
