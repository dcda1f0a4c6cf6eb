"""The profile of a machine from measured times; the times themselves are given here."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spdsl import profiling, tuning
from spdsl.analysis.cost import estimate
from spdsl.analysis.device import profile_for
from spdsl.costs import device_for
from spdsl.profiling import measure_device

pytest.importorskip("triton")
from spdsl.runtime import plain  # it imports triton

SHIPPED = profile_for("NVIDIA H200", "sm_90")


def test_a_machine_that_is_slower_than_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    properties = SimpleNamespace(name="NVIDIA H200", multi_processor_count=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    ratios = iter((1.2, 9.0, 1.25))
    monkeypatch.setattr(profiling, "_ratio", lambda *given: next(ratios))
    for name, value in (("_matrix_rate", 5e14), ("_copy_rate", 3e12), ("_launch", 5e-6)):
        monkeypatch.setattr(profiling, name, lambda device, value=value: value)
    assert device_for("sm_90", "NVIDIA H200").origin == "shipped"
    current: list[torch.device] = []
    monkeypatch.setattr(plain, "on", lambda device: nullcontext(current.append(device)))
    found = measure_device(torch.device("cuda", 1))
    assert current == [torch.device("cuda", 1)]
    assert (found.origin, found.multiprocessors, found.matrix_rate, found.launch) == ("measured", 100, 5e14, 5e-6)
    assert found.scale == pytest.approx(1.25)
    assert found.rates[0].full == pytest.approx(1.25 * SHIPPED.rates[0].full)
    assert device_for("sm_90", "NVIDIA H200") == found  # from now on
    assert device_for("sm_90", "NVIDIA H100 80GB HBM3").origin == "shipped"


def test_ratios_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says twice the prediction gives a ratio of two."""
    monkeypatch.setattr(tuning, "target_of", lambda backend, device: "sm_90")
    monkeypatch.setattr(profiling, "LENGTH", 2048)
    predicted: list[float] = []

    def seen(work: object, device: object) -> object:
        found = estimate(work, device)  # type: ignore[arg-type]
        predicted.append(found.seconds)
        return found

    monkeypatch.setattr(profiling, "estimate", seen)
    monkeypatch.setattr(profiling, "_seconds", lambda run: 2 * predicted[-1])
    for name, parameters in profiling.PROBES:
        assert profiling._ratio(name, dict(parameters), SHIPPED, torch.device("cpu")) == pytest.approx(2.0)
    assert len(set(predicted)) == len(profiling.PROBES)
