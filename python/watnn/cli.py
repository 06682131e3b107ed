"""The console script `watnn`: `watnn info`, `watnn check`, `watnn demo` and `watnn bench`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from watnn.bench.arguments import add_arguments

_EXTRAS = {  # the packages of each extra, by the name that is imported
    "demo": {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"},
    "bench": {"matplotlib": "matplotlib", "rich": "rich"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 failed, 2 bad arguments, 130 stopped by Ctrl-C.

    141 where who reads the output wants no more of it, as with `| head`.
    """
    try:
        status = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end
        return 128 + signal.SIGPIPE
    return status


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "info":
        from watnn.info import describe

        print(describe())
        return 0
    if arguments.command == "check":
        from watnn.check.command import run as run_check

        return run_check(arguments.device, arguments.backend)
    extra = arguments.command
    missing = [name for package, name in _EXTRAS[extra].items() if importlib.util.find_spec(package) is None]
    if missing:
        print(f"watnn {extra}: {', '.join(missing)} not installed: pip install wat-kernels[{extra}]", file=sys.stderr)
        return 1
    if extra == "bench":
        from watnn.bench.run import run as run_benchmarks

        return run_benchmarks(arguments, command=_command(argv))
    from watnn.demo.settings import Settings

    try:
        settings = Settings.of(arguments.quick, arguments.seeds, arguments.epochs, arguments.output)
    except ValueError as error:
        print(f"watnn demo: {error}", file=sys.stderr)
        return 2
    from watnn.demo.run import run

    return run(settings, command=_command(argv))


def _command(argv: Sequence[str] | None) -> str:
    return shlex.join(["watnn", *(sys.argv[1:] if argv is None else argv)])


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without printing the usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="watnn", description="Layers whose weight is redrawn at every forward.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,check,demo,bench}")
    commands.add_parser("info", help="versions, devices, and which backends run here")
    check = commands.add_parser(
        "check",
        help="compare this machine's kernels with the reference, so that auto takes them on a GPU",
        description="Compares every fused backend that runs here with the reference, on cases that take less than 90 s on "
        "a GPU and seconds on a CPU, and keeps the answer in the user's cache folder (WAT_CACHE_DIR): on a GPU, auto takes "
        "what has passed. Exit status 0 passed, 1 failed, 2 nothing to check.",
    )
    check.add_argument("--device", help="cpu, cuda or cuda:1 (default: the GPU where there is one)")
    check.add_argument(
        "--backend", nargs="+", choices=("cuda", "triton", "native"), help="backends to check (default: all that run)"
    )
    demo = commands.add_parser(
        "demo",
        help="train a small network plain, with WAT and with noise, and compare",
        description="Trains a small CNN on scikit-learn's digits as plain nn.Conv2d, with WAT's two transforms and "
        "with DAMP's noise, and prints what each gains and costs. Needs the extra wat-kernels[demo].",
    )
    demo.add_argument("--seeds", type=int, help="number of seeds, each trains every variant (default 3)")
    demo.add_argument("--epochs", type=int, help="epochs per training (default 30)")
    demo.add_argument(
        "--quick", action="store_true", help="a narrow network and 2 epochs: seconds, numbers mean little"
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("demo-results"),
        help="folder for results.json and the pictures (default demo-results)",
    )
    bench = commands.add_parser(
        "bench",
        help="measure what the layers cost here, against the plain and the official ones",
        description="Measures time and memory of the layers against nn.Conv2d and nn.Linear, the official pipeline, "
        "torch.compile of it, and the limits of this machine. Needs the extra wat-kernels[bench].",
    )
    add_arguments(bench)
    return parser
