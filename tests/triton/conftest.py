"""Shared by the checks of the Triton kernels."""

import pytest
import torch


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
