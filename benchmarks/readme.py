"""The benchmark tables and pictures of the README, from the results.

    python -m benchmarks.readme             writes them again
    python -m benchmarks.readme --check     says what is not what the results say, and fails

What lies between `<!-- bench:headline AMD_EPYC -->` and `<!-- /bench -->` is the table made of
benchmarks/results/AMD_EPYC, and so on for each name in BLOCKS. A picture carries a digest of the rows it was made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from watnn.bench.figures import save_figures
from watnn.bench.rows import BASELINES, FIELDS, Row
from watnn.bench.store import latest, read

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- bench:(\w+) (\S+) -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)
_PICTURE = "ratios"
_LAYERS = {  # by suite: what it measures, and what there are several of
    "conv": ("3×3 convolution", "shape"),
    "depthwise": ("depthwise", "shape"),
    "linear": ("linear", "shape"),
    "network": ("training step of a network", "case"),
}
_DRAWS = {
    "translate": "`RandomAffine(0, translate=(0.3, 0.3))`",
    "resized_crop": "`RandomResizedCrop(scale=(0.8, 1.0))`",
    "identity": "the identity",
    "dropconnect": "`DropConnect(0.3)`",
    "multiplicative": "`MultiplicativeNoise(0.1)`",
}
_HEADINGS = {
    "plain": "plain layer",
    "official": "official",
    "compiled": "`torch.compile` of it",
    "library": "`library`",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is stale")
    if parser.parse_args(argv).check:
        problems = stale(ROOT)
        print("\n".join(problems) or "the README says what the results say", file=sys.stderr)
        return 1 if problems else 0
    for path in write(ROOT):
        print(path)
    return 0


def stale(root: Path) -> list[str]:
    """What in root/README.md is not what root/benchmarks/results says, one line each."""
    text = (root / "README.md").read_text()
    if not _BLOCK.search(text):
        return ["README.md has no block <!-- bench:... -->"]
    problems = []
    for _, name, machine, content, _ in _BLOCK.findall(text):
        if content != _content(name, machine, root):
            problems.append(f"README.md: the block bench:{name} {machine} is not what the results say")
        if name == "picture":
            path = root / picture_path(machine)
            if not path.is_file() or digest(_rows(machine, root)).encode() not in path.read_bytes():
                problems.append(f"{picture_path(machine)} was not made of the results")
    return problems


def write(root: Path) -> list[Path]:
    """Writes every block and picture again; returns the files that are there now."""
    readme = root / "README.md"
    text = readme.read_text()
    readme.write_text(_BLOCK.sub(lambda match: match[1] + _content(match[2], match[3], root) + match[5], text))
    files = [readme]
    for machine in dict.fromkeys(match[2] for match in _BLOCK.findall(text) if match[1] == "picture"):
        files.append(root / picture_path(machine))
        rows = _rows(machine, root)
        with TemporaryDirectory() as folder:
            made = save_figures(Path(folder), rows, Description=digest(rows))
            picture = next(path for path in made if path.name == f"{_PICTURE}.png")
            files[-1].write_bytes(picture.read_bytes())
    return files


def picture_path(machine: str) -> str:
    return f"docs/bench_{machine}.png"


def digest(rows: Sequence[Row]) -> str:
    """Of what the rows say; a column that a later version adds changes nothing."""
    lines = [{name: value for name in FIELDS if (value := getattr(row, name)) not in (None, "")} for row in rows]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _rows(machine: str, root: Path) -> list[Row]:
    """What the README speaks of: fp32."""
    return latest(row for row in read(root / "benchmarks" / "results" / machine) if row.dtype == "fp32")


def _content(name: str, machine: str, root: Path) -> str:
    if name not in BLOCKS:
        raise ValueError(f"bench:{name}; accepted are {', '.join(BLOCKS)}")
    rows = _rows(machine, root)
    if not rows:
        raise ValueError(f"bench:{name} {machine}: no fp32 results in benchmarks/results/{machine}")
    return BLOCKS[name](machine, rows)


def headline(machine: str, rows: Sequence[Row]) -> str:
    """Ratios of forward and backward: geometric mean over the shapes, best and worst; then machine and command."""
    ours = [row for row in rows if row.role == "wat" and row.mode == "full" and row.suite in _LAYERS and row.ms]
    groups = {}
    for row in sorted(ours, key=lambda row: (list(_LAYERS).index(row.suite), list(_DRAWS).index(row.variant))):
        groups.setdefault((row.suite, row.variant), []).append(row)
    shown = [name for name in BASELINES if any(getattr(row, f"vs_{name}") is not None for row in ours)]
    lines = [["layer", "draws", *(_HEADINGS[name] for name in shown)], ["---"] * (2 + len(shown))]
    for (suite, variant), group in groups.items():
        cells = [_ratios([getattr(row, f"vs_{name}") for row in group]) for name in shown]
        layer, thing = _LAYERS[suite]
        count = f"{len(group)} {thing}{'' if len(group) == 1 else 's'}"
        lines.append([f"{layer}, {count}", _DRAWS[variant], *cells])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n{_source(machine, ours)}\n"


def _ratios(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    return f"{statistics.geometric_mean(there):.2f} ({min(there):.2f} to {max(there):.2f})"


def memory(machine: str, rows: Sequence[Row]) -> str:
    """Bytes above the plain layer: kept for backward, and at the peak; of one draw of each kind of layer."""
    weighed = [
        row
        for row in rows
        if row.suite == "memory" and row.role in ("wat", "official") and row.variant in ("translate", "dropconnect")
    ]
    lines = ["| shape | draws | layer | kept for backward | peak |\n| --- | --- | --- | --- | --- |\n"]
    for row in weighed:
        layer = f"{row.name} ({row.backend})" if row.backend else row.name
        cells = (row.case, _DRAWS[row.variant], layer, _bytes(row.saved_above_plain), _bytes(row.peak_above_plain))
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines) + f"\n{_source(machine, weighed)}\n"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count:+d} B" if abs(count) < 1000 else f"{count / 1e6:+.1f} MB"


def picture(machine: str, rows: Sequence[Row]) -> str:
    where = rows[-1].machine
    return f"![Time of forward and backward against the baselines on {where}]({picture_path(machine)})\n"


def _source(machine: str, rows: Sequence[Row]) -> str:
    """Where the numbers come from, in one line."""
    row = rows[-1]
    threads = (
        "" if row.device != "cpu" else f", {row.isa}, {row.threads} threads" if row.isa else f", {row.threads} threads"
    )
    commits = ", ".join(dict.fromkeys(other.commit or "unknown" for other in rows))
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(other.command for other in rows))
    return (
        f"{row.machine}{threads}, fp32, torch {row.torch}, commit {commits}: `benchmarks/results/{machine}`, "
        f"made by {commands}."
    )


BLOCKS: dict[str, Callable[[str, Sequence[Row]], str]] = {"headline": headline, "memory": memory, "picture": picture}

if __name__ == "__main__":
    sys.exit(main())
