"""What the stages of the GPU's check read from other tools: ncu's pages, disassemblies, Triton's cache."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu_check import counters, libraries, sanitizer, sass, small_run
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.process import ROOT

# the names are those that ncu gives for a 9.0 GPU, in its order: that of the alphabet
RAW = (
    ("ID", "", "0"),
    ("Process ID", "", "4242"),
    ("Kernel Name", "", "conv2d_fwd_kernel"),
    ("Block Size", "", "(128, 1, 1)"),
    ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "%", "21.5"),
    ("gpu__time_duration.sum", "ns", "20,480.5"),
    ("launch__registers_per_thread", "register/thread", "168"),
    ("lts__t_sector_hit_rate.pct", "%", "91.25"),
    ("lts__throughput.avg.pct_of_peak_sustained_elapsed", "%", "44"),
    ("sm__inst_executed_pipe_tensor_op_dmma.avg.pct_of_peak_sustained_active", "%", "0"),
    ("sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active", "%", "2.75"),
    ("sm__inst_issued.avg.pct_of_peak_sustained_active", "%", "35.5"),
    ("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active", "%", "61.5"),
    ("sm__pipe_tensor_cycles_active.max.pct_of_peak_sustained_active", "%", "64"),
    ("sm__pipe_tensor_op_dmma_cycles_active.avg.pct_of_peak_sustained_active", "%", "0"),
    ("sm__warps_active.avg.pct_of_peak_sustained_active", "%", "12.4"),
    ("smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio", "inst", "0.75"),
    ("smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio", "inst", "2.5"),
    ("smsp__average_warps_issue_stalled_selected_per_issue_active.ratio", "inst", "1"),
    ("smsp__inst_executed.sum", "inst", "1,234,567"),
)


def page(columns):
    rows = zip(*columns, strict=True)
    lines = [",".join(f'"{cell}"' for cell in row) for row in rows]
    return "\n".join(
        ["==PROF== Connected to process 4242 (/usr/bin/python3.12)",
         '==PROF== Profiling "conv2d_fwd_kernel" - 3: 0%....50%....100% - 37 passes', "4 calls",
         "==PROF== Disconnected from process 4242", *lines,
         ",".join(f'"{1 if place else 7}"' for place in range(len(columns)))]  # another kernel
    )  # fmt: skip


RAW_PAGE = page(RAW)


def test_ncu_s_raw_page_is_read():
    metrics = counters.metrics_of(RAW_PAGE)
    assert metrics["smsp__inst_executed.sum"] == 1234567.0
    assert metrics["gpu__time_duration.sum"] == pytest.approx(20.4805)  # ns -> us
    assert counters.told_of(metrics) == {
        "us": pytest.approx(20.4805), "tensor %": 61.5, "L2 %": 44.0, "L2 hits %": 91.25, "DRAM %": 21.5,
        "issue %": 35.5, "occupancy %": 12.4, "registers": 168.0,
    }  # fmt: skip
    assert list(counters.stalls_of(metrics).items()) == [("long_scoreboard", 2.5), ("barrier", 0.75)]


@pytest.mark.parametrize(
    ("refuses", "passed"),
    [("sm__pipe_tensor_cycles_active", None), ("permission to access the counters", False)],
)
def test_a_metric_that_ncu_does_not_know_is_done_without(monkeypatch, tmp_path, refuses, passed):
    tool, calls = tmp_path / "ncu", tmp_path / "calls"
    tool.write_text(
        f"#!/bin/sh\necho call >> {calls}\ncase \"$*\" in *--metrics*) echo '==ERROR== no {refuses}'; exit 1;; esac\n"
        f"cat <<'END'\n{RAW_PAGE}\nEND\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(counters, "ncu", lambda rehearsal: tool)
    finding, *more = counters.steps(Place(tmp_path, tmp_path, "cuda", False, 10.0))[0].run()
    assert finding.passed is passed
    assert len(calls.read_text().split()) == (2 if passed is None else 1)
    if passed is None:
        assert finding.numbers["tensor %"] == 61.5 and more[0].numbers["smsp__inst_executed.sum"] == 1234567.0
    else:
        assert refuses in finding.text


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


def test_the_small_run_is_the_same_whatever_the_seed(monkeypatch):
    """How many taps a row mixes is compiled into a kernel."""
    made = []
    monkeypatch.setattr(small_run, "TapTable", lambda maps, probabilities: made.append(maps) or {}["stop"])
    for seed in (1, 2):
        torch.manual_seed(seed)
        with pytest.raises(KeyError, match="stop"):
            next(small_run.calls("cpu"))
    assert torch.equal(*made) and 0 < made[0][1].count_nonzero() < 81


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
precompile._noise()
print(found.name == precompile.name(), counted())
"""


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/python", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_kernels_that_were_compiled_before_are_taken_from_the_cache(tmp_path):
    """Also after the cache was moved: the machine with the GPU is another one."""
    pytest.importorskip("triton")
    made = run("-m", "benchmarks.gpu_check.precompile", "--folder", str(tmp_path / "a"), "--only", "speed: ")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("6 kernels, ")  # of L2; noise of two kinds, drawn and multiplied; rows
    (tmp_path / "a").rename(tmp_path / "b")
    taken = run("-c", TAKEN, str(tmp_path / "b"))
    assert taken.stdout.split("\n")[0] == "True (5, 0)", taken.stdout + taken.stderr


