"""Tuning for real, in the interpreter: candidates run, the fastest by a given clock is kept, one that fails is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import spdsl
from spdsl import choices
from spdsl.analysis.plans import Tiles
from spdsl.cache.store import store
from spdsl.runtime import plain
from spdsl.stage_tuning import tune_stages
from spdsl.tuning import tune


def test_candidates_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    small = [Tiles(block_q=16, block_k=size, warps=4, stages=1) for size in (16, 32)]
    monkeypatch.setattr(choices, "candidates", lambda kind, default, **sizes: (default.tiles, *small))
    runs: list[object] = []
    devices: list[torch.device] = []

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        devices.append(device)
        try:
            yield
        finally:
            devices.pop()

    monkeypatch.setattr(plain, "on", on)

    def clock(run: Callable[[], object]) -> float:
        assert devices == [torch.device("cpu")]  # a clock of a device is that of the current one
        found = run()
        runs.append(found)
        if len(runs) == 2:
            raise RuntimeError("too little shared memory")
        return 1.0 / len(runs)

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 70, 16) for _ in range(3))
    attn = spdsl.compile("sliding_window", window=20, backend="triton")
    found = tune(attn._key, q, k, v, {}, backward=False, timer=clock)
    assert len(found.measured) == 3
    assert len(runs) == 3
    assert [each.seconds is None for each in found.measured] == [False, True, False]
    assert found.best["forward"] is found.measured[2]
    expected = attn.reference(q, k, v)
    for out, _ in runs:  # type: ignore[misc]  # what the engine gives back
        assert float((out.double() - expected).norm() / expected.norm()) < 1e-5  # type: ignore[operator, union-attr]
    [kept] = store().results.all("tuning")
    assert kept.value["tiles"]["forward"]["block_k"] == found.measured[2].tiles.block_k


@pytest.mark.slow
def test_softmaxes_of_a_pattern_that_selects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over what was selected: every candidate gives the output that the pattern means, of a union by all its parts."""
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    small = Tiles(block_q=16, block_k=16, warps=4, stages=1)
    monkeypatch.setattr(choices, "candidates", lambda kind, default, **sizes: (default.tiles, small))
    outs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def clock(run: Callable[[], object]) -> float:
        outs.append(run())  # type: ignore[arg-type]  # what the engine gives back of a forward
        return 1.0 / len(outs)

    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 50, 16), torch.randn(1, 2, 50, 16), torch.randn(1, 2, 50, 16)
    sizes = {"compress": 8, "stride": 4, "block": 16, "picks": 2, "window": 16, "dense": 16}
    attn = spdsl.compile("infllm_v2", backend="triton", **sizes)
    told: list[str] = []
    found = tune_stages(
        attn._key, q, k, v, {}, backward=False, timer=clock, watch=lambda text, done, steps: told.append(text)
    )
    assert found.complete
    [(softmax, tuned)] = found.softmaxes
    assert len(tuned.measured) == len(outs) == 2
    expected = attn.reference(q, k, v)
    for out, _ in outs:
        assert float((out.double() - expected).norm() / expected.norm()) < 1e-5  # type: ignore[operator, union-attr]
    assert tuned.best["forward"].tiles == tuned.measured[1].tiles
    assert all(text.startswith(f"{softmax} (1 of 1)") for text in told)
    # What was measured is not measured again.
    again = tune_stages(attn._key, q, k, v, {}, backward=False, timer=clock)
    assert len(outs) == 2
    assert again.softmaxes[0][1].measured == tuned.measured
