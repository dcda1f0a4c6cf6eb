"""What is measured: masks of the field, each as a `.spat` pattern with parameters and as FlexAttention's `mask_mod`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One mask at one shape; ``pattern`` is a library name or a `.spat` text."""

    name: str
    pattern: str
    mask_mod: Callable[[torch.device], MaskMod]
    parameters: dict[str, object] = field(default_factory=dict)
    inputs: Callable[[torch.device], dict[str, Tensor]] = lambda device: {}
    batch: int = 1
    heads: int = 16
    groups: int = 16
    n: int = 32768
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    causal: bool = False  # cuDNN has this mask, and everything under `dense`
    dense: bool = False
    per_head: bool = False  # heads have masks of their own
    tuned: bool = False  # FlexAttention is also measured as autotuned


def _static(mod: MaskMod) -> Callable[[torch.device], MaskMod]:
    return lambda device: mod


def _everything(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= 0


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def _window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= k) & (q - k < 1024)


def _streaming(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= k) & ((q - k < 1024) | (k < 64))


def _prefix(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= k) | (k < 8192)


def _dilated(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= k) & (q - k < 4096) & ((q - k) % 4 == 0)


def _longformer(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return ((q - k).abs() <= 256) | (k < 64) | (q < 64)


def _s2(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= k) & ((q // 64 - k // 64 < 8) | ((k // 64 + h) % 16 == 0))


def _power(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    distance = q // 128 - k // 128
    return (q >= k) & ((distance < 8) | ((distance & (distance - 1)) == 0))


DOCUMENT_LENGTHS = (9000, 512, 4096, 1200, 7000, 300, 2600, 5000, 60, 3000)


def documents(device: torch.device, lengths: tuple[int, ...] = DOCUMENT_LENGTHS) -> Tensor:
    """The number of each token's document, int32 ``[tokens]``."""
    numbers = torch.arange(len(lengths), device=device, dtype=torch.int32)
    return torch.repeat_interleave(numbers, torch.tensor(lengths, device=device))


def _documents_mod(device: torch.device) -> MaskMod:
    doc = documents(device)
    return lambda b, h, q, k: (doc[q] == doc[k]) & (q >= k)


def _first(device: torch.device) -> Tensor:
    return torch.arange(32768, device=device) < 64


def _bigbird_table(device: torch.device) -> Tensor:
    blocks = 32768 // 64
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randperm(blocks, generator=generator)[:3] for _ in range(blocks)])
    return torch.zeros(blocks, blocks, dtype=torch.bool).scatter_(1, drawn, True).to(device)


def _bigbird_mod(device: torch.device) -> MaskMod:
    table = _bigbird_table(device)

    def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        i, j = q // 64, k // 64
        return ((i - j).abs() <= 1) | (i < 2) | (j < 2) | table[i, j]

    return mod


BIGBIRD = """
pattern bigbird_table() {
  axis blk = token by 64
  input drawn: bool[q.blk, k.blk]
  keep abs(q.blk - k.blk) <= 1 or q.blk < 2 or k.blk < 2 or drawn[q.blk, k.blk]
}
"""


def _near_2d(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    y, x = (q // 192).clamp(12, 179), (q % 192).clamp(12, 179)
    return ((k // 192 - y).abs() <= 12) & ((k % 192 - x).abs() <= 12)


def _near_3d(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    t, y, x = (q // 3840).clamp(9, 20), (q // 80 % 48).clamp(12, 35), (q % 80).clamp(12, 67)
    return ((k // 3840 - t).abs() <= 9) & ((k // 80 % 48 - y).abs() <= 12) & ((k % 80 - x).abs() <= 12)


CASES = (
    Case(name="causal", pattern="causal", mask_mod=_static(_causal), causal=True, tuned=True),
    Case(name="swa1024", pattern="sliding_window", parameters={"window": 1024}, mask_mod=_static(_window), tuned=True),
    Case(
        name="sink64_window1024",
        pattern="streaming",
        parameters={"window": 1024, "sinks": 64},
        mask_mod=_static(_streaming),
    ),
    Case(
        name="prefix8192",
        pattern="prefix_lm",
        inputs=lambda device: {"prefix": torch.tensor([8192], dtype=torch.int32, device=device)},
        mask_mod=_static(_prefix),
    ),
    Case(
        name="documents10",
        pattern="documents",
        inputs=lambda device: {"doc": documents(device)},
        mask_mod=_documents_mod,
    ),
    Case(
        name="longformer256_g64",
        pattern="longformer",
        parameters={"window": 512},
        inputs=lambda device: {"is_global": _first(device)},
        mask_mod=_static(_longformer),
    ),
    Case(
        name="bigbird64",
        pattern=BIGBIRD,
        inputs=lambda device: {"drawn": _bigbird_table(device)},
        mask_mod=_bigbird_mod,
    ),
    Case(name="dilated4096x4", pattern="dilated", mask_mod=_static(_dilated)),
    Case(name="s2_strided", pattern="s2", per_head=True, mask_mod=_static(_s2)),
    Case(name="power128", pattern="power", mask_mod=_static(_power)),
    Case(
        name="na2d_192_k25",
        pattern="neighborhood_2d",
        parameters={"extents": (192, 192), "window": (25, 25)},
        n=36864,
        mask_mod=_static(_near_2d),
    ),
    Case(
        name="na3d_30x48x80_k19x25x25",
        pattern="neighborhood_3d",
        parameters={"extents": (30, 48, 80), "window": (19, 25, 25)},
        n=115200,
        heads=4,
        groups=4,
        mask_mod=_static(_near_3d),
    ),
)
"""The masks of the suite, by the names that results use."""


def _variants(case: Case) -> tuple[Case, ...]:
    """One mask with other heads, types and sizes; documents end where the sequence does."""

    def cut(n: int) -> Case:
        return replace(case, n=n, inputs=lambda device: {name: each[:n] for name, each in case.inputs(device).items()})

    return (
        replace(case, name=f"{case.name}_d64", dim=64, tuned=False),
        replace(case, name=f"{case.name}_gqa", heads=32, groups=8, tuned=False),
        replace(case, name=f"{case.name}_fp16", dtype=torch.float16, tuned=False),
        replace(cut(8192), name=f"{case.name}_4x8k", batch=4, tuned=False),
        replace(cut(2048), name=f"{case.name}_2k", tuned=False),
    )


_BY_NAME = {case.name: case for case in CASES}

SUITE = (
    Case(name="dense", pattern="full", mask_mod=_static(_everything), n=16384, dense=True),
    *CASES,
    *(variant for name in ("causal", "swa1024", "documents10") for variant in _variants(_BY_NAME[name])),
)
"""All that is measured: no mask at all, the masks, and three of them at other sizes."""
