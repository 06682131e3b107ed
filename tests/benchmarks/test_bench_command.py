"""`watnn bench` from the command line: bad input, what is missing, Ctrl-C, a wrong result, one real run."""

import csv
import json
import subprocess
import sys

import pytest
import watnn.bench.run
from watnn.bench import arguments, runner
from watnn.bench.case import Case, Contender, Run
from watnn.bench.limits import Limits
from watnn.bench.verify import WrongResult
from watnn.cli import main


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["convolution"], "no suite 'convolution'; there are conv, depthwise, linear, memory, "),
        (["--dtype", "int8"], "--dtype int8; accepted are fp32, bf16, fp16, fp64"),
        (["--backend", "fast"], "--backend='fast'; accepted are auto, cuda, triton, native, library, reference"),
        (["--backend", "auto,fast"], "--backend='fast'; accepted are auto, "),
        (["--device", "tpu"], "--device tpu; accepted here are cpu"),
        (["--reps", "0"], "--reps 0; accepted is an int >= 1"),
        (["--threads", "-1"], "--threads -1; accepted is an int >= 1"),
        (["--filter", "no such"], "--filter 'no such' matches no case; --list prints them"),
        (["--json", "conv"], "--json conv; accepted is a file that ends in .json"),
        (["--csv", "rows.txt"], "--csv rows.txt; accepted is a file that ends in .csv"),
        (["--csv", "--json"], "--json and --csv both go to standard output; accepted is a file for one of them"),
        (["--reps", "many"], "argument --reps: invalid int value: 'many'"),
    ],
)
def test_a_bad_argument_is_one_line_before_any_work(given, message, monkeypatch, capsys):
    monkeypatch.setattr(watnn.bench.run, "measure", lambda *_: pytest.fail("something was measured"))
    try:
        status = main(["bench", *given])
    except SystemExit as stop:
        status = stop.code
    output = capsys.readouterr()
    assert (status, output.out) == (2, "")
    assert output.err.startswith(f"watnn bench: {message}")
    assert output.err.count("\n") == 1


def test_list_prints_the_cases(capsys):
    assert main(["bench", "conv", "--quick", "--list"]) == 0
    assert capsys.readouterr().out == "conv  128ch 16x16 k3 batch 16\n"


@pytest.fixture
def made_up(monkeypatch):
    """Puts cases of one contender in place of the suites; each run takes as long as a list says."""
    monkeypatch.setattr(runner, "measure_limits", lambda device, dtype: Limits(1.0, 1.0))

    def use(*setups):
        cases = [Case("conv", f"case {i}", setup, modes=("full",), quick=True) for i, setup in enumerate(setups)]
        monkeypatch.setattr(arguments, "SUITES", {"conv": lambda: cases})

    return use


def _fine(options):
    return [Contender("wat", "WATConv2d", "translate", [Run({"full": lambda: lambda: None})], backend="native")]


def test_ctrl_c_keeps_what_was_measured(made_up, tmp_path, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    made_up(_fine, interrupted, _fine)
    given = ["--reps", "1", "--csv", str(tmp_path / "rows.csv"), "--json", str(tmp_path / "rows.json")]
    assert main(["bench", *given, "--store", str(tmp_path / "store")]) == 130
    assert [row["case"] for row in csv.DictReader((tmp_path / "rows.csv").open())] == ["case 0"]
    assert [row["case"] for row in json.loads((tmp_path / "rows.json").read_text())] == ["case 0"]
    assert len(list((tmp_path / "store").rglob("conv.csv"))) == 1
    printed = capsys.readouterr().out
    assert "stopped: 1 rows were measured" in printed
    assert "full translate" in printed


def test_a_wrong_result_fails_the_run_and_leaves_no_row(made_up, tmp_path, capsys):
    def wrong(options):
        def check():
            raise WrongResult("the output differs")

        return [Contender("wat", "WATConv2d", "translate", [Run({}, check=check)], backend="native")]

    made_up(wrong, _fine)
    assert main(["bench", "--reps", "1", "--csv", str(tmp_path / "rows.csv")]) == 1
    assert [row["case"] for row in csv.DictReader((tmp_path / "rows.csv").open())] == ["case 1"]
    assert (
        "WRONG RESULT: conv, case 0: WATConv2d translate native, draw 0: the output differs" in capsys.readouterr().out
    )


def test_standard_output_is_for_the_rows_alone(made_up, capsys):
    made_up(_fine)
    assert main(["bench", "--reps", "1", "--json"]) == 0
    output = capsys.readouterr()
    assert [row["case"] for row in json.loads(output.out)] == ["case 0"]
    assert "full translate" in output.err
    assert main(["bench", "--reps", "1", "--csv"]) == 0
    assert [row["case"] for row in csv.DictReader(capsys.readouterr().out.splitlines())] == ["case 0"]


def test_a_real_run(tmp_path):
    """Two backends, one of which is not there, through `python -m benchmarks`."""
    command = [
        sys.executable, "-m", "benchmarks", "scaling", "--quick", "--filter", "taps=1", "--backend", "library,cuda",
        "--reps", "1", "--threads", "1", "--json", str(tmp_path / "rows.json"), "--plots", str(tmp_path), "--bars",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    library, cuda, plain = rows
    assert (library["backend"], library["variant"], library["mode"], library["threads"]) == (
        "library",
        "1 taps",
        "full",
        1,
    )
    assert library["vs_plain"] == pytest.approx(library["ms"] / plain["ms"])
    assert library["of_limit"] > 0
    assert library["gflops"] * 9 > plain["gflops"] > library["gflops"]  # the middle tap never falls on padding
    assert (cuda["ms"], cuda["note"].startswith("backend='cuda' cannot run shadow_conv")) == (None, True)
    assert library["command"].startswith("watnn bench scaling --quick --filter taps=1 --backend library,cuda --reps 1 ")
    assert " ".join(f"not measured: {cuda['note']}".split()) in " ".join(done.stdout.split())  # long lines wrap
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
