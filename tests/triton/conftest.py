"""Shared by the checks of the Triton kernels."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """The checks need the interpreter or a GPU."""
    checks = [item for item in items if "tests/triton/check_" in item.path.as_posix()]
    if not checks or torch.cuda.is_available():
        return
    from tests.triton.device import DEVICE  # needs triton, as the checks do

    for item in checks if DEVICE == "cuda" else ():
        item.add_marker(pytest.mark.skip(reason="no GPU that torch can use, and no TRITON_INTERPRET=1"))


@pytest.fixture(autouse=True)
def fp32_precision():
    """Sets torch's switches of TF32, and puts them back.

    TF32, which torch allows convolutions by default, is not what fp32 is compared with: checks begin without it.
    """
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]

    def choose(precision):
        for switch in switches:
            switch.fp32_precision = precision

    choose("ieee")
    yield choose
    for switch, precision in zip(switches, before, strict=True):
        switch.fp32_precision = precision
