"""Strength: of layers, and as StrengthScheduler sets it."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
import watnn
from torch import nn
from torch.utils.checkpoint import checkpoint
from watnn.layers import shadow_layers
from watnn.transforms import WAT, Compose, DropConnect, MultiplicativeNoise, RandomAffine, RandomHorizontalFlip

from tests.conftest import DEVICE
from wat_kernels import MixedTable

FLIP = RandomHorizontalFlip(1.0)  # one draw, never the identity
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def network(transform=FLIP, **arguments):
    return watnn.convert(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3)), transform, **arguments
    )


def strengths(model):
    return [layer.strength for _, layer in shadow_layers(model)]


@pytest.mark.parametrize(
    ("schedule", "arguments", "expected"),
    [
        ("linear", {"steps": 4}, [1, 0.75, 0.5, 0.25, 0, 0]),
        ("linear", {"steps": 4, "start": 0, "end": 0.8}, [0, 0.2, 0.4, 0.6, 0.8, 0.8]),
        ("cosine", {"steps": 4}, [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(5)] + [0]),
        ("cosine", {"steps": 2, "start": 0.5, "end": 1}, [0.5, 0.75, 1, 1]),
        ("constant", {"steps": 2}, [1, 1, 0, 0]),
        ("constant", {"steps": 1, "start": 0.6, "end": 0.1}, [0.6, 0.1, 0.1]),
        (lambda n: 0.5**n, {}, [1, 0.5, 0.25]),
    ],
)
def test_schedules(schedule, arguments, expected):
    model = network()
    scheduler = watnn.StrengthScheduler(model, schedule, **arguments)
    for n, strength in enumerate(expected):
        assert scheduler.last_epoch == n
        assert scheduler.get_last_strength() == pytest.approx(strength)
        assert strengths(model) == [scheduler.get_last_strength()] * 2
        scheduler.step()


def test_the_identity_is_drawn_with_what_the_strength_leaves():
    layer = network()[0]
    layer.strength = 0.3
    flipped = sum(torch.equal(watnn.shadow_weight(layer, key), layer.weight.flip(3)) for key in range(1000))
    plain = sum(torch.equal(watnn.shadow_weight(layer, key), layer.weight) for key in range(1000))
    assert flipped + plain == 1000 and 260 < flipped < 340


def test_full_strength_gives_the_outputs_of_no_scheduler_and_none_those_of_aom():
    model = network(WAT())
    torch.manual_seed(5)
    expected = model(X)
    scheduler = watnn.StrengthScheduler(model, "constant", steps=1)
    torch.manual_seed(5)
    assert torch.equal(model(X), expected)
    scheduler.step()
    with watnn.dom(model, key=3):
        drawn = model(X)
    with watnn.aom(model):
        torch.testing.assert_close(drawn, model(X))


def test_one_model_s_schedule_is_not_another_s():
    model = network()
    other = copy.deepcopy(model)
    table = other[0].tap_table
    assert table is model[0].tap_table  # shared until one is scheduled
    watnn.StrengthScheduler(model, "linear", steps=2, start=0.5)
    assert other[0].tap_table is table and type(table) is not MixedTable and strengths(other) == [1, 1]
    third = copy.deepcopy(model)
    assert strengths(third) == [0.5, 0.5]
    third[0].strength = 0.0
    assert strengths(model) == [0.5, 0.5]
    assert model[0].tap_table.strength == 0.5 and third[0].tap_table.strength == 0.0
    assert "strength=0.5" in repr(model[0]) and "strength" not in repr(other[0])


def test_copies_and_state_dicts():
    model = network(Compose([FLIP, DropConnect(0.4)]), gain="layer")
    keys = list(model.state_dict())
    watnn.StrengthScheduler(model, "linear", steps=4, start=0.25)
    assert list(model.state_dict()) == keys
    again = pickle.loads(pickle.dumps(model))
    assert strengths(again) == [0.25, 0.25]
    for other in (again, copy.deepcopy(model)):
        for key in range(20):
            with watnn.dom(model, key=key), watnn.dom(other, key=key):
                assert torch.equal(model(X), other(X))


@pytest.mark.parametrize("transform", [DropConnect(0.4), MultiplicativeNoise(0.4), Compose([FLIP, DropConnect(0.4)])])
def test_the_amount_of_a_noise_is_scaled(transform):
    layer = network(transform)[0]
    layer.strength = 0.25
    assert layer.noise.amount == pytest.approx(0.1) and layer.noise.kind == transform.noise.kind
    layer.strength = 0
    assert torch.equal(watnn.shadow_weight(layer, 3), layer.weight)
    layer.strength = 1
    assert layer.noise == transform.noise


def test_a_linear_layer_moves_less_often():
    layer = watnn.WATLinear(6, 4, transform=FLIP)
    layer.strength = 0.5
    shadows = [watnn.shadow_weight(layer, key) for key in range(200)]
    flipped = sum(torch.equal(shadow, layer.weight.flip(1)) for shadow in shadows)
    assert 70 < flipped < 130
    assert flipped + sum(torch.equal(shadow, layer.weight) for shadow in shadows) == 200


def test_a_new_transform_has_the_strength_of_the_old():
    layer = network()[0]
    layer.strength = 0.0
    layer.transform = RandomAffine(degrees=0, translate=(0.9, 0.9))
    assert all(torch.equal(watnn.shadow_weight(layer, key), layer.weight) for key in range(20))
    layer.transform = DropConnect(0.5)
    assert torch.equal(watnn.shadow_weight(layer, 3), layer.weight)


def test_flops_export_and_revert_see_the_present_strength():
    model = network(RandomAffine(degrees=0, translate=(0.3, 0.3)))
    whole = watnn.flops(model, X)
    share = whole.expected / whole.dense
    for _, layer in shadow_layers(model):
        layer.strength = 0.25
    part = watnn.flops(model, X)
    assert part.dense == whole.dense
    assert part.expected / part.dense == pytest.approx(1 - 0.25 * (1 - share))
    for key in range(10):
        exported = watnn.export(model, mode="dom", key=key)
        with watnn.dom(model.eval(), key=key):
            torch.testing.assert_close(exported(X), model(X))
    plain = watnn.revert(model)
    assert set(vars(plain[0])) == set(vars(nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize(
    ("noise", "backend"),
    [(DropConnect(0.3), "auto"), (MultiplicativeNoise(0.3), "library"), (DropConnect(0.3), "reference")],
)
def test_a_compiled_model_follows_without_compiling_again(noise, backend):
    model = network(Compose([WAT(), noise]), backend=backend)
    model = watnn.convert(model.extend([nn.Flatten(), nn.Linear(6 * 36, 3)]), noise, include="4", backend=backend)
    scheduler = watnn.StrengthScheduler(model, "linear", steps=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(X)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in range(3):
            scheduler.step()
            results = []
            for run in (model, compiled):
                torch.manual_seed(seed)
                y = run(X)
                results.append((y, *torch.autograd.grad(y.square().sum(), model.parameters())))
            for eager, other in zip(*results, strict=True):
                torch.testing.assert_close(other, eager)
            torch.manual_seed(seed)
            y = compiled(X)
            for _, layer in shadow_layers(model):
                layer.strength = 1.0
            again = torch.autograd.grad(y.square().sum(), model.parameters())
            for grad, other in zip(results[1][1:], again, strict=True):  # of the strength that its forward had
                torch.testing.assert_close(other, grad)
            for _, layer in shadow_layers(model):
                layer.strength = scheduler.get_last_strength()
        y = compiled(X)
    with watnn.aom(model):
        torch.testing.assert_close(y, model(X))


@pytest.mark.parametrize("schedule", ["cosine", lambda n: 1 / (n + 1)], ids=["name", "function"])
def test_a_run_goes_on_from_a_state_dict(schedule):
    arguments = {} if callable(schedule) else {"steps": 10, "start": 0.9, "end": 0.2}
    model = network()
    scheduler = watnn.StrengthScheduler(model, schedule, **arguments)
    for _ in range(4):
        scheduler.step()
    state = torch.load(saved(scheduler.state_dict()), weights_only=True)
    resumed_model = network()
    resumed = watnn.StrengthScheduler(
        resumed_model, schedule if callable(schedule) else "linear", **{**arguments, "steps": 3} if arguments else {}
    )
    resumed.load_state_dict(state)
    assert resumed.last_epoch == 4 and resumed.state_dict() == scheduler.state_dict()
    for _ in range(3):
        assert strengths(resumed_model) == strengths(model) == [resumed.get_last_strength()] * 2
        scheduler.step()
        resumed.step()
    given = watnn.StrengthScheduler(network(), schedule, **arguments, last_epoch=3)
    assert given.last_epoch == 4 and given.get_last_strength() == scheduler.get_strength(4)


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_two_schedulers_for_one_model_are_noticed():
    model = network()
    first = watnn.StrengthScheduler(model, "linear", steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.step()
        second = watnn.StrengthScheduler(model[0], "constant", steps=4, start=0.1)
        second.step()
    with pytest.warns(UserWarning, match=r"strength of 0 \(of 1 layers in all\) is not what this scheduler set"):
        first.step()
    assert strengths(model) == [0.5, 0.5]


def test_layers_converted_later_join_in():
    model = watnn.convert(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), FLIP, include="0")
    scheduler = watnn.StrengthScheduler(model, "linear", steps=4)
    scheduler.step()
    watnn.convert(model, FLIP, include="1", inplace=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
    assert strengths(model) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: watnn.StrengthScheduler(nn.Conv2d(3, 3, 3), steps=2),
            ValueError,
            "Conv2d has no shadow layer; convert",
        ),
        (lambda: watnn.StrengthScheduler(network().parameters(), steps=2), TypeError, "model is generator"),
        (
            lambda: watnn.StrengthScheduler(network(), "step", 2),
            ValueError,
            "schedule='step'; accepted are 'linear', 'cos",
        ),
        (lambda: watnn.StrengthScheduler(network(), "linear"), ValueError, "steps=None with schedule='linear'"),
        (lambda: watnn.StrengthScheduler(network(), "cosine", 0), ValueError, "steps=0 with .*accepted is an int >= 1"),
        (lambda: watnn.StrengthScheduler(network(), "linear", 2, start=1.5), ValueError, "strength=1.5; accepted"),
        (lambda: watnn.StrengthScheduler(network(), float, 2), ValueError, "a function has none of them"),
        (lambda: watnn.StrengthScheduler(network(), lambda n: n - 1), ValueError, "strength=-1; accepted"),
        (lambda: watnn.StrengthScheduler(network(), "linear", 2, last_epoch=-2), ValueError, "last_epoch=-2; accepted"),
        (
            lambda: watnn.StrengthScheduler(network(), "linear", 2).load_state_dict({"last_epoch": 1}),
            ValueError,
            r"state_dict has the keys \['last_epoch'\]; accepted are \['end', 'last_epoch', 'schedule', 'start', 'steps'\]",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_a_scheduler_nothing_is_added():
    model = network(Compose([WAT(), DropConnect(0.2)]))
    assert not {"_strength", "_scaled_noise"} & set(vars(model[0]))
    assert type(model[0].tap_table).__name__ == "TapTable"


def test_checkpointing_with_a_strength():
    model = network(Compose([WAT(), DropConnect(0.3)]))
    watnn.StrengthScheduler(model, "linear", steps=2, start=0.5)
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(4)
        results.append(torch.autograd.grad(run(X).square().sum(), model.parameters()))
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)
