"""How many kernels a pass launches at most, and how much memory it takes beyond its results.

A kernel here is whatever runs on the GPU: copies and fills count. The layers are those of `benchmarks.gpu_check.passes`, in
bf16, and their passes; dbias and dgain, which are sums over what is there anyway, are not part of them. Why a pass takes more
than one kernel or any scratch:

| pass | kernels | scratch |
| --- | --- | --- |
| weight gradient, triton | the counters of arrivals are zeroed by a fill | the sum over pixels or rows is cut into parts so that two programs run on each multiprocessor; each leaves one tile in fp32 |
| the same, few rows or many tiles | | there is nothing to cut: no parts, no counters |
| weight gradient, depthwise on cuda | as above | three blocks a multiprocessor, each with the sums of its channels |
| data gradient, linear on cuda | a second one adds up the parts | up to 8 parts of dx in fp32, where input features are few |
| images with a weight whose input channels are not adjacent, triton | the weight is copied to channels_last | that copy |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple


class Problem(NamedTuple):
    """What scratch depends on. x: (N, C, H, W) or (rows, in); weight: (O, I, kh, kw) or (out, in)."""

    multiprocessors: int
    x: tuple[int, ...]
    weight: tuple[int, ...]


class Promise(NamedTuple):
    """kernels: the most that one warm call launches. scratch: the most bytes beyond results, as the code asks for them."""

    kernels: int
    scratch: Callable[[Problem], int]


def _nothing(problem: Problem) -> int:
    return 0


def _tiles(rows: int, columns: int) -> Callable[[Problem], int]:
    """The largest tile of the configurations for 16 bits, and a counter, for each of two programs a multiprocessor."""
    return lambda problem: 2 * problem.multiprocessors * 4 * (rows * columns + 1)


def _depthwise_parts(problem: Problem) -> int:
    """Sums of every tap and of dy in fp32, of at most 64 channels a block; the counters of `arrivals`."""
    channels, taps = problem.weight[0], prod(problem.weight[2:])
    parts = max(channels, 3 * problem.multiprocessors * 64) * (taps + 1)
    return 4 * (parts + 2 * channels + 4 * problem.multiprocessors)


def _parts_of_dx(problem: Problem) -> int:
    return 8 * 4 * prod(problem.x)


def _copy_of_the_weight(problem: Problem) -> int:
    return 2 * prod(problem.weight)


_ONE = Promise(1, _nothing)
_FORWARD, _DATA, _WEIGHT = "forward", "data gradient", "weight gradient"

# by backend, layer and pass
PROMISES: Mapping[tuple[str, str, str], Promise] = {
    ("triton", "conv", _FORWARD): _ONE,
    ("triton", "conv", _DATA): _ONE,
    ("triton", "conv", _WEIGHT): Promise(2, _tiles(128, 64)),
    ("triton", "depthwise", _FORWARD): _ONE,
    ("triton", "depthwise", _DATA): _ONE,
    ("triton", "depthwise", _WEIGHT): _ONE,  # 64 channels of 9 taps are tiles enough
    ("cuda", "depthwise", _FORWARD): _ONE,
    ("cuda", "depthwise", _DATA): _ONE,
    ("cuda", "depthwise", _WEIGHT): Promise(2, _depthwise_parts),
    ("cuda", "linear of 32 rows", _FORWARD): _ONE,
    ("cuda", "linear of 32 rows", _DATA): Promise(2, _parts_of_dx),
    ("cuda", "linear of 32 rows", _WEIGHT): _ONE,
    ("triton", "linear of 32 rows", _FORWARD): _ONE,
    ("triton", "linear of 32 rows", _DATA): _ONE,
    ("triton", "linear of 32 rows", _WEIGHT): _ONE,  # one step of rows cannot be cut
    ("triton", "linear of 1024 rows", _FORWARD): _ONE,
    ("triton", "linear of 1024 rows", _DATA): _ONE,
    ("triton", "linear of 1024 rows", _WEIGHT): Promise(2, _tiles(128, 128)),
}

# the same convolution with a weight as nn.Conv2d makes it
CONTIGUOUS_WEIGHT: Mapping[tuple[str, str, str], Promise] = {
    ("triton", "conv", _FORWARD): Promise(2, _copy_of_the_weight),
    ("triton", "conv", _DATA): Promise(2, _copy_of_the_weight),
    ("triton", "conv", _WEIGHT): Promise(2, _tiles(128, 64)),  # reads one tile of the weight, at the end
}
