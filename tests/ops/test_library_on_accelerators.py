"""What the library backend does where a draw cannot be read without waiting: the reference's values, and no reading."""

import pytest
import torch

from wat_kernels import MatrixGrid, Noise, TapTable, shadow_conv2d, shadow_linear
from wat_kernels.matrix_grid import MatrixGridTensors
from wat_kernels.ops.conv import library as conv
from wat_kernels.ops.conv.geometry import Convolution
from wat_kernels.ops.linear import library as linear
from wat_kernels.ops.linear.schema import Linear
from wat_kernels.signature import Draw
from wat_kernels.tap_table import TableTensors

GRID = MatrixGrid([[0, 0, 3 << 16, 2 << 16], [1, 0, 2 << 16, 3 << 16], [0, 1, 0, 3 << 16], [1, 1, 0, 0]], [0.25] * 4)


@pytest.fixture
def no_host(monkeypatch):
    for library in (conv, linear):
        monkeypatch.setattr(library, "drawn_on_host", lambda key: False)


@pytest.mark.parametrize("noise", [None, Noise("dropconnect", 0.3)], ids=str)
def test_values_of_a_moved_matrix(no_host, noise):
    leaves = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((6, 7), (5, 7), (5,), (5,))]
    x, weight, bias, gain = leaves
    dy = torch.randn(6, 5, dtype=torch.float64)
    for key in range(12):
        found = []
        for backend in ("library", "reference"):
            y = shadow_linear(x, weight, bias, key=key, gain=gain, grid=GRID, noise=noise, shadows=2, backend=backend)
            found.append((y, *torch.autograd.grad(y, leaves, dy)))
        for got, right in zip(*found, strict=True):
            torch.testing.assert_close(got, right)


def test_values_of_a_convolution(no_host):
    maps = torch.eye(9).repeat(3, 1, 1)
    maps[1, :3], maps[2, [0, 3, 6]] = 0, 0
    table = TapTable(maps, [0.4, 0.3, 0.3], (3, 3))
    x, weight = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 3, 6, 6), (5, 3, 3, 3)))
    for key in range(6):
        found = []
        for backend in ("library", "reference"):
            y = shadow_conv2d(
                x, weight, table=table, key=key, noise=Noise("dropconnect", 0.3), shadows=2, padding=1, backend=backend
            )
            found.append((y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))))
        for got, right in zip(*found, strict=True):
            torch.testing.assert_close(got, right)


def test_nothing_is_read_on_the_host():
    """Tensors without data on a device that is not the CPU: reading one raises."""
    with torch.device("meta"):
        key, thresholds = torch.zeros((), dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        x, weight, grid = torch.ones(6, 7), torch.ones(5, 7), torch.zeros(4, 4, dtype=torch.int64)
        drawn = Draw(key, MatrixGridTensors(thresholds, grid), 2, 2, 0.3), Linear()
        assert linear.forward(x, weight, None, None, *drawn).shape == (6, 5)
        assert linear.backward(x.new_ones(6, 5), x, weight, None, *drawn, [True] * 3 + [False])[1].shape == (5, 7)
        x, weight, taps = torch.ones(4, 3, 6, 6), torch.ones(5, 3, 3, 3), torch.zeros(4, 28, dtype=torch.int32)
        drawn = Draw(key, TableTensors(thresholds, taps, taps), 2, 2, 0.3), Convolution((1, 1), (1, 1, 1, 1), (1, 1), 1)
        assert conv.forward(x, weight, None, None, *drawn).shape == (4, 5, 6, 6)
