"""A plugin of pytest under which the checks of the Triton kernels compile what a GPU would launch, and compare nothing.

pytest -p benchmarks.gpu_check.compile_tests tests/triton/check_conv.py ..., by `precompile --tests`

Launches go to a driver that does nothing (benchmarks/host_time.py), so results are rubbish and most tests fail; a
comparison by torch.testing passes, so that the test goes on to its next launch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tests.triton.device
from benchmarks.host_time import stub_driver
from wat_kernels import noise_op, triton_noise, triton_rows
from wat_kernels.torch_library import LIBRARY, implement

stub_driver()
implement("noise", "triton", triton_noise.draw, "CPU")
implement("noise_multiply", "triton", noise_op._triton_multiply, "CPU")
LIBRARY.impl("row_words.triton", triton_rows.row_words, "CPU")
tests.triton.device.DEVICE = "cpu"
torch.testing.assert_close = lambda *arguments, **more: None


def pytest_collection_modifyitems(items: list) -> None:
    for item in items:  # the checks are skipped where there is no GPU
        item.own_markers = [marker for marker in item.own_markers if marker.name != "skip"]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(request: Any) -> Any:
    """Each test takes the configurations that it takes there."""
    from tests.conftest import in_turn
    from wat_kernels.triton_launch import choosing

    with choosing(in_turn(request.node.nodeid)):
        yield
