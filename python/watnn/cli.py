"""The console script `watnn`: `watnn info` and `watnn demo`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

_DEMO_PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}  # the `demo` extra


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 failed, 2 bad arguments, 130 stopped by Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "info":
        from watnn.info import describe

        print(describe())
        return 0
    missing = [name for package, name in _DEMO_PACKAGES.items() if importlib.util.find_spec(package) is None]
    if missing:
        return _fail(f"{', '.join(missing)} not installed: pip install wat-kernels[demo]", status=1)
    from watnn.demo.settings import Settings

    try:
        settings = Settings.of(arguments.quick, arguments.seeds, arguments.epochs, arguments.output)
    except ValueError as error:
        return _fail(str(error), status=2)
    from watnn.demo.run import run

    return run(settings, command=_command(argv))


def _fail(message: str, status: int) -> int:
    print(f"watnn demo: {message}", file=sys.stderr)
    return status


def _command(argv: Sequence[str] | None) -> str:
    return " ".join(["watnn", *(sys.argv[1:] if argv is None else argv)])


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="watnn", description="Layers whose weight is redrawn at every forward.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{info,demo}")
    commands.add_parser("info", help="versions, devices, and which backends run here")
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
    return parser
