"""What only a GPU can show: launches, graphs, streams, memory, and values at sizes and layouts that the CPU checks lack.

`make gpu-check` runs these together with the suites that take the device from WAT_TEST_DEVICE.
"""

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="there is no GPU that torch can use"))
