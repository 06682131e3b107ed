"""A row of results: what was measured, where, with what, when."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import wat_kernels
from watnn.info import cpu_name, versions


@dataclass(frozen=True)
class Environment:
    """What all rows of one run share.

    machine: the name of the GPU on CUDA, else of the processor; `isa`: of the compiled CPU backend
    commit:  of the checkout that runs, "-dirty" behind it where its code was changed; "" outside of a checkout
    """

    machine: str
    cpu: str
    isa: str
    commit: str
    version: str
    torch: str
    triton: str
    python: str
    time: str
    command: str

    @classmethod
    def of(cls, device: str, command: str) -> Environment:
        found = versions()
        cuda = torch.device(device).type == "cuda"
        return cls(
            machine=torch.cuda.get_device_name(device) if cuda else cpu_name(),
            cpu=cpu_name(),
            isa=_isa(),
            commit=commit(),
            version=found["wat-kernels"],
            torch=torch.__version__,
            triton=found["triton"],
            python=found["python"],
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=command,
        )


@dataclass(frozen=True)
class Row:
    """One contender of one case in one mode; None where a number does not apply.

    ms, ms_lower, ms_upper:  median and quartiles of the rounds; of the mean over the draws, where there are several
    timed:                   how: "clock" on a CPU; on a GPU "graph", which is the time of the kernels alone, or "events"
    host_ms, eager_ms:       on a GPU, of the host until a call is enqueued, and of a call among others (see timing.Timed)
    vs_plain, vs_official, vs_compiled, vs_library: median of this row / median of that baseline, for role "wat"
    of_limit:                share of what the machine can do at most (see limits): least possible time / median
    gflops, gbytes:          the least work of one call, in units of 1e9
    limit_gflops, limit_gbytes: what the machine was measured to do in a second
    saved_bytes, peak_bytes: kept for backward; most memory in use in forward and backward above what was in use before
    saved_above_plain, peak_above_plain: the same less the plain layer's
    shadow_share, expected_share, least_share: of a network's convolutions, see network.dom_shares
    note:                    why there are no numbers, where there are none
    """

    suite: str
    case: str
    mode: str
    role: str
    name: str
    variant: str
    backend: str
    device: str
    dtype: str
    layout: str
    threads: int
    curve: str = ""
    at: float | None = None
    reps: int | None = None
    ms: float | None = None
    ms_lower: float | None = None
    ms_upper: float | None = None
    timed: str = ""
    host_ms: float | None = None
    eager_ms: float | None = None
    vs_plain: float | None = None
    vs_official: float | None = None
    vs_compiled: float | None = None
    vs_library: float | None = None
    of_limit: float | None = None
    gflops: float | None = None
    gbytes: float | None = None
    limit_gflops: float | None = None
    limit_gbytes: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    saved_above_plain: int | None = None
    peak_above_plain: int | None = None
    shadow_share: float | None = None
    expected_share: float | None = None
    least_share: float | None = None
    note: str = ""
    machine: str = ""
    cpu: str = ""
    isa: str = ""
    commit: str = ""
    version: str = ""
    torch: str = ""
    triton: str = ""
    python: str = ""
    time: str = ""
    command: str = ""

    @property
    def key(self) -> tuple:
        """What is measured, as against when: of two rows with one key the later one counts."""
        names = (
            "suite", "case", "mode", "role", "name", "variant", "backend", "device", "dtype", "layout", "threads",
        )  # fmt: skip
        return tuple(getattr(self, name) for name in names)


FIELDS = tuple(field.name for field in dataclasses.fields(Row))
BASELINES = ("plain", "official", "compiled", "library")


def _isa() -> str:
    from wat_kernels.extension import NATIVE

    return torch.ops.wat_kernels.native_isa("") if NATIVE.available else ""


def commit() -> str:
    """Of the checkout that runs, see Environment; of a copy without .git what WAT_COMMIT says."""
    root = Path(wat_kernels.__file__).parent.parent
    if not (root / ".git").exists():
        return os.environ.get("WAT_COMMIT", "")

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "python", "wat_kernels", "csrc", "setup.py"
        )
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"watnn bench: the commit is unknown ({error})", file=sys.stderr)
        return ""
