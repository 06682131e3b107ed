"""FlopCounterMode over our ops; watnn.flops; export_report."""

import re

import pytest
import torch
import watnn
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from watnn.layers import shadow_layers
from watnn.modes import layer_keys
from watnn.transforms import WAT, Compose, DropConnect, RandomAffine, RandomHorizontalFlip

from tests.conftest import DEVICE
from wat_kernels import draw_rows
from wat_kernels.matrix_grid import draw_matrix_grid

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
OPS = torch.ops.wat_kernels


def count(function):
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return {name: dict(counts) for name, counts in counter.get_flop_counts().items()}


@pytest.mark.parametrize("backend", [*(["native"] if DEVICE == "cpu" else []), "library"])
@pytest.mark.parametrize("shadows", [1, 2])
def test_active_taps_of_the_rows_drawn(backend, shadows):
    layer = watnn.WATConv2d(
        6, 4, 3, padding=1, stride=2, groups=2, transform=TRANSLATE, shadows=shadows, backend=backend
    )
    x = torch.randn(4, 6, 8, 7, requires_grad=True)
    seen = set()
    for key in range(12):
        watnn.dom(layer, key=key)
        taps = layer.tap_table.active_taps[draw_rows(layer.tap_table, key, shadows).cpu()]
        expected = int((2 * (4 // shadows) * 4 * 3 * taps).sum()) * 4 * 4  # images a chunk, O, I, taps; pixels
        counts = count(lambda: layer(x).square().sum().backward())["Global"]
        assert counts == {OPS.shadow_conv: expected, OPS.shadow_conv_bwd: 2 * expected}
        seen.add(expected)
    assert len(seen) >= 3
    assert count(lambda: layer(x.detach()).sum().backward())["Global"] == {
        OPS.shadow_conv: expected,
        OPS.shadow_conv_bwd: expected,
    }
    layer.requires_grad_(False)
    assert count(lambda: layer(x).sum().backward())["Global"][OPS.shadow_conv_bwd] == expected


def test_counting_changes_nothing():
    layer, x = watnn.WATConv2d(3, 4, 3, transform=Compose([WAT(), DropConnect(0.2)])), torch.randn(2, 3, 6, 6)
    torch.manual_seed(3)
    expected = layer(x), torch.get_rng_state()
    torch.manual_seed(3)
    with FlopCounterMode(display=False):
        y = layer(x)
    assert torch.equal(y, expected[0]) and torch.equal(torch.get_rng_state(), expected[1])


def test_modules_have_their_names():
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)), RandomHorizontalFlip())
    counts = count(lambda: model(torch.randn(2, 3, 5, 5)))
    assert counts["Sequential.1"] == {OPS.shadow_conv: 2 * 2 * 9 * 4 * 4 * 9}
    assert sum(counts["Sequential"].values()) == 2 * 2 * 25 * 4 * 3 + 2 * 2 * 9 * 4 * 4 * 9


def test_lines_of_a_matrix_that_stay_inside():
    layer, x = watnn.WATLinear(20, 30, transform=TRANSLATE, shadows=2), torch.randn(6, 20, requires_grad=True)
    grid = layer.matrix_grid.on(torch.device("cpu"))
    total = 0
    for key in range(400):
        backward = key < 9
        watnn.dom(layer, key=key)
        _, _, shift_out, shift_in = draw_matrix_grid(*grid, torch.tensor(key), 2)
        expected = int((2 * 3 * (30 - shift_out.abs()) * (20 - shift_in.abs())).sum())
        counts = count(lambda back=backward: layer(x).sum().backward() if back else layer(x))["Global"]
        assert counts[OPS.shadow_linear] == expected
        if backward:
            assert counts[OPS.shadow_linear_bwd] == 2 * expected
        total += expected
    assert total / 400 == pytest.approx(watnn.flops(layer, x).expected, rel=0.02)
    noisy = watnn.WATLinear(20, 30, transform=DropConnect(0.5))
    assert count(lambda: noisy(x.detach()))["Global"] == {OPS.shadow_linear: 2 * 6 * 20 * 30}


