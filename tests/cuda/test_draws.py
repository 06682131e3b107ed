"""The draws that CUDA kernels make, executed on the CPU, against wat_kernels/philox.py."""

import ctypes

import pytest
import torch

from tests.cuda.emulation import library
from tests.test_philox import KNOWN_ANSWERS
from wat_kernels import TapTable, draw_rows
from wat_kernels.draw import draw_noise

pytestmark = pytest.mark.cpu_only

KEY = -(2**61) + 987654321


@pytest.fixture(scope="module")
def draws():
    return library("draws")


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(draws, counter, key, expected):
    out = (ctypes.c_uint32 * 4)()
    draws.philox((ctypes.c_uint32 * 4)(*counter), ctypes.c_uint64(key[0] | key[1] << 32), out)
    assert tuple(out) == expected


def test_rows(draws):
    draws.draw_row.restype = ctypes.c_int64
    table = TapTable(torch.randn(5, 4, 4), [0.1, 0.2, 0.3, 0.15, 0.25])
    thresholds = table.on(torch.device("cpu")).thresholds
    for key in (0, 7, KEY):
        found = [
            draws.draw_row(
                ctypes.c_void_p(thresholds.data_ptr()), ctypes.c_int64(5), ctypes.c_uint64(key % 2**64), shadow
            )
            for shadow in range(40)
        ]
        assert found == draw_rows(table, key, 40).tolist()


def factors(draws, kind, amount, shadow, first, step, blocks=2):
    """(64 * blocks, 8): the factors of elements first + n * step ... + 7."""
    out = torch.empty(64 * blocks, 8)
    draws.factors(kind, ctypes.c_double(amount), ctypes.c_uint64(KEY % 2**64), shadow, ctypes.c_uint64(first),
                  ctypes.c_uint64(step), blocks, ctypes.c_void_p(out.data_ptr()))  # fmt: skip
    return out


@pytest.mark.parametrize("step", [8, 11], ids=["aligned", "anywhere"])
@pytest.mark.parametrize("shadow", [0, 3])
@pytest.mark.parametrize("amount", [0.3, 1 / 3, 0.0, 1e-9, 2.5 / 65536])
def test_masks_bit_for_bit(draws, amount, shadow, step):
    expected = draw_noise(2, amount, torch.tensor(KEY), 4, 128 * step + 8)[shadow]
    assert torch.equal(factors(draws, 2, amount, shadow, 0, step), expected.unfold(0, 8, step)[:128])


@pytest.mark.parametrize("step", [8, 11], ids=["aligned", "anywhere"])
def test_gaussian_noise_within_a_few_ulp(draws, step):
    expected = draw_noise(1, 1.0, torch.tensor(KEY), 4, 128 * step + 8)[3]
    difference = factors(draws, 1, 1.0, 3, 0, step) - expected.unfold(0, 8, step)[:128]
    assert float(difference.abs().max()) < 3e-6  # of numbers up to 6


def test_elements_beyond_2_to_the_35(draws):
    """Their blocks no longer fit 32 bits; philox.py is asked for the same blocks one by one."""
    from wat_kernels import philox

    first = 2**35 - 16
    found = factors(draws, 2, 0.5, 0, first, 8, blocks=1)
    low, high = philox.split_key(torch.tensor(KEY))
    for n in range(4):
        block = (first + 8 * n) // 8
        counter = tuple(map(torch.tensor, (block % 2**32, block >> 32, 0, philox.PURPOSE_NOISE)))
        words = philox.philox4x32(counter, (low, high))
        halves = [int(word) >> shift & 0xFFFF for word in words for shift in (0, 16)]
        assert found[n].tolist() == [2.0 * (half >= 32768) for half in halves]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_16_bits(draws, dtype):
    specials = torch.tensor(
        [0.0, -0.0, 1.0, torch.inf, -torch.inf, torch.nan, 65504.0, 65520.0, 6e-8, 2.9e-8, 3e38, 1e-40]
    )
    numbers = torch.cat([specials, torch.randn(1000), torch.randn(1000) * 1e-5, torch.arange(0, 4, 2**-10)])
    out = torch.empty_like(numbers)
    draws.round_trip(
        int(dtype == torch.float16), len(numbers), ctypes.c_void_p(numbers.data_ptr()), ctypes.c_void_p(out.data_ptr())
    )
    torch.testing.assert_close(out, numbers.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
