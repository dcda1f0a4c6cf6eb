"""The finite set of tile sizes and launch options among which a kernel is chosen.

From: a kind of kernel, its element type, head dims and target.  To: candidates that can run, the default first.  What
does not fit shared memory by its own buffers is left out; what Triton adds is found when it is compiled.
"""

from __future__ import annotations

from spdsl.analysis.plans import KernelPlan, Kind, Precision, Tiles

MOST = 12
"""Candidates of a kernel that autotuning measures at most."""

SHARED_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""What one program may have: NVIDIA's limits for compute capability 8.0, 9.0 and 10.0, and AMD's LDS."""

# block_q, block_k, warps, stages; in the order in which they were seen to be good on Hopper.  Of fourteen forward
# candidates that were measured for 186 masks and shapes where copies have warps of their own, those that were ever the
# best by more than 1 % are left, but for 64 by 128 in Triton, which takes up to eleven times as long over lists.
_SPECIALISED = ((128, 128, 4, 2), (64, 64, 4, 3), (128, 128, 4, 4))
_BESIDE = ((64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 3))
_FORWARD = (
    (64, 64, 4, 3),
    (64, 32, 4, 3),
    (128, 64, 8, 3),
    (64, 64, 4, 2),
    (128, 128, 8, 3),
    (128, 128, 8, 2),
    (128, 64, 4, 3),
)
_DQ = (
    (128, 64, 8, 3),
    (64, 64, 4, 2),
    (128, 64, 4, 3),
    (64, 64, 4, 3),
    (128, 64, 8, 2),
    (64, 32, 4, 2),
)
_DKDV = (
    (64, 64, 4, 2),
    (64, 128, 8, 2),
    (32, 64, 4, 2),
    (32, 128, 8, 2),
    (64, 64, 8, 2),
    (64, 64, 4, 1),
)
_PLAIN = {"forward": _FORWARD, "dq": _DQ, "dkdv": _DKDV}


def candidates(
    kind: Kind, *, dtype: Precision, head_dim: int, value_dim: int, target: str, default: KernelPlan
) -> tuple[Tiles, ...]:
    """Tiles for a kernel of ``kind`` on ``target``, the default ones first; these alone where nothing was tried."""
    if target != "sm_90" or not default.descriptors or kind == "fused":
        return (default.tiles,)
    special, plain = (_SPECIALISED, _BESIDE) if kind == "forward" and default.specialised else ((), _PLAIN[kind])
    tried = [_tiles(each, specialised=True) for each in special] + [_tiles(each) for each in plain]
    fitting = [
        each for each in tried if _shared(each) * _bytes(kind, each, head_dim, value_dim, dtype) <= SHARED_BYTES[target]
    ]
    return tuple(dict.fromkeys((default.tiles, *fitting)))


def _tiles(sizes: tuple[int, int, int, int], *, specialised: bool = False) -> Tiles:
    block_q, block_k, warps, stages = sizes
    return Tiles(block_q=block_q, block_k=block_k, warps=warps, stages=stages, specialised=specialised)


def _shared(tiles: Tiles) -> int:
    """How many programs an SM must hold for the tiles to be worth a try: a small one with warps of its own for copies
    waits too often alone."""
    return 2 if tiles.specialised and tiles.block_q == 64 else 1


def _bytes(kind: Kind, tiles: Tiles, head_dim: int, value_dim: int, dtype: Precision) -> int:
    """Shared memory that the tiles take: those of the program's own rows once, those it walks once for each stage."""
    size = 4 if dtype == "fp32" else 2
    width = _power(head_dim) + _power(value_dim)
    match kind:
        case "forward":
            return size * (tiles.block_q * _power(head_dim) + tiles.stages * tiles.block_k * width)
        case "dq":
            return size * (tiles.block_q * width + tiles.stages * tiles.block_k * width)
        case "dkdv" | "fused":
            return size * (tiles.block_k * width + tiles.stages * tiles.block_q * width)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
