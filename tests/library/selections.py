"""The patterns of the library that select by scores, with small parameters and inputs that fit."""

from __future__ import annotations

import torch

from tests.library.cases import Case, Inputs, Sizes


def _nsa(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"gate": torch.rand(3, sizes.heads, sizes.nq, generator=generator)}


def _seer(sizes: Sizes, generator: torch.Generator) -> Inputs:
    count = -(-sizes.n // 16)
    return {name: torch.randn(sizes.heads, count, 6, generator=generator) for name in ("GQ", "GK")}


def _vsa(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"gate": torch.randn(sizes.heads, sizes.nq, 8, generator=generator)}


def _dsa(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {
        "QI": torch.randn(64, sizes.nq, 6, generator=generator),
        "KI": torch.randn(sizes.n, 6, generator=generator),
        "wt": torch.rand(64, sizes.nq, generator=generator),
    }


def _dma(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"delta": torch.randn(sizes.groups, sizes.n, generator=generator)}


SELECTIONS = (
    Case(name="moba", parameters={"block": 16, "picks": 3}),
    Case(
        name="nsa",
        parameters={"compress": 8, "stride": 4, "block": 16, "picks": 4, "window": 11},
        inputs=_nsa,
        trained=("gate",),
    ),
    Case(
        name="infllm_v2",
        parameters={"compress": 8, "stride": 4, "block": 16, "picks": 4, "window": 32, "dense": 20},
    ),
    Case(name="seer_attention", parameters={"block": 16, "threshold": 0.15}, inputs=_seer),
    Case(
        name="vsa",
        parameters={"frames": 4, "height": 6, "width": 5, "cube": (2, 4, 2), "picks": 4},
        inputs=_vsa,
        n=120,
        trained=("gate",),
    ),
    Case(name="quest", parameters={"page": 8, "budget": 32}),
    Case(name="dsa", parameters={"picks": 13}, inputs=_dsa),
    Case(name="dma", parameters={"width": 11}, inputs=_dma, trained=("delta",)),
    Case(name="xattention", parameters={"block": 16, "stride": 4, "mass": 0.6}),
    Case(name="vertical_slash", parameters={"columns": 33, "diagonals": 103, "probe": 16, "block": 8}),
)
"""A case for every pattern of the library that selects by scores."""
