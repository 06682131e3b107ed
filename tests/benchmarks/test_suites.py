"""What the suites measure: the official pipeline is torchvision's transform, work is counted by hand, memory is real."""

import dataclasses

import pytest
import torch
from watnn.bench import official, runner
from watnn.bench.case import MODES, Contender, Options, Run
from watnn.bench.convolution import TRANSFORMS, contenders, work
from watnn.bench.memory import peak_bytes, saved_bytes, why_no_peak
from watnn.bench.pipeline import _crops
from watnn.bench.shapes import Shape
from watnn.bench.suites import SUITES, linear, scaling
from watnn.transforms import functional

from tests.benchmarks.made import ENVIRONMENT, case_of
from wat_kernels import TapTable

TINY = Shape(4, 6, batch=2)


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 1), (1, -1)])
def test_the_pipeline_moves_as_torchvision(shift):
    weight = torch.randn(3, 2, 3, 3)
    expected = (functional.affine(3, 0.0, shift, 1.0, 0.0) @ weight.flatten(2).mT).mT.view_as(weight)
    torch.testing.assert_close(official.translated(weight, shift), expected)
    torch.testing.assert_close(official.traced_translated(weight, torch.tensor(shift, dtype=torch.float32)), expected)


def test_the_pipeline_draws_shifts_and_boxes_from_the_laws_of_the_tables():
    count = 3000
    shifts = [official.draw_shift(3) for _ in range(count)]
    traced = [tuple(official.traced_draw_shift(3, torch.device("cpu")).tolist()) for _ in range(count)]
    centre = float(TRANSFORMS["translate"].tap_table((3, 3)).probabilities.max())  # no shift is the likeliest draw
    for draws in (shifts, traced):
        assert set(draws) == {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)}
        assert sum(draw == (0, 0) for draw in draws) / count == pytest.approx(centre, abs=0.04)
    boxes = [official.draw_box(3) for _ in range(count)]
    for draw in _crops(3, TRANSFORMS["resized_crop"].tap_table((3, 3))):
        assert boxes.count(draw.fixed) / count == pytest.approx(draw.probability, abs=0.03)
        assert draw.fresh() == draw.fixed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [TINY, TINY._replace(depthwise=True)], ids=["dense", "depthwise"])
def test_all_contenders_of_a_convolution_are_right(shape, dtype):
    found = contenders(shape, tuple(TRANSFORMS), Options(dtype=dtype, compiled=False))
    runner.check(case_of(), found)
    assert [(c.role, c.variant) for c in found if c.role not in ("wat", "library")] == [
        ("plain", ""), ("official", "translate"), ("official", "resized_crop"),
    ]  # fmt: skip
    for contender in found:
        assert sum(run.probability for run in contender.runs) == pytest.approx(1.0)
        assert set(contender.work) == set(MODES)
    ours = [c for c in found if c.role == "wat"]
    assert [len(c.runs) for c in ours] == [len(t.tap_table((3, 3))) for t in TRANSFORMS.values()]


def test_a_backend_that_is_not_there_says_why():
    found = contenders(TINY, ("translate",), Options(backends=("cuda", "library"), compiled=False))
    absent, library, *_ = found
    assert absent.missing.startswith("backend='cuda' cannot run shadow_conv: ")
    assert (absent.role, absent.runs) == ("wat", ())
    assert (library.role, library.backend) == ("wat", "library")  # asked for by name: not a baseline
    assert linear.contenders(linear.Shape(8, 4, 3), Options(backends=("cuda",), compiled=False))[0].missing


@pytest.mark.parametrize("noise", linear.NOISES)
def test_all_contenders_of_a_linear_layer_are_right(noise):
    found = [c for c in linear.contenders(linear.Shape(8, 4, 3), Options(compiled=False)) if c.variant == noise]
    runner.check(case_of(), found)
    assert {c.role for c in found} == {"wat", "library", "official"} or found[0].backend == "library"


