"""Shared by all tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_and_poisoned(monkeypatch):
    """A fixed seed, and NaN in memory that torch.empty hands out: what a kernel forgets to write shows."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
