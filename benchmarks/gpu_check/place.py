"""Where a stage runs its kernels: on a GPU, or in a rehearsal on the CPU at sizes that take no time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """What a stage needs to know of the run.

    folder:    for the stage's logs and findings
    results:   the store that rows of the benchmark go to
    device:    "cuda", or "cpu" in a rehearsal
    rehearsal: sizes are to be tiny, and numbers mean nothing
    started:   when the stage's process began, by time.monotonic
    seconds:   what the stage had left then
    wanted:    with `--only-failed`, names of steps and of findings that had failed or were not reached; None otherwise
    """

    folder: Path
    results: Path
    device: str
    rehearsal: bool
    seconds: float
    wanted: frozenset[str] | None = None
    started: float = field(default_factory=time.monotonic)

    def wants(self, what: str) -> bool:
        """Whether something that can be run alone is to be run."""
        return self.wanted is None or what in self.wanted
