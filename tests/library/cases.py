"""Every library pattern with small parameters and inputs that fit: what the tests of all back ends run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of one call."""

    batch: int
    heads: int
    groups: int
    nq: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pattern, parameters, and how to make inputs.

    ``n`` is a fixed length where the pattern dictates one; ``trained`` names inputs that get gradients.
    """

    name: str
    parameters: dict[str, object] = field(default_factory=dict)
    inputs: Callable[[Sizes, torch.Generator], Inputs] = lambda sizes, generator: {}
    n: int | None = None
    trained: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name, with the parameters where a pattern has several cases."""
        given = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name}({given})".replace(" ", "")


def _documents(sizes: Sizes, generator: torch.Generator) -> Inputs:
    cuts = torch.rand(sizes.batch, sizes.n, generator=generator) < 5 / sizes.n
    return {"doc": cuts.cumsum(1).int()}


def _prefix(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"prefix": torch.randint(0, sizes.n + 1, (sizes.batch,), generator=generator).int()}


def _globals(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"is_global": torch.rand(sizes.n, generator=generator) < 2 / sizes.n}


def _segments(sizes: Sizes, generator: torch.Generator) -> Inputs:
    segment = (torch.rand(sizes.n, generator=generator) < 6 / sizes.n).cumsum(0).int()
    return {"segment": segment, "last": segment[-1].clone()}


def _windows(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"window": torch.randint(0, 2, (sizes.heads, 3), generator=generator).int() * 2 + 1}


def _slopes(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"slope": torch.rand(sizes.heads, generator=generator) * 0.1}


def _modes(sizes: Sizes, generator: torch.Generator) -> Inputs:
    return {"full": torch.arange(sizes.groups) % 2 == 0}


CASES = (
    Case(name="full"),
    Case(name="causal"),
    Case(name="sliding_window", parameters={"window": 37}),
    Case(name="sliding_window", parameters={"window": 128}),
    Case(name="streaming", parameters={"window": 30, "sinks": 4}),
    Case(name="streaming", parameters={"window": 200, "sinks": 64}),
    Case(name="prefix_lm", inputs=_prefix),
    Case(name="documents", inputs=_documents),
    Case(name="block_local", parameters={"block": 24}),
    Case(name="dilated", parameters={"span": 70, "dilation": 3}),
    Case(name="strided", parameters={"local": 20, "stride": 16}),
    Case(name="longformer", parameters={"window": 40}, inputs=_globals),
    Case(name="bigbird", parameters={"block": 16, "random_blocks": 2, "seed": 7}),
    Case(name="power", parameters={"block": 16, "local_blocks": 2}),
    Case(name="log_sparse"),
    Case(name="s2", parameters={"block": 16, "local_blocks": 2, "stride": 4}),
    Case(name="block_diffusion", parameters={"half": 75, "block": 16}, n=150),
    Case(name="blockrank", inputs=_segments),
    Case(
        name="neighborhood_1d", parameters={"extents": (150,), "window": (13,), "stride": (4,), "dilation": (2,)}, n=150
    ),
    Case(name="neighborhood_1d", parameters={"extents": (150,), "window": (13,), "causal_axes": (True,)}, n=150),
    Case(name="neighborhood_2d", parameters={"extents": (12, 13), "window": (5, 4), "stride": (1, 2)}, n=156),
    Case(
        name="neighborhood_3d",
        parameters={
            "extents": (4, 6, 7),
            "window": (2, 3, 5),
            "dilation": (1, 2, 1),
            "causal_axes": (True, False, False),
        },
        n=168,
    ),
    Case(name="sliding_tile_3d", parameters={"extents": (4, 6, 6), "tile": (2, 2, 3)}, inputs=_windows, n=155),
    Case(name="radial", parameters={"frames": 5, "frame_tokens": 32, "block": 16, "rho": 0.5}, n=171),
    Case(name="radial", parameters={"frames": 5, "frame_tokens": 30, "block": 16, "sink": True}, n=150),
    Case(name="alibi", inputs=_slopes, trained=("slope",)),
    Case(name="softcap", parameters={"cap": 5.0}),
    Case(name="head_modes", parameters={"sinks": 8, "window": 24}, inputs=_modes),
)
"""At least one case for every pattern of the library."""
