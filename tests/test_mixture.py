"""Tables and grids mixed with the identity."""

import copy
import pickle

import pytest
import torch
from watnn.transforms import WAT, RandomAffine, RandomHorizontalFlip, RandomRotation

from wat_kernels import MixedGrid, MixedTable, Noise, TapTable, draw_rows, shadow_conv2d, shadow_linear
from wat_kernels.matrix_grid import draw_matrix_grid
from wat_kernels.noise import TensorNoise

CPU = torch.device("cpu")
TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
TABLES = {
    "with identity": WAT().tap_table(3),
    "without": RandomHorizontalFlip(1.0).tap_table(3),
    "many rows": RandomRotation(90, num_maps=64).tap_table(5),
    "identity alone": TapTable.identity((3, 3)),
}
tables = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def thresholds(table):
    return table.on(CPU).thresholds


@tables
def test_full_strength_draws_what_the_table_draws(table):
    mixed = MixedTable(table)
    assert torch.equal(thresholds(mixed)[: len(table)], thresholds(table))
    for key in range(50):
        drawn = draw_rows(table, key, 4)
        assert torch.equal(draw_rows(mixed, key, 4), drawn)
        assert torch.equal(mixed.maps[drawn], table.maps[drawn])


@tables
def test_no_strength_draws_the_identity(table):
    mixed = MixedTable(table, 0.0)
    words = torch.tensor([0, 1, 2**31, 2**32 - 1])  # all that a word can be, at its ends
    rows = (thresholds(mixed) <= words.unsqueeze(1)).sum(1)
    assert torch.equal(mixed.maps[rows], torch.eye(table.maps.shape[1]).expand(4, -1, -1))


@tables
@pytest.mark.parametrize("strength", [1e-9, 0.2, 1 / 3, 0.999, 1 - 1e-12])
def test_the_law_is_that_of_the_table_built_anew(table, strength):
    mixed = MixedTable(table, strength)
    assert (thresholds(mixed).diff() >= 0).all() and thresholds(mixed)[-1] == 2**32
    built = TapTable.union([table, TapTable.identity(table.kernel_size)], [strength, 1 - strength])
    torch.testing.assert_close(mixed.probabilities, built.probabilities)
    assert torch.equal(mixed.maps, built.maps)
    assert (thresholds(mixed) - thresholds(built)).abs().max() <= 1  # of 2**32: other rounding of the same number
    assert mixed.mean_active_taps == pytest.approx(built.mean_active_taps)


def test_a_change_of_strength_is_in_place_and_stays_with_the_mixture():
    table = TABLES["with identity"]
    before = thresholds(table).clone()
    first, second = MixedTable(table, 0.5), MixedTable(table, 0.5)
    held = first._on_device[CPU].thresholds
    first.strength = 0.25
    assert held is first._on_device[CPU].thresholds
    assert torch.equal(held, thresholds(MixedTable(table, 0.25)))
    assert torch.equal(thresholds(second), thresholds(MixedTable(table, 0.5)))
    assert torch.equal(thresholds(table), before)
    assert first != second and first == first and len({first, second}) == 2


def test_a_change_reaches_tensors_made_under_inference_mode():
    mixed = MixedTable(TABLES["with identity"], 0.5)
    with torch.inference_mode():
        mixed._on_device[CPU] = mixed._on_device[CPU]._replace(thresholds=torch.zeros(len(mixed), dtype=torch.int64))
    mixed.strength = 0.0
    assert torch.equal(thresholds(mixed), thresholds(MixedTable(TABLES["with identity"], 0.0)))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda mixed: pickle.loads(pickle.dumps(mixed))])
def test_copies_have_the_strength_and_then_their_own(make):
    mixed = MixedTable(TABLES["with identity"], 0.3)
    other = make(mixed)
    assert other is not mixed and other.strength == 0.3 and torch.equal(thresholds(other), thresholds(mixed))
    other.strength = 0.9
    assert mixed.strength == 0.3 and torch.equal(thresholds(mixed), thresholds(make(mixed)))
    assert not torch.equal(thresholds(other), thresholds(mixed))


@pytest.mark.parametrize("backend", ["native", "library", "reference"])
def test_backward_draws_what_its_forward_drew(backend):
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    mixed, plain = MixedTable(TABLES["without"], 1.0), TABLES["without"]
    y = shadow_conv2d(x, weight, table=mixed, key=1, backend=backend)
    mixed.strength = 0.0
    found = torch.autograd.grad(y.square().sum(), weight)[0]
    y = shadow_conv2d(x, weight, table=plain, key=1, backend=backend)
    assert torch.equal(found, torch.autograd.grad(y.square().sum(), weight)[0])


def test_a_matrix_moves_with_the_probability_of_the_strength():
    grid = TRANSLATE.matrix_grid((40, 30))
    mixed = MixedGrid(grid, 0.25)
    assert torch.equal(mixed.rows, torch.cat((grid.rows, torch.zeros(1, 4, dtype=torch.int64))))
    assert mixed.on(CPU).thresholds.tolist() == [2**30, 2**32]
    draws = torch.stack(draw_matrix_grid(*mixed.on(CPU), torch.tensor(3), 4000))
    moved = draws.any(0)
    assert 0.2 < moved.float().mean() < 0.3
    full = torch.stack(draw_matrix_grid(*grid.on(CPU), torch.tensor(3), 4000))
    assert torch.equal(draws[:, moved], full[:, moved])
    mixed.strength = 1
    assert torch.equal(torch.stack(draw_matrix_grid(*mixed.on(CPU), torch.tensor(3), 4000)), full)
    flips = MixedGrid(RandomHorizontalFlip(0.5).matrix_grid((4, 4)), 0.5)  # has an identity row of its own
    assert len(flips) == 2 and flips.probabilities.tolist() == pytest.approx([0.75, 0.25])
    assert copy.deepcopy(flips).strength == 0.5


@pytest.mark.parametrize(
    ("strength", "error"), [(-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_errors(strength, error):
    with pytest.raises(error, match=r"strength=.*; accepted is a number from 0 to 1"):
        MixedTable(TABLES["without"], strength)


def test_a_mixture_is_made_on_the_cpu_under_any_default_device():
    with torch.device("meta"):
        mixed = MixedTable(TABLES["without"], 0.5)
        mixed.strength = 0.25
    assert torch.equal(thresholds(mixed), thresholds(MixedTable(TABLES["without"], 0.25)))
    assert thresholds(mixed).tolist() == [2**30, 2**32]


@pytest.mark.parametrize("backend", ["native", "library", "reference"])
@pytest.mark.parametrize("kind", ["dropconnect", "multiplicative"])
def test_an_amount_that_is_a_tensor(kind, backend):
    """Ops of a compiled graph take it so; the same draws to the bit, forward and backward."""
    x, weight = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    results = []
    for noise in (Noise(kind, 0.37), TensorNoise(kind, torch.tensor(0.37, dtype=torch.float64))):
        y = shadow_conv2d(x, weight, table=TABLES["with identity"], key=9, noise=noise, shadows=2, backend=backend)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
        y = shadow_linear(x.flatten(1), weight.view(1, 108), key=9, noise=noise, backend=backend)
        results[-1] += (y, *torch.autograd.grad(y.square().sum(), (x, weight)))
    for of_float, of_tensor in zip(*results, strict=True):
        assert torch.equal(of_float, of_tensor)
