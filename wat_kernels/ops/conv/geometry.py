"""How a convolution is laid out, in 1 to 3 dimensions: what the wrapper computes once and every backend reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wat_kernels import torch_func

_COUNTS = {1: "one int", 2: "two ints", 3: "three ints"}


class Convolution(NamedTuple):
    """The layout of a convolution of n spatial dimensions, or of a transposed one.

    stride, dilation: n numbers
    padding:    2 n numbers: before and behind, axis by axis; (top, bottom, left, right) of images
    transposed: y is what a convolution with this layout has for its data gradient, given x for the gradient of its output.
                `output_padding` is in the padding behind, which it makes smaller, below 0 too
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """The n sizes of y, of an x of `size`."""
        around = (before + behind for before, behind in zip(self.padding[::2], self.padding[1::2], strict=True))
        axes = zip(size, around, kernel, self.stride, self.dilation, strict=True)
        if self.transposed:
            return tuple((n - 1) * s - p + d * (k - 1) + 1 for n, p, k, s, d in axes)
        return tuple((n + p - d * (k - 1) - 1) // s + 1 for n, p, k, s, d in axes)

    def of_images(self) -> Convolution:
        """The same of images of height 1, for kernels that know no sequences."""
        return self._replace(stride=(1, *self.stride), padding=(0, 0, *self.padding), dilation=(1, *self.dilation))

    def padding_of_torch(self) -> list[int]:
        """As torch.nn.functional.pad takes it: the last axis first."""
        return [part for at in range(len(self.padding) - 2, -1, -2) for part in self.padding[at : at + 2]]

    def outputs(self, weight: Sequence[int]) -> int:
        """Channels of y. weight: its shape, (O, C / groups, ...) or, transposed, (C, O / groups, ...)"""
        return weight[1] * self.groups if self.transposed else weight[0]

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """(N, O, ...) of x (N, C, ...) and the weight."""
        return x.shape[0], self.outputs(weight.shape), *self.output_size(x.shape[2:], weight.shape[2:])


def numbers(value: int | Sequence[int], argument: str, least: int, dims: int) -> tuple[int, ...]:
    """`value` as `dims` ints (one counts for all), or a ValueError that names the argument."""
    accepted = f"accepted is an int or {_COUNTS[dims]}, each >= {least}"
    if not isinstance(value, int | Sequence) or isinstance(value, str):
        raise TypeError(f"{argument}={value!r}; {accepted}")
    values: tuple[int, ...] = (value,) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values = values * dims
    if len(values) != dims or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"{argument}={value!r}; {accepted}")
    return values


def resolve_padding(
    padding: str | int | Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Before and behind of each axis. 'same' puts the odd pixel of an even kernel behind, as torch does."""
    dims = len(kernel)
    if padding == "valid":
        return (0, 0) * dims
    if padding == "same":
        if any(step != 1 for step in stride):
            raise ValueError(f"padding='same' with stride={tuple(stride)}; accepted is a stride of 1")
        both = ((size - 1) * step for size, step in zip(kernel, dilation, strict=True))
        return tuple(part for total in both for part in (total // 2, total - total // 2))
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}; accepted are 'same', 'valid', an int or {_COUNTS[dims]} >= 0")
    return tuple(part for each in numbers(padding, "padding", 0, dims) for part in (each, each))


def transposed_padding(
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Before and behind of each axis of a transposed convolution, whose `output_padding` is lines that are not cut off."""
    dims = len(kernel)
    if isinstance(padding, str):
        raise ValueError(
            f"padding={padding!r}; accepted is an int or {_COUNTS[dims]} >= 0 for a transposed convolution"
        )
    extra = numbers(output_padding, "output_padding", 0, dims)
    if any(more >= max(s, d) for more, s, d in zip(extra, stride, dilation, strict=True)):
        raise ValueError(
            f"output_padding={output_padding!r} with stride={tuple(stride)} and dilation={tuple(dilation)}; accepted is "
            "less than the larger of the two"
        )
    both = zip(numbers(padding, "padding", 0, dims), extra, strict=True)
    return tuple(part for each, more in both for part in (each, each - more))


def memory_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """That of y (N, O, ...), of the gradient of x (N, C, ...) and of that of the weight.

    channels_last, or channels_last_3d, if the strides of x or of the weight say so, those of sizes of 1 included, as torch
    decides it (mkldnn_conv_use_channels_last, cudnn_conv_suggest_memory_format). Sequences count as images of height 1,
    after torch has made x contiguous. Within torch.func always contiguous: a tensor that vmap batches does not tell.
    """
    if torch_func.active():
        return torch.contiguous_format
    if _is_channels_last(weight) or (_is_channels_last(x) and (x.ndim > 3 or x.is_contiguous())):
        return torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    return torch.contiguous_format


def _is_channels_last(image: Tensor) -> bool:
    """torch's is_channels_last_strides_2d and _3d (c10/core/MemoryFormat.h): the order of strides, not density."""
    stride = image.stride()
    if stride[1] > stride[-1]:  # contiguous, most often
        return False
    shape: tuple[int, ...] = image.shape
    if len(shape) == 3:
        shape, stride = (*shape[:2], 1, shape[2]), (*stride[:2], shape[2] * stride[2], stride[2])
    least = stride[1]
    if least <= 0 or 0 in shape:
        return False
    least *= shape[1]
    for axis in range(len(shape) - 1, 1, -1):
        if stride[axis] < least:
            return False
        least = stride[axis] * shape[axis]
    # the last comparison tells (N, 1, 1, 1), which has no format, from the others
    return stride[0] >= least != stride[1]


def strides_in(shape: Sequence[int], form: torch.memory_format) -> tuple[int, ...]:
    """Those of a new (N, C, ...) tensor of this format, which torch itself knows for images and volumes alone."""
    channels, sizes = shape[1], shape[2:]
    channels_last = form != torch.contiguous_format
    step, steps = (channels if channels_last else 1), []
    for size in reversed(sizes):
        steps.append(step)
        step *= size if channels_last else max(size, 1)
    of_channels = 1 if channels_last else step
    return (step if channels_last else step * max(channels, 1), of_channels, *reversed(steps))


def new(like: Tensor, shape: Sequence[int], form: torch.memory_format) -> Tensor:
    """An empty tensor of this format, of the dtype and on the device of `like`."""
    return like.new_empty_strided(shape, strides_in(shape, form))


def laid_out(image: Tensor, form: torch.memory_format) -> Tensor:
    """The image (N, C, ...) with the strides of a new tensor of this format, those of sizes of 1 included.

    Tensor.contiguous() leaves those as they are, and the next layer would read another format from them.
    """
    strides = strides_in(image.shape, form)
    if image.stride() == strides:
        return image
    if image.ndim == 3 and form != torch.contiguous_format:
        return image.unsqueeze(2).clone(memory_format=form).squeeze(2)
    return image.clone(memory_format=form)
