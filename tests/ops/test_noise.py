"""The ops that make noise: every way to make it against `philox`, masks bit for bit, Gaussian numbers to a few ulp."""

import pytest
import torch

from tests.conftest import DEVICE
from wat_kernels import TapTable, noise_op, philox
from wat_kernels.extension import NATIVE
from wat_kernels.ops.conv import library
from wat_kernels.ops.conv.schema import SIGNATURE

OPS = torch.ops.wat_kernels
REASON = NATIVE.reason if DEVICE == "cpu" else "native runs on CPUs"
NATIVE_RUNS = NATIVE.available and DEVICE == "cpu"
NAMES = ["library", pytest.param("native", marks=pytest.mark.skipif(not NATIVE_RUNS, reason=REASON))]
KEYS = [0, 7, -1, -(2**63), 2**63 - 1, -(2**40) - 3]
SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 4095, 4097, 2**17 - 1, 2**17, 2**17 + 9]


def right(key, shadows, elements, noise, amount):
    key = torch.tensor(key)
    if noise == 1:
        return 1 + amount * philox.standard_normal(key, shadows, elements)
    return philox.keep_mask(key, shadows, elements, amount).float() / (1 - amount)


def check(got, expected, noise):
    assert got.shape == expected.shape and got.dtype == expected.dtype
    if noise == 2:
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("noise", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_factors(name, noise):
    overload = getattr(OPS.noise, name)
    for i, size in enumerate(SIZES):
        key, shadows = KEYS[i % len(KEYS)], 1 + i % 3
        args = (torch.tensor(key), shadows, size, noise, 0.3)
        check(overload(*args), right(key, shadows, size, noise, 0.3), noise)
        scaled = getattr(OPS.noise_scaled, name)(*args[:-1], torch.tensor(0.3, dtype=torch.float64))
        assert torch.equal(scaled, overload(*args))


# shape of the whole, and the part that is multiplied
PARTS = [
    ((5, 13), (slice(1, 4), slice(2, 11))),
    ((3, 3, 3, 70), (slice(None), slice(1, 3), slice(0, 2), slice(None))),
    ((300, 3, 3, 1), (slice(None), slice(1, 3), slice(0, 1), slice(None))),
    ((7, 5000), (slice(2, 7), slice(4, 4999))),
    ((400, 400), (slice(3, 400), slice(1, 399))),
    ((1, 2**17 + 50), (slice(None), slice(9, 2**17 + 40))),
    ((40, 1, 1, 1), (slice(3, 9), slice(None), slice(None), slice(None))),
    ((4, 6), (slice(0, 0), slice(None))),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("noise", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_any_part_in_any_layout(name, noise, dtype):
    overload = getattr(OPS.noise_multiply, name)
    for whole, part in PARTS:
        factor = right(11, 3, torch.Size(whole).numel(), noise, 0.3)[2].view(whole)
        first = int(torch.arange(factor.numel()).view(whole)[part].flatten()[:1].sum())
        source = torch.randn(factor[part].shape).to(dtype)
        expected = (source * factor[part]).to(dtype)
        turned = source.transpose(0, -1).contiguous().transpose(0, -1)
        for given in (source, turned):
            for out in (torch.empty_like(source), torch.empty_like(turned), given.clone()):
                overload(given, out, first, factor.stride(), torch.tensor(11), 2, noise, 0.3)
                torch.testing.assert_close(out, expected, atol=4e-5 if noise == 1 else 0, rtol=8e-3 if noise == 1 and dtype == torch.bfloat16 else 0)  # fmt: skip
            kept = given.clone(memory_format=torch.preserve_format)
            overload(kept, kept, first, factor.stride(), torch.tensor(11), 2, noise, 0.3)
            assert torch.equal(kept, out)


def test_blocks_beyond_32_bits():
    first = 2**35 - 64  # block 2**32 is in the run
    got = torch.ones(200)
    noise_op.multiply(got, got, torch.tensor(5), 0, 2, 0.3, first=first, steps=[1])
    plain = torch.ones(200)
    OPS.noise_multiply.library(plain, plain, first, [1], torch.tensor(5), 0, 2, 0.3)
    mask = philox.keep_mask(torch.tensor(5), 1, 64, 0.3, first=2**35)[0]
    assert torch.equal(got, plain) and torch.equal(got[64:128] != 0, mask)


def test_the_integers_of_a_slice_do_not_grow_with_the_weight():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.int64:
                self.elements = max(self.elements, result.numel())
            return result

    source = torch.ones(1024, 1024)
    for noise in (1, 2):
        with Largest() as largest:
            noise_op._plain_multiply(source, source, 0, [1024, 1], torch.tensor(3), 0, noise, 0.3)
            noise_op._plain(torch.tensor(3), 2, 2**19, noise, 0.3)
        assert 0 < largest.elements <= 2**17 + 64


@pytest.mark.parametrize("whole", [(3, 7), (400, 1000), (2, 2**18)])
@pytest.mark.parametrize("noise", [1, 2])
def test_fp16_is_a_product_in_fp32_that_is_rounded_once(whole, noise):
    """Through the native code a few lines at a time, where there is one."""
    source = torch.randn(whole).half()
    out = noise_op.multiply(source, torch.empty_like(source), torch.tensor(11), 2, noise, 0.3)
    factor = noise_op.draw(torch.tensor(11), 3, source.numel(), noise, 0.3)[2].view(whole)
    assert torch.equal(out, (source.float() * factor).half())
    cut = source[:, 1:6].clone()
    noise_op.multiply(cut, cut, torch.tensor(11), 2, noise, 0.3, first=1, steps=(whole[1], 1))
    assert torch.equal(cut, out[:, 1:6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shadows", [1, 4])
def test_a_convolution_makes_no_tensor_of_more_than_one_sw(shadows, dtype):
    """The noise of all shadows at once would be as many times that."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    x, weight = torch.randn(4, 32, 4, 4, dtype=dtype), torch.randn(64, 32, 3, 3, dtype=dtype)
    table = TapTable.identity((3, 3))
    drawn = (torch.tensor(1), *table.on(x.device), [1, 1], [1] * 4, [1, 1], 1, False, shadows, 2, 0.3)
    forward, backward = SIGNATURE.flat_forward(library.forward), SIGNATURE.flat_backward(library.backward)
    with Largest() as largest:  # not through the op, below which no mode looks
        y = forward(x, weight, None, None, *drawn)
        backward(torch.ones_like(y), x, weight, None, *drawn, [True, True, False, False])
    assert largest.elements == weight.numel()


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    key = torch.tensor(3)
    torch.library.opcheck(getattr(OPS.noise, name), (key, 2, 37, 2, 0.3))
    amount = torch.tensor(0.3, dtype=torch.float64)
    torch.library.opcheck(
        getattr(OPS.noise_scaled, name),
        (key, 2, 37, 1, amount),
        test_utils=("test_schema", "test_autograd_registration"),
    )
    source = torch.randn(5, 7)
    torch.library.opcheck(getattr(OPS.noise_multiply, name), (source, torch.zeros(5, 7), 3, [9, 1], key, 1, 2, 0.3))


def test_within_torch_func_the_key_may_be_batched():
    keys = torch.tensor([3, -4, 5])
    got = torch.func.vmap(lambda key: noise_op.draw(key, 2, 20, 2, 0.3))(keys)
    assert torch.equal(got, torch.stack([noise_op.draw(key, 2, 20, 2, 0.3) for key in keys]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="noise=3"):
        noise_op.draw(torch.tensor(1), 1, 8, 3, 0.3)
    if NATIVE_RUNS:
        with pytest.raises(RuntimeError, match="steps has 1 numbers for 2"):
            OPS.noise_multiply.native(torch.ones(2, 2), torch.ones(2, 2), 0, [1], torch.tensor(1), 0, 2, 0.3)
        with pytest.raises(RuntimeError, match="shape of source"):
            OPS.noise_multiply.native(torch.ones(2, 2), torch.ones(2, 3), 0, [2, 1], torch.tensor(1), 0, 2, 0.3)
