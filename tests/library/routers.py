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
)
"""At least one case for each of them."""
