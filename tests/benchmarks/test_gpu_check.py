"""`make gpu-check` where there is no GPU: what it would run, and what it makes of rows."""

import dataclasses
import io
import sys

import pytest
import torch
from rich.console import Console
from watnn.bench.case import Options
from watnn.bench.rows import Environment
from watnn.bench.runner import measure

from benchmarks import gpu_check
from benchmarks.gpu_check import BARS, Check


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--results", str(tmp_path)])
    assert gpu_check.main() == 2
    assert "torch finds no GPU here; nothing was checked" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_bar_has_cases_and_every_path_of_tests_exists():
    cases = list(gpu_check._cases())
    names = [(case.suite, case.name) for case, _ in cases]
    assert len(set(names)) == len(names)
    compiled = {case.suite for case, options in cases if options.compiled}
    for bar in BARS:
        assert bar.suite in {case.suite for case, _ in cases}
        assert bar.baseline != "compiled" or bar.suite in compiled
    assert {case.name for case, _ in cases if case.suite == "conv"} >= {
        "64ch 32x32 k3 batch 1024",
        "512ch 14x14 k3 batch 128",
    }
    assert all((gpu_check.ROOT / path).exists() for path in gpu_check.TESTS)


@pytest.fixture(scope="module")
def rows():
    """A real row of each kind, measured on the CPU."""
    environment = Environment.of("cpu", "")
    case, _ = next((c, o) for c, o in gpu_check._cases() if c.suite == "few_rows")
    return list(measure(case, Options("cpu", torch.float32, ("library",), compiled=False), 1, environment))


def test_standings_are_geometric_means_for_each_backend(rows):
    row = next(row for row in rows if row.role == "wat" and row.variant == "dropconnect" and row.mode == "full")
    made = [
        dataclasses.replace(row, backend=backend, case=str(place), vs_plain=ratio)
        for backend, ratios in (("cuda", (0.5, 2.0, 1.0)), ("triton", (3.0,)))
        for place, ratio in enumerate(ratios)
    ]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(gpu_check._standings(made))
    lines = [line.split() for line in console.export_text().splitlines() if "few_rows" in line]
    assert [line[3:8] for line in lines] == [
        ["cuda", "plain", "3", "1.00", "0.50"],
        ["triton", "plain", "1", "3.00", "3.00"],
    ]


def test_cases_after_the_deadline_are_named_and_wrong_results_are_returned(monkeypatch, tmp_path, rows):
    cases = [(case, options) for case, options in gpu_check._cases() if case.suite == "few_rows"][:2]
    monkeypatch.setattr(gpu_check, "_cases", lambda: iter(cases))
    monkeypatch.setattr(Environment, "of", classmethod(lambda cls, device, command: _of_cpu(command)))
    console = Console(width=140, record=True, file=io.StringIO())
    assert gpu_check.benchmark(tmp_path, 0.0, console) == []
    text = " ".join(console.export_text().split())
    assert f"not measured for lack of time: {cases[0][0].name}, {cases[1][0].name}" in text

    def wrong(case, *_):
        raise gpu_check.WrongResult(f"{case.name} is wrong")

    monkeypatch.setattr(gpu_check, "measure", wrong)
    assert gpu_check.benchmark(tmp_path, float("inf"), console) == [f"{case.name} is wrong" for case, _ in cases]
    monkeypatch.setattr(gpu_check, "measure", lambda *_: iter(rows[:3]))
    assert gpu_check.benchmark(tmp_path, float("inf"), console) == []
    (stored,) = tmp_path.rglob("few_rows.csv")
    assert len(stored.read_text().splitlines()) == 1 + 3 * len(cases)


_OF = Environment.of


def _of_cpu(command):
    return _OF("cpu", command)


def test_a_command_that_fails_is_a_failed_check(tmp_path):
    log = tmp_path / "log"
    failed = gpu_check._run("tests", "x", [sys.executable, "-c", "print('1 failed'); exit(3)"], log, None)
    right = gpu_check._run("tests", "x", [sys.executable, "-c", "print('3 passed')"], log, None)
    assert (failed.passed, failed.found, right.passed, right.found) == (False, "1 failed", True, "3 passed")
    gpu_check._write(tmp_path / "checks.csv", [Check("tests", "x", "3 passed", "exit status 0", True, 1.5)])
    assert (tmp_path / "checks.csv").read_text().splitlines()[1] == "tests,x,3 passed,exit status 0,True,1.5"
