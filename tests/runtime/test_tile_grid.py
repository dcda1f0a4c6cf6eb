"""Tiles of residue classes at run time: what `explain` counts, against the mask itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import spdsl
from spdsl.explain import KernelReport, explain

LENGTHS = ((1, 1), (255, 255), (700, 700), (90, 700), (1, 300))


def counted(mask: np.ndarray, kernel: KernelReport, modulus: int) -> tuple[int, int]:
    """(tiles touched, tiles with all pairs that exist) of a mask, over all pairs of classes."""
    touched = full = 0
    for a in range(modulus):
        for b in range(modulus):
            part = mask[a::modulus, b::modulus]
            if not part.size:
                continue
            i = np.arange(part.shape[0])[:, None] // kernel.block_q
            j = np.arange(part.shape[1])[None, :] // kernel.block_k
            kept, exist = np.zeros((2, i.max() + 1, j.max() + 1), int)
            np.add.at(kept, tuple(np.broadcast_arrays(i, j)), part)
            np.add.at(exist, tuple(np.broadcast_arrays(i, j)), 1)
            touched += int((kept > 0).sum())
            full += int((kept == exist).sum())
    return touched, full


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("nq", "n"), LENGTHS)
def test_explain_counts_tiles_of_classes(nq: int, n: int, shift: int, tmp_path: Path) -> None:
    path = tmp_path / "classes.spat"
    path.write_text(f"pattern classes() {{ keep causal and q - k < 500 and (q - k) % 3 == {shift} }}\n")
    attn = spdsl.compile(str(path))
    q, k = torch.empty(1, 2, nq, 64, dtype=torch.bfloat16), torch.empty(1, 1, n, 64, dtype=torch.bfloat16)
    mask = attn.pattern.mask(nq, n)[0].numpy()
    report = explain(attn._key, q, k, k, {}, "sm_90")
    assert report.pairs == 2 * int(mask.sum())
    assert "% 3 ==" in report.text()
    for kernel in report.kernels:
        touched, full = counted(mask, kernel, 3)
        assert kernel.touched >= 2 * touched
        if nq > 1:  # else tiles of a class without queries count as full
            assert kernel.full <= 2 * full
        if nq % (3 * kernel.block_q) == 0 and n % (3 * kernel.block_k) == 0:
            assert kernel.touched == 2 * touched
        if kernel.kind == "forward" and nq == 700:
            assert kernel.touched <= 2 * touched + 12  # tiles kept only beyond the ragged end


def test_explain_agrees_with_consecutive_rows() -> None:
    attn = spdsl.compile("dilated", span=300, dilation=4)
    q = torch.empty(1, 2, 768, 64, dtype=torch.bfloat16)
    gathered, plain = (explain(attn._key, q, q, q, {}, target) for target in ("sm_90", "cpu"))
    assert gathered.pairs == plain.pairs
    for kernel in gathered.kernels:
        assert kernel.touched == 2 * counted(attn.pattern.mask(768, 768)[0].numpy(), kernel, 4)[0]
