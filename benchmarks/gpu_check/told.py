"""A plugin of pytest that tells of each test at once, a line of JSON each: a run that is cut off has said what it knew.

pytest -p benchmarks.gpu_check.told, with WAT_TOLD, the file it writes to, and WAT_LEAVE_OUT, a JSON list of tests that are
not to be run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple


class Told(NamedTuple):
    """One test, or one file that was not collected.

    outcome: "passed", "failed" or "skipped"
    text:    why it failed, in one line
    long:    the whole of it, as pytest would print it
    """

    test: str
    outcome: str
    seconds: float
    text: str = ""
    long: str = ""


def read(path: Path) -> list[Told]:
    """What the file says so far; a line that is being written is left for later."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [Told(*json.loads(line)) for line in lines]


_path: Path | None = None  # in the process that gathers the reports of all others, if there are others


def pytest_configure(config: Any) -> None:
    global _path
    given = os.environ.get("WAT_TOLD")
    _path = Path(given) if given and not hasattr(config, "workerinput") else None


def pytest_collection_modifyitems(config: Any, items: list) -> None:
    given = os.environ.get("WAT_LEAVE_OUT")
    names = frozenset(json.loads(Path(given).read_text())) if given else frozenset()
    out = [item for item in items if item.nodeid in names]
    if out:
        items[:] = [item for item in items if item.nodeid not in names]
        config.hook.pytest_deselected(items=out)


def pytest_runtest_logreport(report: Any) -> None:
    """A test has three reports: of what is set up, of the test, and of what is torn down."""
    if report.when == "call" or not report.passed:
        _tell(report, report.duration)


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _tell(report, 0.0)


def _tell(report: Any, seconds: float) -> None:
    if _path is None:
        return
    text = long = ""
    if report.failed:
        long = report.longreprtext
        crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", "") or long or "failed"
        text = next((line.strip() for line in crash.splitlines() if line.strip()), "failed")
    with _path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(Told(report.nodeid, report.outcome, round(seconds, 3), text, long)) + "\n")
