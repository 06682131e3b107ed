"""The arguments of `watnn bench`, and what they come to once they are checked."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from wat_kernels import dispatch
from watnn.bench.case import DTYPES, Case, Options
from watnn.bench.suites import SUITES

REPS, QUICK_REPS = 9, 5
STREAM = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Values are checked by `Plan.of`, so that all errors have one form."""
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--dtype", default="fp32", help=f"{', '.join(DTYPES)} (default fp32)")
    parser.add_argument(
        "--backend", default="auto", help="one or several, separated by commas; each is measured (default auto)"
    )
    parser.add_argument("--quick", action="store_true", help="a few small cases, less than a minute on two cores")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="TEXT", help="only cases with TEXT in their name"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--reps", type=int, help=f"rounds; a time is their median (default {REPS}, quick {QUICK_REPS})")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also measure torch.compile of the official pipeline (default: yes, with --quick no)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STREAM,
        metavar="FILE.json",
        help="write the rows (default standard output)",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        nargs="?",
        const=STREAM,
        metavar="FILE.csv",
        help="append the rows (default standard output)",
    )
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="append the rows to FOLDER/<machine>/<suite>.csv")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw pictures of the rows into FOLDER")
    parser.add_argument("--bars", action="store_true", help="a table of the times that the layers have to keep to")


@dataclass(frozen=True)
class Plan:
    """A benchmark run, checked."""

    cases: list[Case]
    options: Options
    threads: int
    reps: int

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Plan:
        """Raises ValueError, in one line that names the argument, what came and what is accepted."""
        for suite in arguments.suites:
            if suite not in SUITES:
                raise ValueError(f"no suite {suite!r}; there are {', '.join(SUITES)}")
        if arguments.dtype not in DTYPES:
            raise ValueError(f"--dtype {arguments.dtype}; accepted are {', '.join(DTYPES)}")
        backends = tuple(dict.fromkeys(arguments.backend.split(",")))
        for backend in backends:
            dispatch.check_name(backend, "--backend")
        reps = (QUICK_REPS if arguments.quick else REPS) if arguments.reps is None else arguments.reps
        threads = torch.get_num_threads() if arguments.threads is None else arguments.threads
        for name, value in (("--reps", reps), ("--threads", threads)):
            if value < 1:
                raise ValueError(f"{name} {value}; accepted is an int >= 1")
        for name, path, suffix in (("--json", arguments.json, ".json"), ("--csv", arguments.csv, ".csv")):
            if path not in (None, STREAM) and path.suffix != suffix:
                raise ValueError(f"{name} {path}; accepted is a file that ends in {suffix}")
        if arguments.json == arguments.csv == STREAM:
            raise ValueError("--json and --csv both go to standard output; accepted is a file for one of them")
        _check_device(arguments.device)
        compiled = not arguments.quick if arguments.compile is None else arguments.compile
        options = Options(arguments.device, DTYPES[arguments.dtype], backends, compiled)
        return cls(_cases(arguments), options, threads, reps)


def _cases(arguments: argparse.Namespace) -> list[Case]:
    cases = [case for suite in (arguments.suites or SUITES) for case in SUITES[suite]()]
    for text in arguments.filter:
        if not any(text in case.name for case in cases):
            raise ValueError(f"--filter {text!r} matches no case; --list prints them")
    if arguments.filter:
        cases = [case for case in cases if any(text in case.name for text in arguments.filter)]
    if arguments.quick:
        # what is asked for by name is measured, whether it is quick or not
        cases = [case for case in cases if case.quick or arguments.filter]
    if torch.device(arguments.device).type != "cpu":
        cases = [case for case in cases if case.threads is None]  # a GPU does not care for CPU threads
    return cases


def _check_device(device: str) -> None:
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["cuda"] if len(there) > 1 else []
    if device not in there:
        raise ValueError(f"--device {device}; accepted here are {', '.join(there)}")
