"""Translation and flips of a whole (out, in) matrix: rows, draws, and what they mean for an image."""

import copy
import pickle

import pytest
import torch
from watnn import transforms as T
from watnn.transforms import functional as TF
from watnn.transforms.laws import shift_law

from wat_kernels.matrix_grid import MatrixGrid, draw_matrix_grid

TRANSLATE = T.RandomAffine(0, translate=(0.25, 0.5))
SHAPE = (6, 10)  # out, in: shifts of up to 3 along `out`, 2.5 along `in`
MOVED = [0, 0, 3 << 16, 5 << 15]


def draws(grid, count, key=1234):
    """(flip_out, flip_in, shift_out, shift_in) of `count` shadows, (count, 4)."""
    return torch.stack(draw_matrix_grid(*grid.on(torch.device("cpu")), torch.tensor(key), count), 1)


def shadow(weight, flip_out, flip_in, shift_out, shift_in):
    """SW by the definition in MatrixGrid."""
    moved = torch.zeros_like(weight)
    rows, columns = weight.shape
    for o in range(rows):
        for i in range(columns):
            if 0 <= o - shift_out < rows and 0 <= i - shift_in < columns:
                moved[o, i] = weight[o - shift_out, i - shift_in]
    moved = moved.flip(0) if flip_out else moved
    return moved.flip(1) if flip_in else moved


@pytest.mark.parametrize(
    ("transform", "rows", "probabilities"),
    [
        (TRANSLATE, [MOVED], [1]),
        (T.RandomAffine(0, (0.25, 0.5), (1, 1), 0, "bilinear"), [MOVED], [1]),
        (T.Identity(), [[0, 0, 0, 0]], [1]),
        (T.RandomAffine(0), [[0, 0, 0, 0]], [1]),
        (T.RandomHorizontalFlip(0.3), [[0, 0, 0, 0], [0, 1, 0, 0]], [0.7, 0.3]),
        (T.RandomVerticalFlip(0.3), [[0, 0, 0, 0], [1, 0, 0, 0]], [0.7, 0.3]),
        (T.RandomVerticalFlip(1), [[1, 0, 0, 0]], [1]),
        (T.RandomApply(TRANSLATE, 0.2), [MOVED, [0, 0, 0, 0]], [0.2, 0.8]),
        (T.RandomChoice([TRANSLATE, T.Identity(), T.Identity()], (0.5, 0.25, 0.25)), [MOVED, [0, 0, 0, 0]], [0.5, 0.5]),
        (T.Compose([TRANSLATE, T.RandomHorizontalFlip(0.3)]), [MOVED, [0, 1, *MOVED[2:]]], [0.7, 0.3]),
        (T.Compose([T.RandomHorizontalFlip(0.3), TRANSLATE]), [MOVED, [0, 1, *MOVED[2:]]], [0.7, 0.3]),
        (T.Compose([T.RandomHorizontalFlip(1), T.RandomHorizontalFlip(1)]), [[0, 0, 0, 0]], [1]),
        (T.Compose([T.RandomVerticalFlip(1), T.Identity(), T.RandomHorizontalFlip(1)]), [[1, 1, 0, 0]], [1]),
        (T.Compose([T.RandomAffine(0, (0.25, 0)), T.RandomAffine(0, (0, 0.5))]), [MOVED], [1]),
    ],
    ids=repr,
)
def test_rows(transform, rows, probabilities):
    grid = transform.matrix_grid(SHAPE)
    assert grid.rows.tolist() == rows and grid.shape == SHAPE
    assert grid.probabilities.tolist() == pytest.approx(probabilities, abs=1e-12)
    cumulative = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)
    assert grid.thresholds.tolist() == (cumulative * 2**32).round().long().tolist()
    assert grid.is_identity == (rows == [[0, 0, 0, 0]])


def test_noise_in_a_compose_leaves_the_grid():
    transform = T.Compose([TRANSLATE, T.DropConnect(0.1)])
    assert transform.grid.matrix_grid(SHAPE).rows.tolist() == [MOVED]
    assert transform.matrix_grid(SHAPE).rows.tolist() == [MOVED]


@pytest.mark.parametrize(
    "transform",
    [
        T.RandomRotation(10),
        T.RandomAffine(10),
        T.RandomAffine(0, scale=(0.9, 1.1)),
        T.RandomAffine(0, shear=5),
        T.RandomResizedCrop(),
        T.TapDensity([[1.0]]),
        T.FromCallable(torch.fliplr),
        T.WAT(),
        T.RandomApply(T.RandomRotation(10)),
        T.Compose([TRANSLATE, T.RandomResizedCrop()]),
    ],
    ids=repr,
)
def test_what_is_no_index_arithmetic_is_refused(transform):
    with pytest.raises(ValueError, match=r"\) does not apply to a Linear weight; accepted is RandomAffine\(degrees=0"):
        transform.matrix_grid(SHAPE)


def test_two_translations_are_refused():
    with pytest.raises(ValueError, match=r"Compose\(.*translates twice; accepted .* at most one translation"):
        T.Compose([TRANSLATE, TRANSLATE]).matrix_grid(SHAPE)


@pytest.mark.parametrize("shape", [3, (3,), (0, 3), (3.0, 3), "ab", (1, 2, 3)])
def test_bad_shape(shape):
    with pytest.raises((TypeError, ValueError), match=r"shape=.*accepted is two positive integers"):
        TRANSLATE.matrix_grid(shape)


