"""Transforms of transforms: unions and products of tap tables, and which part is grid and which is noise."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from watnn import transforms as T
from watnn.transforms import functional as TF

from wat_kernels.noise import Noise
from wat_kernels.tap_table import TapTable

HFLIP = T.RandomHorizontalFlip(1.0)
TRANSLATE = T.RandomAffine(0, translate=(0.3, 0.3))
DENSITY = T.TapDensity([[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def probability_of(table, tap_map):
    return float(table.probabilities[(table.maps - tap_map).abs().amax((1, 2)) < 1e-5].sum())


def assert_same_law(table, expected):
    for one, other in ((table, expected), (expected, table)):
        for tap_map, probability in zip(one.maps, one.probabilities.tolist(), strict=True):
            assert probability_of(other, tap_map) == pytest.approx(probability, abs=1e-9)


def test_choice_is_the_weighted_union():
    table = T.RandomChoice([T.RandomHorizontalFlip(0.4), T.RandomVerticalFlip(0.5)], p=[0.25, 0.75]).tap_table(3)
    assert len(table) == 3
    assert probability_of(table, TF.hflip(3)) == pytest.approx(0.25 * 0.4, abs=1e-12)
    assert probability_of(table, TF.vflip(3)) == pytest.approx(0.75 * 0.5, abs=1e-12)
    assert probability_of(table, torch.eye(9)) == pytest.approx(0.25 * 0.6 + 0.75 * 0.5, abs=1e-12)


def test_choice_is_even_by_default():
    table = T.RandomChoice([HFLIP, T.RandomVerticalFlip(1.0), T.Identity(), T.Identity()]).tap_table((2, 3))
    assert probability_of(table, torch.eye(6)) == pytest.approx(0.5, abs=1e-12)
    assert probability_of(table, TF.hflip((2, 3))) == pytest.approx(0.25, abs=1e-12)


def test_wat_is_the_papers_choice():
    table = T.WAT().tap_table(3)
    assert len(table) == 9 + 5 - 1
    crop, translate = T.RandomResizedCrop((0.8, 1.0)).tap_table(3), TRANSLATE.tap_table(3)
    both = (probability_of(crop, torch.eye(9)) + probability_of(translate, torch.eye(9))) / 2
    assert probability_of(table, torch.eye(9)) == pytest.approx(both, abs=1e-12)


def test_apply_is_the_union_with_the_identity():
    table = T.RandomApply(TRANSLATE, p=0.2).tap_table(3)
    inner = TRANSLATE.tap_table(3)
    for tap_map, probability in zip(inner.maps, inner.probabilities.tolist(), strict=True):
        identity = 0.8 if torch.equal(tap_map, torch.eye(9)) else 0.0
        assert probability_of(table, tap_map) == pytest.approx(0.2 * probability + identity, abs=1e-12)
    assert T.RandomApply(TRANSLATE, p=0).tap_table(3).is_identity
    assert_same_law(T.RandomApply([HFLIP, DENSITY], p=1).tap_table(3), T.Compose([HFLIP, DENSITY]).tap_table(3))


def test_compose_does_the_first_first():
    kernel = torch.arange(9.0)
    density = torch.arange(1.0, 10.0)
    (mirrored_then_scaled,) = T.Compose([HFLIP, DENSITY]).tap_table(3).maps
    torch.testing.assert_close(mirrored_then_scaled @ kernel, kernel.reshape(3, 3).flip(1).flatten() * density)
    (scaled_then_mirrored,) = T.Compose([DENSITY, HFLIP]).tap_table(3).maps
    torch.testing.assert_close(
        scaled_then_mirrored @ kernel, (kernel * density).reshape(3, 3).flip(1).flatten(), atol=1e-5, rtol=0
    )


def test_compose_multiplies_probabilities():
    table = T.Compose([T.RandomHorizontalFlip(0.3), T.RandomVerticalFlip(0.4)]).tap_table((3, 2))
    for (h, ph), (v, pv) in itertools.product([(False, 0.7), (True, 0.3)], [(False, 0.6), (True, 0.4)]):
        tap_map = torch.eye(6)
        tap_map = TF.hflip((3, 2)) @ tap_map if h else tap_map
        tap_map = TF.vflip((3, 2)) @ tap_map if v else tap_map
        assert probability_of(table, tap_map) == pytest.approx(ph * pv, abs=1e-12)


def test_identity_is_neutral():
    assert T.Identity().tap_table((3, 5)).is_identity
    assert_same_law(T.Compose([T.Identity(), TRANSLATE, T.Identity()]).tap_table(3), TRANSLATE.tap_table(3))
    assert T.Compose([T.Identity()]).tap_table(3).is_identity


_GRIDS = st.recursive(
    st.sampled_from(
        [TRANSLATE, T.RandomHorizontalFlip(0.3), T.RandomVerticalFlip(), T.Identity(), T.RandomRotation(60)]
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(T.Compose),
        st.lists(inner, min_size=1, max_size=3).map(T.RandomChoice),
        st.builds(T.RandomApply, inner, st.floats(0, 1)),
    ),
    max_leaves=3,
)


@given(_GRIDS, _GRIDS, st.sampled_from([(2, 2), (3, 3), (1, 4)]))
@settings(max_examples=30, deadline=None)
def test_tables_of_combinations_follow_from_those_of_their_parts(first, second, size):
    one, other = first.tap_table(size), second.tap_table(size)
    assert_same_law(T.Compose([first, second]).tap_table(size), one.then(other))
    assert_same_law(
        T.RandomChoice([first, second], [0.3, 0.7]).tap_table(size), TapTable.union([one, other], [0.3, 0.7])
    )
    assert float(one.probabilities.sum()) == pytest.approx(1, abs=1e-9)


def test_a_product_with_too_many_rows_is_sampled():
    turn = T.RandomRotation(20, "bilinear", num_maps=100)
    both = T.Compose([turn, turn]).tap_table(3)
    assert len(both) <= 1024
    assert T.Compose([turn, turn]).tap_table(3) is both
    exact = turn.tap_table(3).then(turn.tap_table(3))
    mean, exact_mean = (torch.einsum("r,rtp->tp", t.probabilities, t.maps.double()) for t in (both, exact))
    torch.testing.assert_close(mean, exact_mean, atol=2e-3, rtol=0)


def test_grid_and_noise():
    drop, damp = T.DropConnect(0.1), T.MultiplicativeNoise(0.2)
    assert TRANSLATE.grid is TRANSLATE and TRANSLATE.noise is None
    assert T.Identity().grid is None and T.Identity().noise is None
    assert drop.grid is None and drop.noise == Noise("dropconnect", 0.1) and drop.noise.code == 2
    assert damp.grid is None and damp.noise == Noise("multiplicative", 0.2) and damp.noise.code == 1

    both = T.Compose([TRANSLATE, drop])
    assert both.grid == TRANSLATE and both.noise == drop.noise
    nested = T.Compose([HFLIP, T.Identity(), T.Compose([TRANSLATE, drop])])
    assert nested.grid == T.Compose([HFLIP, TRANSLATE]) and nested.noise == drop.noise
    assert_same_law(nested.tap_table(3), T.Compose([HFLIP, TRANSLATE]).tap_table(3))
    assert T.Compose([drop]).grid is None and T.Compose([drop]).noise == drop.noise
    assert T.Compose([T.Identity(), damp]).grid is None
    grids = T.Compose([HFLIP, TRANSLATE])
    assert grids.grid is grids and grids.noise is None
