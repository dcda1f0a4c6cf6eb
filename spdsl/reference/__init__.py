"""The meaning of a pattern: dense, in float64, differentiable by autograd.

It evaluates the bound pattern as it stands, coordinates, reductions and selections included, and shares nothing with
the fast paths, which are tested against it.  Memory and time grow with queries times keys.
"""

from spdsl.reference.attention import mask
from spdsl.reference.calls import attend, doubtful, exports
from spdsl.reference.graphs import refuse_no_lse

__all__ = ["attend", "doubtful", "exports", "mask", "refuse_no_lse"]
