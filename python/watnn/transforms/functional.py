"""Image transforms of a kernel as tap maps.

Each function returns the (K, K) matrix, K = kh * kw, that does to a flattened (kh, kw) kernel what torchvision's
function of the same name does to an image of that size: `shadow = M @ kernel.flatten()`. Row = output tap, column =
input tap. It is found by transforming the K unit kernels, in fp32 and in torchvision's order of operations, because a
sampling point that falls exactly between two taps goes to the side that rounding decides.

One deliberate difference: bilinear sampling meets the zeros around the kernel once. torchvision's default `fill=0`
also multiplies the result by an interpolated mask, which attenuates the border a second time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

from wat_kernels.default_device import on_cpu
from watnn.transforms.checks import (
    check_center,
    check_interpolation,
    check_kernel_size,
    check_number,
    check_pair,
    check_size,
)


@on_cpu
def affine(
    kernel_size: int | tuple[int, int],
    angle: float,
    translate: Sequence[float],
    scale: float,
    shear: float | Sequence[float],
    interpolation: str = "nearest",
    center: Sequence[float] | None = None,
) -> Tensor:
    """Rotate by `angle`, scale, shear, then translate, about `center`.

    angle:     degrees, clockwise
    translate: (dx, dy) in taps, along the width and the height
    shear:     degrees along x, or along x and y
    center:    (x, y) in taps from the upper left corner of the kernel; the middle of the kernel by default
    Returns (K, K) float32. Raises TypeError or ValueError for arguments out of range.
    """
    size = check_kernel_size(kernel_size)
    matrix = inverse_affine_matrix(
        centered(check_center(center), size),
        check_number("angle", angle),
        check_pair("translate", translate),
        check_number("scale", scale, above=0),
        check_pair("shear", (shear, 0.0) if isinstance(shear, Real) else shear),
    )
    return _sample(size, matrix, check_interpolation(interpolation))


@on_cpu
def rotate(
    kernel_size: int | tuple[int, int],
    angle: float,
    interpolation: str = "nearest",
    center: Sequence[float] | None = None,
) -> Tensor:
    """Rotate by `angle` degrees, counter-clockwise, about `center` (as in `affine`). Returns (K, K) float32."""
    size = check_kernel_size(kernel_size)
    angle = check_number("angle", angle)
    # torchvision's `rotate` and `affine` turn in opposite directions
    matrix = inverse_affine_matrix(centered(check_center(center), size), -angle, (0.0, 0.0), 1.0, (0.0, 0.0))
    return _sample(size, matrix, check_interpolation(interpolation))


@on_cpu
def resized_crop(
    kernel_size: int | tuple[int, int], top: int, left: int, height: int, width: int, interpolation: str = "bilinear"
) -> Tensor:
    """Cut out rows top .. top + height and columns left .. left + width, and resize them to the kernel's size.

    What lies outside the kernel is zero. Returns (K, K) float32.
    """
    kh, kw = size = check_kernel_size(kernel_size)
    for name, value in (("top", top), ("left", left)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}={value!r}; accepted is an integer")
    height, width = check_size("(height, width)", (height, width))
    mode = check_interpolation(interpolation)
    padded = F.pad(_unit_kernels(size), (-left, left + width - kw, -top, top + height - kh))  # negative pads crop
    if mode == "nearest":
        return _to_map(F.interpolate(padded, size=size, mode=mode))
    return _to_map(F.interpolate(padded, size=size, mode=mode, align_corners=False, antialias=True))


@on_cpu
def hflip(kernel_size: int | tuple[int, int]) -> Tensor:
    """Mirror left and right. Returns (K, K) float32."""
    return _to_map(_unit_kernels(check_kernel_size(kernel_size)).flip(-1))


@on_cpu
def vflip(kernel_size: int | tuple[int, int]) -> Tensor:
    """Mirror top and bottom. Returns (K, K) float32."""
    return _to_map(_unit_kernels(check_kernel_size(kernel_size)).flip(-2))


def centered(center: tuple[float, float] | None, size: tuple[int, int]) -> tuple[float, float]:
    """(x, y) from the middle of the kernel, of a centre given from its upper left corner."""
    return (0.0, 0.0) if center is None else (center[0] - size[1] * 0.5, center[1] - size[0] * 0.5)


def inverse_affine_matrix(
    center: tuple[float, float],
    angle: float,
    translate: tuple[float, float],
    scale: float,
    shear: tuple[float, float],
) -> list[float]:
    """The 2x3 matrix, row-major, from an output position to the position it is sampled at, from the kernel's middle.

    The inverse of T C R(angle) Shear(shear) Scale(scale) C^-1, in the order in which torchvision multiplies it out.
    """
    turn, shear_x, shear_y = math.radians(angle), math.radians(shear[0]), math.radians(shear[1])
    (center_x, center_y), (shift_x, shift_y) = center, translate
    a = math.cos(turn - shear_y) / math.cos(shear_y)
    b = -math.cos(turn - shear_y) * math.tan(shear_x) / math.cos(shear_y) - math.sin(turn)
    c = math.sin(turn - shear_y) / math.cos(shear_y)
    d = -math.sin(turn - shear_y) * math.tan(shear_x) / math.cos(shear_y) + math.cos(turn)
    matrix = [entry / scale for entry in (d, -b, 0.0, -c, a, 0.0)]
    matrix[2] += matrix[0] * (-center_x - shift_x) + matrix[1] * (-center_y - shift_y)
    matrix[5] += matrix[3] * (-center_x - shift_x) + matrix[4] * (-center_y - shift_y)
    matrix[2] += center_x
    matrix[5] += center_y
    return matrix


def _unit_kernels(size: tuple[int, int]) -> Tensor:
    """(1, K, kh, kw): channel p is the kernel that is 1 at tap p."""
    taps = size[0] * size[1]
    return torch.eye(taps).reshape(1, taps, *size)


def _to_map(images: Tensor) -> Tensor:
    """(1, K, kh, kw) transformed unit kernels to the (K, K) tap map."""
    return images.flatten(2)[0].T.contiguous()


def _sample(size: tuple[int, int], matrix: list[float], interpolation: str) -> Tensor:
    kh, kw = size
    theta = torch.tensor(matrix, dtype=torch.float32).reshape(1, 2, 3)
    positions = torch.ones(1, kh, kw, 3)
    positions[..., 0] = torch.linspace(-kw * 0.5 + 0.5, kw * 0.5 + 0.5 - 1, steps=kw)
    positions[..., 1] = torch.linspace(-kh * 0.5 + 0.5, kh * 0.5 + 0.5 - 1, steps=kh).unsqueeze(-1)
    # divide the matrix, not the product: this decides ties as torchvision does
    normalised = theta.transpose(1, 2) / torch.tensor([0.5 * kw, 0.5 * kh])
    grid = positions.view(1, kh * kw, 3).bmm(normalised).view(1, kh, kw, 2)
    images = F.grid_sample(_unit_kernels(size), grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return _to_map(images)
