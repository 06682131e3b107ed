"""The Triton kernels as the GPU compilers see them. No GPU is needed: `benchmarks.compile_report` prints the whole table."""

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'wat-kernels[triton]'")

import triton
from triton.compiler import ASTSource

from benchmarks.compile_report import CHIPS, cases, compile_case, problems, takes
from benchmarks.compile_report import nvidia_resources as resources
from wat_kernels import triton_rows
from wat_kernels.triton_noise import BLOCK, noise_kernel

pytestmark = pytest.mark.cpu_only

CASES = {}
for _case in cases():
    CASES.setdefault((_case.kernel, _case.variant, _case.dtype), []).append(_case)

# one configuration of each: what differs between chips, and what may cost registers
SUBSET = [
    ("sm_80", "conv2d_fwd", "plain", "bf16"),
    ("sm_90", "conv2d_fwd", "plain", "bf16"),
    ("sm_90", "conv2d_fwd", "bilinear", "bf16"),
    ("sm_90", "conv2d_bwd_data", "multiplicative", "bf16"),
    ("sm_90", "conv2d_bwd_weight", "dropconnect", "bf16"),
    ("sm_90", "conv2d_fwd_box", "plain", "bf16"),
    ("sm_90", "conv2d_bwd_data_box", "bilinear", "bf16"),
    ("sm_90", "conv2d_bwd_weight_box", "dropconnect", "bf16"),
    ("sm_100", "conv2d_fwd_box", "multiplicative", "bf16"),
    ("sm_100", "conv2d_fwd", "plain", "fp16"),
    ("gfx942", "conv2d_fwd", "plain", "bf16"),
    ("sm_90", "linear_fwd", "dropconnect", "bf16"),
    ("sm_90", "linear_bwd_data", "grid", "bf16"),
    ("sm_90", "linear_bwd_weight", "multiplicative", "bf16"),
]


def check(case, chip):
    report = compile_case(case, CHIPS[chip])
    assert not problems(case, CHIPS[chip], report), f"{case.config}: {report}"


@pytest.mark.parametrize("chosen", SUBSET, ids="-".join)
def test_subset(chosen):
    check(CASES[chosen[1:]][0], chosen[0])


def changed(case, **values):
    """The case with other arguments, by name."""
    names = case.tuned.kernel.arg_names
    arguments = (values.get(name, value) for name, value in zip(names, case.arguments, strict=False))
    return case._replace(arguments=tuple(arguments))


@pytest.mark.parametrize("kernel", ["conv2d_bwd_weight", "linear_bwd_weight"])
def test_a_large_weight_takes_no_scratch(kernel):
    check(changed(CASES[kernel, "plain", "bf16"][0], parts=None, arrived=None), "sm_90")


@pytest.mark.parametrize("kernel", ["conv2d_fwd", "conv2d_bwd_data", "conv2d_bwd_weight", "linear_fwd"])
def test_offsets_of_64_bits(kernel):
    case = changed(CASES[kernel, "plain", "fp16"][-1], WIDE=True)
    report = compile_case(case, CHIPS["sm_90"])
    assert report.matrix == "wgmma.mma_async" and report.shared <= CHIPS["sm_90"].shared


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES, ids="-".join)
@pytest.mark.parametrize("chip", CHIPS)
def test_every_kernel_and_configuration(chip, kind):
    for case in CASES[kind]:
        if takes(case, CHIPS[chip]):
            check(case, chip)


def test_the_report_walks_every_configuration():
    walked = {(case.kernel, str(case.config)) for found in CASES.values() for case in found}
    for found in CASES.values():
        for config in found[0].tuned.configs:
            assert (found[0].kernel, str(config)) in walked


@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("noise", [1, 2], ids=["multiplicative", "dropconnect"])
def test_the_noise_kernel(noise, multiply):
    integers = ["first_shadow", "elements", "middle", "inner", "source_outer", "source_middle", "source_inner",
                "out_outer", "out_middle", "out_inner", "cut"]  # fmt: skip
    signature = {"key": "*i64", "source": "*bf16", "out": "*bf16", **dict.fromkeys(integers, "i32"), "scale": "fp32"}
    constants = {"NOISE": noise, "MULTIPLY": multiply, "WIDE": False, "BLOCK": BLOCK}
    signature = {name: signature.get(name, "constexpr") for name in noise_kernel.arg_names}
    compiled = triton.compile(ASTSource(noise_kernel, signature, constants), target=CHIPS["sm_90"].target)
    registers, stack = resources(compiled.asm["cubin"])
    assert registers <= 128 and stack == 0


def test_the_kernel_of_the_row_words():
    kernel = triton_rows.row_words_kernel
    signature = {"key": "*i64", "words": "*i64", "shadows": "i32", "BLOCK": "constexpr"}
    compiled = triton.compile(ASTSource(kernel, signature, {"BLOCK": triton_rows.BLOCK}), target=CHIPS["sm_90"].target)
    registers, stack = resources(compiled.asm["cubin"])
    assert registers <= 64 and stack == 0
