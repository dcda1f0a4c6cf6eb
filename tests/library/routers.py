"""The patterns of the library that have levels, route or reuse, with small parameters and inputs that fit."""

from __future__ import annotations

import torch

from tests.library.cases import Case, Inputs, Sizes


def _full(sizes: Sizes, generator: torch.Generator) -> Inputs:
    # The first sequence streams.
    return {"full": torch.arange(sizes.batch) % 2 == 1}


def _prompt(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"prompt": torch.randint(0, sizes.n + 1, (sizes.batch,), generator=generator).int()}


def _blocks(sizes: Sizes, generator: torch.Generator) -> Inputs:
    shape = (sizes.heads, -(-sizes.n // 16), -(-sizes.n // 8))
    return {"chosen": torch.rand(shape, generator=generator) < 0.3}


def _pages(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"reused": torch.rand(sizes.nq, -(-sizes.n // 8), generator=generator) < 0.3}


def _keys(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {
        "full": torch.arange(64) % 3 == 0,
        "reused": torch.rand(sizes.groups, sizes.nq, sizes.n, generator=generator) < 0.2,
    }


def _search(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"Q1": torch.randn(sizes.heads, sizes.nq, 8, generator=generator)}


def _centres(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"mu": torch.randn(sizes.heads, 4, 8, generator=generator)}


def _cuts(sizes: Sizes, generator: torch.Generator, name: str = "cut") -> Inputs:
    return {name: (torch.rand(sizes.n, generator=generator) < 1 / 6).cumsum(0).int().sub(1).clamp(min=0)}


def _pieces(sizes: Sizes, generator: torch.Generator) -> Inputs:
    found = _cuts(sizes, generator, "piece")
    count = int(found["piece"][-1]) + 1
    return found | {
        "text": torch.rand(sizes.n, generator=generator) < 0.03,
        "gains": torch.rand(sizes.heads, count, count, generator=generator) < 0.5,
    }


def _estimate(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {
        "estimate": torch.rand(sizes.heads, sizes.nq, 16, generator=generator),
        "gain": torch.rand(sizes.heads, sizes.nq, generator=generator),
    }


def _second(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {
        "special": torch.rand(sizes.n, generator=generator) < 0.1,
        "QG": torch.randn(sizes.heads, sizes.nq, 8, generator=generator),
        "KG": torch.randn(sizes.groups, sizes.n, 8, generator=generator),
        "VG": torch.randn(sizes.groups, sizes.n, 8, generator=generator),
    }


ROUTERS = (
    Case(name="llsa", parameters={"block": 4, "picks": (3, 2)}),
    Case(name="flux", parameters={"sinks": 3, "window": 11}, inputs=_full),
    Case(name="minference_blocks", parameters={"block": 16, "picks": 3}),
    Case(name="flashprefill", parameters={"block": 8, "alpha": 0.4, "sinks": 1, "window": 2, "dense": 1}),
    Case(name="sparsed_build", parameters={"ratio": 0.3, "rows": 16, "columns": 8}, inputs=_prompt),
    Case(name="sparsed_reuse", parameters={"rows": 16, "columns": 8}, inputs=_blocks),
    Case(name="delta", parameters={"layer": 14, "page": 8, "picks": 6, "recent": 2}, inputs=_pages),
    Case(name="delta", parameters={"layer": 15, "page": 8, "picks": 6, "recent": 2}, inputs=_pages),
    Case(name="hylra", parameters={"layer": 3}, inputs=_keys),
    Case(name="hylra", parameters={"layer": 4}, inputs=_keys),
    Case(name="kinetics", parameters={"page": 8, "picks": 4}),
    Case(
        name="superlinear",
        parameters={"picks": 3, "back": 0.7, "ahead": 0.3, "local": 8},
        inputs=_search,
        trained=("Q1",),
    ),
    Case(name="routing", parameters={"clusters": 4, "width": 19}, inputs=_centres),
    Case(name="sparge", parameters={"rows": 16, "columns": 8, "theta": 0.15, "mass": 0.6}),
    Case(name="dhsa", parameters={"budget": 20, "local": 5}, inputs=_cuts),
    Case(name="snapkv", parameters={"cap": 20, "probe": 8, "width": 5}),
    Case(name="ada_snapkv", parameters={"cap": 20, "probe": 8, "width": 3, "share": 0.3}),
    Case(name="rectified", parameters={"mass": 0.4, "picks": 2}, inputs=_pieces),
    Case(name="sea", parameters={"bins": 16, "picks": 20}, inputs=_estimate, trained=("gain",)),
    Case(name="longnet", parameters={"segment": (8, 16, 32, 40, 100), "rate": (1, 2, 3, 4, 6)}),
    Case(
        name="longformer_global",
        parameters={"window": 9, "dilation": 2},
        inputs=_second,
        trained=("QG", "KG", "VG"),
    ),
    Case(
        name="hip",
        parameters={
            "rows": 8,
            "chunk": (16, 8, 4),
            "budget": (48, 24, 8),
            "every": 2,
            "sinks": 3,
            "window": 9,
        },
    ),
    Case(name="flexprefill", parameters={"block": 16, "mass": 0.47, "tau": 0.12, "least": 3}),
)
"""At least one case for each of them."""
