"""Sizes of a 2-d convolution: what the wrapper computes once and every backend reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wat_kernels import torch_func

Padding = tuple[int, int, int, int]  # top, bottom, left, right


def pair(value: int | Sequence[int], argument: str, least: int) -> tuple[int, int]:
    """`value` as two ints (one counts for both), or a ValueError that names the argument."""
    if not isinstance(value, int | Sequence) or isinstance(value, str):
        raise TypeError(f"{argument}={value!r}; accepted is an int or two ints, each >= {least}")
    values: tuple[int, ...] = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values = values * 2
    if len(values) != 2 or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"{argument}={value!r}; accepted is an int or two ints, each >= {least}")
    return values[0], values[1]


def resolve_padding(
    padding: str | int | Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Padding:
    """(top, bottom, left, right). 'same' puts the odd pixel of an even kernel behind, as torch does."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if tuple(stride) != (1, 1):
            raise ValueError(f"padding='same' with stride={tuple(stride)}; accepted is a stride of 1")
        height, width = ((size - 1) * step for size, step in zip(kernel, dilation, strict=True))
        return height // 2, height - height // 2, width // 2, width - width // 2
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}; accepted are 'same', 'valid', an int or two ints >= 0")
    vertical, horizontal = pair(padding, "padding", 0)
    return vertical, vertical, horizontal, horizontal


def output_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """(H_out, W_out) of an input of `size` = (H, W)."""
    padded = (size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3])
    height, width = (
        (p - d * (k - 1) - 1) // s + 1 for p, k, s, d in zip(padded, kernel, stride, dilation, strict=True)
    )
    return height, width


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if one of the tensors is (and not only because sizes are 1), as torch decides it for x and weight.

    Within torch.func always contiguous: a tensor that vmap batches does not tell.
    """
    if torch_func.active():
        return torch.contiguous_format
    for tensor in tensors:
        if tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format
