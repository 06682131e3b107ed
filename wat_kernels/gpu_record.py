"""What is known about the kernels on one GPU: the record that `watnn check` leaves, and the package's own list.

Nothing here is read at import, and nothing that is wrong with a file is an error: what cannot be read says nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

_PACKAGE = Path(__file__).parent
QUALIFIED_GPUS = _PACKAGE / "qualified_gpus.json"
_FORMAT = 1


class Gpu(NamedTuple):
    """What decides whether an answer of another day holds.

    capability: "9.0", or the architecture that ROCm names
    driver:     of the system, and the CUDA version it has, as far as they can be had
    kernels:    a hash of the Python files with kernels, so that an edited kernel is another one
    library:    a hash of the compiled CUDA library, "" where there is none
    """

    name: str
    capability: str
    driver: str
    torch: str
    triton: str
    package: str
    kernels: str
    library: str

    @classmethod
    def of(cls, index: int) -> Gpu:
        """The GPU that torch calls cuda:`index`. Raises RuntimeError or AssertionError where there is none."""
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        return cls(
            name=properties.name,
            capability=properties.gcnArchName if torch.version.hip else capability,
            driver=_driver(),
            torch=str(torch.__version__),
            triton=_version("triton", "pytorch-triton", "pytorch-triton-rocm"),
            package=_version("wat-kernels"),
            kernels=_hash(sorted([*_PACKAGE.rglob("triton*.py"), *_PACKAGE.rglob("cuda*.py")])),
            library=_hash([path for path in [_PACKAGE / "_cuda.abi3.so"] if path.exists()]),
        )


@dataclass(frozen=True)
class Verdict:
    """Of one kind of layer (`qualified.LAYERS`) on one backend in one dtype, as "float32". reason: "" where it passed."""

    layer: str
    backend: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Record:
    """gpu: that was checked; date: when, in ISO format and UTC"""

    gpu: Gpu
    date: str
    verdicts: tuple[Verdict, ...]

    def reason(self, layer: str, backend: str, dtype: str) -> str | None:
        """Why a kind of call did not pass, "" where it did, None where it was not checked."""
        wanted = (layer, backend, dtype)
        return next((v.reason for v in self.verdicts if (v.layer, v.backend, v.dtype) == wanted), None)


def cache_folder() -> Path:
    """WAT_CACHE_DIR, or `wat_kernels` in the folder that this system has for what can be made again."""
    if chosen := os.environ.get("WAT_CACHE_DIR"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "wat_kernels"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "wat_kernels"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "wat_kernels"


def record_path(gpu: Gpu) -> Path:
    """One file for each GPU, driver and set of versions. Raises RuntimeError where there is no home folder."""
    return cache_folder() / f"check-{hashlib.sha256(repr(tuple(gpu)).encode()).hexdigest()[:16]}.json"


def read_record(gpu: Gpu) -> Record | None:
    """What `watnn check` last found on this very GPU with these versions, or None."""
    try:
        read = json.loads(record_path(gpu).read_text(encoding="utf-8"))
        if read["format"] != _FORMAT or Gpu(**read["gpu"]) != gpu:
            return None
        verdicts = tuple(Verdict(**verdict) for verdict in read["verdicts"])
        if not all(isinstance(value, str) for verdict in verdicts for value in asdict(verdict).values()):
            return None
        return Record(gpu, str(read["date"]), verdicts)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, RecursionError):
        return None


def write_record(record: Record) -> Path:
    """Puts the record in place of the one before, whole or not at all. Raises OSError or RuntimeError."""
    path = record_path(record.gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        "format": _FORMAT,
        "gpu": record.gpu._asdict(),
        "date": record.date,
        "verdicts": [asdict(verdict) for verdict in record.verdicts],
    }
    _replace(path, json.dumps(contents, indent=1) + "\n")
    return path


def is_qualified(gpu: Gpu, path: Path = QUALIFIED_GPUS) -> bool:
    """Whether a GPU of this compute capability has passed all checks with these versions and kernels."""
    return any(all(entry.get(name) == getattr(gpu, name) for name in _QUALIFIES) for entry in _entries(path))


_QUALIFIES = ("capability", "torch", "triton", "package", "kernels")


def enter_run(gpu: Gpu, date: str, commit: str, path: Path = QUALIFIED_GPUS) -> None:
    """Enters a GPU on which every check passed into the package's list; a later run takes the place of one like it.

    date:   of the run, in ISO format
    commit: of the checkout that was run
    From then on `auto` takes `cuda` and `triton` on GPUs of this compute capability where torch, triton, this package and
    the kernels' sources are the same. Raises OSError.
    """
    new = {name: getattr(gpu, name) for name in _QUALIFIES}
    kept = [entry for entry in _entries(path) if any(entry.get(name) != new[name] for name in _QUALIFIES)]
    entries = [*kept, {**new, "name": gpu.name, "date": date, "commit": commit}]
    _replace(path, json.dumps({"gpus": entries}, indent=1) + "\n")


def _entries(path: Path) -> list[dict[str, str]]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))["gpus"]
        return [entry for entry in read if isinstance(entry, dict)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


_DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))


def _driver() -> str:
    """The kernel driver's version where the system tells it, and the newest CUDA that it runs."""
    parts = [str(torch.version.hip or getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)() or "")]
    for path in _DRIVERS:
        try:
            line = path.read_text(errors="replace").splitlines()[0].strip()
        except (OSError, IndexError):
            continue
        number = re.search(r"\b\d+(\.\d+)+\b", line)  # NVIDIA's line has words and the name of who built it besides
        parts.append(number[0] if number else line)
    return ", ".join(filter(None, parts))


def _version(*packages: str) -> str:
    """Of the first that is installed, "" where none is."""
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16] if paths else ""
