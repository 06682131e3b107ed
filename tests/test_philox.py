"""The bits that every backend must agree on."""

import math

import pytest
import torch

from wat_kernels import TapTable, draw_key, draw_rows, philox
from wat_kernels.draw import as_key, draw_noise

ONES = 0xFFFFFFFF

# Random123's known-answer test vectors for philox4x32-10: counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox.philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in words) == expected


def test_key_splits_into_unsigned_halves():
    low, high = philox.split_key(torch.tensor([-1, 0x0123456789ABCDEF, -(2**63)]))
    assert low.tolist() == [ONES, 0x89ABCDEF, 0]
    assert high.tolist() == [ONES, 0x01234567, 0x80000000]


def words_of(block, shadow, purpose, key):
    counter = (torch.tensor(block & ONES), torch.tensor(block >> 32), torch.tensor(shadow), torch.tensor(purpose))
    return [int(word) for word in philox.philox4x32(counter, philox.split_key(torch.tensor(key)))]


def test_row_draw_is_the_first_word_of_block_zero():
    table = TapTable(torch.randn(5, 4, 4), [0.1, 0.2, 0.3, 0.15, 0.25])
    thresholds = table.on(torch.device("cpu")).thresholds.tolist()
    for key in (0, -7, 2**62 + 12345):
        expected = [sum(t <= words_of(0, s, 0, key)[0] for t in thresholds) for s in range(6)]
        assert draw_rows(table, key, 6).tolist() == expected


def test_rows_come_with_their_probabilities():
    table = TapTable(torch.randn(4, 4, 4), [0.5, 0.125, 0.25, 0.125])
    rows = draw_rows(table, 11, 40_000)
    share = torch.bincount(rows, minlength=4) / 40_000
    error = 4 * (table.probabilities * (1 - table.probabilities) / 40_000).sqrt()
    assert ((share - table.probabilities).abs() < error).all()


def test_a_row_of_tiny_probability_does_not_disturb_the_thresholds():
    table = TapTable(torch.randn(2, 1, 1), [1 - 1e-12, 1e-12])
    assert draw_rows(table, 5, 1000).unique().tolist() == [0]


def test_dropconnect_takes_sixteen_bits_an_element():
    key, p = 123456789123, 0.3
    mask = philox.keep_mask(torch.tensor(key), 2, 21, p)
    for shadow in range(2):
        for element in range(21):
            word = words_of(element // 8, shadow, 1, key)[element % 8 // 2]
            half = word >> 16 if element % 2 else word & 0xFFFF
            assert bool(mask[shadow, element]) == (half >= round(65536 * p))


def test_normals_are_box_muller_pairs_of_24_bits():
    key = -987654321
    z = philox.standard_normal(torch.tensor(key), 2, 11)
    assert z.dtype == torch.float32
    for shadow in range(2):
        for element in range(11):
            words = words_of(element // 4, shadow, 1, key)[element % 4 // 2 * 2 :][:2]
            radius = math.sqrt(-2 * math.log(((words[0] >> 8) + 1) / 2**24))
            turn = 2 * math.pi * (words[1] >> 8) / 2**24
            expected = radius * (math.sin(turn) if element % 2 else math.cos(turn))
            assert abs(float(z[shadow, element]) - expected) < 2e-6


def test_noise_has_mean_one_and_the_asked_spread():
    key = torch.tensor(3)
    multiplicative = draw_noise(1, 0.2, key, 1, 200_000)
    assert abs(multiplicative.mean() - 1) < 4 * 0.2 / 200_000**0.5
    assert abs(multiplicative.std() - 0.2) < 0.002
    dropped = draw_noise(2, 0.25, key, 1, 200_000)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert abs(dropped.mean() - 1) < 4 * (0.25 / 0.75 / 200_000) ** 0.5


def test_shadows_and_keys_draw_different_noise():
    noise = draw_noise(1, 1.0, torch.tensor(3), 2, 1000)
    other = draw_noise(1, 1.0, torch.tensor(4), 1, 1000)
    correlation = torch.corrcoef(torch.cat([noise, other]))
    assert (correlation - torch.eye(3)).abs().max() < 0.15
    assert torch.equal(draw_noise(1, 1.0, torch.tensor(3), 1, 1000)[0], noise[0])


def test_a_key_follows_the_generator():
    torch.manual_seed(5)
    first = [int(draw_key()) for _ in range(3)]
    with torch.random.fork_rng():
        draw_key()
    fourth = int(draw_key())
    torch.manual_seed(5)
    assert [int(draw_key()) for _ in range(4)] == [*first, fourth]
    assert len(set(first)) == 3


@pytest.mark.parametrize("key", [1.5, True, "7", None, torch.tensor(1.0), torch.tensor([1, 2])])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match="key"):
        as_key(key)


@pytest.mark.parametrize("key", [2**63, -(2**63) - 1])
def test_a_key_of_more_than_64_bits_is_refused(key):
    with pytest.raises(ValueError, match="64 bits"):
        as_key(key)
