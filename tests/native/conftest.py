"""What the tests of the C++ kernels share."""

import pytest
import torch

from wat_kernels.extension import NATIVE


def runs(isa: str) -> bool:
    try:
        before = torch.ops.wat_kernels.native_isa("")
        torch.ops.wat_kernels.native_isa(isa)
        torch.ops.wat_kernels.native_isa(before)
    except RuntimeError:
        return False
    return True


ISAS = [name for name in ("avx512bf16", "avx512", "avx2", "portable") if NATIVE.available and runs(name)]


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that this processor has."""
    before = torch.ops.wat_kernels.native_isa("")
    torch.ops.wat_kernels.native_isa(request.param)
    yield request.param
    torch.ops.wat_kernels.native_isa(before)
