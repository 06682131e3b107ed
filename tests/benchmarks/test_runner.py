"""The runner on made-up contenders: order, medians, ratios, limits; wrong results; what is missing."""

import pytest
import torch
from watnn.bench import limits, runner, timing
from watnn.bench.case import Contender, Options, Run, Work, layer_modes
from watnn.bench.limits import Limits
from watnn.bench.timing import CpuTimer, Spread, interleaved
from watnn.bench.verify import WrongResult, check_layer

from tests.benchmarks.made import ENVIRONMENT, Clock, case_of, run_of


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(runner, "timer_of", lambda device: clock)
    monkeypatch.setattr(runner, "measure_limits", lambda device, dtype: Limits(flops=100.0, bandwidth=10.0))
    return clock


def measured(case, reps=3, **options):
    return list(runner.measure(case, Options(**options), reps, ENVIRONMENT))


def test_rounds_are_interleaved_after_all_are_warm():
    clock = Clock()
    seconds = interleaved({"a": lambda: 1.0, "b": lambda: 2.0, "c": lambda: 3.0}, 2, clock)
    assert clock.log == [("warm", 1.0), ("warm", 2.0), ("warm", 3.0)] + 2 * [
        ("time", 1.0),
        ("time", 2.0),
        ("time", 3.0),
    ]
    assert seconds == {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0]}


def test_the_spread_is_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == (7.0, 7.0, 7.0)


def test_a_cpu_sample_is_the_mean_of_as_many_calls_as_it_takes(monkeypatch):
    now, calls = [0.0], [0]

    def function():
        calls[0] += 1
        now[0] += 1e-3

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    timer = CpuTimer()
    timer.warm_up(function)
    assert calls == [2]
    assert timer.round([function]) == [pytest.approx(1e-3)]
    assert calls == [2 + 2]  # 2 ms are two calls of 1 ms


def test_numbers_of_a_row(clock):
    work = {"full": Work(flops=30.0, bytes=2.0)}  # at least 0.3 s for the operations, 0.2 s for the bytes
    rows = measured(
        case_of(
            Contender("wat", "WATConv2d", "translate", [run_of(1.0, 3.0, 2.0)], work, "native"),
            Contender("plain", "nn.Conv2d", "", [run_of(4.0, 4.0, 5.0)], work),
            Contender("official", "pipeline", "translate", [run_of(8.0, 8.0, 8.0)], work),
            Contender("official", "pipeline", "resized_crop", [run_of(1.0, 1.0, 1.0)], work),
            Contender("library", "WATConv2d", "translate", [run_of(0.5, 0.5, 0.5)]),
            modes=("full",),
        )
    )
    ours, plain, *_, library = rows
    assert (ours.ms, ours.ms_lower, ours.ms_upper) == (2000.0, 1500.0, 2500.0)
    assert (ours.timed, ours.host_ms, ours.eager_ms) == ("graph", 1000.0, 2000.0)
    assert (ours.vs_plain, ours.vs_official, ours.vs_library, ours.vs_compiled) == (0.5, 0.25, 4.0, None)
    assert ours.of_limit == pytest.approx(0.15)
    assert (ours.gflops, ours.gbytes, ours.limit_gflops, ours.limit_gbytes) == (30e-9, 2e-9, 100e-9, 10e-9)
    assert (plain.vs_plain, plain.ms) == (None, 4000.0)
    assert (library.of_limit, library.vs_plain) == (None, None)
    assert {row.machine for row in rows} == {"A Machine"}
    assert {row.reps for row in rows} == {3}


def test_a_contender_that_draws_is_the_mean_over_its_draws_round_by_round(clock):
    runs = [run_of(1.0, 2.0, 3.0, probability=0.75), run_of(5.0, 2.0, 7.0, probability=0.25)]
    (row,) = measured(case_of(Contender("wat", "WATConv2d", "translate", runs), modes=("forward",)))
    assert row.ms == 2000.0  # of 2, 2, 4


def test_every_mode_is_prepared_and_a_mode_that_is_not_there_is_left_out(clock):
    full = Run({"full": lambda: lambda: 2.0})
    rows = measured(
        case_of(Contender("wat", "a", "x", [run_of(1.0, 1.0, 1.0)]), Contender("compiled", "b", "x", [full]))
    )
    assert [(row.mode, row.role, row.vs_compiled) for row in rows] == [
        ("forward", "wat", None),
        ("backward", "wat", None),
        ("full", "wat", 0.5),
        ("full", "compiled", None),
    ]


def test_what_is_missing_is_a_row_with_the_reason(clock):
    absent = Contender("wat", "WATConv2d", "translate", backend="cuda", missing="it is not part of this build")
    rows = measured(case_of(absent, Contender("plain", "nn.Conv2d", "", [run_of(1.0, 1.0, 1.0)]), modes=("full",)))
    assert (rows[0].note, rows[0].ms, rows[0].vs_plain, rows[0].backend) == (absent.missing, None, None, "cuda")
    assert rows[1].ms == 1000.0


