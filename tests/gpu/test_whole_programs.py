"""Random whole patterns on a GPU, in types that matrix units multiply and in fp32."""

from __future__ import annotations

import random

import pytest
import torch

from tests.runtime.whole_programs import check, program

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", range(60))
def test_some(seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice((torch.float32, torch.bfloat16, torch.float16))
    check(program(rng, longest=500), seed, backend="triton", d=rng.choice((16, 32, 64)), dtype=dtype, device="cuda")
