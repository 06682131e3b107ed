"""Bad arguments of the ops: one clear error each, naming the argument, what came and what is accepted."""

import pytest
import torch

from wat_kernels import MatrixGrid, Noise, TapTable, shadow_conv2d, shadow_linear

pytestmark = pytest.mark.cpu_only

X, WEIGHT, BIAS, GAIN = torch.randn(6, 4, 8, 8), torch.randn(6, 2, 3, 3), torch.randn(6), torch.randn(6)
GOOD = {"x": X, "weight": WEIGHT, "bias": BIAS, "gain": GAIN, "table": TapTable.identity((3, 3)), "key": 1, "groups": 2}

CONV = [
    ({"x": X.numpy()}, TypeError, "x is ndarray; accepted is a tensor|x is ndarray"),
    ({"weight": None}, TypeError, "weight is NoneType; accepted is a tensor"),
    ({"x": X.int()}, TypeError, "x is torch.int32; accepted is a floating-point dtype"),
    ({"x": X.to(torch.complex64)}, TypeError, "x is torch.complex64; accepted is a floating-point dtype"),
    ({"x": X.double()}, TypeError, "weight is torch.float32, x is torch.float64"),
    ({"weight": WEIGHT.half()}, TypeError, "weight is torch.float16, x is torch.float32"),
    ({"bias": BIAS.double()}, TypeError, "bias is torch.float64, x is torch.float32"),
    ({"x": X.to("meta")}, ValueError, "weight is on cpu, x is on meta"),
    ({"gain": GAIN.to("meta")}, ValueError, "gain is on meta, x is on cpu"),
    ({"x": X[0, 0]}, ValueError, r"x has shape \(8, 8\); accepted is \(N, C, H, W\) or \(C, H, W\)"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight has shape \(2, 3, 3\); accepted are 4 dimensions"),
    ({"bias": BIAS[:5]}, ValueError, r"bias has shape \(5,\); accepted is \(6,\)"),
    ({"gain": GAIN[:4]}, ValueError, r"gain has shape \(4,\); accepted is one element or \(6,\)"),
    ({"groups": 1}, ValueError, r"x has 4 channels; weight \(6, 2, 3, 3\) with groups=1 takes 2"),
    ({"groups": 4}, ValueError, "groups=4; accepted is an int >= 1 that divides the 6 output channels"),
    ({"groups": 0}, ValueError, "groups=0"),
    ({"groups": 2.0}, ValueError, r"groups=2\.0"),
    ({"stride": 0}, ValueError, "stride=0; accepted is an int or two ints, each >= 1"),
    ({"stride": (1, 2, 3)}, ValueError, r"stride=\(1, 2, 3\)"),
    ({"stride": 1.5}, TypeError, "stride=1.5"),
    ({"padding": -1}, ValueError, "padding=-1; accepted is an int or two ints, each >= 0"),
    ({"padding": "sane"}, ValueError, "padding='sane'; accepted are 'same', 'valid'"),
    ({"padding": "same", "stride": 2}, ValueError, r"padding='same' with stride=\(2, 2\); accepted is a stride of 1"),
    ({"dilation": (1, 0)}, ValueError, r"dilation=\(1, 0\)"),
    ({"dilation": 9}, ValueError, r"x of \(8, 8\) padded by \(0, 0, 0, 0\) is smaller than the kernel \(3, 3\)"),
    ({"shadows": 4}, ValueError, "shadows=4 does not divide the batch of 6"),
    ({"shadows": 0}, ValueError, "shadows=0; accepted is an int >= 1"),
    ({"shadows": 2.0}, ValueError, r"shadows=2\.0; accepted is an int >= 1"),
    ({"table": torch.eye(9)}, TypeError, "table is Tensor; accepted is wat_kernels.TapTable"),
    ({"table": TapTable.identity((5, 5))}, ValueError, "table=.*5x5.* is for another kernel size; the weight's is 3x3"),
    ({"table": TapTable.identity((1, 9))}, ValueError, "is for another kernel size"),
    ({"table": {}}, TypeError, "table is dict; accepted is wat_kernels.TapTable"),
    ({"noise": [0.3]}, TypeError, "noise is list; accepted is wat_kernels.Noise or None"),
    ({"stride": [1, 0]}, ValueError, r"stride=\[1, 0\]; accepted is an int or two ints, each >= 1"),
    ({"noise": 0.3}, TypeError, "noise is float; accepted is wat_kernels.Noise or None"),
    ({"key": 0.5}, TypeError, "key is float"),
    ({"key": torch.tensor([1, 2])}, TypeError, r"key is torch.int64 of shape \(2,\)"),
    ({"key": torch.tensor(1, device="meta")}, ValueError, "key is on meta, x is on cpu"),
    ({"backend": "fast"}, ValueError, "backend='fast'; accepted are auto, cuda, triton, native, library, reference"),
    ({"backend": "cuda"}, RuntimeError, "backend='cuda' cannot run shadow_conv"),
]


@pytest.mark.parametrize(("change", "error", "message"), CONV, ids=[case[2][:40] for case in CONV])
def test_shadow_conv2d(change, error, message):
    with pytest.raises(error, match=message):
        shadow_conv2d(**{**GOOD, **change})


ROWS, MATRIX = torch.randn(6, 8), torch.randn(5, 8)
LINEAR = [
    ({"x": ROWS[:, :7]}, ValueError, r"x has shape \(6, 7\); accepted is \(\.\.\., 8\) for weight \(5, 8\)"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\)"),
    ({"x": ROWS.long()}, TypeError, "x is torch.int64"),
    ({"weight": MATRIX[0]}, ValueError, r"weight has shape \(8,\); accepted are 2 dimensions"),
    ({"weight": MATRIX.double()}, TypeError, "weight is torch.float64, x is torch.float32"),
    ({"bias": BIAS}, ValueError, r"bias has shape \(6,\); accepted is \(5,\)"),
    ({"gain": torch.ones(1, 5)}, ValueError, r"gain has shape \(1, 5\)"),
    ({"grid": TapTable.identity((1, 1))}, TypeError, "grid is TapTable; accepted is wat_kernels.MatrixGrid"),
    ({"noise": "dropconnect"}, TypeError, "noise is str"),
    ({"shadows": 4}, ValueError, "shadows=4 does not divide the batch of 6"),
    ({"x": ROWS[0], "shadows": 2}, ValueError, "shadows=2 does not divide the batch of 1"),
    ({"key": None}, TypeError, "key is NoneType"),
    ({"backend": "triton_"}, ValueError, "backend='triton_'"),
]


@pytest.mark.parametrize(("change", "error", "message"), LINEAR, ids=[case[2][:40] for case in LINEAR])
def test_shadow_linear(change, error, message):
    with pytest.raises(error, match=message):
        shadow_linear(**{"x": ROWS, "weight": MATRIX, "key": 1, **change})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("salt", 0.1), ValueError, "kind='salt'"),
        (("dropconnect", 1.0), ValueError, r"amount=1\.0"),
        (("dropconnect", -0.1), ValueError, r"amount=-0\.1"),
        (("multiplicative", float("nan")), ValueError, "amount=nan"),
        (("multiplicative", float("inf")), ValueError, "amount=inf"),
        (("multiplicative", -1.0), ValueError, r"amount=-1\.0"),
        (("multiplicative", "0.1"), TypeError, "amount='0.1'"),
    ],
)
def test_noise(arguments, error, message):
    with pytest.raises(error, match=message):
        Noise(*arguments)


def test_a_matrix_grid_for_no_matrix():
    with pytest.raises(ValueError, match="flips"):
        MatrixGrid([[2, 0, 0, 0]], [1.0])