def test_draws_follow_the_law():
    grid = T.RandomChoice([TRANSLATE, T.RandomVerticalFlip(1)], [0.75, 0.25]).matrix_grid(SHAPE)
    drawn = draws(grid, 40_000)
    moved = drawn[drawn[:, 0] == 0]
    assert len(moved) / len(drawn) == pytest.approx(0.75, abs=1e-2)
    assert not drawn[drawn[:, 0] == 1][:, 2:].any() and not drawn[:, 1].any()
    for axis, law in ((2, shift_law(3.0)), (3, shift_law(2.5))):
        for value in range(-3, 4):
            assert float((moved[:, axis] == value).double().mean()) == pytest.approx(law.get(value, 0), abs=1e-2)
    independent = float(((moved[:, 2] > 0) & (moved[:, 3] > 0)).double().mean())
    apart = float((moved[:, 2] > 0).double().mean() * (moved[:, 3] > 0).double().mean())
    assert independent == pytest.approx(apart, abs=1e-2)


def test_draws_are_a_function_of_the_key():
    grid = TRANSLATE.matrix_grid((512, 300))
    assert torch.equal(draws(grid, 64), draws(grid, 64))
    assert torch.equal(draws(grid, 64)[:5], draws(grid, 5))
    assert not torch.equal(draws(grid, 64), draws(grid, 64, key=-5))


@pytest.mark.parametrize("fraction", [(0.0, 0.0), (1.0, 1.0), (0.001, 0.3)])
def test_shifts_stay_in_range_on_large_matrices(fraction):
    shape = (2**21, 1000)
    drawn = draws(T.RandomAffine(0, fraction).matrix_grid(shape), 2000)
    for axis, length in ((2, shape[0] * fraction[1]), (3, shape[1] * fraction[0])):
        assert drawn[:, axis].abs().max() <= length + 0.5
        assert drawn[:, axis].double().mean().abs() <= 4 * length / (3 * 2000) ** 0.5
        if length > 1:
            assert drawn[:, axis].max() > 0.98 * length and drawn[:, axis].min() < -0.98 * length


def test_a_draw_is_what_torchvision_does_to_an_image():
    out, in_ = 4, 5
    weight = torch.randn(out, in_)
    grid = T.Compose([T.RandomAffine(0, (0.5, 0.5)), T.RandomVerticalFlip(), T.RandomHorizontalFlip()]).matrix_grid(
        (out, in_)
    )
    for flip_out, flip_in, shift_out, shift_in in draws(grid, 24).tolist():
        tap_map = TF.affine((out, in_), 0, (shift_in, shift_out), 1.0, 0)
        tap_map = TF.vflip((out, in_)) @ tap_map if flip_out else tap_map
        tap_map = TF.hflip((out, in_)) @ tap_map if flip_in else tap_map
        expected = (tap_map @ weight.flatten()).reshape(out, in_)
        torch.testing.assert_close(shadow(weight, flip_out, flip_in, shift_out, shift_in), expected)


def test_a_matrix_has_the_law_of_the_tap_table_of_that_size():
    """The same transform, once as index arithmetic and once as a table of the matrix taken as one kernel."""
    shape = (3, 4)
    transform = T.Compose([T.RandomHorizontalFlip(0.5), T.RandomAffine(0, (0.3, 0.4))])
    table = transform.tap_table(shape)
    drawn, counts = draws(transform.matrix_grid(shape), 20_000).unique(dim=0, return_counts=True)
    frequencies = torch.zeros(len(table))
    numbers = torch.arange(1.0, 13.0)
    shadows = table.maps @ numbers
    for row, count in zip(drawn.tolist(), counts.tolist(), strict=True):
        matches = (shadows == shadow(numbers.reshape(shape), *row).flatten()).all(1)
        assert matches.sum() == 1
        frequencies[matches] += count / 20_000
    torch.testing.assert_close(frequencies.double(), table.probabilities, atol=1.2e-2, rtol=0)


def test_value():
    grid = MatrixGrid([[0, 1, 5, 6], [0, 0, 0, 0], [0, 1, 5, 6], [1, 1, 0, 0]], [0.25, 0.5, 0.25, 0.0], (3, 4))
    assert grid.rows.tolist() == [[0, 1, 5, 6], [0, 0, 0, 0]] and len(grid) == 2
    assert eval(repr(grid)) == grid and pickle.loads(pickle.dumps(grid)) == grid
    assert hash(pickle.loads(pickle.dumps(grid))) == hash(grid) and copy.deepcopy(grid) is grid
    assert grid != MatrixGrid(grid.rows, grid.probabilities)
    assert grid.on(torch.device("cpu")) is grid.on(torch.device("cpu"))


@pytest.mark.parametrize(
    ("rows", "probabilities", "message"),
    [
        ([[0, 0, 0]], [1.0], "rows is .* accepted is integers of shape"),
        ([[0.0, 0, 0, 0]], [1.0], "rows is .* accepted is integers of shape"),
        ([[2, 0, 0, 0]], [1.0], "flips"),
        ([[0, 0, -1, 0]], [1.0], "maximal shifts"),
        ([[0, 0, 0, 1 << 38]], [1.0], "maximal shifts"),
        ([[0, 0, 0, 0]], [0.5, 0.5], "probabilities has shape"),
        ([[0, 0, 0, 0]], [0.5], "probabilities sum to"),
        ([[0, 0, 0, 0], [0, 1, 0, 0]], [1.5, -0.5], ">= 0"),
        ([[0, 0, 0, 0]], [float("nan")], ">= 0"),
    ],
)
def test_bad_grid(rows, probabilities, message):
    with pytest.raises(ValueError, match=message):
        MatrixGrid(rows, probabilities)
