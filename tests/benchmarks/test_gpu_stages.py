"""What the stages of the GPU's check read from other tools: ncu's pages, disassemblies, Triton's cache."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu_check import counters, libraries, sanitizer, sass
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.process import ROOT

RAW_PAGE = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "conv2d_fwd_kernel" - 3: 0%....50%....100% - 37 passes
4 calls
==PROF== Disconnected from process 4242
"ID","Process ID","Kernel Name","Block Size","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","launch__registers_per_thread","lts__t_sector_hit_rate.pct","lts__throughput.avg.pct_of_peak_sustained_elapsed","sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active","sm__warps_active.avg.pct_of_peak_sustained_active","smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio","smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","smsp__inst_executed.sum"
"","","","","%","ns","register/thread","%","%","%","%","inst","inst","inst"
"0","4242","conv2d_fwd_kernel","(128, 1, 1)","21.5","20,480.5","168","91.25","44","61.5","12.4","0.75","2.5","1,234,567"
"1","4242","another","(128, 1, 1)","1","1","1","1","1","1","1","1","1","1"
"""


def test_ncu_s_raw_page_is_read():
    metrics = counters.metrics_of(RAW_PAGE)
    assert metrics["smsp__inst_executed.sum"] == 1234567.0
    assert metrics["gpu__time_duration.sum"] == pytest.approx(20.4805)  # ns -> us
    assert counters.told_of(metrics) == {
        "us": pytest.approx(20.4805), "tensor %": 61.5, "L2 %": 44.0, "L2 hits %": 91.25, "DRAM %": 21.5,
        "occupancy %": 12.4, "registers": 168.0,
    }  # fmt: skip
    assert counters.stalls_of(metrics) == {"long_scoreboard": 2.5, "barrier": 0.75}
    assert list(counters.stalls_of(metrics)) == ["long_scoreboard", "barrier"]


@pytest.mark.parametrize("text", ["", "==ERROR== No kernels were profiled.", '"ID","a"\n"",""\n'])
def test_a_page_without_a_kernel_has_no_metrics(text):
    assert counters.metrics_of(text) == {}


def test_without_ncu_or_sanitizer_a_step_says_where_it_was_looked_for(monkeypatch, tmp_path):
    place = Place(tmp_path, tmp_path, "cuda", False, 10.0)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(counters, "_PLACES", (str(tmp_path / "*"),))
    for stage, tool in ((counters, "ncu"), (sanitizer, "compute-sanitizer")):
        (finding,) = stage.steps(place)[0].run()
        assert finding.passed is False and tool in finding.text and "CUDA_HOME/bin" in finding.text


@pytest.mark.parametrize(
    ("printed", "passed"),
    [
        ("62 calls, forward and backward\n========= ERROR SUMMARY: 0 errors", True),
        ("========= ERROR SUMMARY: 0 errors", False),  # the program did not come to its end
        ("62 calls, forward and backward", False),
    ],
)
def test_a_clean_sanitizer_counts_only_for_a_whole_run(monkeypatch, tmp_path, printed, passed):
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer, "sanitizer", lambda rehearsal: tool)
    (finding,) = sanitizer.steps(Place(tmp_path, tmp_path, "cuda", False, 10.0))[0].run()
    assert finding.passed is passed


DISASSEMBLY = """\
        .section  .text.conv2d_fwd_kernel,"ax",@progbits
.L_x_3:
        /*0000*/                   LDC R1, c[0x0][0x28] ;                    /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64] ;
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0030*/             @!UP1 LDG.E.U16 R7, desc[UR6][R4.64] ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/                   STL [R1], R7 ;
        /*0060*/               @P1 BRA `(.L_x_3) ;
"""


def test_instructions_are_counted_by_kind():
    counted = sass.counts(DISASSEMBLY)
    assert {kind: count for kind, count in counted.items() if count} == {
        "matrix": 1, "copies": 1, "loads": 1, "barriers": 1, "spills": 1, "instructions": 7,
    }  # fmt: skip


TAKEN = """
import os, sys
from pathlib import Path
from benchmarks.gpu_check import precompile
found = precompile.unpacked_cache(Path(sys.argv[1]))
os.environ["TRITON_CACHE_DIR"] = str(found)
counted = precompile.install_counter()
from benchmarks.host_time import stub_driver
stub_driver()
precompile._from_l2()
print(found.name == precompile.name(), counted())
"""


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/python", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_kernel_that_was_compiled_before_is_taken_from_the_cache(tmp_path):
    """Also after the cache was moved: the machine with the GPU is another one."""
    pytest.importorskip("triton")
    made = run("-m", "benchmarks.gpu_check.precompile", "--folder", str(tmp_path / "a"), "--only", "speed: L2")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("1 kernels, ")
    (tmp_path / "a").rename(tmp_path / "b")
    taken = run("-c", TAKEN, str(tmp_path / "b"))
    assert taken.stdout.split("\n")[0] == "True (1, 0)", taken.stdout + taken.stderr


def test_a_cache_for_other_kernels_is_not_taken_silently(tmp_path, capsys):
    pytest.importorskip("triton")
    from benchmarks.gpu_check import precompile

    assert precompile.unpacked_cache(tmp_path) is None
    assert capsys.readouterr().err == ""
    (tmp_path / "sm_90-triton-0.0-abc.tar.xz").write_bytes(b"")
    assert precompile.unpacked_cache(tmp_path) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "sm_90-triton-0.0-abc.tar.xz is not for these kernels" in line


def test_precompiling_needs_a_c_compiler(tmp_path):
    pytest.importorskip("triton")
    code = "import os, sys; os.environ['PATH'] = ''; from benchmarks.gpu_check.precompile import main; sys.exit(main())"
    done = run("-c", code)
    assert (
        done.returncode == 2
        and done.stderr.strip() == "precompile: no C compiler (cc), with which Triton builds its launchers"
    )


def test_missing_libraries_are_those_that_are_not_there(monkeypatch):
    monkeypatch.setattr(libraries, "NAMES", ("extension.py", "_missing.so"))
    assert libraries.missing() == ["_missing.so"]
