"""The CUDA kernels as nvcc sees them: no warning, no spilled register, no stack. No GPU is needed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from build_tools import cuda
from tests.cuda.emulation import ROOT
from wat_kernels.extension import CUDA

pytestmark = pytest.mark.cpu_only

needs_nvcc = pytest.mark.skipif(cuda.nvcc() is None, reason="no nvcc found: set CUDA_HOME")


@needs_nvcc
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "csrc/cuda").glob("*.cu")))
def test_no_warnings_no_spills_no_stack(name, tmp_path):
    printed = cuda.run_nvcc(
        [
            *cuda.NVCC_FLAGS,
            *("-gencode", "arch=compute_90,code=sm_90"),
            *("-Werror", "all-warnings", "-Xcompiler", "-Werror", "-Xptxas", "-v"),
            *("-c", str(ROOT / "csrc/cuda" / name), "-o", str(tmp_path / "kernels.o")),
        ]
    )
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_90'", printed)
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", printed)
    assert kernels and len(used) == len(kernels), printed
    for kernel, bytes_used in zip(kernels, used, strict=True):
        assert bytes_used == ("0", "0", "0"), f"{kernel}: stack, spill stores, spill loads: {bytes_used}"


def cuobjdump():
    """The toolkit's, or the one that Triton brings along."""
    folders = [str(Path(cuda.nvcc()).parent)] if cuda.nvcc() else []
    try:
        import triton

        folders.append(str(Path(triton.__file__).parent / "backends/nvidia/bin"))
    except ImportError:
        pass
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=":".join(folders))


@pytest.mark.skipif(not CUDA.available, reason=CUDA.reason)
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump found")
def test_the_library_uses_no_stack_on_any_architecture():
    run = subprocess.run([cuobjdump(), "-res-usage", CUDA.reason], capture_output=True, text=True, check=True)
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", run.stdout)
    architectures = re.findall(r"Fatbin elf code:\s+=+\s+arch = (sm_\w+)", run.stdout)
    assert architectures and len(found) >= len(architectures)
    for kernel, registers, stack, _, local in found:
        assert int(registers) <= 255 and (stack, local) == ("0", "0"), f"{kernel}: stack {stack}, local {local}"
