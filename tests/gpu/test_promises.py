"""The kernels that each pass launches and the memory it takes beyond its results, against tests/gpu/promises.py."""

from functools import partial

import pytest
import torch

from benchmarks.gpu_check import passes
from tests.gpu.promises import CONTIGUOUS_WEIGHT, PROMISES, Problem

_ALLOCATIONS = 3  # of a pass, at most: parts, counters, a copy


@pytest.fixture(autouse=True)
def _no_poison(monkeypatch):
    """Filling what torch.empty gives would be a kernel, too."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


def allocated(scratch: int) -> int:
    """What torch's allocator may count for that many bytes: it rounds up to 512, and by up to 1 MiB from 1 MiB on."""
    return scratch + _ALLOCATIONS * (512 if scratch < 2**20 else 2**20) if scratch else 0


def broken(name, promises, problem, functions):
    """A line for each promise that is not kept."""
    layer, backend = name.rsplit(", ", 1)
    for which, function in functions.items():
        promise = promises[backend, layer, which]
        kernels, scratch = passes.kernels_of(function), passes.bytes_beyond_results(function)
        most = allocated(promise.scratch(problem))
        if not 1 <= len(kernels) <= promise.kernels:
            yield f"{name}, {which}: {len(kernels)} kernels, promised are {promise.kernels}: {', '.join(kernels)}"
        if scratch > most:
            yield f"{name}, {which}: {scratch} bytes of scratch, promised are {most}"


def test_every_pass_keeps_its_promises():
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    found = []
    for layer in passes.layers():
        x, weight, _, _, *draw = layer.arguments
        problem = Problem(multiprocessors, tuple(x.shape), tuple(weight.shape))
        found += broken(layer.name, PROMISES, problem, layer.passes)
        if layer.name == "conv, triton":
            found += broken(layer.name, CONTIGUOUS_WEIGHT, problem, with_a_contiguous_weight(x, weight, draw))
    assert not found, "\n".join(found)


def with_a_contiguous_weight(x, weight, draw):
    """The passes of the Triton convolution with the weight as nn.Conv2d makes it."""
    plain = weight.contiguous()
    forward = partial(torch.ops.wat_kernels.shadow_conv.triton, x, plain, None, None, *draw)
    backward = partial(torch.ops.wat_kernels.shadow_conv_bwd.triton, torch.ones_like(forward()), x, plain, None, *draw)
    return {
        "forward": forward,
        "data gradient": lambda: backward([True, False, False, False]),
        "weight gradient": lambda: backward([False, True, False, False]),
    }
