"""A pattern of one's own: written, checked, compared with a mask made by hand, proved, and drawn.

    python examples/02_own_pattern.py

On the command line the same is `spdsl check examples/digest.spat`, `spdsl prove examples/digest.spat --causal`,
`spdsl view examples/digest.spat` and `spdsl explain examples/digest.spat -n 32768`.
"""

from pathlib import Path

import torch

import spdsl

FILE = Path(__file__).with_name("digest.spat")
pattern = spdsl.load(FILE)
print(pattern.to_spat())

# Its set of pairs, beside the same set in torch.
mask = pattern.mask(200, 200, window=16, every=8)[0]
q, k = torch.arange(200)[:, None], torch.arange(200)
by_hand = (k <= q) & ((q - k < 16) | (k % 8 == 7))
assert torch.equal(mask, by_hand)
print(f"{mask.double().mean():.1%} of the pairs of 200 tokens are kept, as by hand")

# A small picture, two columns for a pair.
for row in mask[:24, :24].tolist():
    print("  " + "".join("██" if kept else "· " for kept in row))

# Every mistake of a text is told at once, each with its place and a remedy.
try:
    spdsl.loads("pattern digest(window: int = 64) {\n  keep causal and window\n}")
except spdsl.SpatError as mistake:
    print(f"\n{mistake}\n")

# What kernels would do for 4,096 tokens, counted, without running anything.
rows = torch.zeros(()).expand(1, 8, 4096, 64)
print(spdsl.compile(pattern).explain(rows, rows, rows))
