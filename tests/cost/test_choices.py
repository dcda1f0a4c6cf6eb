"""Candidates, what the model chooses among them, what is measured, and that a call takes it.  Nothing is compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import choices, prepare, tuning
from spdsl.analysis.candidates import SHARED_BYTES, candidates
from spdsl.analysis.cost import estimate
from spdsl.analysis.device import profile_for
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.cache.store import store
from spdsl.choices import Situation, by_model, tiles_for, variants
from spdsl.cli import tune as command
from spdsl.cli.main import run
from spdsl.costs import work
from spdsl.diagnostics import SpatError
from spdsl.pipeline import opened
from spdsl.runtime.requests import Request, rounded_up
from spdsl.tuning import situation_of, tune

pytest.importorskip("triton")

H200 = profile_for("NVIDIA H200", "sm_90")


def tensors(n: int = 8192, heads: int = 8, dim: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.zeros((), dtype=torch.bfloat16).expand(1, heads, n, dim)
    return q, q, q


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SPDSL_TUNE", raising=False)
    prepare._with_tiles.cache_clear()
    yield
    prepare._with_tiles.cache_clear()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> dict[Tiles, float]:
    """A machine that takes the times of the dictionary, and 1 ms for all other tiles."""
    times: dict[Tiles, float] = {}

    def bench(made: Plan, kind: Kind) -> float:
        tiles = getattr(made, kind).tiles
        measured.append(tiles)
        return times.get(tiles, 1e-3)

    measured: list[Tiles] = []
    monkeypatch.setattr(tuning, "bench_of", lambda *call: bench)
    monkeypatch.setattr("spdsl.codegen.aot.TARGETS", ())  # nothing is compiled
    monkeypatch.setattr(tuning, "refuse_without_gpu", lambda q: None)
    monkeypatch.setattr(tuning, "target_of", lambda backend, device: "sm_90")
    monkeypatch.setattr(tuning, "measured", measured, raising=False)
    return times


def key_of(name: str, **parameters: Any) -> str:
    return spdsl.compile(name, **parameters)._key


def situation(name: str, n: int = 8192, **parameters: Any) -> Situation:
    found = situation_of(key_of(name, **parameters), *tensors(n))
    return choices.changed(found, gpu="NVIDIA H200", target="sm_90")


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("kind", ["forward", "dq", "dkdv"])
def test_candidates_are_planned_and_fit(kind: Kind, dim: int) -> None:
    problem = choices.changed(situation("sliding_window").problem(), value_dim=dim)
    problem = choices.changed(problem, pattern=choices.changed(problem.pattern, head_dim=dim))
    base = plan(problem, "sm_90")
    found = variants(kind, base, "sm_90")
    own = getattr(base, kind).tiles
    assert next(iter(found)) == own
    assert len(found) > 1
    for tiles, made in found.items():
        kernel = getattr(made, kind)
        assert kernel.tiles == tiles
        assert kernel.specialised == tiles.specialised
        if tiles != own:
            assert 2 * dim * (tiles.block_q + tiles.block_k) <= SHARED_BYTES["sm_90"]
    assert candidates(kind, dtype="bf16", head_dim=dim, value_dim=dim, target="sm_80", default=getattr(base, kind)) == (
        own,
    )


def test_small_tiles_share_a_multiprocessor() -> None:
    """With warps of their own for copies: three stages of them are too much beside another program at head dim 256."""
    for dim, stages in ((64, {3}), (128, {3}), (256, set())):
        default = plan(situation("causal").problem(), "sm_90").forward
        found = candidates("forward", dtype="bf16", head_dim=dim, value_dim=dim, target="sm_90", default=default)
        assert {each.stages for each in found if each.specialised and each.block_q == 64} == stages


@pytest.mark.parametrize(("gain", "changes"), [(0.94, True), (0.96, False)])
def test_the_model_chooses_what_it_predicts_to_be_fastest(gain: float, changes: bool) -> None:
    """The plan's own tiles are made so slow that the best of the others take a share ``gain`` of their time: only where
    that is less than `choices.MARGIN` are they taken."""
    found = situation("s2", n=16384)
    base = plan(found.problem(), "sm_90")
    call, own = choices.call_of(found, base), base.forward.tiles
    times = choices.candidate_times("forward", base, call, H200, "sm_90")
    best = min((tiles for tiles in times if tiles != own), key=lambda tiles: times[tiles])
    start = estimate(work(call, base.forward), H200).start
    factor = (times[best] / gain - start) / (times[own] - start)
    costs = ("program", "full", "masked", "operation", "load", "extra", "listed", "cut")
    rates = tuple(
        choices.changed(rate, **{name: getattr(rate, name) * factor for name in costs}) if rate.tiles == own else rate
        for rate in H200.rates
    )
    slow = choices.changed(H200, rates=rates)
    again = choices.candidate_times("forward", base, call, slow, "sm_90")
    assert again == pytest.approx({**times, own: times[best] / gain})
    assert dict(by_model(found, slow)).get("forward") == (best if changes else None)


def test_tables_and_unions_are_left_to_the_plan() -> None:
    assert by_model(situation("documents"), H200) == ()


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls = situation("sliding_window"), []
    monkeypatch.setattr(choices, "by_model", lambda *given: calls.append(given) or (("forward", TILES),))
    assert tiles_for(found) == ()
    monkeypatch.setenv("SPDSL_TUNE", "model")
    assert dict(tiles_for(found)) == {"forward": TILES}
    assert dict(tiles_for(found)) == {"forward": TILES}
    assert len(calls) == 1  # the second time it is known
    store().results.put("tuning", found.identity, {"tiles": choices.record_of((("forward", OTHER),))})
    assert dict(tiles_for(found)) == {"forward": OTHER}
    monkeypatch.setenv("SPDSL_TUNE", "off")
    assert tiles_for(found) == ()
    monkeypatch.setenv("SPDSL_TUNE", "always")
    with pytest.raises(SpatError, match="SP522"):
        tiles_for(found)


TILES = Tiles(block_q=64, block_k=64, warps=4, stages=3)
OTHER = Tiles(block_q=64, block_k=32, warps=4, stages=3)


def test_the_fastest_measured_is_kept_and_taken(hopper: dict[Tiles, float], monkeypatch: pytest.MonkeyPatch) -> None:
    hopper[TILES] = 1e-4
    steps: list[tuple[int, int]] = []
    key = key_of("sliding_window", window=1000)
    found = tune(key, *tensors(6000), {}, watch=lambda text, done, total: steps.append((done, total)))
    assert found.complete
    assert found.best["forward"].tiles == TILES
    assert steps[-1][0] == steps[-1][1] == 2 * len(found.measured)
    assert len([each for each in found.measured if each.kind == "forward"]) <= 12
    assert any(each.own for each in found.measured)
    assert {each.kind for each in found.measured} == {"forward"}  # gradients come from the fused kernel
    count = len(tuning.measured)  # type: ignore[attr-defined]
    assert tune(key, *tensors(6000), {}).best["forward"].tiles == TILES
    assert len(tuning.measured) == count  # type: ignore[attr-defined]  # nothing is measured twice

    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "cpu")  # as the tuning called it
    monkeypatch.setattr(prepare, "target_of", lambda backend, device: "sm_90")

    def request(n: int, window: int) -> tuple[Request, tuple[int, ...]]:
        open_key, values = opened(key_of("sliding_window", window=window))
        asked = Request(
            key=open_key,
            dtype=torch.bfloat16,
            heads=8,
            groups=8,
            head_dim=128,
            value_dim=128,
            shape="square",
            device=device,
            tables=(),
            lengths=(rounded_up(n), rounded_up(n)),
        )
        return asked, values

    plans = set()
    for n, window, taken in ((6000, 1000, True), (8192, 600, True), (16384, 1000, False), (6000, 300, False)):
        made = prepare.prepare(*request(n, window)).plan
        assert (made.forward.tiles == TILES) == taken, (n, window)
        plans.add(id(made))
    assert len(plans) == 2  # one for each choice, whatever the length


def test_a_budget_and_going_on(hopper: dict[Tiles, float]) -> None:
    key = key_of("sliding_window", window=1000)
    first = tune(key, *tensors(), {}, budget=-1.0)
    assert not first.complete
    assert len(first.measured) == 1
    second = tune(key, *tensors(), {})
    assert second.complete
    assert len(tuning.measured) == len(set(tuning.measured)) == len(second.measured)  # type: ignore[attr-defined]


def test_backward_kernels_are_measured_where_they_run(hopper: dict[Tiles, float]) -> None:
    found = tune(key_of("sliding_window", window=1000), *tensors(dim=256), {})
    assert {each.kind for each in found.measured} == {"forward", "dq", "dkdv"}


def test_nothing_to_measure_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpatError, match="SP521"):
        tune(key_of("causal"), *tensors(), {})
    assert run(["tune", "causal", "--device", "cpu"]) == 1
    assert run(["tune", "--device", "cpu"]) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run(["tune", "causal", "--gpus", "2", "--device", "cpu"]) == 1
    assert "SP521" in capsys.readouterr().err


def test_the_command(
    hopper: dict[Tiles, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hopper[TILES] = 1e-4
    words = ["tune", "sliding_window", "-n", "512", "--device", "cpu", "--heads", "2"]
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "taken" in out
    assert "the plan's own" in out
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complete"]
    assert [row["tiles"]["block_k"] for row in found["candidates"] if row["best"]] == [64]


@pytest.mark.parametrize("why", ["", "capturing", "compiling", "off", "tuned", "cpu", "again"])
def test_first_use_tunes_only_when_it_may(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(tuning, "tune", lambda *given: calls.append(given))
    monkeypatch.setenv("SPDSL_TUNE", "off" if why == "off" else "first")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: why == "capturing")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: why == "compiling")
    monkeypatch.setattr(tuning, "_is_on_gpu", lambda q: why != "cpu")
    key, given = key_of("causal"), tensors()
    found = situation("causal")
    monkeypatch.setattr(tuning, "situation_of", lambda *given: found)
    monkeypatch.setattr(tuning, "_tried", {found.identity} if why == "again" else set())
    if why == "tuned":
        store().results.put("tuning", found.identity, {"tiles": {}})
    tuning.on_first_use(key, *given, {})
    assert len(calls) == (why == "")


def test_only_tensors_with_values_are_measured_with() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert not tuning._is_on_gpu(torch.empty(1, device="cuda"))
    assert not tuning._is_on_gpu(torch.empty(1))


def test_benches_measure_side_by_side(hopper: dict[Tiles, float], monkeypatch: pytest.MonkeyPatch) -> None:
    hopper[TILES] = 1e-4
    met = Barrier(3)

    def bench(number: int, made: Plan, kind: Kind) -> float:
        tiles = getattr(made, kind).tiles
        if not shares[number]:
            met.wait(20)  # all three have something to do at the same time
        shares[number].append(tiles)
        return hopper.get(tiles, 1e-3)

    shares: list[list[Tiles]] = [[], [], []]
    monkeypatch.setattr(tuning, "bench_of", lambda *call: partial(bench, 0))
    found = tune(key_of("sliding_window", window=1000), *tensors(), {}, others=[partial(bench, 1), partial(bench, 2)])
    together = [tiles for share in shares for tiles in share]
    assert sorted(together, key=repr) == sorted((each.tiles for each in found.measured), key=repr)
    assert all(shares)
    assert found.best["forward"].tiles == TILES


def test_a_bench_that_breaks_off_is_told_of_and_times_are_kept(hopper: dict[Tiles, float]) -> None:
    key = key_of("sliding_window", window=1000)

    def broken(made: Plan, kind: Kind) -> float:
        raise RuntimeError("it broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        tune(key, *tensors(), {}, others=[broken])
    count = len(tuning.measured)  # type: ignore[attr-defined]
    found = tune(key, *tensors(), {})
    assert len(tuning.measured) == len(found.measured) > count  # type: ignore[attr-defined]  # none twice


def test_the_command_spreads_over_gpus(
    hopper: dict[Tiles, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second GPU, stood for by a process that has the same bench."""
    monkeypatch.setattr(command, "_are_there", lambda count: True)
    monkeypatch.setattr(command.ToTune, "on", lambda wanted, device: (wanted.key, *tensors(512, 2), {}))
    words = ["tune", "sliding_window", "-n", "512", "--heads", "2", "--gpus", "2", "--json"]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complete"]
    here = len(tuning.measured)  # type: ignore[attr-defined]
    assert 0 < here < len(found["candidates"])
    # The other process has no GPU: what it was asked for does not run there.
    assert sum(row["seconds"] is None for row in found["candidates"]) == len(found["candidates"]) - here


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: ("NVIDIA H100", "NVIDIA H200")[number])
    for count, message in ((3, "this machine has 2 GPUs"), (2, "of several kinds: NVIDIA H100, NVIDIA H200")):
        assert run(["tune", "causal", "--gpus", str(count)]) == 1
        answer = capsys.readouterr().err
        assert "SP613" in answer
        assert message in " ".join(answer.split())