def test_checks_compile_what_a_gpu_would_launch(tmp_path, monkeypatch):
    """Under the plugin, into Triton's cache; without comparing anything."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    one = "tests/triton/check_noise.py::test_the_factors[1025-1]"
    ran = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "benchmarks.gpu_check.compile_tests",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        one,
    )
    assert "1 passed" in ran.stdout or "1 failed" in ran.stdout, ran.stdout + ran.stderr
    assert {path.name for path in tmp_path.glob("*/*.cubin")} == {"noise_kernel.cubin"}


def test_a_cache_for_other_kernels_is_not_taken_silently(tmp_path, capsys):
    pytest.importorskip("triton")
    from benchmarks.gpu_check import precompile

    assert precompile.unpacked_cache(tmp_path) is None
    assert capsys.readouterr().err == ""
    (tmp_path / "sm_90-triton-0.0-abc.tar.xz").write_bytes(b"")
    assert precompile.unpacked_cache(tmp_path) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "sm_90-triton-0.0-abc.tar.xz is not for these kernels" in line


def test_a_cache_that_was_cut_off_is_said_and_not_taken(tmp_path, capsys):
    pytest.importorskip("triton")
    from benchmarks.gpu_check import precompile

    (tmp_path / "work/a").mkdir(parents=True)
    (tmp_path / "work/a/kernel.cubin").write_bytes(os.urandom(100_000))
    archive = precompile.pack(tmp_path / "work", tmp_path)
    archive.write_bytes(archive.read_bytes()[:50_000])
    assert precompile.unpacked_cache(tmp_path) is None
    assert f"{archive.name} cannot be unpacked" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "work"]


FAILS = """
import sys, time
from functools import partial
from triton.runtime.errors import PTXASError
from benchmarks.gpu_check import precompile

def fails():
    raise PTXASError("cannot be assembled\\nmore of it")

seconds = float(sys.argv[1])
precompile._PROCESSES = 1
precompile.items = lambda: iter([("a", precompile.FIRST, fails), ("b", precompile.FIRST, partial(print, "b is run"))])
precompile.compile_part(0, time.monotonic() + seconds, "")
"""


def test_a_kernel_that_cannot_be_compiled_costs_no_other():
    pytest.importorskip("triton")
    done = run("-c", FAILS, "600")
    assert done.returncode == 0 and done.stdout == "b is run\n"
    assert [line for line in done.stderr.splitlines() if line.startswith("precompile: ")] == [
        "precompile: a, configuration 0: PTXASError: PTXAS error: cannot be assembled"
    ]


def test_problems_that_there_was_no_time_for_are_counted():
    pytest.importorskip("triton")
    done = run("-c", FAILS, "-1")
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "precompile: no time was left for 2 problems or some of their configurations"
    )


PLANNED = """
from benchmarks.host_time import stub_driver
stub_driver()
from benchmarks.gpu_check import tuning
from wat_kernels.ops.conv import triton

