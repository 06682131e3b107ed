"""Without Triton the package works, and says why the backend does not."""

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["triton"] = None  # an import of it fails
import torch
from wat_kernels import TapTable, shadow_conv2d, shadow_linear
x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
shadow_conv2d(x, weight, table=TapTable.identity((3, 3)), key=1)
for op in (lambda: shadow_conv2d(x, weight, table=TapTable.identity((3, 3)), key=1, backend="triton"),
           lambda: shadow_linear(x, torch.randn(2, 5), key=1, backend="triton")):
    try:
        op()
    except RuntimeError as error:
        assert "triton cannot be imported" in str(error), error
    else:
        raise AssertionError("it ran")
"""


def test_without_triton():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
