"""Shared by all tests: their device, a fixed seed, and what is left out or chosen on a GPU."""

import contextlib
import itertools
import os
import zlib
from collections import defaultdict
from pathlib import Path

import pytest
import torch

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # without it, matrix products on a GPU are not deterministic

# the device that tests of ops and layers make their tensors on; the check of a GPU says cuda
DEVICE = os.environ.get("WAT_TEST_DEVICE", "cpu")
# where it is torch's default device, too; everywhere else devices are named
_ON_DEVICE = tuple(Path(__file__).parent / folder for folder in ("ops", "watnn"))


def examples(number: int) -> int:
    """How many random examples a test makes: `number`, and a fifth of it where minutes of a GPU count."""
    return number if DEVICE == "cpu" else max(10, number // 5)


def pytest_collection_modifyitems(config, items):
    """Tests marked cpu_only would find on a GPU what they found without one: with WAT_TEST_DEVICE=cuda they are left out."""
    if DEVICE == "cpu":
        return
    left_out = [item for item in items if item.get_closest_marker("cpu_only")]
    items[:] = [item for item in items if not item.get_closest_marker("cpu_only")]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True)
def _seeded_and_poisoned(request, monkeypatch):
    """A fixed seed, and NaN in memory that torch.empty hands out: what a kernel forgets to write shows."""
    on_device = any(folder in request.path.parents for folder in _ON_DEVICE)
    torch.set_default_device(DEVICE if on_device else "cpu")
    torch.manual_seed(0)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_device("cpu")


@pytest.fixture(autouse=True)
def _fp32_is_fp32():
    """On a GPU without TF32, which torch allows convolutions by default."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul) if torch.cuda.is_available() else ()
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    yield
    for switch, precision in zip(switches, before, strict=True):
        switch.fp32_precision = precision


def in_turn(seed: str):
    """What chooses configurations of Triton kernels: each launch that is planned gets the next of those that suit.

    seed: where a kernel begins, so that other tests run other ones, and a test the same ones whenever it is repeated
    """
    turns = defaultdict(itertools.count)

    def pick(kernel, suited):
        return suited[(zlib.crc32(f"{seed} {kernel}".encode()) + next(turns[kernel])) % len(suited)]

    return pick


@pytest.fixture(autouse=True)
def _nothing_is_tuned(request):
    """On a GPU, measuring every configuration for every problem would take longer than all tests together."""
    if DEVICE == "cpu":
        yield
        return
    try:
        from wat_kernels.triton_launch import choosing
    except ImportError:  # there is no Triton
        choosing = contextlib.nullcontext
    with choosing(in_turn(request.node.nodeid)):
        yield
