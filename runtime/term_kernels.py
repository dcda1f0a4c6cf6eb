"""Numbers of 32 bits as sums of numbers of 16 bits, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.plain import Launch, start

_BLOCK = 1024


def split(values: Tensor, terms: Tensor) -> None:
    """Fill ``terms``, ``[count, …]`` of 16 bits, so that they add up to the values, fp32 ``[…]`` and contiguous: the
    larger ones first, and what is not finite in the first."""
    size = values.numel()
    numbers = {"size": size, "COUNT": terms.shape[0], "BLOCK": _BLOCK}
    start(
        Launch(
            function=_split,
            grid=(-(-size // _BLOCK), 1, 1),
            values={"values": values, "terms": terms, **numbers},
            options=options_of(),
            writes=("terms",),
            device=values.device,
        )
    )


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def _split(values, terms, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rest = tl.load(values + at, mask=at < size, other=0.0)
    for place in tl.static_range(COUNT):
        term = rest.to(terms.dtype.element_ty)
        tl.store(terms + place * size.to(tl.int64) + at, term, mask=at < size)
        first = term.to(tl.float32)
        rest = tl.where(tl.abs(first) < float("inf"), rest - first, 0.0)
