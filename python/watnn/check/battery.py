"""Each fused backend of a machine against the reference in fp64, on the same numbers.

    for probe in probes("cuda"):
        finding = probe.run()

A wrong result or an exception is a finding like any other; the caller goes on with the next probe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from wat_kernels import dispatch, shadow_conv2d, shadow_linear
from wat_kernels.ops.conv.op import BACKENDS as CONV2D_BACKENDS
from wat_kernels.ops.linear.op import BACKENDS as LINEAR_BACKENDS
from wat_kernels.qualified import LAYERS, layer_of
from wat_kernels.tolerances import TOLERANCES
from watnn.bench.verify import fp32_precision
from watnn.check.cases import Case, cases

FUSED = ("cuda", "triton", "native")
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
_OPS = {"shadow_conv": (shadow_conv2d, CONV2D_BACKENDS), "shadow_linear": (shadow_linear, LINEAR_BACKENDS)}


@dataclass(frozen=True)
class Finding:
    """What one probe found.

    op, layer: "shadow_conv" or "shadow_linear", and which of wat_kernels.qualified.LAYERS
    dtype:     as "float32"
    what:      the case in words
    error:     the largest difference from the reference in units of what is allowed; None where nothing could be compared
    message:   why it did not pass, in one line; "" where it did
    """

    op: str
    layer: str
    backend: str
    dtype: str
    what: str
    passed: bool
    error: float | None
    seconds: float
    message: str


@dataclass(frozen=True)
class Probe:
    """One case on one backend in one dtype.

    tf32: in fp32 with torch's switches for TF32 on, which is what torch lets convolutions do by default
    """

    case: Case
    layer: str
    backend: str
    dtype: torch.dtype
    device: torch.device
    tf32: bool = False

    @property
    def what(self) -> str:
        return self.case.what + (", TF32" if self.tf32 else "")

    def run(self) -> Finding:
        """Forward and all gradients twice, compared with the reference and with each other. Raises nothing."""
        start = time.perf_counter()
        error, message = None, ""
        try:
            error, message = self._compared()
        except Exception as raised:  # of a compiler, a driver, a kernel: each is an answer
            message = f"{type(raised).__name__}: {_first_line(raised)}"
        name = str(self.dtype).removeprefix("torch.")
        seconds = time.perf_counter() - start
        return Finding(self.case.op, self.layer, self.backend, name, self.what, not message, error, seconds, message)

    def _compared(self) -> tuple[float, str]:
        """(the largest error, what is wrong)"""
        expected = _expected(self.case, self.dtype)
        with fp32_precision("tf32" if self.tf32 else "ieee"):
            runs = [_results(self.case, self.dtype, self.device, self.backend) for _ in range(2)]
        tolerance = TOLERANCES[torch.float16 if self.tf32 else self.dtype]
        largest, wrong = 0.0, ""
        for name, right in expected.items():
            got, again = (run[name].cpu() for run in runs)
            if got.shape != right.shape or got.dtype != _dtype_of(name, self.case, self.dtype):
                return largest, f"{name} is {got.dtype} of shape {tuple(got.shape)}, not of {tuple(right.shape)}"
            error = _error(got.double(), right, tolerance)
            largest = max(largest, error)
            if self.case.exact and not torch.equal(got, right.to(got.dtype)):
                differ = int((got != right.to(got.dtype)).sum())
                wrong = wrong or f"{differ} of {got.numel()} elements of {name} are not what the reference draws"
            if not error <= 1:
                wrong = wrong or f"{name} differs by {error:.3g} times what is allowed"
            if not torch.equal(_bits(got), _bits(again)):
                wrong = wrong or f"{name} is not the same in two runs"
        return largest, wrong


def probes(
    device: torch.device | str,
    *,
    backends: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    sizes: str = "usual",
) -> Iterator[Probe]:
    """What there is to run on `device`, a backend and a kind of layer at a time.

    backends: those to look at, FUSED where nothing is said; what one of them does not support is left out
    dtypes:   bf16, fp32 and fp16 where nothing is said
    sizes:    "usual", or "tiny" for kernels that are interpreted
    Raises ValueError for a name that is no backend, or for other sizes.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    for backend in map(dispatch.check_name, FUSED if backends is None else backends):
        for layer in LAYERS:
            for dtype in DTYPES if dtypes is None else dtypes:
                for case in cases(sizes):
                    call = call_of(case, device, dtype)
                    if layer_of(case.op, call) != layer or (dtype == torch.float16 and not case.core):
                        continue
                    available = _OPS[case.op][1]
                    if backend not in available or not available[backend].supports(call)[0]:
                        continue
                    yield Probe(case, layer, backend, dtype, device)
                    if dtype == torch.float32 and device.type == "cuda" and case.core and not case.exact:
                        yield Probe(case, layer, backend, dtype, device, tf32=True)


