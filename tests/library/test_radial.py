"""Radial Attention at published sizes: the stage that picks blocks, as the fast paths compute it, without any mask."""

from __future__ import annotations

import pytest
import torch

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem
from spdsl.runtime.calls import Call
from spdsl.runtime.stages import materialise
from tests.library.bound import library
from tests.library.masks import radial_share


@pytest.mark.parametrize(
    ("frames", "rho", "sink", "published"),
    [
        (30, 0.95, False, 0.275),
        (18, 0.2, True, 0.287),
        pytest.param(128, 0.95, False, 0.110, marks=pytest.mark.slow),
    ],
)
def test_share_of_blocks(frames: int, rho: float, sink: bool, published: float) -> None:
    pattern = library("radial", frames=frames, frame_tokens=3840, rho=rho, sink=sink)
    made = plan(Problem(pattern=pattern, dtype="fp32", value_dim=16, shape="square"), "cpu")
    empty = torch.empty(1, 1, frames * 3840, 16)
    call = materialise(Call(plan=made, q=empty, k=empty, v=empty))
    (stage,) = made.stages
    share = float(call.tables[stage.name].double().mean())
    assert share == pytest.approx(radial_share(frames, 3840, rho, sink), abs=1e-12)
    assert share == pytest.approx(published, abs=5e-4)
