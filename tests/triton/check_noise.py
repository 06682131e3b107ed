"""The noise ops made by the Triton kernel, against the plain ones."""

import pytest
import torch

import wat_kernels  # noqa: F401  (registers the ops)
from tests.triton.device import DEVICE

OPS = torch.ops.wat_kernels


@pytest.mark.parametrize("noise", [1, 2])
@pytest.mark.parametrize("size", [0, 1, 9, 1023, 1024, 1025, 3000])
def test_the_factors(noise, size):
    for key in (5, -(2**40) - 3):
        args = (torch.tensor(key, device=DEVICE), 3, size, noise, 0.3)
        torch.testing.assert_close(OPS.noise.triton(*args), OPS.noise.library(*args), atol=2e-6, rtol=0)
        assert torch.equal(OPS.noise.triton(*args) == 0, OPS.noise.library(*args) == 0) or noise == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("noise", [1, 2])
def test_a_weight_in_any_layout(noise, dtype):
    key = torch.tensor(7, device=DEVICE)
    whole = torch.randn(6, 40, 3, 3, device=DEVICE).to(dtype)
    for source in (whole[:, :, 0, 0], whole.permute(0, 2, 3, 1), whole.permute(0, 2, 3, 1).contiguous()):
        results = []
        for name in ("triton", "library"):
            out = torch.empty_like(source)
            steps = torch.empty(source.shape).stride()
            getattr(OPS.noise_multiply, name)(source, out, 0, steps, key, 1, noise, 0.3)
            results.append(out)
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-6)
