"""The pictures of one machine's results.

python -m benchmarks.plot benchmarks/results/AMD_EPYC pictures --format svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from watnn.bench.figures import save_figures
from watnn.bench.store import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a machine's folder in a store")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--format", nargs="+", choices=("png", "svg"), default=["png"])
    arguments = parser.parse_args()
    rows = read(arguments.results)
    if not rows:
        parser.error(f"no results in {arguments.results}")
    for path in save_figures(arguments.folder, rows, arguments.format):
        print(path)


if __name__ == "__main__":
    main()
