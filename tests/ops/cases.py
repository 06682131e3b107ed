"""Random arguments of `shadow_conv2d` and `shadow_linear` for hypothesis, and what the tests of all backends share."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st

from wat_kernels import MatrixGrid, Noise, TapTable
from wat_kernels.tolerances import TOLERANCES

__all__ = ["NOISES", "TOLERANCES", "ConvCase", "LinearCase", "conv_cases", "conv_cases_of", "linear_cases", "tables"]


def torch_op(name):
    """torch's own description of an op, with its test inputs. It needs expecttest, which not every machine has."""
    found = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason="needs expecttest")
    return next(op for op in found.op_db if op.name == name)


NOISES = st.sampled_from([None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)])


@st.composite
def tables(draw, kernel):
    """Tables with unit rows (permutations and holes), rows of mixed coefficients, and rows without any tap."""
    taps = math.prod(kernel)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    kinds = draw(st.lists(st.sampled_from(["identity", "moved", "mixed", "empty"]), min_size=1, max_size=4))
    with torch.device("cpu"):
        maps = torch.zeros(len(kinds), taps, taps)
        for row, kind in enumerate(kinds):
            if kind == "identity":
                maps[row] = torch.eye(taps)
            elif kind == "moved":
                outputs = torch.rand(taps, generator=generator) < 0.6
                maps[row, outputs, torch.randperm(taps, generator=generator)[outputs]] = 1.0
            elif kind == "mixed":
                maps[row] = torch.randn(taps, taps, generator=generator)
                maps[row][torch.rand(taps, taps, generator=generator) < 0.7] = 0.0
        weights = torch.rand(len(kinds), generator=generator, dtype=torch.float64) + 0.1
    return TapTable(maps, weights / weights.sum(), kernel)


@dataclass
class ConvCase:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None
    table: TapTable
    key: int
    noise: Noise | None
    shadows: int
    arguments: dict

    @property
    def leaves(self):
        return [tensor for tensor in (self.x, self.weight, self.bias, self.gain) if tensor is not None]


@st.composite
def conv_cases(draw, dtype=torch.float64):
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = draw(st.sampled_from(["valid", "numbers", "same"]))
    if padding == "same":
        stride = (1, 1)
    elif padding == "numbers":
        padding = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    shadows = draw(st.integers(1, 3))
    batch = shadows * draw(st.integers(0, 2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    in_channels, out_channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    size = [d * (k - 1) + 1 + draw(st.integers(0, 5)) for k, d in zip(kernel, dilation, strict=True)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def normal(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(torch.get_default_device(), dtype)

    x = normal(batch, in_channels, *size)
    weight = normal(out_channels, in_channels // groups, *kernel)
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    if draw(st.booleans()):
        weight = weight.to(memory_format=torch.channels_last)
    return ConvCase(
        x,
        weight,
        draw(st.sampled_from([None, normal(out_channels)])),
        draw(st.sampled_from([None, normal(), normal(1), normal(out_channels)])),
        draw(tables(kernel)),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(NOISES),
        shadows,
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    )


@st.composite
def conv_cases_of(draw, dims, transposed, dtype=torch.float64):
    """Convolutions of `dims` dimensions, or transposed ones: a `ConvCase` for `shadow_conv`."""
    kernel = tuple(draw(st.integers(1, 4 if dims < 3 else 3)) for _ in range(dims))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    shadows = draw(st.integers(1, 3))
    batch = shadows * draw(st.integers(1, 2))
    in_channels, out_channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    arguments = {"stride": stride, "dilation": dilation, "groups": groups}
    if transposed:
        size = [draw(st.integers(1, 4)) for _ in range(dims)]
        arguments["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        whole = [
            (n - 1) * s + r + more
            for n, s, r, more in zip(size, stride, reach, arguments["output_padding"], strict=True)
        ]
        arguments["padding"] = tuple(draw(st.integers(0, min(3, (n - 1) // 2))) for n in whole)
        shape = (in_channels, out_channels // groups, *kernel)
    else:
        size = [r + draw(st.integers(0, 4)) for r in reach]
        arguments["padding"] = tuple(draw(st.integers(0, 3)) for _ in range(dims))
        shape = (out_channels, in_channels // groups, *kernel)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def normal(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(torch.get_default_device(), dtype)

    def either_format(tensor):
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if draw(st.booleans()) else tensor

    return ConvCase(
        either_format(normal(batch, in_channels, *size)),
        either_format(normal(*shape)),
        draw(st.sampled_from([None, normal(out_channels)])),
        draw(st.sampled_from([None, normal(), normal(1), normal(out_channels)])),
        draw(tables(kernel)),
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(NOISES),
        shadows,
        arguments,
    )


@dataclass
class LinearCase:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None
    grid: MatrixGrid | None
    key: int
    noise: Noise | None
    shadows: int

    @property
    def leaves(self):
        return [tensor for tensor in (self.x, self.weight, self.bias, self.gain) if tensor is not None]


@st.composite
def linear_cases(draw, dtype=torch.float64):
    out_features, in_features = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    shadows = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def normal(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return values.to(torch.get_default_device(), dtype)

    grid = None
    if draw(st.booleans()):
        flips = st.integers(0, 1)
        rows = [
            [
                draw(flips),
                draw(flips),
                draw(st.integers(0, out_features << 16)),
                draw(st.integers(0, in_features << 16)),
            ]
            for _ in range(draw(st.integers(1, 3)))
        ]
        grid = MatrixGrid(rows, [1 / len(rows)] * len(rows))
    return LinearCase(
        normal(shadows * draw(st.integers(1, 3)), in_features),
        normal(out_features, in_features),
        draw(st.sampled_from([None, normal(out_features)])),
        draw(st.sampled_from([None, normal(), normal(1), normal(out_features)])),
        grid,
        draw(st.integers(-(2**63), 2**63 - 1)),
        draw(NOISES),
        shadows,
    )