UNION = """
pattern union_of_two() {
  keep causal and (q - k < 128 or (q - k) % 8 == 0)
}
"""


def test_unions_are_tuned(hopper: dict[Tiles, float]) -> None:
    key = spdsl.compile(spdsl.loads(UNION))._key
    found = tune(key, *tensors(), {})
    assert len(plan(found.situation.problem(), "sm_90").parts) == 2
    assert len([each for each in found.measured if each.kind == "forward"]) > 1
    base = plan(found.situation.problem(), "sm_90")
    call = choices.call_of(found.situation, base)
    times = choices.candidate_times("forward", base, call, H200, "sm_90")
    alone = choices.candidate_times("forward", choices.changed(base, more=(), union=None), call, H200, "sm_90")
    assert times[base.forward.tiles] > 1.2 * alone[base.forward.tiles]  # its second part counts
    others = variants("forward", base, "sm_90")
    assert len(others) > 1
    assert {len(each.parts) for each in others.values()} == {len(base.parts)}


def test_stages_are_refused() -> None:
    with pytest.raises(SpatError, match="SP290"):
        tune(key_of("quest"), *tensors(), {})


def test_what_ships_is_taken_where_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = situation("sliding_window")
    monkeypatch.setattr(choices, "shipped", lambda: {found.identity: (("forward", TILES),)})
    assert dict(tiles_for(found)) == {"forward": TILES}
    for other in ({"gpu": "NVIDIA H100"}, {"heads": 16}, {"lengths": (16384, 16384)}, {"near": (2048,)}):
        assert tiles_for(choices.changed(found, **other)) == ()  # type: ignore[arg-type]  # as they are
    store().results.put("tuning", found.identity, {"tiles": choices.record_of((("forward", OTHER),))})
    assert dict(tiles_for(found)) == {"forward": OTHER}
    monkeypatch.setenv("SPDSL_TUNE", "off")
    assert tiles_for(found) == ()


