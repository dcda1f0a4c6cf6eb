"""Memory for the intermediate results of the CPU back end, kept by each thread from call to call.

Memory that is given back and taken again costs a fault for every page that is touched, which for products of two
megabytes can cost more than the products.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_LEAST = 1 << 19
_MOST = 1 << 22
"""Elements of a tensor that is kept: at least two megabytes, at most sixteen."""

_kept = threading.local()


def scratch(name: str, *shape: int) -> Tensor:
    """A tensor in fp32, not initialised; it overwrites what the thread was given before under this name."""
    size = math.prod(shape)
    if size > _MOST:
        return torch.empty(shape)
    flat: Tensor | None = getattr(_kept, name, None)
    if flat is None or flat.numel() < size:
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            flat = torch.empty(max(size, _LEAST))
        setattr(_kept, name, flat)
    return flat[:size].view(shape)
