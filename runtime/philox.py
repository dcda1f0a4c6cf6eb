"""``noise`` on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spdsl.semantics import philox


def first_words(seed: int, indices: Sequence[Tensor]) -> Tensor:
    """The first word drawn for each counter, int64 in [0, 2**32); one to four int tensors that broadcast."""
    words: Tensor = philox.first_word(seed, [index.to(torch.int64) for index in indices])
    return words


def uniform(seed: int, indices: Sequence[Tensor]) -> Tensor:
    """``noise(seed, per = indices)``: float64 in [0, 1), exact multiples of 2**-32, in the broadcast shape."""
    return first_words(seed, indices).to(torch.float64) / philox.WORD
