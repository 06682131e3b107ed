"""The host's share of a launch, with a driver that does nothing."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'wat-kernels[triton]'")

LAYERS = ["nn.Conv2d", "nn.Linear", "WATConv2d", "WATLinear"]
PASSES = ["without gradients", "forward", "forward and backward"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the GPU's own driver here")
def test_every_layer_and_pass_launches_through_the_stub():
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.host_time", "--calls", "15"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    lines = [line.rsplit(maxsplit=3) for line in run.stdout.splitlines()]
    assert [what for what, *_ in lines] == [f"{layer} {which}" for layer in LAYERS for which in PASSES]
    assert all(float(number) > 0 and (unit, where) == ("us", "stub") for _, number, unit, where in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is nothing to build")
def test_without_a_compiler_it_says_so(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.host_time"], capture_output=True, text=True, env={"PATH": str(tmp_path), "PYTHONPATH": ".:python"}
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("host_time: the stub of the CUDA driver cannot be built: ")
