"""Probabilities in tap tables: against closed forms, and against drawing the parameters as torchvision does."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from watnn.transforms import RandomAffine, RandomHorizontalFlip, RandomResizedCrop, RandomRotation, RandomVerticalFlip
from watnn.transforms import functional as TF
from watnn.transforms.laws import crop_law, quasi_random, rotation_law, shift_law

from wat_kernels.tap_table import TapTable

SIZES = [(1, 1), (1, 2), (1, 7), (2, 2), (2, 3), (3, 3), (3, 5), (4, 4), (5, 5), (7, 1)]


def probability_of(table, tap_map):
    """Of one map in a table, 0 where it is not there."""
    return float(table.probabilities[(table.maps - tap_map).abs().amax((1, 2)) < 1e-5].sum())


def assert_same_law(table, maps, probabilities, atol):
    """Probabilities agree map by map, and no map of either side is missing from the other by more than atol."""
    expected = TapTable(torch.stack(maps), probabilities, table.kernel_size)
    for one, other in ((table, expected), (expected, table)):
        for tap_map, probability in zip(one.maps, one.probabilities.tolist(), strict=True):
            assert probability_of(other, tap_map) == pytest.approx(probability, abs=atol)


# --- translation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_shift", "law"),
    [
        (0.0, {0: 1.0}),
        (0.3, {0: 1.0}),
        (0.5, {0: 1.0}),
        (0.9, {-1: 0.4 / 1.8, 0: 1 / 1.8, 1: 0.4 / 1.8}),
        (1.5, {-1: 1 / 3, 0: 1 / 3, 1: 1 / 3}),
        (0.1 * 15, {-1: 1 / 3, 0: 1 / 3, 1: 1 / 3}),
        (2.1, {-2: 0.6 / 4.2, -1: 1 / 4.2, 0: 1 / 4.2, 1: 1 / 4.2, 2: 0.6 / 4.2}),
    ],
)
def test_shift_law_closed_form(max_shift, law):
    assert shift_law(max_shift) == pytest.approx(law, abs=1e-12)


@given(st.floats(0, 11))
def test_shift_law_sums_to_one_and_is_symmetric(max_shift):
    law = shift_law(max_shift)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    assert all(law[-shift] == probability for shift, probability in law.items())


@pytest.mark.parametrize("max_shift", [0.3, 0.9, 1.2, 3.3])
def test_shift_law_is_that_of_rounded_uniform_numbers(max_shift):
    drawn = torch.empty(200_000).uniform_(-max_shift, max_shift, generator=torch.Generator().manual_seed(0)).round()
    for shift, probability in shift_law(max_shift).items():
        assert float((drawn == shift).double().mean()) == pytest.approx(probability, abs=1e-2)


def test_translation_moves_along_the_width_by_the_first_fraction():
    table = RandomAffine(0, translate=(0.3, 0.0)).tap_table((3, 5))  # dx up to 1.5, dy 0
    assert table.probabilities.tolist() == pytest.approx([1 / 3] * 3, abs=1e-9)
    for dx in (-1, 0, 1):
        moved = torch.zeros(3, 5, 3, 5)  # output row and column, input row and column
        for row, column in itertools.product(range(3), range(5)):
            if 0 <= column - dx < 5:
                moved[row, column, row, column - dx] = 1
        assert probability_of(table, moved.reshape(15, 15)) == pytest.approx(1 / 3, abs=1e-9)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_translation_is_the_product_of_two_shift_laws(size, interpolation):
    kh, kw = size
    table = RandomAffine(0, translate=(0.4, 0.3), interpolation=interpolation).tap_table(size)
    maps, probabilities = [], []
    for (dx, px), (dy, py) in itertools.product(shift_law(0.4 * kw).items(), shift_law(0.3 * kh).items()):
        maps.append(TF.affine(size, 0, (dx, dy), 1.0, 0))
        probabilities.append(px * py)
    assert_same_law(table, maps, probabilities, 1e-9)
    assert table.maps.eq(0).logical_or(table.maps.eq(1)).all()  # whole taps are copied, also under bilinear


def test_paper_translation_probabilities():
    table = RandomAffine(0, translate=(0.3, 0.3)).tap_table(3)
    assert probability_of(table, torch.eye(9)) == pytest.approx((1 / 1.8) ** 2, abs=1e-9)
    assert table.mean_active_taps == pytest.approx((3 / 1.8 + 2 * 0.8 / 1.8) ** 2, abs=1e-9)


# --- flips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [(2, 3), (3, 3), (1, 4)])
def test_flips(size, p):
    taps = torch.arange(math.prod(size)).reshape(size)
    for transform, axis in ((RandomHorizontalFlip(p), 1), (RandomVerticalFlip(p), 0)):
        flipped = torch.eye(math.prod(size))[taps.flip(axis).flatten()]
        assert_same_law(transform.tap_table(size), [torch.eye(math.prod(size)), flipped], [1 - p, p], 1e-12)


# --- rotation --------------------------------------------------------------------------------------------------------


def middles(low, high, count):
    return [low + (high - low) * (i + 0.5) / count for i in range(count)]


def test_rotation_closed_form():
    """3x3: an edge tap moves on at 30 and at 60 degrees, a corner tap at 45 -+ acos(0.5 / sqrt 2)."""
    corner = math.acos(0.5 / math.sqrt(2)) - math.pi / 4  # 24.3 degrees
    table = RandomRotation(90).tap_table(3)
    quarter = TF.rotate(3, 90)
    assert probability_of(table, torch.eye(9)) == pytest.approx(2 * corner / math.pi, abs=1e-9)
    assert probability_of(table, quarter) == pytest.approx(corner / math.pi, abs=1e-9)
    assert probability_of(table, TF.rotate(3, 27)) == pytest.approx((math.pi / 6 - corner) / math.pi, abs=1e-9)
    # between 30 and 60 degrees edges are at the corners and corners at the edges
    assert probability_of(table, TF.rotate(3, 40)) == pytest.approx(1 / 6, abs=1e-9)
    assert table.probabilities.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("center", [None, (0.5, 1.25)])
@pytest.mark.parametrize("degrees", [(-90.0, 90.0), (10.0, 75.0), (-200.0, 260.0)])
@pytest.mark.parametrize("size", [(1, 7), (2, 3), (3, 3), (3, 5), (4, 4)])
def test_rotation_law(size, degrees, center):
    table = RandomRotation(degrees, center=center).tap_table(size)
    maps = [TF.rotate(size, angle, center=center) for angle in middles(*degrees, 1500)]
    assert_same_law(table, maps, [1 / 1500] * 1500, 1e-2)


def test_whole_turns_do_not_change_a_rotation():
    one, ten = RandomRotation((0, 360)).tap_table(5), RandomRotation((0, 3600)).tap_table(5)
    assert_same_law(ten, list(one.maps), one.probabilities, 1e-9)
    sources, probabilities = rotation_law((3, 3), (0.0, 360.0 * 1e6 + 45), None)
    assert len(sources) == 16
    assert probabilities.sum() == pytest.approx(1, abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 6), st.floats(-400, 400), st.floats(0.001, 800))
@settings(max_examples=30, deadline=None)
def test_rotation_law_holds_each_map_it_can_draw(kh, kw, low, width):
    sources, probabilities = rotation_law((kh, kw), (low, low + width), None)
    assert probabilities.sum() == pytest.approx(1, abs=1e-9)
    rows = {tuple(row) for row in sources.tolist()}
    for angle in middles(low, low + width, 7):
        tap_map = TF.affine((kh, kw), angle, (0, 0), 1.0, 0)
        source = torch.where(tap_map.any(1), tap_map.argmax(1), -1)
        # fp32 may round the other way when the angle is within 1e-4 degrees of a crossing
        near = [TF.affine((kh, kw), angle + d, (0, 0), 1.0, 0) for d in (-1e-4, 1e-4)]
        assert tuple(source.tolist()) in rows or not torch.equal(*near)


@pytest.mark.parametrize("size", [(2, 3), (3, 3), (1, 5)])
def test_rotation_with_translation_and_a_fixed_scale(size):
    kh, kw = size
    table = RandomAffine((-20, 50), translate=(0.3, 0.2), scale=(1.3, 1.3)).tap_table(size)
    maps, probabilities = [], []
    for (dx, px), (dy, py) in itertools.product(shift_law(0.3 * kw).items(), shift_law(0.2 * kh).items()):
        maps += [TF.affine(size, angle, (dx, dy), 1.3, 0) for angle in middles(-20, 50, 400)]
        probabilities += [px * py / 400] * 400
    assert_same_law(table, maps, probabilities, 1e-2)


def test_a_single_angle_is_torchvisions_own_map():
    for angle in (0.0, 45.0, 90.0):
        table = RandomRotation((angle, angle), interpolation="bilinear").tap_table(3)
        torch.testing.assert_close(table.maps, TF.rotate(3, angle, "bilinear").unsqueeze(0), atol=1e-6, rtol=0)


# --- resized crop ----------------------------------------------------------------------------------------------------


def drawn_crops(size, scale, ratio, draws):
    """{(top, left, height, width): frequency} of torchvision's get_params, all draws at once."""
    kh, kw = size
    generator = torch.Generator().manual_seed(0)
    area = (
        kh * kw * (scale[0] + (scale[1] - scale[0]) * torch.rand(draws, 10, generator=generator, dtype=torch.float64))
    )
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (log_low + (log_high - log_low) * torch.rand(draws, 10, generator=generator, dtype=torch.float64)).exp()
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width > 0) & (width <= kw) & (height > 0) & (height <= kh)
    first = fits.int().argmax(1, keepdim=True)
    width, height = width.gather(1, first)[:, 0], height.gather(1, first)[:, 0]
    top = (torch.rand(draws, generator=generator, dtype=torch.float64) * (kh - height + 1)).floor()
    left = (torch.rand(draws, generator=generator, dtype=torch.float64) * (kw - width + 1)).floor()
    height_f, width_f = kh, kw
    if kw / kh < ratio[0]:
        height_f = round(kw / ratio[0])
    elif kw / kh > ratio[1]:
        width_f = round(kh * ratio[1])
    fallback = torch.tensor([(kh - height_f) // 2, (kw - width_f) // 2, height_f, width_f], dtype=torch.float64)
    crops = torch.where(fits.any(1, keepdim=True), torch.stack([top, left, height, width], 1), fallback)
    rows, counts = crops.long().unique(dim=0, return_counts=True)
    return {tuple(row): count / draws for row, count in zip(rows.tolist(), counts.tolist(), strict=True)}


CROPS = [
    ((0.08, 1.0), (3 / 4, 4 / 3)),
    ((0.8, 1.0), (3 / 4, 4 / 3)),
    ((0.3, 0.5), (0.2, 3.0)),
    ((1.0, 1.0), (0.5, 2.0)),
    ((0.5, 0.5), (0.5, 2.0)),
    ((0.2, 1.0), (1.0, 1.0)),
    ((0.9, 2.5), (0.8, 1.1)),
    ((0.001, 0.01), (0.7, 1.5)),
]


@pytest.mark.parametrize(("scale", "ratio"), CROPS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (3, 3), (3, 5), (6, 4)])
def test_crop_law(size, scale, ratio):
    law = {}
    for probability, *crop in crop_law(size, scale, ratio):
        law[tuple(crop)] = law.get(tuple(crop), 0.0) + probability
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    drawn = drawn_crops(size, scale, ratio, 20_000)
    for crop in law.keys() | drawn.keys():
        assert law.get(crop, 0.0) == pytest.approx(drawn.get(crop, 0.0), abs=1.2e-2)


def test_crop_closed_form_of_a_square():
    """ratio 1: the side is round(3 sqrt(s)), 3 above s = (2.5 / 3)**2 and 2 above s = 1/4."""
    law = {tuple(crop): probability for probability, *crop in crop_law((3, 3), (0.25, 1.0), (1.0, 1.0))}
    large = (1 - (2.5 / 3) ** 2) / 0.75
    assert law[0, 0, 3, 3] == pytest.approx(large, abs=1e-9)
    for corner in itertools.product((0, 1), (0, 1)):
        assert law[(*corner, 2, 2)] == pytest.approx((1 - large) / 4, abs=1e-9)


def test_crop_closed_form_of_the_ten_tries():
    """The whole area, ratio e^L: fits 3x3 while 3 e^(|L| / 2) < 3.5, else the width or the height is 4."""
    fits = 2 * math.log(3.5 / 3) / math.log(2)
    law = crop_law((3, 3), (1.0, 1.0), (0.5, 2.0))
    assert [tuple(crop) for _, *crop in law] == [(0, 0, 3, 3)] * 2  # taken by a try, and by the fallback
    assert law[0][0] == pytest.approx(1 - (1 - fits) ** 10, abs=1e-9)
    assert law[1][0] == pytest.approx((1 - fits) ** 10, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "scale", "ratio", "crop"),
    [
        ((3, 3), (1.0, 1.0), (1.0, 1.0), (0, 0, 3, 3)),
        ((3, 5), (1.0, 1.0), (1.0, 1.0), (0, 1, 3, 3)),  # sqrt(15) is too high: the central square
        ((5, 3), (1.0, 1.0), (1.0, 1.0), (1, 0, 3, 3)),
        ((2, 8), (1.0, 1.0), (2.0, 2.0), (0, 2, 2, 4)),
    ],
)
def test_crop_of_a_single_point(size, scale, ratio, crop):
    assert crop_law(size, scale, ratio) == [(1.0, *crop)]
    table = RandomResizedCrop(scale, ratio).tap_table(size)
    torch.testing.assert_close(table.maps[0], TF.resized_crop(size, *crop), atol=1e-6, rtol=0)


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.01, 1), st.floats(0, 1), st.floats(0.2, 3), st.floats(1, 5))
@example(3, 3, 0.125, 7.7e-17, 1.0, 2.0)  # a range of a few roundings
@example(3, 3, 0.5, 1e-8, 1.0, 1 + 1e-9)
@settings(max_examples=40, deadline=None)
def test_crop_law_sums_to_one(kh, kw, low, width, ratio, factor):
    try:
        law = crop_law((kh, kw), (low, low + width), (ratio, ratio * factor))
    except ValueError as error:
        assert "rounds to nothing" in str(error)
        return
    assert sum(probability for probability, *_ in law) == pytest.approx(1, abs=1e-9)
    assert all(probability >= 0 for probability, *_ in law)
    assert all(0 < h <= kh and 0 < w <= kw and 0 <= top <= kh - h and 0 <= left <= kw - w for _, top, left, h, w in law)