def test_the_mean_over_draws_is_what_flops_expects():
    """Exactly, for a shift of 0 or 1 line: each draw has its probability."""
    layer = watnn.WATLinear(3, 3, transform=RandomAffine(degrees=0, translate=(0.3, 0)))  # up to 0.9 lines of `in`
    share = (1 * 0.5 + (2 / 3) * 0.4) / 0.9
    assert watnn.flops(layer, torch.randn(5, 3)).expected == pytest.approx(2 * 5 * 9 * share, rel=1e-4)


def test_without_data():
    layer = watnn.WATConv2d(3, 4, 3, transform=TRANSLATE, backend="library")
    linear = watnn.WATLinear(20, 30, transform=TRANSLATE, backend="library")
    with FakeTensorMode(allow_non_fake_inputs=True):  # the table has data, the key none: the mean over the draws
        counts = count(lambda: (layer(torch.empty(2, 3, 6, 6)), linear(torch.empty(5, 20))))["Global"]
    assert counts[OPS.shadow_conv] == round(2 * 2 * 4 * 16 * 3 * layer.tap_table.mean_active_taps)
    assert counts[OPS.shadow_linear] == round(watnn.flops(linear, torch.empty(5, 20)).expected)
    layer, linear = layer.to("meta"), linear.to("meta")  # nothing has: the plain layer
    counts = count(lambda: (layer(torch.empty(2, 3, 6, 6, device="meta")), linear(torch.empty(5, 20, device="meta"))))
    assert counts["Global"] == {OPS.shadow_conv: 2 * 2 * 4 * 16 * 27, OPS.shadow_linear: 2 * 5 * 600}


def test_flops_counts_what_runs_outside_of_layers():
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = watnn.convert(block, DropConnect(0.1), include="linear*")
    report = watnn.flops(model, torch.randn(2, 5, 16))
    tokens = 2 * 5
    attention = 2 * tokens * 16 * 16 * 4 + 2 * 2 * tokens * 5 * 16  # projections; scores and their product with v
    dense = [(row.name, row.dense) for row in report.layers]
    assert dense == [("linear1", 2 * tokens * 512), ("linear2", 2 * tokens * 512), ("(elsewhere)", attention)]
    assert report.dense == 4 * tokens * 512 + attention
    assert torch.backends.mha.get_fastpath_enabled()


def test_export_report():
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)), TRANSLATE)
    x, key = torch.randn(2, 3, 16, 16), 4
    rows = [
        int(draw_rows(layer.tap_table, k)[0])
        for (_, layer), k in zip(shadow_layers(model), layer_keys(key, 2), strict=True)
    ]
    assert [int(model[i].tap_table.active_taps[row]) for i, row in zip((0, 2), rows, strict=True)] != [9, 9]
    report = watnn.export_report(model, x, key=key, rounds=2)
    assert report.aom.flops == watnn.flops(model, x).dense
    assert report.dom.flops == watnn.flops(model, x, key=key).exported < report.aom.flops
    assert 0 < report.aom.seconds < 1 and 0 < report.dom.seconds < 1
    lines = str(report).splitlines()
    assert re.fullmatch(rf"AOM +{report.aom.flops:,} +100% +[\d.]+ ms +100%", lines[1])
    assert re.fullmatch(
        rf"DOM +{report.dom.flops:,} +{report.dom.flops / report.aom.flops:.0%} +[\d.]+ ms +\d+%", lines[2]
    )
    assert torch.__version__ in lines[3]
    assert model.training and model[0].mode == "auto" and isinstance(model[0], watnn.WATConv2d)


def test_export_report_errors():
    with pytest.raises(ValueError, match="no shadow layer; convert it first"):
        watnn.export_report(nn.Conv2d(3, 3, 3), torch.randn(1, 3, 5, 5))
    with pytest.raises(ValueError, match="rounds=0; accepted is an int >= 1"):
        watnn.export_report(watnn.WATConv2d(3, 3, 3, transform=WAT()), torch.randn(1, 3, 5, 5), rounds=0)
