"""A pattern as a Python function: the same language, and the same pattern as that of a `.spat` file.

    python examples/03_decorator.py

docs/python.md has the table of what is written how.
"""

from pathlib import Path
from typing import Annotated

import torch

import spdsl
from spdsl.language import axis, mean, only, score, top

Positive = Annotated[int, spdsl.Within(1)]


@spdsl.pattern
def digest(q, k, causal, window: Positive = 64, every: Positive = 32):
    """The function is read, never called: q and k stand for positions, and the result is a set of pairs."""
    return causal and (q - k < window or k % every == every - 1)


assert digest.to_spat() == spdsl.load(Path(__file__).with_name("digest.spat")).to_spat()


# Patterns call each other, take tensors as inputs, and select by queries and keys.
@spdsl.pattern
def packed(q, k, Q, K, token, doc: spdsl.Input("int[token] sorted"), picks: int = 2):
    """The near past and a digest of the far one, and the best blocks of 16 keys, inside of one's own document."""
    blk = axis(token, by=16)  # noqa: F841  # read as `k.blk`
    best = score(Q, mean(K, per=k.blk)) | only(k.blk < q.blk) | top(picks)
    return doc[q] == doc[k] and (digest(window=32, every=16) or best)


print(packed.to_spat())
torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 4, 300, 32)
doc = torch.arange(300) // 120
attend = spdsl.compile(packed, picks=3)
out, truth = attend(q, k, v, doc=doc), attend.reference(q, k, v, doc=doc)
error = ((out.double() - truth).norm() / truth.norm()).item()
print(f"error against the float64 reference: {error:.1e}")
assert error < 1e-5
