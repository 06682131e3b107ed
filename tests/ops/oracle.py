"""Shadow convolution and linear written out once more, as slowly and plainly as can be: the oracle of the op tests."""

import math

import torch
import torch.nn.functional as F

from wat_kernels import draw_rows
from wat_kernels.draw import draw_noise
from wat_kernels.matrix_grid import draw_matrix_grid


def shadow_kernels(weight, table, key, noise=None, shadows=1):
    """(S, A, B, *kernel) of a weight (A, B, *kernel), one tap at a time."""
    out_channels, in_channels, *kernel = weight.shape
    taps = math.prod(kernel)
    weight_taps = weight.flatten(2)
    result = weight.new_zeros(shadows, out_channels, in_channels, taps)
    for s, row in enumerate(draw_rows(table, key, shadows).tolist()):
        for t, p in table.maps[row].nonzero().tolist():
            result[s, :, :, t] += float(table.maps[row, t, p]) * weight_taps[:, :, p]
    if noise is not None:
        factor = draw_noise(
            noise.code, noise.amount, torch.tensor(key, device=weight.device), shadows, weight.numel()
        ).to(weight.dtype)
        for o in range(out_channels):
            for i in range(in_channels):
                for t in range(taps):
                    result[:, o, i, t] *= factor[:, (o * taps + t) * in_channels + i]
    return result.unflatten(3, kernel)


def shadow_matrices(weight, key, grid=None, noise=None, shadows=1):
    """(S, out, in): flips after the shift, as an image is moved."""
    rows, columns = weight.shape
    result = []
    for s in range(shadows):
        moved = weight
        if grid is not None:
            tensors = grid.on(weight.device)
            draws = draw_matrix_grid(tensors.thresholds, tensors.rows, torch.tensor(key, device=weight.device), shadows)
            flip_out, flip_in, shift_out, shift_in = (int(draw[s]) for draw in draws)
            moved = torch.zeros_like(weight)
            for o in range(rows):
                for i in range(columns):
                    if 0 <= o - shift_out < rows and 0 <= i - shift_in < columns:
                        moved[o, i] = weight[o - shift_out, i - shift_in]
            moved = moved.flip([axis for axis, flip in enumerate((flip_out, flip_in)) if flip])
        if noise is not None:
            factor = draw_noise(
                noise.code, noise.amount, torch.tensor(key, device=weight.device), shadows, weight.numel()
            )[s]
            moved = moved * factor.view_as(weight).to(weight.dtype)
        result.append(moved)
    return torch.stack(result)


def conv2d(x, weights, bias, gain, **arguments):
    """F.conv2d of each chunk of x with its own weight, times the gain, plus the bias."""
    chunks = x.chunk(len(weights)) if len(x) else [x]
    y = torch.cat([F.conv2d(c, w, None, **arguments) for c, w in zip(chunks, weights, strict=False)])
    y = y if gain is None else y * gain.reshape(-1, 1, 1)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def conv(x, weights, bias, gain, transposed, **arguments):
    """The same of any dimensions, by the function of torch that has their name."""
    function = getattr(F, f"conv{'_transpose' if transposed else ''}{x.ndim - 2}d")
    chunks = x.chunk(len(weights)) if len(x) else [x]
    y = torch.cat([function(c, w, None, **arguments) for c, w in zip(chunks, weights, strict=False)])
    along = (-1, *[1] * (x.ndim - 2))
    y = y if gain is None else y * gain.reshape(along)
    return y if bias is None else y + bias.reshape(along)


def linear(x, weights, bias, gain):
    y = torch.cat([F.linear(c, w) for c, w in zip(x.chunk(len(weights)), weights, strict=True)])
    y = y if gain is None else y * gain
    return y if bias is None else y + bias
