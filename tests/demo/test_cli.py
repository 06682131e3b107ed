"""`watnn info`, bad arguments of `watnn demo`, and a machine without the demo's packages."""

import subprocess
import sys

import pytest
from watnn import info
from watnn.cli import main

from wat_kernels import dispatch


def test_info_names_every_backend_of_both_ops(capsys):
    assert main(["info"]) == 0
    sections = dict(section.split("\n", 1) for section in capsys.readouterr().out.split("\n\n"))
    for op in ("shadow_conv", "shadow_linear"):
        rows = dict(line.split(maxsplit=1) for line in sections[f"{op} on cpu"].splitlines())
        assert list(rows) == [*dispatch.NAMES, "auto"]
        assert rows["reference"] == rows["library"] == "available"
        assert rows["auto"] in {f"takes {name}" for name in dispatch.NAMES}
    assert dict(line.split(maxsplit=1) for line in sections["versions"].splitlines())["torch"] == info.torch.__version__


def test_info_gives_a_backend_s_reason(monkeypatch):
    class Refusing:
        @staticmethod
        def supports(call):
            return False, f"no kernel for {call.kernel} on {call.device}"

    backends = {**info.CONV2D_BACKENDS, "native": Refusing}
    monkeypatch.setattr(info, "_OPS", (("shadow_conv", backends, {"kernel": (3, 3)}),))
    rows = dict(info.backend_rows("shadow_conv", "cpu"))
    assert rows["native"] == "unavailable: no kernel for (3, 3) on cpu"


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("reference", "takes reference"),
        ("fast", "fails: WAT_BACKEND='fast'; accepted are auto, cuda, triton, native, library, reference"),
    ],
)
def test_info_follows_the_environment(monkeypatch, value, verdict):
    monkeypatch.setenv("WAT_BACKEND", value)
    assert dict(info.backend_rows("shadow_linear", "cpu"))["auto"] == verdict
    assert f"WAT_BACKEND {value} " in " ".join(info.describe().split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "watnn demo: --seeds 0; accepted is an int >= 1"),
        (["--seeds", "-3", "--quick"], "watnn demo: --seeds -3; accepted is an int >= 1"),
        (["--epochs", "0"], "watnn demo: --epochs 0; accepted is an int >= 1"),
        (["--seeds", "many"], "watnn demo: argument --seeds: invalid int value: 'many'"),
        (["--output", "taken"], "watnn demo: --output taken is a file; accepted is a folder"),
        (["--output", "taken/results"], "watnn demo: --output taken/results cannot be made: Not a directory"),
        (["--speed"], "watnn: unrecognized arguments: --speed"),
    ],
)
def test_a_bad_argument_is_one_line_before_any_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = pytest.importorskip("watnn.demo.run", reason="needs wat-kernels[demo]")
    monkeypatch.setattr(run, "run", lambda *_, **__: pytest.fail("the demo started"))
    (tmp_path / "taken").write_text("a file")
    try:
        status = main(["demo", *arguments])
    except SystemExit as stop:
        status = stop.code
    output = capsys.readouterr()
    assert (status, output.out, output.err) == (2, "", f"{message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_backend_that_cannot_run_is_one_line_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WAT_BACKEND", "cuda")
    run = pytest.importorskip("watnn.demo.run", reason="needs wat-kernels[demo]")
    monkeypatch.setattr(run, "load", lambda: pytest.fail("the demo started"))
    assert main(["demo", "--quick", "--output", str(tmp_path / "new")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("watnn demo: backend='cuda' cannot run shadow_conv: ")
    assert message.count("\n") == 1


def test_without_the_demo_s_packages_all_but_the_demo_works():
    script = (
        "import sys; sys.modules.update(sklearn=None, matplotlib=None, rich=None)\n"
        "from watnn.cli import main\n"
        "assert main(['info']) == 0\n"
        "sys.exit(main(['demo']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "shadow_linear on cpu" in done.stdout
    assert done.stderr == ("watnn demo: scikit-learn, matplotlib, rich not installed: pip install wat-kernels[demo]\n")


def test_a_reader_that_goes_away_is_no_traceback():
    running = subprocess.Popen([sys.executable, "-m", "watnn", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.close()
    assert running.stderr.read() == b"" and running.wait() == 141