def fastest(designs):
    for design in designs:
        config = design.tuned.configs[-1].kwargs
        print(design.programs(config), design.tensors[6] is not None, design.tensors[7] is not None)
    raise SystemExit

triton.fastest = fastest
tuning.passes_of(tuning.SHAPES[0], "cpu")["weight gradient"]()
"""


def test_the_stub_plans_a_weight_gradient_as_an_h100_does():
    """A cut one gets scratch and counters, which is another kernel than one without."""
    pytest.importorskip("triton")
    planned = run("-c", PLANNED)
    # 9 taps and 64x64 channels: 9 tiles of 64x64, 18 of 64x32 or 36 of 32x32; each is cut into as many as 264 has room for
    boxes, addresses = (line.split() for line in planned.stdout.splitlines())
    assert int(addresses[0]) in (264 // 9 * 9, 264 // 18 * 18, 264 // 36 * 36), planned.stderr
    assert boxes[0] == "264"  # whatever the row reaches
    assert boxes[1:] == addresses[1:] == ["True", "True"]


KEYS = """
import sys
from benchmarks.host_time import stub_driver
stub_driver()
from benchmarks.gpu_check import precompile, tuning
from wat_kernels import triton_launch, triton_noise

class Noise:  # in place of the kernel: is launched, compiles nothing
    def __getitem__(self, programs):
        return lambda *arguments: print("noise", noise_kernel.cache_key)

noise_kernel, triton_noise.noise_kernel = triton_noise.noise_kernel, Noise()
triton_launch.Planned.__call__ = lambda self, tensors, amounts: print(self.name, self._kernel.cache_key)
passes = {"noise": precompile._noise}
for shape in tuning._TINY:
    passes |= {type(shape).__module__ + " " + name: run for name, run in tuning.passes_of(shape, "cpu").items()}
names = sorted(passes)
names = names[int(sys.argv[1]):] + names[:int(sys.argv[1])]
with triton_launch.choosing(lambda kernel, suited: suited[0]):
    for name in names:
        passes[name]()
"""


def test_a_kernel_is_found_in_the_cache_whatever_was_launched_first():
    pytest.importorskip("triton")
    keys = []
    for first in (0, 2, 6):  # a pass of a convolution, the noise or a linear layer is the first
        done = run("-c", KEYS, str(first))
        assert done.returncode == 0, done.stderr
        keys.append(dict(line.split() for line in done.stdout.splitlines()))
    assert len(keys[0]) == 7 and len(set(keys[0].values())) == 7
    assert keys[0] == keys[1] == keys[2]


REFUSED = """
import sys
from pathlib import Path
from triton.runtime.errors import OutOfResources
from benchmarks.host_time import stub_driver
stub_driver()
from benchmarks.gpu_check import tuning
from benchmarks.gpu_check.place import Place

measured, calls = tuning.time_once, []

def time_once(*arguments):
    calls.append(1)
    if len(calls) == 1:
        raise OutOfResources(300000, 232448, "shared memory")
    return measured(*arguments)

tuning.time_once = time_once
folder = Path(sys.argv[1])
for finding in tuning.steps(Place(folder, folder, "cpu", True, 10.0))[-1].run():  # a linear weight gradient: two suit
    print(finding.passed, finding.numbers.get("registers"), finding.numbers.get("instructions"), finding.numbers.get("configurations"), finding.text, sep="|")
"""


def test_a_configuration_that_does_not_load_does_not_end_its_step(tmp_path):
    pytest.importorskip("triton")
    tried = run("-c", REFUSED, str(tmp_path))
    refused, measured, instructions, best = (line.split("|") for line in tried.stdout.splitlines())
    assert refused[0] == "False" and refused[4].startswith("OutOfResources: out of resource: shared memory")
    assert measured[0] == "None" and 16 <= int(measured[1]) <= 255
    assert int(instructions[2]) > 100
    assert best[3] == "1"


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
