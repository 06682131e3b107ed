"""How results of the C++ kernels are compared with fp64, and how many random cases are tried."""

import torch
from hypothesis import HealthCheck, settings

# of the sum of absolute values of what is added up, and of the result itself
TOLERANCES = {torch.float32: (4e-6, 1e-6), torch.bfloat16: (2e-5, 2**-7)}
_ALWAYS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def tried(examples):
    """The same random cases at every run."""
    return settings(max_examples=examples, derandomize=True, **_ALWAYS)


def tried_at_length(examples=5000):
    """Other ones at every run."""
    return settings(max_examples=examples, **_ALWAYS)


def tolerance(dtype):
    """With products of bf16, SW is rounded once, as it would be in a tensor."""
    of_sum, of_result = TOLERANCES[dtype]
    rounded = dtype == torch.bfloat16 and torch.ops.wat_kernels.native_isa("") == "avx512bf16"
    return (of_sum + 2**-8 * 1.01 if rounded else of_sum), of_result


def compare(results, right, sizes):
    """y, dx, dweight, dbias and dgain against fp64. sizes: the sums of absolute values that each number adds up"""
    of_sum, of_result = tolerance(results[0].dtype)
    names = ("y", "dx", "dweight", "dbias", "dgain")
    for name, got, wanted, size in zip(names, results, right, sizes, strict=True):
        if wanted is None:
            assert got is None
            continue
        assert got.shape == wanted.shape, name
        difference = (got.double() - wanted).abs()
        allowed = of_sum * size + of_result * wanted.abs() + 1e-30
        assert bool((difference <= allowed).all()), (
            f"{name}: {int((difference > allowed).sum())} of {got.numel()} differ, by up to {float((difference / allowed).max())}"
        )