def test_work_counts_what_meets_the_image():
    shape = Shape(2, 3, batch=5)
    every = work(shape, TapTable.identity((3, 3)), torch.float32)
    pixels = 9 + 4 * 6 + 4 * 4  # of a 3x3 image: the middle tap meets 9 outputs, an edge tap 6, a corner tap 4
    assert every["forward"].flops == 2 * 5 * 2 * 2 * pixels
    assert every["forward"].bytes == 4 * (2 * 5 * 2 * 9 + 2 * 2 * 9)
    assert every["full"].flops == 3 * every["forward"].flops
    assert every["full"].bytes == 4 * (5 * 5 * 2 * 9 + 3 * 2 * 2 * 9)
    middle = work(shape, scaling.first_taps(1), torch.float32)
    assert middle["forward"].flops == 2 * 5 * 2 * 2 * 9
    assert (
        work(shape._replace(depthwise=True), TapTable.identity((3, 3)), torch.float32)["forward"].flops == 20 * pixels
    )


def test_first_taps_keeps_so_many_in_place():
    for count in range(1, 10):
        table = scaling.first_taps(count)
        assert table.active_taps.tolist() == [count]
        assert torch.equal(table.maps[0], table.maps[0].diag().diag())


def test_every_suite_has_unique_names_and_a_quick_case():
    for suite, cases in SUITES.items():
        names = [case.name for case in cases()]
        assert len(names) == len(set(names)), suite
        assert {case.suite for case in cases()} == {suite}
        assert any(case.quick for case in cases()), suite


def test_saved_bytes_are_storages_beyond_what_is_known():
    x, weight = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: x * weight, [x, weight]) == 0
    assert saved_bytes(lambda: x * weight, [x]) == 40
    assert saved_bytes(lambda: (x * weight).exp(), [x, weight]) == 40


@pytest.mark.skipif(bool(why_no_peak()), reason=why_no_peak())
def test_the_peak_is_what_is_touched_at_once():
    mib = 1 << 20

    def holds_two_of_three():
        first = torch.ones(16 * mib)
        del first
        second, third = torch.ones(16 * mib), torch.ones(8 * mib)
        return second, third

    assert peak_bytes(holds_two_of_three, "cpu") == pytest.approx(4 * 24 * mib, rel=0.05)


@pytest.mark.skipif(bool(why_no_peak()), reason=why_no_peak())
def test_memory_rows_come_from_a_process_of_their_own():
    case = next(case for case in SUITES["memory"]() if case.quick)
    rows = list(runner.measure(case, Options(backends=("library",), compiled=False), 1, ENVIRONMENT))
    by_role = {(row.role, row.variant): row for row in rows}
    weight = 4 * 512 * 512 * 9
    ours, pipeline = by_role["wat", "translate"], by_role["official", "translate"]
    assert ours.saved_above_plain == 8  # the key
    assert pipeline.saved_above_plain > 2 * weight
    assert pipeline.peak_above_plain > weight
    assert by_role["plain", ""].peak_bytes > weight  # the gradient of the weight


def test_the_peak_that_counts_is_that_of_the_worst_draw(monkeypatch):
    monkeypatch.setattr(runner, "_peaks_of_a_process", lambda case, options: [30, 20])
    runs = [Run({}, saved=lambda: 5), Run({}, saved=lambda: 7)]
    case = case_of(Contender("wat", "a", "x", runs), Contender("plain", "b", "", [Run({}, saved=lambda: 4)]))
    ours, plain = runner.measure(dataclasses.replace(case, measures="memory"), Options(), 1, ENVIRONMENT)
    if why_no_peak():
        assert (ours.peak_bytes, ours.note) == (None, why_no_peak())
    else:
        assert (ours.peak_bytes, ours.peak_above_plain, plain.peak_above_plain) == (30, 10, 0)
    assert (ours.saved_bytes, ours.saved_above_plain) == (7, 3)
