"""The GPU's check without a GPU: limits and restarts, what is kept, what is said, and one whole rehearsal."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import warnings

import pytest
import torch

from benchmarks.gpu_check import command, process, report, summary, tests
from benchmarks.gpu_check.benchmark import cases
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.report import Finding, Report, Step, run_steps
from benchmarks.gpu_check.stages import BY_NAME, STAGES
from benchmarks.gpu_check.standings import BARS, standings
from tests.gpu.suites import SUITES
from wat_kernels import gpu_record
from wat_kernels.gpu_record import Gpu

FACTS = BY_NAME["facts"]


def run(folder, steps, seconds=20.0):
    environment = {**os.environ, "MADE_STEPS": json.dumps(steps), "PYTHONPATH": f"{process.ROOT}:{process.ROOT}/python"}
    return process.run(FACTS, [], folder, seconds, environment, worker="tests.benchmarks.made_worker")


def found(folder):
    return [(step, one.what, one.passed, one.text) for step, one in report.read(folder, "facts").findings]


def test_a_step_that_raises_dies_or_hangs_is_one_failure_and_the_others_run(tmp_path):
    outcome = run(tmp_path, ["finds a", "raises", "dies", "hangs", "finds b"])
    assert outcome.how == "done"
    assert found(tmp_path) == [
        ("finds a", "finds a", True, "right"),
        ("raises", "raises, before", True, "right"),
        ("raises", "raises", False, "ValueError: this is"),
        ("dies", "dies, before", True, "right"),
        ("dies", "dies", False, "the process died of SIGSEGV: it printed nothing"),
        ("hangs", "hangs", False, "did not end within 3 s: taken to hang"),
        ("finds b", "finds b", True, "right"),
    ]
    record = report.read(tmp_path, "facts")
    assert record.ended == record.planned and not record.missing and not record.clean
    assert record.findings[0][1].numbers == {"us": 1.5}


def test_what_the_time_does_not_suffice_for_is_not_reached(tmp_path):
    start = time.monotonic()
    outcome = run(tmp_path, ["finds a", "hangs", "finds b"], seconds=2.0)
    record = report.read(tmp_path, "facts")
    assert outcome.how == "out of time" and time.monotonic() - start < 15
    assert "finds b" in record.missing and not record.failed


def test_a_process_that_ends_before_its_first_step_is_said(tmp_path):
    assert run(tmp_path, "broken").how == "broken"
    assert found(tmp_path) == [
        (process.STAGE, process.STAGE, False, "the process ended with 1: no module named missing")
    ]


def test_a_full_disk_ends_the_run(tmp_path):
    with pytest.raises(OSError, match="No space left on device"):
        run(tmp_path, ["finds a", "fills", "finds b"])
    assert [what for _, what, *_ in found(tmp_path)] == ["finds a"]


def test_a_gpu_that_refuses_the_process_ends_it_and_another_goes_on(tmp_path, monkeypatch):
    def refused():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", refused)
    steps = [Step("a", lambda: refused()), Step("b", lambda: iter([Finding("b", True, "")]))]
    writer = Report(tmp_path, "facts")
    assert not run_steps(steps, writer, (), 10)
    assert run_steps(steps, writer, report.read(tmp_path, "facts").begun, 10)
    assert [(what, passed) for _, what, passed, _ in found(tmp_path)] == [("a", False), ("b", True)]


def test_a_line_that_was_cut_off_says_nothing(tmp_path):
    writer = Report(tmp_path, "facts")
    writer.plan(["a"])
    writer.begin(Step("a", lambda: iter(())))
    with report.path_of(tmp_path, "facts").open("a") as file:
        file.write('{"event": "finding", "st')
    record = report.read(tmp_path, "facts")
    assert record.under_way == ("a", 30.0) and record.findings == [] and record.missing == ["a"]


def test_what_failed_or_was_not_reached_is_run_again_and_the_rest_kept(tmp_path):
    run(tmp_path, ["finds a", "raises", "finds b"])
    Report(tmp_path, "facts").plan(["finds a", "raises", "finds b", "never"])
    wanted = command._failed_before(tmp_path, [FACTS])
    assert wanted == {"facts": ["never", "raises"]}
    report.forget(tmp_path, "facts")
    record = report.read(tmp_path, "facts")
    assert record.ended == ["finds a", "finds b"] and not record.failed
    place = Place(tmp_path, tmp_path, "cpu", True, 1.0, frozenset(wanted["facts"]))
    assert [place.wants(name) for name in ("finds a", "raises", "never")] == [False, True, True]
    with pytest.raises(command.CannotRun, match="there is none in"):
        command._failed_before(tmp_path / "other", [FACTS])


def refusal(capsys, *arguments):
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_a_gpu_or_with_an_old_driver_it_is_one_line(monkeypatch, capsys, tmp_path):
    where = ("--results", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no GPU here; nothing was checked" in refusal(capsys, *where)
    monkeypatch.setattr(
        torch.cuda, "is_available", lambda: bool(warnings.warn("The NVIDIA driver is too old", stacklevel=1))
    )
    assert "too old" in refusal(capsys, *where)
    assert "a number of seconds above 0" in refusal(capsys, *where, "--budget", "0")
    assert "there is none in" in refusal(capsys, *where, "--rehearse", "--only-failed")
    (tmp_path / "file").write_text("")
    assert "what was found is kept" in refusal(capsys, "--rehearse", "--results", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as stopped:
        command.main(["--stages", "nothing"])
    assert stopped.value.code == 2


def test_an_archive_that_cannot_be_written_is_said(monkeypatch, capsys, tmp_path):
    def full(results, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "archive", full)
    (tmp_path / "check").mkdir()
    assert not command._conclude(tmp_path, "A_GPU", tmp_path / "check", 1.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert "the archive is not written" in line and "No space left on device" in line


@pytest.mark.parametrize(
    ("stage", "begun", "right", "good"),
    [("smoke", True, True, True), ("smoke", True, False, False), ("smoke", False, True, False),
     ("benchmark", False, True, True), ("benchmark", True, False, False)],
)  # fmt: skip
def test_only_the_benchmark_may_be_left_out_for_lack_of_time(tmp_path, stage, begun, right, good):
    writer = Report(tmp_path, stage)
    writer.plan(["a"])
    writer.add("a", Finding("a", right, ""))
    writer.end("a")
    assert command._is_right(BY_NAME[stage], begun, report.read(tmp_path, stage)) is good


def test_without_nvcc_a_missing_library_is_one_line(monkeypatch, capsys, tmp_path):
    from benchmarks.gpu_check import libraries
    from build_tools import cuda

    monkeypatch.setattr(command, "_gpu_name", lambda: "A_GPU")
    monkeypatch.setattr(libraries, "NAMES", ("_missing.so",))
    monkeypatch.setattr(cuda, "refusal", lambda: "no nvcc found: set CUDA_HOME")
    line = refusal(capsys, "--results", str(tmp_path))
    assert "_missing.so not built" in line and "no nvcc found" in line


def test_cases_are_unique_and_every_bar_has_some():
    made = list(cases())
    names = [(case.suite, case.name) for case, _ in made]
    assert len(set(names)) == len(names)
    compiled = {case.suite for case, options in made if options.compiled}
    for bar in BARS:
        assert bar.suite in {suite for suite, _ in names}
        assert bar.baseline != "compiled" or bar.suite in compiled
    assert {suite for suite, _ in names[:5]} == {"conv", "linear", "few_rows", "depthwise"}  # some of each, first
    assert all("triton" not in options.backends for case, options in made if case.suite == "depthwise")
    both = {name.removesuffix(", weight channels_last") for suite, name in names if suite == "conv"}
    assert sum(name in {n for s, n in names if s == "conv"} for name in both) >= 5  # in both layouts of the weight


def numbers(backend, ratio, **more):
    return {"role": "wat", "suite": "few_rows", "variant": "dropconnect", "mode": "full", "backend": backend,
            "vs_plain": ratio, **more}  # fmt: skip


def test_standings_are_geometric_means_for_each_backend():
    made = [Finding(str(n), None, "", numbers("cuda", ratio)) for n, ratio in enumerate((0.5, 2.0, 1.0))]
    made += [Finding("t", None, "", numbers("triton", 3.0)), Finding("p", None, "", {"role": "plain"})]
    first, second = standings(made)
    assert (first.backend, first.mean, min(first.ratios)) == ("cuda", pytest.approx(1.0), 0.5)
    assert (second.backend, second.ratios) == ("triton", (3.0,))


def test_the_summary_names_failures_first_and_never_is_longer_than_80_lines(tmp_path):
    for stage in STAGES:
        writer = Report(tmp_path, stage.name)
        writer.plan([f"step {n}" for n in range(100)])
        for n in range(60):
            finding = {
                "smoke": Finding(f"s {n}", n % 2 == 0, "differs", {"layer": f"layer {n}", "backend": "cuda", "dtype": "float32"}),
                "speed": Finding(f"l {n}", None, "", {"role": "wat", "layer": f"conv {n}", "variant": "x", "backend": "triton",
                                                     "mode": "full", "kernel_us": 12.5, "vs_plain": 0.5}),
                "benchmark": Finding(f"b {n}", None, "", numbers("cuda", 2.0)),
            }.get(stage.name, Finding(f"f {n}", None, "told", {"ratio": 1.0}))  # fmt: skip
            writer.add(f"step {n}", finding)
    lines = summary.lines(tmp_path, "A_GPU", 12.0)
    assert len(lines) <= summary.MOST_LINES and all(len(line) <= 160 for line in lines)
    assert "FAILED (30)" in lines and "smoke: s 1: differs" in lines
    assert any(
        line.startswith("smoke      0 of 100 steps, 30 passed, 30 FAILED; not reached: step 0") for line in lines
    )


def test_tests_that_fail_are_findings_at_once_and_those_that_take_too_long_are_stopped(tmp_path, monkeypatch):
    slow, broken = tmp_path / "test_slow.py", tmp_path / "test_broken.py"
    slow.write_text(
        "import time\ndef test_a(): assert 1 == 2, 'not so'\ndef test_b(): pass\ndef test_c(): time.sleep(60)\n"
    )
    broken.write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(tests, "SUITES", (str(slow), str(broken)))
    monkeypatch.setattr(tests.importlib.util, "find_spec", lambda name: None)  # in one process
    place = Place(tmp_path, tmp_path, "cpu", False, 25.0)
    findings = list(tests.steps(place)[0].run())
    found = {one.what.split("/")[-1]: (one.passed, one.text) for one in findings}
    assert found["test_broken.py"] == (False, "ImportError while importing test module '" + str(broken) + "'.")
    assert found["test_slow.py::test_a"][0] is False and "not so" in found["test_slow.py::test_a"][1]
    assert found[tests.UNFINISHED][0] is False
    assert found["pytest"][0] is False and found["pytest"][1].startswith("2 failed, 1 passed")


def test_only_what_did_not_pass_is_run_again(tmp_path, monkeypatch):
    suite = tmp_path / "test_three.py"
    suite.write_text("def test_a(): assert False\ndef test_b(): pass\ndef test_c(): pass\n")
    monkeypatch.setattr(tests, "SUITES", (str(suite),))
    monkeypatch.setattr(tests.importlib.util, "find_spec", lambda name: None)

    def ran(*wanted):
        place = Place(tmp_path, tmp_path, "cpu", False, 60.0, frozenset(wanted) if wanted else None)
        failed, whole, *_ = tests._pytest(place)
        return failed.what.split("/")[-1], whole.text

    assert ran() == ("test_three.py::test_a", "1 failed, 2 passed (exit status 1)")
    assert ran("pytest", tests.UNFINISHED, "x.py::test_a") == ("test_three.py::test_a", "1 failed (exit status 1)")
    suite.write_text("def test_a(): assert False\ndef test_b(): assert False\n")
    assert ran("pytest", f"{suite}::test_b") == ("test_three.py::test_b", "1 failed (exit status 1)")


def test_every_suite_is_there():
    assert all((process.ROOT / path).exists() for path in SUITES)


GPU = Gpu("A GPU", "9.0", "13000", "2.11.0", "3.6.0", "0.1.0", "kernels", "library")


def test_a_gpu_is_entered_once_everything_passed_with_these_kernels(tmp_path, monkeypatch, capsys):
    listed = tmp_path / "gpus.json"
    monkeypatch.setattr(gpu_record, "QUALIFIED_GPUS", listed)
    monkeypatch.setattr(Gpu, "of", classmethod(lambda cls, index: GPU))
    enter = gpu_record.enter_run
    monkeypatch.setattr(gpu_record, "enter_run", lambda gpu, date, commit: enter(gpu, date, commit, listed))

    def passed(name, gpu=GPU, right=True):
        report.path_of(tmp_path, name).unlink(missing_ok=True)
        writer = Report(tmp_path, name)
        writer.about({**gpu._asdict(), "commit": "abc"})
        writer.plan(["a"])
        writer.begin(Step("a", lambda: iter(())))
        writer.add("a", Finding("a", right, ""))
        writer.end("a")

    for name in command.QUALIFYING:
        passed(name)
    for break_it in (
        lambda: passed("tests", right=False),
        lambda: passed("tests", GPU._replace(kernels="edited")),
        lambda: report.path_of(tmp_path, "tests").unlink(),
    ):
        break_it()
        command._qualify(tmp_path)
        assert "tests is not clean" in capsys.readouterr().out and not listed.exists()
    passed("tests")
    command._qualify(tmp_path)
    (entry,) = json.loads(listed.read_text())["gpus"]
    assert (entry["capability"], entry["kernels"], entry["commit"]) == ("9.0", "kernels", "abc")


def test_a_rehearsal_goes_the_whole_way(tmp_path):
    """From the command line to the archive, every stage: a typo must not cost a minute of a GPU."""
    arguments = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--results", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{process.ROOT}:{process.ROOT}/python"}
    done = subprocess.run(arguments, cwd=process.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "rehearsal" / "check"
    for stage in STAGES:
        record = report.read(folder, stage.name)
        assert record.clean, (stage.name, record.failed, record.missing)
    with tarfile.open(tmp_path / "rehearsal-check.tar.gz") as archive:
        names = archive.getnames()
    assert {f"rehearsal/check/{stage.name}.jsonl" for stage in STAGES} <= set(names)
    assert "rehearsal/check/summary.txt" in names
    assert all(f"{stage.name:10} " in done.stdout for stage in STAGES)
    tried = {one.numbers["backend"] for _, one in report.read(folder, "smoke").findings}
    assert tried == {"cuda", "triton"}


def test_an_interrupted_run_keeps_what_it_found(tmp_path):
    arguments = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--stages", "facts", "smoke",
                 "--results", str(tmp_path)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{process.ROOT}:{process.ROOT}/python"}
    running = subprocess.Popen(arguments, cwd=process.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    folder = tmp_path / "rehearsal" / "check"
    deadline = time.monotonic() + 120
    while not report.read(folder, "facts").findings and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert err.splitlines()[-1] == "gpu_check: interrupted, what was found is kept"
    assert "-- facts" in out and (tmp_path / "rehearsal-check.tar.gz").exists()
    assert report.read(folder, "facts").findings
