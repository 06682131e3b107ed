"""How a 2-d convolution is laid out: what the wrapper computes once and every backend reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wat_kernels import torch_func

Padding = tuple[int, int, int, int]  # top, bottom, left, right


class Convolution(NamedTuple):
    """stride, dilation: of rows and columns; padding: top, bottom, left, right"""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """(H_out, W_out) of an input of `size` = (H, W)."""
        top, bottom, left, right = self.padding
        padded = (size[0] + top + bottom, size[1] + left + right)
        height, width = (
            (p - d * (k - 1) - 1) // s + 1
            for p, k, s, d in zip(padded, kernel, self.stride, self.dilation, strict=True)
        )
        return height, width

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """(N, O, H_out, W_out) of x (N, C, H, W) and weight (O, C / groups, kh, kw)."""
        return x.shape[0], weight.shape[0], *self.output_size(x.shape[2:], weight.shape[2:])


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


def memory_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """That of y (N, O, H_out, W_out), of the gradient of x (N, C, H, W) and of that of the weight (O, C / groups, kh, kw).

    channels_last if the strides of x or of the weight say so, those of sizes of 1 included, as torch decides it
    (mkldnn_conv_use_channels_last, cudnn_conv_suggest_memory_format). Within torch.func always contiguous: a tensor
    that vmap batches does not tell.
    """
    if not torch_func.active() and (_is_channels_last(x) or _is_channels_last(weight)):
        return torch.channels_last
    return torch.contiguous_format


def _is_channels_last(image: Tensor) -> bool:
    """torch's is_channels_last_strides_2d (c10/core/MemoryFormat.h) for (N, C, H, W): the order of strides, not density."""
    stride_n, stride_c, stride_h, stride_w = image.stride()
    if stride_c > stride_w:  # contiguous, most often
        return False
    n, c, h, w = image.shape
    # the last comparison tells (N, 1, 1, 1), which has no format, from the others
    return (
        stride_c > 0
        and stride_c * c <= stride_w
        and stride_w * w <= stride_h
        and stride_h * h <= stride_n
        and stride_h * h != stride_c
        and n * c * h * w != 0
    )


def laid_out(image: Tensor, form: torch.memory_format) -> Tensor:
    """The image (N, C, H, W) with the strides of a new tensor of this format, those of sizes of 1 included.

    Tensor.contiguous() leaves those as they are, and the next layer would read another format from them.
    """
    c, h, w = image.shape[1:]
    if form == torch.channels_last:
        strides = (h * w * c, 1, w * c, c)
    else:
        strides = (max(c, 1) * max(h, 1) * max(w, 1), max(h, 1) * max(w, 1), max(w, 1), 1)
    return image if image.stride() == strides else image.clone(memory_format=form)
