"""The words of the row draw as an op, for the backends that make SW as a tensor: `row_words`.

Philox in plain PyTorch is two hundred operations on a few numbers. On a GPU each is a launch, which made a shadow
convolution of the library backend take 2.9 ms of its host's time (H200); there, a Triton kernel makes them in one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wat_kernels import philox, torch_func
from wat_kernels.torch_library import LIBRARY

try:
    from wat_kernels import triton_rows
except ImportError:  # without Triton
    triton_rows = None  # type: ignore[assignment]


def row_words(key: Tensor, shadows: int) -> philox.Words:
    """`philox.row_words`: four (shadows,) int64 tensors in [0, 2**32) on the key's device. key: () int64"""
    # within torch.func the key may be batched, for which an op has no rule but its parts have
    if key.device.type != "cuda" or triton_rows is None or torch_func.active():
        return philox.row_words(key, shadows)
    first, second, third, fourth = torch.ops.wat_kernels.row_words.triton(key, shadows).unbind()
    return first, second, third, fourth


def _fake(key, shadows):
    return key.new_empty(4, shadows)


LIBRARY.define("row_words.triton(Tensor key, int shadows) -> Tensor")
torch.library.register_fake("wat_kernels::row_words.triton", _fake, lib=LIBRARY)
if triton_rows is not None:
    for _device in ("CUDA", "CPU") if triton_rows.INTERPRETED else ("CUDA",):
        LIBRARY.impl("row_words.triton", triton_rows.row_words, _device)
