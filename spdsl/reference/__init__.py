"""The meaning of a pattern: dense, in float64, differentiable by autograd.

It evaluates the bound pattern as it stands, coordinates, reductions and selections included, and shares nothing with
the fast paths, which are tested against it.  Memory and time grow with queries times keys.
"""

from spdsl.reference.attention import attend, mask

__all__ = ["attend", "mask"]
