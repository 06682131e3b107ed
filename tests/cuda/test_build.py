"""Building and loading the CUDA library: what is compiled, for which GPUs, and what a failure says."""

import pytest
import torch

from build_tools import command, cuda
from wat_kernels import cuda_launch, dispatch, shadow_linear
from wat_kernels.extension import CUDA, Extension

pytestmark = pytest.mark.cpu_only


def test_a_list_of_architectures_as_torch_takes_it(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;12.0+PTX")
    assert cuda.architecture_flags()[1::2] == [
        "arch=compute_80,code=[sm_80,sm_120,compute_80]",
        "arch=compute_90a,code=sm_90a",
    ]


def test_old_architectures_are_left_out_and_nonsense_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;9.0")
    assert cuda.architecture_flags() == ["-gencode", "arch=compute_90,code=[sm_90]"]
    assert "not compiled for 7.5" in capsys.readouterr().err
    for value, message in (("7.0", "no architecture of 8.0 or newer"), ("Hopper", "accepted are entries as 9.0")):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", value)
        with pytest.raises(ValueError, match=message):
            cuda.architecture_flags()


def test_skipped_missing_and_forced(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WAT_FORCE_CUDA", raising=False)
    monkeypatch.setenv("WAT_SKIP_NATIVE", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))  # there is no nvcc
    assert command.extensions() == []
    assert capsys.readouterr().err == "wat-kernels: the CUDA backend is not built (no nvcc found: set CUDA_HOME)\n"
    monkeypatch.setenv("WAT_FORCE_CUDA", "1")
    with pytest.raises(RuntimeError, match="no nvcc found"):
        command.extensions()
    monkeypatch.setenv("WAT_SKIP_CUDA", "1")
    assert command.extensions() == []


@pytest.mark.skipif(not CUDA.available, reason=CUDA.reason)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_library_loads_and_says_why_it_does_not_run():
    assert "driver" in torch.ops.wat_kernels.cuda_refusal(0)


def test_a_missing_library_is_the_reason_of_a_refusal(monkeypatch):
    monkeypatch.setattr(cuda_launch, "CUDA", Extension(False, "_cuda.abi3.so is not built"))
    with pytest.raises(RuntimeError, match=r"backend='cuda' cannot run shadow_linear: _cuda\.abi3\.so is not built"):
        shadow_linear(torch.randn(2, 3), torch.randn(7, 3), key=1, backend="cuda")


def test_too_many_rows_are_the_reason_of_a_refusal(monkeypatch):
    from wat_kernels.ops.linear import cuda as linear

    monkeypatch.setattr(linear, "refusal", lambda call: "")
    call = dispatch.Call("cuda", torch.float32, rows=64)
    assert linear.supports(call)[0]
    assert linear.supports(call._replace(rows=65)) == (False, "x has 65 rows; it takes at most 64")
