"""Where rows are kept: CSV and JSON files that are complete after each row, and stores of many runs.

A store is a folder with a folder for each machine, and in it a CSV file for each suite: rows are appended, never changed.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from watnn.bench.rows import FIELDS, Row

_NEEDED = {field.name for field in dataclasses.fields(Row) if field.default is dataclasses.MISSING}


def append(path: Path, row: Row) -> None:
    """One line more in a CSV file, which is made with its header where it is not there.

    A file of an earlier version, which lacks columns, gets them, empty in its rows. Raises ValueError where the file has
    other columns.
    """
    if check_columns(path) not in (FIELDS, ()):
        _widen(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        _write(file, row, header=new)


def check_columns(path: Path) -> tuple[str, ...]:
    """The columns of a file of rows, () where there is none; an earlier version may have had less."""
    if not (path.exists() and path.stat().st_size):
        return ()
    with path.open(newline="") as file:
        columns = tuple(next(csv.reader(file)))
    known = tuple(name for name in FIELDS if name in columns)
    if columns != known or not set(columns) >= _NEEDED:
        raise ValueError(f"{path} has the columns of something else; rows can be appended to a file of benchmarks")
    return columns


def _widen(path: Path) -> None:
    """Puts a file with all columns in place of one that lacks some; what is in it stays as it is written."""
    part = path.with_name(path.name + ".part")
    with path.open(newline="") as old, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(csv.DictReader(old))
    part.replace(path)


def file_in_store(store: Path, row: Row) -> Path:
    return store / folder_name(row.machine) / f"{row.suite}.csv"


def folder_name(machine: str) -> str:
    """`machine` as a folder: what is no letter, digit, dot or hyphen becomes one underscore."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", machine).strip("_.") or "unknown"


def read(folder: Path) -> list[Row]:
    """All rows of a machine's folder, oldest first in each suite. Raises ValueError where a file is no file of rows."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.csv")):
        check_columns(path)
        with path.open(newline="") as file:
            rows += [Row(**{name: _parsed(name, text) for name, text in line.items()}) for line in csv.DictReader(file)]
    return rows


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of rows that measured the same, the last one; in the order of first appearance."""
    return list({row.key: row for row in rows}.values())


class Output:
    """Everywhere a row of this run goes, as soon as it is there.

    csv, json: a path, or an open stream, or None; a JSON file is one array, written again with each row
    store:     the folder of a store, or None
    """

    def __init__(self, csv: Path | TextIO | None, json: Path | TextIO | None, store: Path | None):
        self.rows: list[Row] = []
        self._csv, self._json, self._store = csv, json, store
        if isinstance(csv, Path):
            check_columns(csv)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if isinstance(self._csv, Path):
            append(self._csv, row)
        elif self._csv is not None:
            _write(self._csv, row, header=len(self.rows) == 1)
            self._csv.flush()
        if isinstance(self._json, Path):
            part = self._json.with_name(self._json.name + ".part")
            part.write_text(self._document())
            part.replace(self._json)
        if self._store is not None:
            append(file_in_store(self._store, row), row)

    def close(self) -> None:
        """A JSON stream gets the array once, at the end."""
        if self._json is not None and not isinstance(self._json, Path):
            self._json.write(self._document())

    def _document(self) -> str:
        return json.dumps([dataclasses.asdict(row) for row in self.rows], indent=1) + "\n"


def _write(file: TextIO, row: Row, header: bool) -> None:
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerow({name: _text(value) for name, value in dataclasses.asdict(row).items()})


def _text(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value


_TYPES = typing.get_type_hints(Row)


def _parsed(name: str, text: str) -> object:
    kind = _TYPES[name]
    if isinstance(kind, types.UnionType):
        if text == "":
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return kind(text)
