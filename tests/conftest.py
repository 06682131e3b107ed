"""Shared by all tests."""

import os

import pytest
import torch

# the device that tests of layers, ops and transforms make their tensors on; `make gpu-check` says cuda
DEVICE = os.environ.get("WAT_TEST_DEVICE", "cpu")


@pytest.fixture(autouse=True)
def _seeded_and_poisoned(monkeypatch):
    """A fixed seed, and NaN in memory that torch.empty hands out: what a kernel forgets to write shows."""
    torch.set_default_device(DEVICE)
    torch.manual_seed(0)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
