"""The designs that move boxes of pixels, each configuration by turns, against the reference."""

import itertools

import pytest
import torch

from tests.triton.check_conv import NOISES, TRANSLATIONS, check
from tests.triton.device import DEVICE
from wat_kernels import TapTable, draw_rows, triton_launch

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="needs compute capability 9.0",
)
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16


@pytest.fixture(autouse=True)
def taken():
    """Chooses box designs wherever there is one. Gives the kernels that were planned."""
    turn, names = itertools.count(), []

    def pick(kernel, suited):
        boxed = [config for config in suited if "BW" in config.kwargs]
        names.append((kernel, bool(boxed)))
        choices = boxed or suited[-1:]
        return choices[next(turn) % len(choices)]

    with triton_launch.choosing(pick):
        yield names


def last(*shape):
    return torch.randn(*shape).to(memory_format=torch.channels_last)


def run(taken, *tensors, passes=3, **settings):
    check(*tensors, dtype=DTYPE, **settings)
    assert sum(boxed for _, boxed in taken) == passes, taken


@pytest.mark.parametrize("key", range(5))
@pytest.mark.parametrize("image", [(9, 7), (4, 4), (5, 33)])
def test_every_translation(taken, image, key):
    weight = last(32, 64, 3, 3) / 10
    run(
        taken,
        last(3, 64, *image),
        weight,
        torch.randn(32),
        torch.rand(32) + 0.5,
        table=TRANSLATIONS,
        key=key,
        padding=1,
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_rows_that_mix(taken, width, noise):
    mixed = torch.zeros(9, 9)
    for tap in range(9):
        mixed[tap, torch.randperm(9)[:width]] = torch.randn(width)
    table = TapTable(torch.stack([mixed, torch.eye(9), torch.zeros(9, 9)]), [0.5, 0.25, 0.25], (3, 3))
    for row in range(3):
        key = next(k for k in range(99) if draw_rows(table, k, 1).tolist() == [row])
        taken.clear()
        triton_launch.forget_plans()
        gain = torch.tensor(0.7) if row else torch.rand(40) + 0.5
        run(
            taken,
            last(2, 32, 6, 5),
            last(40, 32, 3, 3) / 10,
            torch.randn(40),
            gain,
            table=table,
            key=key,
            noise=noise,
            padding=1,
        )


def test_groups(taken):
    run(
        taken,
        last(2, 64, 5, 6),
        last(128, 32, 3, 3) / 10,
        None,
        torch.rand(128) + 0.5,
        table=TRANSLATIONS,
        key=3,
        padding=1,
        groups=2,
    )


def test_chunks_have_draws_of_their_own(taken):
    """The weight gradient of several draws has no such design."""
    run(
        taken,
        last(6, 32, 5, 6),
        last(32, 32, 3, 3) / 10,
        None,
        None,
        passes=2,
        table=TRANSLATIONS,
        key=3,
        padding=1,
        shadows=2,
    )


@pytest.mark.parametrize("settings", [{"padding": 2, "dilation": 2}, {"padding": (0, 3)}, {"padding": 0}], ids=str)
def test_paddings_and_dilations(taken, settings):
    run(
        taken, last(2, 32, 9, 12), last(32, 32, 3, 3) / 10, torch.randn(32), None, table=TRANSLATIONS, key=1, **settings
    )


def test_a_kernel_of_one_tap_and_channels_that_fill_no_tile(taken):
    run(taken, last(2, 32, 5, 5), last(40, 32, 1, 1), torch.randn(40), None, table=TapTable.identity((1, 1)), key=1)


def test_what_has_no_boxes_goes_the_other_way(taken):
    weight = last(32, 32, 3, 3) / 10
    run(taken, last(2, 32, 9, 12), weight, None, None, passes=0, table=TRANSLATIONS, key=1, stride=2)
    taken.clear()
    triton_launch.forget_plans()
    run(taken, last(2, 35, 5, 6), last(32, 35, 3, 3), None, None, passes=0, table=TRANSLATIONS, key=1)
    taken.clear()
    triton_launch.forget_plans()
    run(taken, last(2, 32, 5, 6), last(32, 1, 3, 3), None, None, passes=0, table=TRANSLATIONS, key=1, groups=32)


def test_an_image_whose_address_is_no_multiple_of_16_bytes(taken):
    x = torch.randn(2 * 5 * 6 * 32 + 1)[1:].view(2, 5, 6, 32).permute(0, 3, 1, 2)
    run(taken, x, last(32, 32, 3, 3) / 10, None, None, table=TRANSLATIONS, key=1, padding=1)
