"""Where the CUDA kernels run in these checks: emulated on the CPU, and on the GPU where there is one."""

import pytest
import torch

from tests.cuda.emulation import library
from wat_kernels.extension import CUDA
from wat_kernels.ops.linear import cuda as linear

PLACES = [pytest.param("emulated", marks=pytest.mark.cpu_only), "gpu"]


@pytest.fixture(params=PLACES)
def device(request, monkeypatch):
    """The device of tensors that the backend is given. `emulated`: the launches of csrc/cuda run on the CPU."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no GPU here; the same cases run emulated")
        if not CUDA.available:
            pytest.fail(CUDA.reason)  # with a GPU the library must not be missing
        return "cuda"
    library("linear", torch_library=True)
    monkeypatch.setattr(linear, "stream_of", lambda tensor: 0)
    monkeypatch.setattr(linear, "multiprocessors", lambda device: 132)
    return "cpu"
