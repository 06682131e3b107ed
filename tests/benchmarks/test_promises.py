"""The table of promises that the GPU's tests measure against: complete, and bounds of what the hosts' code computes."""

from itertools import product

import pytest

from benchmarks.gpu_check import passes
from tests.gpu.promises import CONTIGUOUS_WEIGHT, PROMISES, Problem
from wat_kernels.ops.conv import cuda as conv2d_cuda
from wat_kernels.ops.conv import triton as conv2d_triton
from wat_kernels.ops.linear import cuda as linear_cuda
from wat_kernels.ops.linear import triton as linear_triton

IMAGES, ROWS = (128, 64, 32, 32), (1024, 1024)


def test_every_pass_of_every_layer_has_a_line(monkeypatch):
    for backend in (conv2d_cuda, conv2d_triton, linear_cuda, linear_triton):
        monkeypatch.setattr(backend, "refusal", lambda call: "")
    names = ("forward", "data gradient", "weight gradient")
    for build in ("conv2d_passes", "linear_passes"):
        monkeypatch.setattr(passes, build, lambda *arguments: dict.fromkeys(names))
    layers = [tuple(layer.name.rsplit(", ", 1)) for layer in passes.layers()]
    expected = {(backend, layer, name) for (layer, backend), name in product(layers, names)}
    assert set(PROMISES) == expected
    assert set(CONTIGUOUS_WEIGHT) == {("triton", "conv", name) for name in names}


@pytest.mark.parametrize("multiprocessors", [20, 108, 132, 148])
def test_parts_of_a_weight_gradient_stay_within_the_promised_scratch(multiprocessors):
    """What the code on the host asks for, of every configuration."""
    pytest.importorskip("triton", reason="triton is not installed")
    from wat_kernels.triton_launch import splits_of

    def asked(tiles, steps, tile):
        parts = splits_of(tiles, steps, 2 * multiprocessors)
        return 4 * (parts * tiles * tile + tiles) if parts > 1 else 0

    weight = (64, 64, 3, 3)
    promised = PROMISES["triton", "conv", "weight gradient"].scratch(Problem(multiprocessors, IMAGES, weight))
    for config in conv2d_triton.BWD_WEIGHT[2].configs:
        o, i, p = (config.kwargs[name] for name in ("BO", "BI", "BP"))
        assert 0 < asked(-(-64 // o) * -(-64 // i) * 9, 128 * 32 * 32 // p, o * i) <= promised
    promised = PROMISES["triton", "linear of 1024 rows", "weight gradient"].scratch(
        Problem(multiprocessors, ROWS, (2048, 1024))
    )
    for config in linear_triton.BWD_WEIGHT[2].configs:
        o, i, p = (config.kwargs[name] for name in ("BO", "BI", "BP"))
        assert asked(2048 // o * (1024 // i), 1024 // p, o * i) <= promised
        assert asked(2048 // o * (1024 // i), -(-32 // p), o * i) == 0  # 32 rows


def test_parts_of_a_data_gradient_stay_within_the_promised_scratch():
    for multiprocessors, features in product((20, 132, 148), (24, 1024, 4096)):
        problem = Problem(multiprocessors, (32, features), (2048, features))
        parts = linear_cuda.splits_of(2048, features, multiprocessors)
        assert 4 * parts * 32 * features <= PROMISES["cuda", "linear of 32 rows", "data gradient"].scratch(problem)