def test_a_compiler_that_fails_is_a_row_with_its_reason(clock):
    def fails():
        raise RuntimeError("no C++ compiler\nand a long story")

    rows = measured(case_of(Contender("compiled", "b", "x", [Run({"full": fails})]), modes=("full",)))
    assert rows[0].note == "torch.compile fails: no C++ compiler"


def test_two_names_of_one_backend_are_one_contender(clock):
    twice = [Contender("wat", "WATConv2d", "translate", [run_of(1.0, 1.0)], backend="native") for _ in range(2)]
    (row,) = measured(case_of(*twice, modes=("full",)), reps=1)
    assert (row.backend, row.ms) == ("native", 1000.0)


def test_a_wrong_result_is_an_error_and_no_row(clock):
    def check():
        raise WrongResult("the output differs")

    case = case_of(
        Contender("plain", "nn.Conv2d", "", [run_of(1.0)]),
        Contender("wat", "WATConv2d", "translate", [run_of(1.0), run_of(1.0, check=check)], backend="native"),
    )
    rows = runner.measure(case, Options(), 1, ENVIRONMENT)
    with pytest.raises(WrongResult, match="conv, a case: WATConv2d translate native, draw 1: the output differs"):
        next(rows)
    assert clock.log == []


@pytest.mark.parametrize(("error", "wrong"), [(0.0, False), (1e-4, False), (1e-2, True), (float("nan"), True)])
@pytest.mark.parametrize("place", ["output", "gradient"])
def test_results_are_compared_in_the_tolerance_of_the_dtype(error, wrong, place):
    x = torch.linspace(-1, 1, 5).requires_grad_()

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x + (error if place == "output" else 0.0)

        @staticmethod
        def backward(ctx, dy):
            return 2 * dy + (error if place == "gradient" else 0.0)

    arguments = (Off.apply, lambda x: 2 * x, [x], torch.ones(5))
    if not wrong:
        check_layer(*arguments)
        return
    with pytest.raises(WrongResult, match="the output differs" if place == "output" else "gradient 0 differs"):
        check_layer(*arguments)


def test_half_precision_is_compared_with_an_fp32_reference():
    seen = []
    x = torch.linspace(-1, 1, 7).bfloat16().requires_grad_()

    def reference(x):
        seen.append(x.dtype)
        return x.sin()

    check_layer(torch.sin, reference, [x], torch.ones(7).bfloat16())
    assert seen == [torch.float32]


def test_the_modes_of_a_layer_do_what_they_say():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    calls = []

    def forward():
        calls.append(1)
        return x.square()

    modes = layer_modes(forward, [x], torch.tensor([1.0, 10.0]))
    forward_only = modes["forward"]()
    assert len(calls) == 0
    torch.testing.assert_close(forward_only(), x.square())
    backward = modes["backward"]()
    assert len(calls) == 2  # the forward of `backward` is prepared, not timed
    for _ in range(2):
        torch.testing.assert_close(backward()[0], torch.tensor([2.0, 40.0]))
    assert len(calls) == 2
    torch.testing.assert_close(modes["full"]()()[0], torch.tensor([2.0, 40.0]))
    assert len(calls) == 3
    assert "backward" not in layer_modes(forward, [x], x, compiled=True)


def test_limits_are_the_best_that_was_seen(monkeypatch):
    rates = iter([2.0, 4.0, 1.0, 1.0])  # seconds: probe, copy; then both faster
    monkeypatch.setattr(limits, "_best", {})
    monkeypatch.setattr(limits, "_COPY_BYTES", 1 << 10)
    monkeypatch.setattr(limits, "_probes", lambda device, dtype: [(8.0, lambda: None)])
    monkeypatch.setattr(limits, "_best_seconds", lambda function, device: next(rates))
    assert limits.measure_limits("cpu", torch.float32) == (4.0, 512.0)
    assert limits.measure_limits("cpu", torch.float32) == (8.0, 2048.0)
    assert Limits(10.0, 5.0).seconds(Work(20.0, 5.0)) == 2.0
    assert Limits(10.0, 5.0).seconds(Work(20.0, 50.0)) == 10.0


def test_threads_of_a_case_hold_for_the_case_alone(clock):
    before = torch.get_num_threads()
    seen = []

    def function():
        seen.append(torch.get_num_threads())
        return 1.0

    run = Run({"full": lambda: function})
    (row,) = measured(case_of(Contender("wat", "a", "x", [run]), modes=("full",), threads=before + 1))
    assert set(seen) == {before + 1}
    assert row.threads == before + 1
    assert torch.get_num_threads() == before
