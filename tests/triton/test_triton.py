"""The checks of the Triton kernels, run by their interpreter on the CPU in processes of their own.

Triton decides when it is imported whether it interprets, so these checks cannot share a process with compiled kernels.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'wat-kernels[triton]'")

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("check", sorted(path.name for path in Path(__file__).parent.glob("check_*.py")))
def test_interpreted(check):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            f"tests/triton/{check}",
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