def test_of_another_version_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = situation("sliding_window")
    monkeypatch.setattr(choices, "shipped", lambda known=found.identity: {known: (("forward", TILES),)})
    monkeypatch.setattr(choices, "__version__", "0.0.0")
    assert tiles_for(found) == ()


def test_tables_that_ship_can_be_planned() -> None:
    for chosen in choices.shipped().values():
        assert chosen
        for kind, tiles in chosen:
            assert kind in choices.KINDS
            assert tiles.block_q * tiles.block_k <= 128 * 128


@pytest.mark.parametrize("gpu", ["NVIDIA H200", "NVIDIA H100 80GB HBM3"])
def test_calls_find_what_ships(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the version of Triton with which it was measured; a plan can be made of it."""
    monkeypatch.setattr(choices, "_version_of_triton", lambda: "3.6.0")
    key, q = key_of("sliding_window", window=120), tensors(8000, heads=16)
    found = choices.changed(situation_of(key, *q), gpu=gpu, target="sm_90")
    chosen = dict(tiles_for(found))
    assert chosen == {"forward": Tiles(block_q=64, block_k=64, warps=4, stages=3, specialised=True)}
    made = plan(choices.changed(found.problem(), tiles=tuple(chosen.items())), "sm_90")
    assert made.forward.tiles == chosen["forward"]
    assert made.forward.tiles != plan(found.problem(), "sm_90").forward.tiles
    monkeypatch.setattr(choices, "_version_of_triton", lambda: "3.7.0")
    assert tiles_for(found) == ()
