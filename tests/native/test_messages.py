"""Errors of the compiled libraries name op and argument, and say nothing of the machine that compiled them."""

import sysconfig
from pathlib import Path

import pytest
import torch

from wat_kernels import TapTable, extension
from wat_kernels.extension import NATIVE

needs_native = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)
ROOT = Path(__file__).parents[2]
KEY = torch.zeros((), dtype=torch.int64)


def message_of(call):
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value)


@needs_native
def test_convolution():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)

    def call(x=x, weight=weight, bias=None, gain=None, shadows=1, kernel=(3, 3)):
        table = TapTable.identity(kernel).on(torch.device("cpu"))
        layout = ((1, 1), (0, 0, 0, 0), (1, 1), 1, False, shadows, 0, 0.0)
        return torch.ops.wat_kernels.shadow_conv.native(x, weight, bias, gain, KEY, *table, *layout)

    assert call().shape == (2, 4, 3, 3)
    op = "shadow_conv.native: "
    assert message_of(lambda: call(x.double())) == op + "x must be float32 or bfloat16"
    assert message_of(lambda: call(shadows=3)) == op + "shadows=3 does not divide the batch of 2"
    assert message_of(lambda: call(bias=torch.ones(3))) == op + "bias has 3 elements; accepted is 4"
    assert message_of(lambda: call(gain=torch.ones(3))) == op + "gain has 3 elements; accepted are 1 and 4"
    assert message_of(lambda: call(kernel=(2, 2))) == op + "taps are for another kernel size than the weight's 3x3"
    empty = (x[:, :0], weight[:, :0])
    assert message_of(lambda: call(*empty)) == op + "x has no channels"


@needs_native
def test_linear():
    x, weight = torch.randn(2, 3), torch.randn(4, 3)

    def call(x=x, weight=weight, bias=None, gain=None, shadows=1):
        return torch.ops.wat_kernels.shadow_linear.native(x, weight, bias, gain, KEY, None, None, shadows, 0, 0.0)

    assert call().shape == (2, 4)
    op = "shadow_linear.native: "
    assert message_of(lambda: call(x.double())) == op + "x must be float32 or bfloat16"
    assert message_of(lambda: call(weight=torch.randn(4, 2))) == op + "x must be (rows, in) and weight (out, in)"
    assert message_of(lambda: call(shadows=3)) == op + "shadows=3 does not divide the 2 rows of x"
    assert message_of(lambda: call(bias=torch.ones(3))) == op + "bias has 3 elements, accepted is 4"


@needs_native
def test_instruction_set():
    expected = "native_isa: isa=mmx is not one of avx512bf16, avx512, avx2, portable or this processor does not have it"
    assert message_of(lambda: torch.ops.wat_kernels.native_isa("mmx")) == expected


@pytest.mark.parametrize("library", sorted(Path(extension.__file__).parent.glob("*.so")), ids=lambda path: path.name)
def test_no_folder_of_the_build_is_in_a_library(library):
    """Where this one was built from this tree; elsewhere there is nothing to find."""
    content = library.read_bytes()
    for folder in (ROOT, Path(sysconfig.get_paths()["purelib"]), Path.home()):
        assert len(folder.parts) == 1 or f"{folder}/".encode() not in content, folder
