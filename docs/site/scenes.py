"""With what each pattern of the library is drawn and costed: parameters and inputs that show what it does.

A pattern that is not here is drawn with its defaults and with inputs that are made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture: ``n`` tokens, or as many as suit the parameters."""

    n: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs = field(default_factory=dict)
    layer: int | None = None


def _documents(n: int, *lengths: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[:n]


def _some(n: int, *places: int) -> Tensor:
    return torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(places), True)


VIDEO = {"extents": (4, 8, 8)}

SCENES = {
    "full": Scene(n=64),
    "causal": Scene(n=64),
    "alibi": Scene(n=64),
    "softcap": Scene(n=64),
    "sliding_window": Scene(n=128, parameters={"window": 32}),
    "streaming": Scene(n=128, parameters={"window": 24, "sinks": 6}),
    "prefix_lm": Scene(n=128, inputs={"prefix": torch.tensor([40])}),
    "documents": Scene(n=128, inputs={"doc": _documents(128, 40, 12, 50, 26)}),
    "block_local": Scene(n=128, parameters={"block": 16}),
    "dilated": Scene(n=128, parameters={"span": 64}),
    "strided": Scene(n=128, parameters={"local": 12, "stride": 12}),
    "longformer": Scene(n=128, parameters={"window": 16}, inputs={"is_global": _some(128, 0, 1, 2, 70)}),
    "log_sparse": Scene(n=128),
    "head_modes": Scene(n=128, parameters={"sinks": 6, "window": 24}, inputs={"full": torch.tensor([False])}),
    "flux": Scene(n=128, parameters={"sinks": 6, "window": 24}, inputs={"full": torch.tensor([False])}),
    "bigbird": Scene(n=256, parameters={"block": 8}),
    "power": Scene(n=256, parameters={"block": 8, "local_blocks": 3}),
    "s2": Scene(n=256, parameters={"block": 8, "local_blocks": 3, "stride": 6}),
    "block_diffusion": Scene(parameters={"half": 64, "block": 8}),
    "blockrank": Scene(n=128, inputs={"segment": _documents(128, 16, 24, 30, 20, 22, 16), "last": torch.tensor(5)}),
    "neighborhood_1d": Scene(parameters={"extents": (128,), "window": (25,)}),
    "neighborhood_2d": Scene(parameters={"extents": (16, 16), "window": (7, 7)}),
    "neighborhood_3d": Scene(parameters={**VIDEO, "window": (3, 5, 5)}),
    "sliding_tile_3d": Scene(
        n=272, parameters={**VIDEO, "tile": (2, 4, 4)}, inputs={"window": torch.tensor([[1, 1, 1]])}
    ),
    "radial": Scene(n=272, parameters={"frames": 16, "frame_tokens": 16, "block": 4}),
    "hylra": Scene(n=64, layer=1, inputs={"full": torch.zeros(64, dtype=torch.bool)}),
    "sparsed_build": Scene(n=128, parameters={"rows": 16, "columns": 8}),
    "sparsed_reuse": Scene(n=128, parameters={"rows": 16, "columns": 8}),
    "moba": Scene(n=128, parameters={"block": 8}),
    "nsa": Scene(
        n=128,
        parameters={"compress": 8, "stride": 4, "block": 8, "picks": 5, "window": 12},
        inputs={"gate": torch.tensor([0.0, 1.0, 1.0])[:, None, None].expand(3, 1, 128)},
    ),
    "infllm_v2": Scene(
        n=128, parameters={"compress": 8, "stride": 4, "block": 8, "picks": 5, "window": 16, "dense": 0}
    ),
    "seer_attention": Scene(n=128, parameters={"block": 8, "threshold": 0.065}),
    "vsa": Scene(
        parameters={"frames": 4, "height": 8, "width": 8, "cube": (2, 4, 4), "picks": 3},
        inputs={"gate": torch.zeros(1, 256, 32)},
    ),
    "quest": Scene(n=128, parameters={"page": 8, "budget": 40}),
    "delta": Scene(n=128, layer=3, parameters={"page": 8}),
    "kinetics": Scene(n=128, parameters={"page": 8, "picks": 5}),
    "dsa": Scene(n=128, parameters={"picks": 24}),
    "dma": Scene(n=128, parameters={"width": 24}),
    "xattention": Scene(n=128, parameters={"block": 8, "stride": 4, "mass": 0.5}),
    "vertical_slash": Scene(n=512, parameters={"columns": 50, "diagonals": 110, "probe": 32, "block": 8}),
    "minference_blocks": Scene(n=128, parameters={"block": 8, "picks": 5}),
    "flashprefill": Scene(n=256, parameters={"block": 8, "alpha": 0.8, "sinks": 1, "window": 2, "dense": 1}),
    "hip": Scene(
        n=256,
        parameters={"rows": 16, "chunk": (32, 16, 8), "budget": (96, 48, 24), "sinks": 8, "window": 16},
    ),
    "flexprefill": Scene(n=128, parameters={"block": 8, "mass": 0.4, "tau": 0.5, "least": 6}),
    "sparge": Scene(n=128, parameters={"rows": 16, "columns": 8, "theta": 0.05, "mass": 0.3}),
    "dhsa": Scene(
        n=128, parameters={"budget": 40, "local": 8}, inputs={"cut": _documents(128, 9, 14, 6, 22, 11, 8, 17, 13, 28)}
    ),
    "snapkv": Scene(n=64),
    "ada_snapkv": Scene(n=64),
    "rectified": Scene(
        n=128,
        parameters={"mass": 0.2, "picks": 2},
        inputs={
            "piece": torch.arange(128) // 8,
            "text": _some(128, 120),
            "gains": torch.zeros(1, 16, 16, dtype=torch.bool),
        },
    ),
    "sea": Scene(n=128, parameters={"bins": 32, "picks": 24}, inputs={"gain": torch.ones(1, 128)}),
    "superlinear": Scene(n=256, parameters={"picks": 2, "back": 0.5, "local": 15}),
    "routing": Scene(n=128, parameters={"clusters": 4, "width": 24}),
    "longnet": Scene(n=128, parameters={"segment": (8, 16, 32, 64, 128), "rate": (1, 2, 4, 8, 16)}),
    "longformer_global": Scene(
        n=32, parameters={"window": 6}, inputs={"special": _some(32, 0, 18), "VG": torch.eye(32)[None]}
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A call whose time is predicted: 16 heads of 128 in bf16 on an H200, forward and backward."""

    n: int = 32768
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], Inputs] = dict
    heads: int = 16


PLAIN = "full causal alibi softcap block_local dilated strided log_sparse bigbird power s2"
WORKS = {name: Work() for name in PLAIN.split()} | {
    "sliding_window": Work(parameters={"window": 1024}),
    "streaming": Work(parameters={"window": 1024, "sinks": 64}),
    "prefix_lm": Work(inputs=lambda: {"prefix": torch.tensor([8192], dtype=torch.int32)}),
    "documents": Work(
        inputs=lambda: {"doc": _documents(32768, 9000, 512, 4096, 1200, 7000, 300, 2600, 5000, 60, 3000)}
    ),
    "longformer": Work(parameters={"window": 512}, inputs=lambda: {"is_global": torch.arange(32768) < 64}),
    "head_modes": Work(inputs=lambda: {"full": torch.arange(16) % 4 == 0}),
    "block_diffusion": Work(parameters={"half": 16384}),
    "neighborhood_2d": Work(n=36864, parameters={"extents": (192, 192), "window": (25, 25)}),
    "neighborhood_3d": Work(n=115200, parameters={"extents": (30, 48, 80), "window": (19, 25, 25)}, heads=4),
}
"""Static patterns; what queries and keys decide costs its selections, too."""
