"""Whether this machine's GPU has been seen to compute right: what `auto` asks before it takes `cuda` or `triton`.

A GPU qualifies by a passed `watnn check` here, or by the package's list of GPUs on which every check has passed. It is read
at the first call on a GPU and remembered.
"""

from __future__ import annotations

import logging
from functools import cache

import torch

from wat_kernels import checks
from wat_kernels.compiled_constant import compiled_constant
from wat_kernels.dispatch import Call
from wat_kernels.gpu_record import Gpu, Record, is_qualified, read_record

logger = logging.getLogger("wat_kernels")

# what the ops' kernels differ by, those first whose check is worth most where time is short
LAYERS = ("convolution", "many rows", "few rows", "depthwise", "grouped")
_FEW_ROWS = 64  # what the CUDA kernels of linear layers are for
_told: set[str] = set()


def layer_of(op: str, call: Call) -> str:
    """The one of LAYERS that a call of `op` is."""
    if op == "shadow_linear":
        return "few rows" if call.rows <= _FEW_ROWS else "many rows"
    if call.groups == 1:
        return "convolution"
    return "depthwise" if call.groups == call.in_channels == call.out_channels else "grouped"


def qualified(op: str, backend: str, call: Call) -> tuple[bool, str]:
    """Whether `auto` may take a GPU backend for a call that it supports, or why not."""
    if call.device != "cuda":
        return False, f"on {call.device} its kernels are interpreted, which is for tests"
    if call.transposed:
        return False, "`watnn check` does not look at transposed convolutions"
    index = -1 if call.device_index is None else call.device_index
    reason = _refusal(layer_of(op, call), backend, str(call.dtype).removeprefix("torch."), index)
    return not reason, reason


@compiled_constant
def _refusal(layer: str, backend: str, dtype: str, index: int) -> str:
    """Why not, or an empty string. The first refusal on a GPU is a warning, once in a process. index: -1 is the current one."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    gpu, listed, record = known(torch.cuda.current_device() if index < 0 else index)
    if (found := None if record is None else record.reason(layer, backend, dtype)) is None:
        if listed:
            return ""
        reason = f"{gpu.name} has not been checked: run `watnn check` once, which takes less than 90 s"
        if record is not None:
            reason = f"`watnn check` did not get to {layer} in {dtype} on {record.date}: run it again"
    elif found and record is not None:
        reason = f"`watnn check` found it wrong for {layer} in {dtype} on {record.date}: {found}"
    else:
        return ""
    if not _told:
        _told.add(reason)
        logger.warning("auto does not use the %s kernels: %s", backend, reason)
    return reason


@cache
def known(index: int) -> tuple[Gpu, bool, Record | None]:
    """The facts of cuda:`index`, whether the package's list has it, and what `watnn check` found here."""
    gpu = Gpu.of(index)
    return gpu, is_qualified(gpu), read_record(gpu)


def standing(index: int) -> str:
    """What is known about the kernels on cuda:`index`, in a few words."""
    _, listed, record = known(index)
    if record is not None:
        failed = [verdict for verdict in record.verdicts if verdict.reason]
        if not failed:
            return f"passed `watnn check` on {record.date}"
        places = ", ".join(f"{verdict.backend} for {verdict.layer} in {verdict.dtype}" for verdict in failed)
        return f"failed `watnn check` on {record.date}: {places}"
    return "passed all checks of this package" if listed else "not checked: run `watnn check`"


def forget() -> None:
    """Reads the record again at the next call; graphs that are compiled stay as they are."""
    known.cache_clear()
    _told.clear()
    checks.forget_decisions()
