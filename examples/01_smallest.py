"""The smallest program: attention over a sliding window, forward and backward.

    python examples/01_smallest.py

Runs where torch runs: on a CUDA device by a generated kernel, elsewhere by torch operations on the tiles that are kept.
"""

import torch

import spdsl

device = "cuda" if torch.cuda.is_available() else "cpu"
q = torch.randn(1, 8, 1000, 64, device=device, requires_grad=True)  # [batch, heads, tokens, dim]
k = torch.randn(1, 2, 1000, 64, device=device)  # two key/value heads for eight query heads
v = torch.randn(1, 2, 1000, 64, device=device)

attend = spdsl.compile("sliding_window", window=128)  # a name of the library: `spdsl list` has them
out, lse = attend(q, k, v, return_lse=True)
out.square().sum().backward()

# What the pattern means, dense and in float64, to compare with.
truth = attend.reference(q, k, v)
error = ((out.double() - truth).norm() / truth.norm()).item()
kept = spdsl.load("sliding_window").mask(1000, 1000, window=128).double().mean().item()

print(f"out {list(out.shape)}, lse {list(lse.shape)}, gradient of q {list(q.grad.shape)}")
print(f"{kept:.1%} of the pairs are kept; error against the float64 reference: {error:.1e}")
assert error < 1e-5
