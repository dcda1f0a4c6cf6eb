"""Odd corners of the language: masks against plain Python, calls on the CPU and gradients against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import spdsl
from spdsl.diagnostics import SpatError
from tests.semantics.corner import Corner, Point
from tests.semantics.corners import CORNERS


def expected(case: Corner) -> np.ndarray:
    """``[batch, heads, nq, n]`` by the case's own words."""
    nq = case.n if case.nq is None else case.nq
    found = np.zeros((case.batch, case.heads, nq, case.n), dtype=bool)
    for b, h, row, k in np.ndindex(found.shape):
        place = Point(b=b, h=h, g=h // (case.heads // case.groups), q=row + case.n - nq, k=k, n=case.n, nq=nq)
        found[b, h, row, k] = case.kept(place, case.inputs)
    return found


def tensors(case: Corner) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(value)) for name, value in case.inputs.items()}


@pytest.mark.parametrize("case", CORNERS, ids=lambda case: case.name)
def test_masks(case: Corner) -> None:
    pattern = spdsl.loads(case.text)
    assert pattern.name == case.name
    mask = pattern.mask(
        case.n if case.nq is None else case.nq,
        case.n,
        heads=case.heads,
        groups=case.groups,
        layer=case.layer,
        **case.parameters,
        **tensors(case),
    )
    wanted = expected(case)
    assert np.array_equal(np.broadcast_to(mask.numpy(), wanted.shape), wanted)
    assert 0 < wanted.mean() < 1, "the case says something"


@pytest.mark.parametrize("case", CORNERS, ids=lambda case: case.name)
def test_calls_and_gradients(case: Corner) -> None:
    compare(case)


def compare(case: Corner, backend: str | None = None) -> None:
    """A call with all its gradients against the reference."""
    generator = torch.Generator().manual_seed(0)
    nq = case.n if case.nq is None else case.nq

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    q, k, v = (
        leaf(case.batch, case.heads, nq, 16),
        leaf(case.batch, case.groups, case.n, 16),
        leaf(case.batch, case.groups, case.n, 8),
    )
    inputs = tensors(case)
    for name in case.trained:
        inputs[name].requires_grad_()
    leaves = [q, k, v, *(inputs[name] for name in case.trained)]
    attn = spdsl.compile(spdsl.loads(case.text), layer=case.layer, backend=backend, **case.parameters)
    out, lse = attn(q, k, v, return_lse=True, **inputs)
    wanted, wanted_lse = attn.reference(q, k, v, return_lse=True, **inputs)
    seen = torch.isfinite(wanted_lse)
    assert torch.equal(seen, torch.isfinite(lse))
    assert close(out, wanted, 1e-5)
    assert close(lse[seen], wanted_lse[seen], 1e-5)
    d_out = torch.randn(out.shape, generator=generator)
    d_lse = torch.where(seen, torch.randn(lse.shape, generator=generator), 0.0)
    found = torch.autograd.grad((out, lse), leaves, (d_out, d_lse))
    right = torch.autograd.grad((wanted, wanted_lse), leaves, (d_out.double(), d_lse.double()))
    for name, one, two in zip(("q", "k", "v", *case.trained), found, right, strict=True):
        assert close(one, two, 2e-5), f"gradient of {name}"


def refusal(text: str, *, trained: str = "") -> SpatError:
    """What a call of a pattern with a float input `w` of 16 tokens is answered."""
    q = torch.randn(1, 2, 16, 16)
    pattern = spdsl.loads(text)
    inputs = {"w": torch.randn(16, requires_grad=bool(trained))} if "w" in pattern.inputs else {}
    pattern.mask(16, 16, **inputs)
    with pytest.raises(SpatError) as caught:
        spdsl.compile(pattern)(q, q, q, **inputs).sum().backward()
    assert caught.value.help
    return caught.value


def test_tables_of_all_pairs_are_refused() -> None:
    assert refusal("pattern p() { keep noise(0, per = (q, k)) < 0.5 }").code == "SP403"
    text = "pattern p() { axis blk = token by 4  keep all(k <= q, per = q.blk) }"
    assert refusal(text).code == "SP403"


@pytest.mark.parametrize(
    "clause",
    [
        "bias mean(w[k], per = k.blk)",
        "bias max(w[k], per = k.blk) * (if q.blk == k.blk then 1.0 else w[k])",
        "sink_logit max(w[k], over = k)",
    ],
)
def test_gradients_through_reductions_are_refused(clause: str) -> None:
    text = f"pattern p() {{ input w: float[token]  axis blk = token by 4  keep causal  {clause} }}"
    assert refusal(text, trained="w").code == "SP290"


def test_gradients_of_mixed_indices_are_refused() -> None:
    text = "pattern p() { input w: float[token]  keep causal  bias w[(q + k) // 2] }"
    assert refusal(text, trained="w").code == "SP402"


def test_unnamed_grids_cover_what_they_divide() -> None:
    with pytest.raises(SpatError) as caught:
        spdsl.loads("pattern p() { grid (y: 4, x: 4) from 5  keep q.y == k.y }")
    assert caught.value.code == "SP203"
    pattern = spdsl.loads("pattern p() { grid (f: 4, i: 4)  grid (y: 1, x: 3) from i  keep q.y == k.y }")
    with pytest.raises(SpatError) as caught:
        pattern.mask(16, 16)
    assert caught.value.code == "SP337"


@pytest.mark.parametrize(
    ("statements", "code", "help"),
    [
        ("keep inner(0)", "SP211", "give a value in that range"),
        ("keep inner(window = -1)", "SP211", "give a value in that range"),
        ("keep outer(3)", "SP201", "`use`"),
        ("grid (row: 4, column: 4)  keep q.z == k.row", "SP207", "`column` and `row`"),
        ("let a = (1, 2)  keep a == q", "SP203", "`a[0]`"),
        ("keep if causal then 1 else 0", "SP203", "`(if causal then 1 else 0) > 0`"),
        (
            "grid (y: 4, x: 4)  axis s = (y, x) by (2, 2)  keep k.s.last <= q",
            "SP290",
            "`max(k, per = k.s)`",
        ),
        ("axis a = token by q  keep q.a == k.a", "SP203", "use parameters and numbers"),
        ("input t: bool[h, h]  keep t[h, h]", "SP203", "bool[h, heads]"),
        ("input t: int[k]  keep t[k] == 1", "SP203", "along `token`"),
    ],
)
def test_help(statements: str, code: str, help: str) -> None:
    inner = "pattern inner(window: int in 1..) { keep 0 <= q - k < window }"
    with pytest.raises(SpatError) as caught:
        spdsl.loads(f"{inner} pattern p() {{ {statements} }}")
    assert caught.value.code == code
    assert help in caught.value.help


def close(found: torch.Tensor, wanted: torch.Tensor, most: float) -> bool:
    """Whether the relative error ‖found − wanted‖ / ‖wanted‖ is at most ``most``."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return bool(torch.isfinite(found).all()) and float((found - wanted).norm()) <= most * float(wanted.norm())
