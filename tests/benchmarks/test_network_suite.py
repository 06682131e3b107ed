"""The contenders of a whole network are right, comparable, and say what DOM saves."""

import dataclasses
import functools
import io

import pytest
import torch
import watnn
from rich.console import Console
from watnn.bench import network
from watnn.bench.case import DTYPES, Options
from watnn.bench.networks import NETWORKS
from watnn.bench.rows import Environment
from watnn.bench.runner import measure
from watnn.bench.suites import SUITES
from watnn.bench.table import build_tables
from watnn.bench.verify import WrongResult


@pytest.fixture
def narrow(monkeypatch):
    """The networks with few channels."""
    for name, entry in NETWORKS.items():
        build = functools.partial(entry.build, width_multiplier=0.125)
        monkeypatch.setitem(NETWORKS, name, entry._replace(build=build))


def kinds(contenders):
    return [(contender.role, contender.variant) for contender in contenders]


ALL = [
    ("wat", "translate"), ("wat", "resized_crop"), ("library", "translate"), ("library", "resized_crop"), ("plain", ""),
    ("official", "translate"), ("official", "resized_crop"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), [("vgg16", "fp32"), ("googlenet", "fp64"), ("efficientnet_lite0", "bf16")])
def test_contenders_are_right_and_start_from_the_same_weights(narrow, monkeypatch, name, dtype):
    models, make_run = [], network._training_run
    monkeypatch.setattr(network, "_training_run", lambda model, *rest: models.append(model) or make_run(model, *rest))
    contenders = network.contenders(name, 2, Options(dtype=DTYPES[dtype]))
    without_library = [kind for kind in ALL if kind[0] != "library"]  # no other backend computes in fp64
    assert kinds(contenders) == (without_library if dtype == "fp64" else ALL)
    states = [{entry: value.clone() for entry, value in model.state_dict().items()} for model in models]
    plain = states[kinds(contenders).index(("plain", ""))]
    for state in states:
        assert all(torch.equal(state[entry], value) for entry, value in plain.items())
        assert len(state) == len(plain) + (0 if state is plain else len(network._shadow_layers(models[0])))
    for contender in contenders:
        (run,) = contender.runs
        assert (run.check is None) == (contender.role == "plain")
        if run.check:
            run.check()
    for model, state in zip(models, states, strict=True):  # a check changes nothing, BatchNorm's statistics included
        assert all(torch.equal(state[entry], value) for entry, value in model.state_dict().items())


def test_a_step_is_sgd_s():
    model, x, y = torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    weight = model.weight.detach().clone()
    run = network._training_run(model, x, y)
    step = run.modes["full"]()
    loss = torch.nn.functional.cross_entropy(x @ weight.requires_grad_().T + model.bias.detach(), y)
    (gradient,) = torch.autograd.grad(loss, weight)
    step()
    torch.testing.assert_close(model.weight, weight - 0.01 * gradient)
    step()
    assert float(torch.nn.functional.cross_entropy(model(x), y).detach()) < float(loss.detach())


def test_ours_keeps_8_bytes_a_layer_for_backward_and_the_official_one_its_weights(narrow):
    contenders = network.contenders("resnet18", 2, Options())
    saved = dict(zip(kinds(contenders), (contender.runs[0].saved() for contender in contenders), strict=True))
    plain = saved["plain", ""]
    assert saved["wat", "translate"] == saved["wat", "resized_crop"] == plain + 8 * 16
    weights = sum(
        module.weight.nbytes
        for path, module in NETWORKS["resnet18"].build().named_modules()
        if path.startswith("stage") and path.endswith(("conv1.conv", "conv2.conv"))
    )
    assert saved["official", "translate"] > plain + weights


