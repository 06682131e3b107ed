"""`watnn check`: runs the battery, prints a table, and keeps the answer where `auto` looks for it."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence

import torch

from wat_kernels import qualified
from wat_kernels.gpu_record import Gpu, Record, Verdict, read_record, write_record
from watnn.check.battery import FUSED, Finding, Probe, probes

_LIMIT = 85.0  # seconds, after which no probe begins


def run(device: str | None, backends: Sequence[str] | None) -> int:
    """Returns the exit status: 0 all passed, 1 something did not, 2 there is nothing to check or it cannot run.

    device:   "cpu" or "cuda", which may have an index; where nothing is said the GPU if there is one
    backends: those to check, all fused ones where nothing is said. Of the others a record keeps what it says
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("torch finds no GPU here")
            place = torch.device("cuda", torch.cuda.current_device() if place.index is None else place.index)
            gpu, title = Gpu.of(place.index), torch.cuda.get_device_name(place)
        elif place.type == "cpu":
            gpu, title = None, "CPU"
        else:
            raise RuntimeError(f"--device {device}; accepted are cpu and cuda")
        planned = list(probes(place, backends=backends))
        if not planned:
            asked = ", ".join(backends or FUSED)
            raise RuntimeError(f"no backend of {asked} runs on this {place.type}; `watnn info` says why")
    except (RuntimeError, ValueError, AssertionError) as error:
        print(f"watnn check: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    start = time.monotonic()
    findings = _run(planned, start + _LIMIT)
    seconds = time.monotonic() - start
    verdicts = verdicts_of(planned, findings)
    print(table(verdicts, planned))
    passed = sum(finding.passed for finding in findings)
    print(f"{title}: {passed} of {len(planned)} cases equal to the reference, {seconds:.0f} s")
    if len(findings) < len(planned):
        print("Not all cases were run. Kernels that were compiled are kept: run `watnn check` again for the others.")
    if gpu is not None:
        _keep(gpu, verdicts, {probe.backend for probe in planned})
    return 0 if passed == len(planned) else 1


def _run(planned: Sequence[Probe], deadline: float) -> list[Finding]:
    """What was found before the deadline. A GPU that a kernel has left unusable ends it too."""
    findings: list[Finding] = []
    for probe in planned:
        if time.monotonic() > deadline:
            break
        findings.append(probe.run())
        if not findings[-1].passed and probe.device.type == "cuda":
            try:
                torch.cuda.synchronize(probe.device)
            except RuntimeError:
                break
    return findings


def verdicts_of(planned: Sequence[Probe], findings: Sequence[Finding]) -> list[Verdict]:
    """One for each kind of layer, backend and dtype of which a case failed or all cases were run."""
    wanted: dict[tuple[str, str, str], int] = {}
    for probe in planned:
        place = (probe.layer, probe.backend, str(probe.dtype).removeprefix("torch."))
        wanted[place] = wanted.get(place, 0) + 1
    verdicts = []
    for place, count in wanted.items():
        found = [f for f in findings if (f.layer, f.backend, f.dtype) == place]
        failed = next((f for f in found if not f.passed), None)
        if failed is not None:
            verdicts.append(Verdict(*place, reason=f"{failed.what}: {failed.message}"))
        elif len(found) == count:
            verdicts.append(Verdict(*place, reason=""))
    return verdicts


def table(verdicts: Sequence[Verdict], planned: Sequence[Probe]) -> str:
    """Kinds of layers and backends down, dtypes across; then a line for each failure."""
    dtypes = list(dict.fromkeys(str(probe.dtype).removeprefix("torch.") for probe in planned))
    places = {(p.layer, p.backend, str(p.dtype).removeprefix("torch.")) for p in planned}
    reasons = {(v.layer, v.backend, v.dtype): v.reason for v in verdicts}

    def cell(place: tuple[str, str, str]) -> str:
        if place not in places:
            return "-"
        reason = reasons.get(place)
        return "not run" if reason is None else "FAILED" if reason else "ok"

    lines = [("", "backend", *dtypes)]
    for layer, backend in dict.fromkeys((probe.layer, probe.backend) for probe in planned):
        lines.append((layer, backend, *(cell((layer, backend, dtype)) for dtype in dtypes)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    failures = [f"{v.layer}, {v.backend}, {v.dtype}: {v.reason}" for v in verdicts if v.reason]
    return "\n".join([*rows, *failures])


def _keep(gpu: Gpu, verdicts: Sequence[Verdict], checked: set[str]) -> None:
    """Writes the record and says where; a folder that cannot be written is one line."""
    before = read_record(gpu)
    kept = [] if before is None else [verdict for verdict in before.verdicts if verdict.backend not in checked]
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    try:
        path = write_record(Record(gpu, now, (*kept, *verdicts)))
        print(f"kept in {path}, where `auto` looks")
    except (OSError, RuntimeError) as error:
        print(f"watnn check: the answer cannot be kept, and auto will not know it: {error}", file=sys.stderr)
    qualified.forget()
