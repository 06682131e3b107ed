"""Rows, masks and noise drawn inside a Triton kernel against `wat_kernels.philox`."""

import pytest
import torch
import triton
import triton.language as tl

from tests.triton.device import DEVICE
from wat_kernels import TapTable, draw_rows, philox, triton_philox
from wat_kernels.draw import draw_noise

KEYS = [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF, -0x0FEDCBA987654321, 2**32 - 1, 2**32]


@triton.jit
def _rows_kernel(key, thresholds, rows, words, drawn):
    shadow = tl.program_id(0)
    word, second, third, fourth = triton_philox.row_words(tl.load(key), shadow)
    tl.store(words + 4 * shadow, word.to(tl.int64))
    tl.store(words + 4 * shadow + 1, second.to(tl.int64))
    tl.store(words + 4 * shadow + 2, third.to(tl.int64))
    tl.store(words + 4 * shadow + 3, fourth.to(tl.int64))
    tl.store(drawn + shadow, triton_philox.row_of(word, thresholds, rows))


@triton.jit
def _noise_kernel(
    key, first, length, factor, scale, cut,
    NOISE: tl.constexpr, PACKED: tl.constexpr, LINES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """factor: (shadows, LINES, length), line l starts at element first + l * length."""
    shadow = tl.program_id(0)
    line = first + tl.arange(0, LINES) * length
    columns = tl.arange(0, COLUMNS)
    drawn = triton_philox.noise_factor(tl.load(key), shadow, line, 0, scale, cut, NOISE, PACKED, COLUMNS)
    places = factor + (shadow * LINES + tl.arange(0, LINES))[:, None] * length + columns[None, :]
    tl.store(places, drawn, mask=(columns < length)[None, :])


@pytest.mark.parametrize("rows", [1, 2, 9, 65, 300])
@pytest.mark.parametrize("key", KEYS)
def test_rows_and_words(key, rows):
    probabilities = torch.rand(rows, dtype=torch.float64) + 0.01
    table = TapTable(torch.randn(rows, 4, 4), probabilities / probabilities.sum())
    tensors, key = table.on(torch.device(DEVICE)), torch.tensor(key, device=DEVICE)
    words = torch.zeros(5, 4, dtype=torch.int64, device=DEVICE)
    drawn = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    _rows_kernel[(5,)](key, tensors.thresholds, len(tensors.thresholds), words, drawn)
    assert torch.equal(words, torch.stack(philox.row_words(key, 5), 1))
    assert torch.equal(drawn, draw_rows(table, key, 5))


@pytest.mark.parametrize("shadows", [1, 7, 128, 300])
def test_the_op_of_the_words(shadows):
    for key in KEYS:
        words = torch.ops.wat_kernels.row_words.triton(torch.tensor(key, device=DEVICE), shadows)
        assert torch.equal(words, torch.stack(philox.row_words(torch.tensor(key, device=DEVICE), shadows)))


def test_a_threshold_is_inclusive():
    key = torch.tensor(7, device=DEVICE)
    word = int(philox.row_words(key, 1)[0])
    for threshold, row in ((word - 1, 1), (word, 1), (word + 1, 0)):
        thresholds = torch.tensor([threshold, 2**32], device=DEVICE)
        words, drawn = (
            torch.zeros(4, dtype=torch.int64, device=DEVICE),
            torch.zeros(1, dtype=torch.int64, device=DEVICE),
        )
        _rows_kernel[(1,)](key, thresholds, 2, words, drawn)
        assert int(drawn) == row


def _drawn(key, noise, scale, cut, packed, lines, length, shadows=3, first=0):
    factor = torch.full((shadows, lines, length), torch.nan, device=DEVICE)
    columns = max(8, triton.next_power_of_2(length))
    _noise_kernel[(shadows,)](
        torch.tensor(key, device=DEVICE), first, length, factor, scale, cut, noise, packed, lines, columns
    )
    return factor.flatten(1)


@pytest.mark.parametrize(("packed", "length"), [(True, 16), (True, 24), (False, 16), (False, 5), (False, 27)])
@pytest.mark.parametrize("key", KEYS[::3])
def test_drop_connect_is_the_same_bit_for_bit(key, packed, length):
    for probability in (0.0, 0.3, 0.999999):
        factor = _drawn(key, 2, 2.0, round(65536 * probability), packed, 4, length)
        mask = philox.keep_mask(torch.tensor(key, device=DEVICE), 3, 4 * length, probability)
        assert torch.equal(factor, mask * 2.0)


@pytest.mark.parametrize(("packed", "length"), [(True, 16), (True, 24), (False, 16), (False, 5), (False, 27)])
@pytest.mark.parametrize("key", KEYS[::3])
def test_gaussian_noise(key, packed, length):
    factor = _drawn(key, 1, 0.5, 0, packed, 4, length)
    right = draw_noise(1, 0.5, torch.tensor(key, device=DEVICE), 3, 4 * length)
    torch.testing.assert_close(factor, right, atol=1e-6, rtol=0)


def test_many_normal_numbers_at_once():
    lines, length = 1024, 64
    z = _drawn(3, 1, 1.0, 0, True, lines, length, shadows=1)[0] - 1
    right = philox.standard_normal(torch.tensor(3, device=DEVICE), 1, lines * length)[0]
    torch.testing.assert_close(z, right, atol=2e-6, rtol=0)
    assert abs(float(z.mean())) < 0.02 and abs(float(z.std()) - 1) < 0.02


def test_elements_beyond_32_bits():
    first = 2**35 + 8
    factor = _drawn(3, 2, 1.0, 30000, True, 2, 16, shadows=1, first=first)
    block = torch.arange(first // 8, first // 8 + 4)
    zero = torch.zeros_like(block)
    words = torch.stack(
        philox.philox4x32((block & 0xFFFFFFFF, block >> 32, zero, zero + 1), philox.split_key(torch.tensor(3))), -1
    )
    halves = torch.stack((words & 0xFFFF, words >> 16), -1).flatten()
    assert torch.equal(factor[0].cpu(), (halves >= 30000).float())
