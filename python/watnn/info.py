"""What runs here and why the rest does not: the text of `watnn info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from wat_kernels import dispatch, qualified
from wat_kernels.extension import LIBRARIES
from wat_kernels.ops.conv.op import BACKENDS as CONV2D_BACKENDS
from wat_kernels.ops.linear.op import BACKENDS as LINEAR_BACKENDS

# (op, its backends, what a backend is asked about), for each device
_OPS = (
    ("shadow_conv", CONV2D_BACKENDS, {"kernel": (3, 3), "in_channels": 64, "out_channels": 64}),
    ("shadow_linear", LINEAR_BACKENDS, {"in_channels": 64, "out_channels": 64}),
)

_ENVIRONMENT = {
    "WAT_BACKEND": "overrides backend='auto' in every op",
    "WAT_CACHE_DIR": "folder in which `watnn check` keeps its answer, and auto looks for it",
    "WAT_TRITON_TUNE": "0: the triton backend measures no configurations",
    "WAT_CPU_ISA": "avx512bf16, avx512, avx2 or portable: the instruction set of the native backend",
    "WAT_SKIP_NATIVE": "1 at install time: no compiled CPU backend",
    "WAT_FORCE_NATIVE": "1 at install time: fail where the native backend does not build",
    "WAT_SKIP_CUDA": "1 at install time: no compiled CUDA backend",
    "WAT_FORCE_CUDA": "1 at install time: fail where the CUDA backend does not build",
    "TORCH_CUDA_ARCH_LIST": "at install time: compute capabilities that the CUDA backend is compiled for",
    "CUDA_HOME": "at install time: the CUDA toolkit",
    "OMP_NUM_THREADS": "CPU threads of torch",
}


def describe() -> str:
    """Versions, devices, the backends of each op, environment variables: aligned plain text."""
    sections = [
        ("versions", list(versions().items())),
        ("devices", _devices()),
        ("compiled libraries", _libraries()),
        *((f"{op} on {device}", backend_rows(op, device)) for device in _device_types() for op, *_ in _OPS),
        ("environment", [(name, _environment(name, effect)) for name, effect in _ENVIRONMENT.items()]),
    ]
    width = max(len(name) for _, rows in sections for name, _ in rows)
    return "\n\n".join(
        "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in rows)]) for title, rows in sections
    )


def versions() -> dict[str, str]:
    """Of what decides a result: this package, torch, triton, Python."""
    return {
        "wat-kernels": _version("wat-kernels"),
        "torch": str(torch.__version__),  # with the local part, +cpu or +cu130, which an installed package may not name
        "triton": _version("triton"),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def backend_rows(op: str, device: str) -> list[tuple[str, str]]:
    """(name, verdict) of every backend of `op` for an fp32 call on `device`; a last row says what `auto` takes."""
    backends, call = _backends_and_call(op, device)
    rows = []
    for name in dispatch.NAMES:
        if name not in backends:
            rows.append((name, "not part of this build"))
            continue
        accepted, reason = backends[name].supports(call)
        rows.append((name, "available" if accepted else f"unavailable: {reason}"))
    try:
        rows.append(("auto", f"takes {backend_in_use(op, device)}"))
    except (RuntimeError, ValueError) as error:
        rows.append(("auto", f"fails: {error}"))
    return rows


def backend_in_use(op: str, device: str) -> str:
    """The backend that `auto`, and WAT_BACKEND, give an fp32 call of `op`.

    Raises ValueError when WAT_BACKEND names no backend, RuntimeError when it names one that cannot run.
    """
    backends, call = _backends_and_call(op, device)
    return dispatch.choose(op, backends, "auto", dispatch.environment(), call)


def _backends_and_call(op: str, device: str) -> tuple[Mapping[str, dispatch.Backend], dispatch.Call]:
    backends, shape = next((backends, shape) for name, backends, shape in _OPS if name == op)
    return backends, dispatch.Call(device, torch.float32, **shape)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device_types() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _devices() -> list[tuple[str, str]]:
    rows = [("cpu", f"{cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} threads")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            rows.append(
                (f"cuda:{index}", f"{properties.name}, {memory}, capability {properties.major}.{properties.minor}")
            )
            rows.append((f"cuda:{index} kernels", qualified.standing(index)))
    else:
        built = torch.version.cuda or torch.version.hip
        rows.append(("cuda", "no device found" if built else "this torch is built without CUDA or ROCm"))
    return rows


def _environment(name: str, effect: str) -> str:
    value = os.environ.get(name)
    return f"{'not set' if value is None else value}  ({effect})"


def _libraries() -> list[tuple[str, str]]:
    """Of each compiled library: whether and from where it is loaded, or why not."""
    return [
        (name, f"{'loaded' if library.available else 'not loaded'}: {library.reason}{_instruction_set(name)}")
        for name, library in LIBRARIES.items()
    ]


def _instruction_set(library: str) -> str:
    in_use = torch.ops.wat_kernels.native_isa("") if library == "native" and LIBRARIES[library].available else ""
    return in_use and f" ({in_use})"