# --- sampled families ------------------------------------------------------------------------------------------------


def test_quasi_random_numbers_take_the_middles_of_equal_intervals():
    points = quasi_random(256, 6)
    for coordinate in points.T:
        expected = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
        torch.testing.assert_close(coordinate.sort().values, expected, atol=1e-8, rtol=0)
    assert torch.equal(points, quasi_random(256, 6))
    assert quasi_random(100, 3).min() > 0 and quasi_random(100, 3).max() < 1


def test_sampled_affine_has_the_mean_of_torchvisions_draws():
    size, draws = (3, 4), 3000
    transform = RandomAffine(25, (0.3, 0.2), (0.8, 1.2), (-10, 20), "bilinear", num_maps=1024)
    table = transform.tap_table(size)
    uniform = torch.rand(draws, 5, generator=torch.Generator().manual_seed(0)).tolist()
    mean = torch.zeros(12, 12)
    for a, s, h, x, y in uniform:
        shift = (round(0.3 * 4 * (2 * x - 1)), round(0.2 * 3 * (2 * y - 1)))
        mean += TF.affine(size, 25 * (2 * a - 1), shift, 0.8 + 0.4 * s, (-10 + 30 * h, 0), "bilinear") / draws
    expected = torch.einsum("r,rtp->tp", table.probabilities, table.maps.double())
    torch.testing.assert_close(expected, mean.double(), atol=2e-2, rtol=0)


def test_num_maps_is_the_number_of_draws():
    for num_maps in (1, 2, 64):
        table = RandomRotation(30, "bilinear", num_maps=num_maps).tap_table(5)
        maps = [TF.rotate(5, angle, "bilinear") for angle in middles(-30, 30, num_maps)]
        assert_same_law(table, maps, [1 / num_maps] * num_maps, 1e-9)
    assert len(RandomRotation(30, "bilinear", num_maps=7).tap_table(5)) == 7


@pytest.mark.parametrize("size", [*SIZES, (11, 11)])
def test_every_family_sums_to_one_on_every_size(size):
    families = [
        RandomAffine(0, (0.3, 0.3)),
        RandomResizedCrop((0.8, 1.0)),
        RandomRotation(20),
        RandomAffine(15, scale=(0.9, 1.1), shear=5, num_maps=16),
    ]
    for family in families:
        table = family.tap_table(size)
        assert table.kernel_size == size
        assert float(table.probabilities.sum()) == pytest.approx(1, abs=1e-12)
        assert table.maps.sum(2).max() <= 1 + 1e-5  # interpolation never adds weight