def test_a_wrong_layer_is_no_row(narrow, monkeypatch):
    official = network.VARIANTS["translate"]._replace(apply=lambda weight, drawn: weight)
    forward = watnn.WATConv2d.forward
    with monkeypatch.context() as patch:
        patch.setitem(network.VARIANTS, "translate", official)
        run = network.contenders("vgg16", 2, Options())[5].runs[0]
        with pytest.raises(WrongResult, match="the output differs"):
            run.check()
    run = network.contenders("vgg16", 2, Options())[0].runs[0]
    monkeypatch.setattr(
        watnn.WATConv2d, "forward", lambda self, x: forward(self, x) * (1.01 if self.backend != "reference" else 1)
    )
    with pytest.raises(WrongResult, match="the output differs"):
        run.check()


def test_a_backend_that_is_not_there_is_a_contender_that_says_why(narrow):
    first, *_ = network.contenders("vgg16", 2, Options(backends=("cuda",)))
    assert (first.role, first.backend, list(first.runs)) == ("wat", "cuda", []) and "cuda" in first.missing


# by hand: a translation by up to 0.3 moves a 3x3 kernel by a tap with probability 4/9 in each direction, a 5x5 one with 2/3
ROWS_LEFT = {3: (5 / 9 * 3 + 4 / 9 * 2) / 3, 5: (1 / 3 * 5 + 2 / 3 * 4) / 5}
LEAST_ROWS_LEFT = {3: 2 / 3, 5: 4 / 5}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_dom_saves(name):
    with torch.device("meta"):
        model, x = NETWORKS[name].build(), torch.empty(1, 3, 32, 32)
    converted = NETWORKS[name].convert(model, network.VARIANTS["translate"].transform)
    work = {"dense": 0.0, "shadow": 0.0, "expected": 0.0, "least": 0.0}
    for layer in watnn.flops(converted, x).layers:
        module = converted.get_submodule(layer.name)
        if isinstance(module, torch.nn.Conv2d):
            shadow, size = isinstance(module, watnn.WATConv2d), module.kernel_size[0]
            work["dense"] += layer.dense
            work["shadow"] += layer.dense * shadow
            work["expected"] += layer.dense * (ROWS_LEFT[size] ** 2 if shadow else 1)
            work["least"] += layer.dense * (LEAST_ROWS_LEFT[size] ** 2 if shadow else 1)
    shares = network.dom_shares(converted, x)
    for mine, theirs in (("shadow_share", "shadow"), ("expected_share", "expected"), ("least_share", "least")):
        assert shares[mine] == pytest.approx(work[theirs] / work["dense"]), mine
    crop = network.dom_shares(NETWORKS[name].convert(model, network.VARIANTS["resized_crop"].transform), x)
    assert crop["expected_share"] == pytest.approx(1)  # a resized crop fills the whole kernel


def test_every_network_has_a_case_for_time_and_one_for_memory():
    cases = SUITES["network"]()
    assert len({case.name for case in cases}) == len(cases)
    for entry in NETWORKS.values():
        assert {case.measures for case in cases if case.name.startswith(f"{entry.title} batch 128")} == {
            "time",
            "memory",
        }
    assert [case.name for case in cases if case.quick] == ["VGG-16 batch 8"]


def test_rows_have_times_ratios_and_shares(narrow):
    case = next(case for case in SUITES["network"]() if case.quick)
    case = dataclasses.replace(case, setup=functools.partial(network.contenders, "vgg16", 2))
    rows = list(measure(case, Options(), 1, Environment.of("cpu", "test")))
    assert [(row.role, row.variant) for row in rows] == ALL and all(row.ms > 0 for row in rows)
    ours, plain, official = rows[0], rows[4], rows[5]
    assert ours.vs_plain == pytest.approx(ours.ms / plain.ms)
    assert ours.vs_official == pytest.approx(ours.ms / official.ms)
    assert 0 < ours.least_share < ours.expected_share < 1 and plain.expected_share is None
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(build_tables(rows))
    saved = (ours.shadow_share, 1 - ours.expected_share, 1 - ours.least_share)
    line = next(line for line in console.export_text().splitlines() if line.rstrip().endswith(f"{saved[2]:.1%}"))
    assert line.split()[-4:] == ["translate", *(f"{share:.1%}" for share in saved)]