def call_of(case: Case, device: torch.device, dtype: torch.dtype) -> dispatch.Call:
    """What backends are asked about a case."""
    noise = case.drawn.get("noise")
    code = 0 if noise is None else noise.code
    if case.op == "shadow_linear":
        return dispatch.Call(
            device.type,
            dtype,
            in_channels=case.weight[1],
            out_channels=case.weight[0],
            noise=code,
            rows=case.x[0],
            device_index=device.index,
        )
    groups, kernel = case.drawn.get("groups", 1), (case.weight[2], case.weight[3])
    return dispatch.Call(device.type, dtype, kernel, case.x[1], case.weight[0], groups, code, device_index=device.index)


def _leaves(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """x, weight, and bias and gain where there are any, on the CPU; the values are those of `dtype`."""
    generator = torch.Generator("cpu").manual_seed(sum(case.x) + len(case.what))

    def numbers(shape: tuple[int, ...], scale: float) -> Tensor:
        if case.exact:
            return torch.randint(-1, 2, shape, generator=generator, device="cpu").to(dtype)
        return (scale * torch.randn(shape, generator=generator, device="cpu")).to(dtype)

    outputs = case.weight[0]
    leaves = {"x": numbers(case.x, 1.0), "weight": numbers(case.weight, math.prod(case.weight[1:]) ** -0.5)}
    if case.bias:
        leaves["bias"] = numbers((outputs,), 1.0)
    if case.gain:
        shape = () if case.gain == "one" else (outputs,)
        gain = 2.0 ** torch.randint(-1, 2, shape, generator=generator, device="cpu")
        leaves["gain"] = gain if case.exact else gain * 0.9
        leaves["gain"] = leaves["gain"].to(_dtype_of("gain", case, dtype))
    return leaves


def _dtype_of(name: str, case: Case, dtype: torch.dtype) -> torch.dtype:
    """Of a leaf or its gradient: a gain of one element is a parameter that autocast leaves in fp32."""
    return torch.float32 if name.endswith("gain") and case.gain == "one" else dtype


@lru_cache(maxsize=64)
def _expected(case: Case, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """What the reference gives for these numbers in fp64 on the CPU: y and the gradient of each leaf."""
    leaves = {name: leaf.double().requires_grad_() for name, leaf in _leaves(case, dtype).items()}
    return _run(case, leaves, "reference", _upstream(case, dtype).double())


def _results(case: Case, dtype: torch.dtype, device: torch.device, backend: str) -> Mapping[str, Tensor]:
    leaves = {}
    for name, leaf in _leaves(case, dtype).items():
        leaf = leaf.to(device)
        if (name == "x" and case.x_last) or (name == "weight" and case.weight_last):
            leaf = leaf.to(memory_format=torch.channels_last)
        leaves[name] = leaf.requires_grad_()
    dy = _upstream(case, dtype).to(device)
    return _run(case, leaves, backend, dy.to(memory_format=torch.channels_last) if case.x_last else dy)


def _run(case: Case, leaves: Mapping[str, Tensor], backend: str, dy: Tensor) -> Mapping[str, Tensor]:
    with torch.enable_grad():
        y = _forward(case, leaves, backend)
        grads = torch.autograd.grad(y, list(leaves.values()), dy)
    gradients = {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"y": y.detach(), **gradients}


def _forward(case: Case, leaves: Mapping[str, Tensor], backend: str) -> Tensor:
    function: Any = _OPS[case.op][0]
    rest = {name: leaf for name, leaf in leaves.items() if name not in ("x", "weight")}
    with torch.autocast(leaves["x"].device.type, enabled=False):
        return function(leaves["x"], leaves["weight"], **rest, **case.drawn, backend=backend)


@lru_cache(maxsize=64)
def _upstream(case: Case, dtype: torch.dtype) -> Tensor:
    """dy on the CPU, of small integers in an exact case. Else it leans towards y, so that the gradient of a single gain is
    no small difference of large numbers."""
    leaves = {name: leaf.double() for name, leaf in _leaves(case, dtype).items()}
    y = _forward(case, leaves, "reference")
    generator = torch.Generator("cpu").manual_seed(y.numel())
    if case.exact:
        return torch.randint(-1, 2, y.shape, generator=generator, device="cpu").to(dtype)
    return (torch.randn(y.shape, generator=generator, device="cpu") + y / y.std()).to(dtype)


def _error(got: Tensor, right: Tensor, tolerance: Mapping[str, float]) -> float:
    """The largest difference in units of the tolerance, whose absolute part is one of the largest value. NaN is infinity."""
    scale = float(right.abs().max().clamp_min(1e-30)) if right.numel() else 1.0
    units = (got - right).abs() / (tolerance["atol"] * scale + tolerance["rtol"] * right.abs())
    return float(units.nan_to_num(float("inf"), float("inf")).max()) if units.numel() else 0.0


def _bits(tensor: Tensor) -> Tensor:
    """As integers: NaN is equal to itself, and zeros have a sign."""
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
