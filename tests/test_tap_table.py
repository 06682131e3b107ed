"""Tap tables: merging, thresholds, the ELL form of M and of its transpose, the algebra."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wat_kernels import TapTable
from wat_kernels.draw import dense_maps
from wat_kernels.tap_table import identity_line

CPU = torch.device("cpu")


def random_maps(rows, taps, density, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(rows, taps, taps, generator=generator)
    return torch.where(torch.rand(maps.shape, generator=generator) < density, maps, 0.0)


@given(st.integers(1, 6), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 1000))
def test_ell_holds_the_maps_and_their_transposes(rows, taps, density, seed):
    maps = random_maps(rows, taps, density, seed)
    table = TapTable(maps, [1 / rows] * rows)
    tensors = table.on(CPU)
    every_row = torch.arange(len(table))
    assert torch.equal(dense_maps(tensors.taps, every_row, taps), table.maps)
    assert torch.equal(dense_maps(tensors.taps_t, every_row, taps), table.maps.mT)
    for line, tap_map in zip(tensors.taps, table.maps, strict=True):
        active = tap_map.ne(0).any(1).nonzero().flatten().tolist()
        assert line[0] == len(active)
        assert line[1 : 1 + len(active)].tolist() == active  # ascending
    assert torch.equal(table.active_taps, tensors.taps[:, 0].long())


def test_ell_is_as_wide_as_the_fullest_output_tap():
    tap_map = torch.zeros(1, 9, 9)
    tap_map[0, 4, [0, 3, 8]] = 0.25
    tensors = TapTable(tap_map, [1.0]).on(CPU)
    assert tensors.taps.shape == (1, 1 + 9 + 2 * 9 * 3)
    assert tensors.taps_t.shape == (1, 1 + 9 + 2 * 9 * 1)


def test_equal_maps_merge_and_impossible_ones_go():
    eye, flip = torch.eye(4), torch.eye(4).flip(0)
    table = TapTable(torch.stack([eye, flip, eye + 1e-9, 2 * eye]), [0.25, 0.5, 0.25, 0.0])
    assert torch.equal(table.maps, torch.stack([eye, flip]))
    assert table.probabilities.tolist() == [0.5, 0.5]
    assert table.on(CPU).thresholds.tolist() == [2**31, 2**32]


def test_union_weighs_its_tables():
    eye, flip = torch.eye(4), torch.eye(4).flip(0)
    both = TapTable(torch.stack([eye, flip]), [0.5, 0.5])
    union = TapTable.union([TapTable(eye[None], [1.0]), both], [0.2, 0.8])
    assert union.probabilities.tolist() == pytest.approx([0.2 + 0.4, 0.4])


def test_product_applies_the_first_first():
    a, b = random_maps(2, 5, 0.6, 1), random_maps(3, 5, 0.6, 2)
    table = TapTable(a, [0.25, 0.75]).then(TapTable(b, [0.5, 0.25, 0.25]))
    weight = torch.randn(5)
    expected = {(i, j): b[j] @ (a[i] @ weight) for i in range(2) for j in range(3)}
    for row, (i, j) in enumerate(expected):
        torch.testing.assert_close(table.maps[row] @ weight, expected[i, j])
        assert table.probabilities[row] == pytest.approx([0.25, 0.75][i] * [0.5, 0.25, 0.25][j])


def test_mean_active_taps():
    none, all_of_them = torch.zeros(4, 4), torch.eye(4)
    assert TapTable(torch.stack([none, all_of_them]), [0.25, 0.75]).mean_active_taps == 3.0


def test_identity():
    assert TapTable.identity((2, 3)).is_identity
    assert torch.equal(TapTable.identity((2, 3)).maps, torch.eye(6)[None])
    assert not TapTable(2 * torch.eye(6)[None], [1.0]).is_identity


def test_value_semantics():
    table = TapTable(random_maps(3, 9, 0.3, 0), [0.2, 0.3, 0.5], (3, 3))
    assert pickle.loads(pickle.dumps(table)) == table
    assert copy.deepcopy(table) is table
    assert hash(pickle.loads(pickle.dumps(table))) == hash(table)
    assert table != TapTable(table.maps, table.probabilities)
    assert "3x3" in repr(table) and "3 maps" in repr(table)


def test_tensors_are_made_once_per_device():
    table = TapTable.identity((3, 3))
    assert table.on(CPU) is table.on(torch.device("cpu"))
    assert table.on(torch.device("meta")).taps.device.type == "meta"
    assert table.on(torch.device("meta")) is table.on(torch.device("meta"))


@pytest.mark.parametrize(
    ("maps", "probabilities", "kernel_size", "message"),
    [
        (torch.zeros(2, 3, 4), [0.5, 0.5], None, r"maps has shape \(2, 3, 4\)"),
        (torch.zeros(3, 3), [1.0], None, "maps has shape"),
        (torch.zeros(0, 3, 3), [], None, "maps has shape"),
        (torch.full((1, 2, 2), float("nan")), [1.0], None, "maps holds NaN"),
        (torch.full((1, 2, 2), float("inf")), [1.0], None, "maps holds NaN or infinity"),
        (torch.zeros(2, 2, 2), [1.0], None, r"probabilities has shape \(1,\)"),
        (torch.zeros(2, 2, 2), [0.5, 0.6], None, "probabilities sum to 1.1"),
        (torch.zeros(2, 2, 2), [1.5, -0.5], None, "each must be a number >= 0"),
        (torch.zeros(2, 2, 2), [float("nan"), 1.0], None, "each must be a number >= 0"),
        (torch.zeros(1, 9, 9), [1.0], (2, 3), r"kernel_size=\(2, 3\) has 6 taps, maps have 9"),
    ],
)
def test_bad_tables_are_refused(maps, probabilities, kernel_size, message):
    with pytest.raises(ValueError, match=message):
        TapTable(maps, probabilities, kernel_size)


def test_integer_maps_are_refused():
    with pytest.raises(TypeError, match=r"maps is torch.int64"):
        TapTable(torch.zeros(1, 2, 2, dtype=torch.int64), [1.0])


def test_tables_of_different_kernels_do_not_join():
    with pytest.raises(ValueError, match="different kernels"):
        TapTable.union([TapTable.identity((3, 3)), TapTable.identity((5, 5))], [0.5, 0.5])
    with pytest.raises(ValueError, match="different kernels"):
        TapTable.identity((1, 9)).then(TapTable.identity((3, 3)))


@pytest.mark.parametrize("width", [1, 3])
def test_identity_line_is_the_identity_at_any_width(width):
    line = identity_line(9, width)
    assert torch.equal(dense_maps(line, torch.tensor([0]), 9), torch.eye(9).unsqueeze(0))
    if width == 1:
        assert torch.equal(line, TapTable.identity((3, 3)).on(CPU).taps)
