"""The battery, the record that it leaves, and what `auto` makes of it on a GPU that is not there."""

import logging

import pytest
import torch
from watnn.check import command
from watnn.check.battery import probes
from watnn.cli import main

from wat_kernels import dispatch, gpu_record, qualified
from wat_kernels.extension import NATIVE
from wat_kernels.gpu_record import Gpu, Record, Verdict, enter_run, is_qualified, read_record, write_record
from wat_kernels.ops.conv import cuda
from wat_kernels.ops.conv import op as conv2d_op

pytestmark = pytest.mark.cpu_only

GPU = Gpu("NVIDIA X", "9.0", "580", "2.11", "3.6", "0.1", "abc", "def")
DENSE = dispatch.Call("cuda", torch.float32, (3, 3), 8, 8, device_index=0)
needs_native = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch, tmp_path):
    """Facts of a GPU, and a cache folder of its own."""
    monkeypatch.setenv("WAT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(Gpu, "of", classmethod(lambda cls, index: GPU))
    qualified.forget()
    yield
    qualified.forget()


@needs_native
def test_native_passes_the_battery(capsys):
    assert main(["check", "--device", "cpu"]) == 0
    assert "34 of 34 cases" in capsys.readouterr().out


@needs_native
@pytest.mark.parametrize("fault", ["values", "exception", "repeat"])
def test_a_wrong_backend_is_found_and_the_others_go_on(monkeypatch, fault, capsys):
    right, calls = conv2d_op.autograd.apply, []

    def wrong(op, backend, *arguments):
        y = right(op, backend, *arguments)
        if op != "shadow_conv" or backend != "native":
            return y
        calls.append(op)
        if fault == "exception":
            raise RuntimeError("no kernel image\nsecond line")
        return y * (1.5 if fault == "values" else 1 + 1e-5 * len(calls))

    monkeypatch.setattr(conv2d_op.autograd, "apply", wrong)
    findings = [probe.run() for probe in probes("cpu", backends=["native"], dtypes=[torch.float32], sizes="tiny")]
    assert {f.op for f in findings if not f.passed} == {"shadow_conv"}
    assert {f.op for f in findings if f.passed} == {"shadow_linear"}
    said = {"values": "times what is allowed", "exception": "RuntimeError: no kernel image", "repeat": "in two runs"}
    assert any(said[fault] in f.message for f in findings)
    assert main(["check", "--device", "cpu"]) == 1
    assert "FAILED" in capsys.readouterr().out


def record(reason=""):
    return Record(GPU, "2026-01-01", (Verdict("convolution", "triton", "float32", reason),))


def test_a_record_comes_back_and_what_cannot_be_read_is_none():
    assert read_record(GPU) is None
    path = write_record(record())
    assert read_record(GPU) == record()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert read_record(GPU._replace(torch="2.12")) is None
    foreign = path.read_text().replace('"9.0"', '"8.0"')
    for text in (
        "",
        "{",
        "[]",
        "null",
        '{"format": 1}',
        foreign,
        path.read_text().replace('"reason": ""', '"reason": 1'),
    ):
        path.write_text(text)
        assert read_record(GPU) is None
    path.write_bytes(b"\xff\xfe\x00")
    assert read_record(GPU) is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WAT_CACHE_DIR", str(tmp_path / "file"))
    command._keep(GPU, [], set())
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("reason", "accepted", "said"),
    [(None, False, "run `watnn check` once"), ("", True, ""), ("y differs", False, "y differs")],
)
def test_auto_asks_the_record(reason, accepted, said):
    if reason is not None:
        write_record(record(reason))
    found, why = qualified.qualified("shadow_conv", "triton", DENSE)
    assert found == accepted and said in why
    other = qualified.qualified("shadow_conv", "triton", DENSE._replace(groups=8))[0]
    assert not other  # a kind of layer that nobody checked


def test_the_package_s_list_is_enough_for_its_compute_capability_and_versions(tmp_path, monkeypatch):
    assert gpu_record._entries(gpu_record.QUALIFIED_GPUS) == []
    path = tmp_path / "gpus.json"
    for _ in range(2):
        enter_run(GPU, "2026-01-01", "0123abc", path)
    assert len(gpu_record._entries(path)) == 1
    assert is_qualified(GPU._replace(name="another", driver="1"), path)
    for change in ({"capability": "8.0"}, {"torch": "2.12"}, {"kernels": "edited"}):
        assert not is_qualified(GPU._replace(**change), path)
    monkeypatch.setattr(qualified, "is_qualified", lambda gpu: is_qualified(gpu, path))
    assert qualified.qualified("shadow_conv", "triton", DENSE) == (True, "")
    assert not qualified.qualified("shadow_conv", "triton", DENSE._replace(transposed=True))[
        0
    ]  # which no check looks at
    write_record(record("wrong here"))
    qualified.forget()
    assert not qualified.qualified("shadow_conv", "triton", DENSE)[0]  # what was found here counts more


def test_the_reason_is_said_once_and_a_checked_gpu_is_taken(caplog, monkeypatch):
    monkeypatch.setattr(cuda, "refusal", lambda call: "")
    backends = {name: conv2d_op.BACKENDS[name] for name in ("cuda", "library")}
    call = DENSE._replace(groups=8)
    with caplog.at_level(logging.WARNING, logger="wat_kernels"):
        for _ in range(2):
            assert dispatch.choose("shadow_conv", backends, "auto", "auto", call) == "library"
    assert len(caplog.records) == 1 and "watnn check" in caplog.text
    assert dispatch.choose("shadow_conv", backends, "cuda", "auto", call) == "cuda"
    write_record(Record(GPU, "2026-01-01", (Verdict("depthwise", "cuda", "float32", ""),)))
    qualified.forget()
    assert dispatch.choose("shadow_conv", backends, "auto", "auto", call) == "cuda"
    assert "passed" in qualified.standing(0)


def test_interpreted_kernels_are_never_taken():
    assert not qualified.qualified("shadow_conv", "triton", DENSE._replace(device="cpu"))[0]


def test_the_question_is_a_constant_of_a_compiled_graph(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_available", lambda: False
    )  # of which the compiler asks the state of the generator

    def function(x):
        return x + (1 if qualified._refusal("convolution", "triton", "float32", 0) else 2)

    x = torch.zeros(3)
    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="eager")(x), x + 1)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (somebody@)  date", "580.159.04"),
        ("6.8.5", "6.8.5"),
        ("built by hand", "built by hand"),
    ],
)  # fmt: skip
def test_the_driver_is_its_version_and_not_who_built_it(line, version, tmp_path, monkeypatch):
    (tmp_path / "version").write_text(line + "\nGCC version: 12.3.0\n")
    monkeypatch.setattr(gpu_record, "_DRIVERS", (tmp_path / "missing", tmp_path / "version"))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    assert gpu_record._driver() == f"13000, {version}"
