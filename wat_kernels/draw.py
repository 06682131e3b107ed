"""key -> what one forward uses: the row of the tap table, the noise. In plain PyTorch, on the key's device."""

from __future__ import annotations

import torch
from torch import Tensor

from wat_kernels import noise_op, row_op
from wat_kernels.tap_table import TapTable
from wat_kernels.torch_library import LIBRARY


def draw_rows(table: TapTable, key: int | Tensor, shadows: int = 1) -> Tensor:
    """The row of `table` that each shadow of a forward with this key uses.

    key: an int, or an int64 tensor with one element. Returns (shadows,) int64 on the key's device.
    """
    key = as_key(key)
    return draw_rows_from(table.on(key.device).thresholds, key, shadows)


def draw_rows_from(thresholds: Tensor, key: Tensor, shadows: int) -> Tensor:
    """thresholds: (R,) int64, key: () int64. Returns (shadows,) int64: how many thresholds are <= the drawn word."""
    word = row_op.row_words(key, shadows)[0]
    return (thresholds <= word.unsqueeze(1)).sum(1)


def as_key(key: int | Tensor, device: torch.device | None = None) -> Tensor:
    """`key` as a () int64 tensor on `device` (a tensor must be there already).

    Raises TypeError or ValueError for anything but an int64 with one element, or a device that differs.
    """
    if not isinstance(key, Tensor):
        if not isinstance(key, int) or isinstance(key, bool):
            raise TypeError(f"key is {type(key).__name__}; accepted is an int or an int64 tensor with one element")
        if not -(2**63) <= key < 2**63:
            raise ValueError(f"key={key} does not fit 64 bits; accepted is -2**63 <= key < 2**63")
        return torch.full((), key, dtype=torch.int64, device=device)
    if key.dtype != torch.int64 or key.numel() != 1:
        raise TypeError(f"key is {key.dtype} of shape {tuple(key.shape)}; accepted is an int64 tensor with one element")
    if device is not None and key.device != device:
        raise ValueError(f"key is on {key.device}, x is on {device}; both must be on one device")
    return key if key.ndim == 0 else key.reshape(())


def draw_key(device: torch.device | str = "cpu") -> Tensor:
    """A fresh key from torch's generator of `device`, so that seeding and forking act on it as they do on dropout.

    Returns a () int64 tensor. Under torch.compile it comes from the same generator: compiled and eager draws agree.
    """
    if torch.compiler.is_compiling():
        return torch.ops.wat_kernels.draw_key(torch.empty((), dtype=torch.int64, device=device))
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)


def _draw_key_at(place: Tensor) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=place.device)


# An op of its own, because inductor replaces torch.randint by a generator that gives other numbers than eager's. It takes
# a fresh empty tensor because the compiler merges equal calls of any random op it does not know by name, so that two
# layers of one graph would draw one key; calls on two empty tensors are never equal to it.
LIBRARY.define("draw_key(Tensor place) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
LIBRARY.impl("draw_key", _draw_key_at, "CompositeExplicitAutograd")
torch.library.register_fake("wat_kernels::draw_key", torch.empty_like, lib=LIBRARY)


def dense_maps(taps: Tensor, rows: Tensor, count: int) -> Tensor:
    """Lines of the ELL form back to tap maps. taps: (R, L) int32, rows: (S,) int64. Returns (S, count, count) float32."""
    shadows, width = len(rows), (taps.shape[1] - 1 - count) // (2 * count)
    lines = taps[rows]  # (S, L)
    outputs = lines[:, 1 : 1 + count, None]  # (S, K, 1)
    inputs = lines[:, 1 + count : 1 + count + count * width].view(shadows, count, width)
    # the whole table is read as floats, not the lines: under vmap those are batched, and view(dtype) has no rule for that
    coefficients = taps.view(torch.float32)[rows, 1 + count + count * width :]  # (S, K * E)
    places = (outputs * count + inputs).flatten(1).to(torch.int64)
    # unused places of a line hold coefficient 0 at tap 0: they add nothing
    return coefficients.new_zeros(shadows, count * count).scatter_add(1, places, coefficients).view(-1, count, count)


def drawn_on_host(key: Tensor) -> bool:
    """Whether a draw can be read on the host without waiting for a device."""
    return key.device.type == "cpu"


def draw_noise(kind: int, amount: float | Tensor, key: Tensor, shadows: int, elements: int) -> Tensor:
    """The factor of every element of SW. Returns (shadows, elements) float32 in the order of DESIGN: e = (o*K + t)*I + i.

    Multiplicative noise is 1 + std * z (DAMP, arXiv 2406.16540); DropConnect is 0 or 1 / (1 - p), so its mean is 1.
    """
    return noise_op.draw(key, shadows, elements, kind, amount)
