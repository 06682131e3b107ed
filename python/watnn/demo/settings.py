"""What one run of the demo is asked to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """seeds: trainings per variant. epochs: per training. width: channels of the first block. draws: DOM models that
    are tested per training. batch: images per step. peak_rate: highest learning rate. curve_points: tests during a
    training. output: the folder for results."""

    output: Path
    seeds: int = 3
    epochs: int = 30
    width: int = 32
    draws: int = 8
    batch: int = 64
    peak_rate: float = 0.1
    curve_points: int = 15

    @classmethod
    def of(cls, quick: bool, seeds: int | None, epochs: int | None, output: Path) -> Settings:
        """Settings from the command line, where None means the default. Makes the output folder.

        Raises ValueError naming the option, what came and what is accepted.
        """
        small = {"seeds": 2, "epochs": 2, "width": 8, "draws": 2, "curve_points": 2} if quick else {}
        for option, value in (("seeds", seeds), ("epochs", epochs)):
            if value is not None:
                if value < 1:
                    raise ValueError(f"--{option} {value}; accepted is an int >= 1")
                small[option] = value
        _make_folder(output)
        return cls(output, **small)


def _make_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; accepted is a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {output} cannot be made: {error.strerror}") from error
    if not os.access(output, os.W_OK):
        raise ValueError(f"--output {output} is not writable")
