"""The demo itself, as `watnn demo --quick` runs it."""

import contextlib
import copy
import io
import json
import statistics
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from watnn.cli import main

pytest.importorskip("sklearn", reason="needs wat-kernels[demo]")

import watnn.demo.run
from watnn.demo import cost, digits, evaluation, summary, training, variants
from watnn.demo.settings import Settings

PICTURES = {
    "learning_curves.png",
    "robustness.png",
    "kernels.png",
    "transform_translate.png",
    "transform_choice.png",
    "transform_damp.png",
}
SHADOW = ("translate", "choice", "damp")


class Demo(NamedTuple):
    folder: Path
    printed: str
    document: dict


def run_quick(folder: Path) -> Demo:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["demo", "--quick", "--output", str(folder)]) == 0
    return Demo(folder, printed.getvalue(), json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    return run_quick(tmp_path_factory.mktemp("demo") / "made" / "here")


def test_writes_the_table_and_the_pictures(demo):
    assert {path.name for path in demo.folder.iterdir()} == {"results.json", *PICTURES}
    for name in PICTURES:
        data = (demo.folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000, name


def test_the_numbers_are_possible(demo):
    document = demo.document
    assert (document["complete"], document["seeds"]) == (True, [0, 1])
    assert (document["data"]["train"], document["data"]["test"]) == (898, 899)
    assert document["export_difference"] <= 1e-4
    for name, row in document["table"].items():
        for metric, score in row["accuracy"].items():
            if name == "plain" and metric.startswith("dom"):
                assert score is None
                continue
            assert score["mean"] == pytest.approx(statistics.fmean(score["per_seed"]))
            assert score["std"] == pytest.approx(statistics.stdev(score["per_seed"]))
            # shifts are tested in four directions, DOM with two draws: right answers are whole numbers
            right = [value / 100 * 899 * {"aom_shift": 4}.get(metric, 2) for value in score["per_seed"]]
            assert right == pytest.approx([round(count) for count in right], abs=1e-6)
    # two epochs: the plain network knows most digits, and what it learnt shows in its curve
    assert document["table"]["plain"]["accuracy"]["aom"]["mean"] > 80
    for losses in document["curves"]["plain"]["loss"]:
        assert losses[0] > losses[1]


def test_the_costs_are_those_of_the_network(demo):
    width = 8
    convolutions = ((1, width, 64), (width, width, 64), (width, 16, 16), (16, 16, 16), (16, 32, 4))
    dense = sum(2 * 9 * i * o * pixels for i, o, pixels in convolutions) + 2 * 32 * 10
    costs = {name: row["cost"] for name, row in demo.document["table"].items()}
    assert {name: costs[name]["aom_flops"] for name in costs} == dict.fromkeys(costs, dense)
    # translation by at most 0.3 of 3 taps moves with probability 4/9 along each axis: 1 - 4/27 of a side stays
    kept = (1 - 4 / 27) ** 2
    assert costs["translate"]["dom_flops"] == pytest.approx(kept * (dense - 640) + 640, rel=1e-5)
    assert costs["choice"]["dom_flops"] == pytest.approx((1 + kept) / 2 * (dense - 640) + 640, rel=1e-5)
    assert costs["damp"]["dom_flops"] == dense
    # a layer keeps its key, one int64, and nothing else; the classifier draws noise but is not translated
    assert [costs[name]["saved_beyond_plain"] for name in SHADOW] == [5 * 8, 5 * 8, 6 * 8]
    weights = 4 * 9 * sum(i * o for i, o, _ in convolutions)
    for name in SHADOW:
        assert costs[name]["materialised_beyond_plain"] >= 0.9 * weights


def test_prints_what_it_measured(demo):
    for row in demo.document["table"].values():
        for score in row["accuracy"].values():
            if score is not None:
                assert f"{score['mean']:.1f} ± {score['std']:.1f}" in demo.printed
    words = " ".join(demo.printed.split())
    for sentence in demo.document["conclusion"]:
        assert sentence.split(":")[0] in words
    assert "exported DOM models give the outputs of dom(key)" in words


def test_the_same_seeds_give_the_same_numbers(demo, tmp_path):
    again = run_quick(tmp_path / "again").document
    before = copy.deepcopy(demo.document)
    for document in (before, again):
        for changing in ("time", "command"):
            del document[changing]
        del document["settings"]["output"]
        document["conclusion"] = [text for text in document["conclusion"] if "training step" not in text]
    assert again == before


def test_a_run_stopped_by_ctrl_c_keeps_the_finished_seeds(tmp_path, monkeypatch, capsys):
    whole = watnn.demo.run.train_seed

    def stop_at_seed_1(data, settings, seed, advance):
        if seed == 1:
            raise KeyboardInterrupt
        return whole(data, settings, seed, advance)

    monkeypatch.setattr(watnn.demo.run, "train_seed", stop_at_seed_1)
    assert main(["demo", "--quick", "--seeds", "3", "--epochs", "1", "--output", str(tmp_path)]) == 130
    assert "stopped: 1 of 3 seeds finished" in capsys.readouterr().out
    document = json.loads((tmp_path / "results.json").read_text())
    assert (document["complete"], document["seeds"]) == (False, [0])
    assert document["table"]["plain"]["accuracy"]["aom"]["std"] is None
    assert "One seed says nothing about the spread." in document["conclusion"]
    assert {path.name for path in tmp_path.iterdir()} > PICTURES


def test_a_run_stopped_before_anything_is_finished_writes_nothing(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watnn.demo.run, "train_seed", stop)
    assert main(["demo", "--quick", "--output", str(tmp_path)]) == 130
    assert "stopped: 0 of 2 seeds finished" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_variants_start_from_the_same_weights_and_see_the_same_batches():
    models = variants.build_variants(8, seed=3)
    for model in models.values():
        for name, value in models["plain"].state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    assert not torch.equal(
        models["plain"].classifier.weight, variants.build_variants(8, seed=4)["plain"].classifier.weight
    )
    images = digits.load().train
    epochs = [list(training._batches(images, 64, torch.Generator().manual_seed(3))) for _ in range(2)]
    assert len(epochs[0]) == 14
    for first, second in zip(*epochs, strict=True):
        assert torch.equal(first.x, second.x)
        assert torch.equal(first.y, second.y)


def test_what_one_variant_draws_changes_no_other(tmp_path, monkeypatch):
    settings = Settings(tmp_path, epochs=1, width=4, curve_points=1)
    data = digits.load()
    data = digits.Digits(digits.Images(data.train.x[:128], data.train.y[:128]), data.test)
    together = training.train_seed(data, settings, 0, lambda: None)["choice"]
    models = variants.build_variants(4, 0)
    monkeypatch.setattr(training, "build_variants", lambda *_: {"choice": models["choice"]})
    alone = training.train_seed(data, settings, 0, lambda: None)["choice"]
    assert together.loss == alone.loss


def test_the_split_is_stratified_and_fixed():
    first, second = digits.load(), digits.load()
    assert torch.equal(first.test.x, second.test.x)
    train, test = first.train.y.bincount(), first.test.y.bincount()
    assert (train - test).abs().max() <= 1
    assert int((train + test).sum()) == 1797
    assert (float(first.train.x.min()), float(first.train.x.max())) == (0, 1)


def test_corruptions_do_what_they_say():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = 1
    corrupted = digits.corruptions(digits.Images(x, torch.tensor([7])))
    moved = [tuple(image[0].nonzero()[0].tolist()) for image in corrupted["shift"].x]
    assert moved == [(4, 4), (2, 4), (3, 5), (3, 3)]
    assert corrupted["shift"].y.tolist() == [7, 7, 7, 7]
    blurred = corrupted["blur"].x[0, 0]
    assert float(blurred.sum()) == pytest.approx(1)
    assert float(blurred[3, 4] / blurred[2, 4]) == pytest.approx(2.71828 ** (1 / (2 * 0.6**2)), rel=1e-4)
    test = digits.load().test
    noise = digits.corruptions(test)["noise"].x - test.x
    assert (float(noise.mean()), float(noise.std())) == pytest.approx((0, 0.3), abs=0.005)


def test_saved_bytes_counts_each_storage_once_and_no_parameter():
    class Exponential(nn.Module):
        def forward(self, x):
            return x.exp()  # autograd keeps the result: 16 * 3 floats

    batch = digits.Images(torch.randn(16, 5), torch.arange(16) % 3)
    linear = nn.Linear(5, 3)
    once = cost.saved_bytes(linear, batch)
    assert cost.saved_bytes(nn.Sequential(linear, Exponential()), batch) - once == 16 * 3 * 4
    assert cost.saved_bytes(nn.Sequential(nn.Identity(), linear), batch) == once


def test_dom_keys_are_fresh_for_each_seed_and_the_same_again(tmp_path):
    settings = Settings(tmp_path)
    assert len({*evaluation.dom_keys(settings, 0), *evaluation.dom_keys(settings, 1)}) == 16
    assert evaluation.dom_keys(settings, 1) == evaluation.dom_keys(settings, 1)


def made_up_table(plain, damp) -> dict:
    """A table in which every metric has these accuracies per seed; both WATs are as plain."""
    accuracy = {name: dict.fromkeys(evaluation.METRICS, plain) for name in variants.VARIANTS}
    accuracy["damp"] = dict.fromkeys(evaluation.METRICS, damp)
    accuracy["plain"] = {m: None if m.startswith("dom") else plain for m in evaluation.METRICS}
    results = [
        summary.SeedResult(
            seed,
            {name: {m: v and v[seed] for m, v in metrics.items()} for name, metrics in accuracy.items()},
            *[{}] * 4,
        )
        for seed in range(len(plain))
    ]
    return summary.scores(results)


@pytest.mark.parametrize(
    ("plain", "damp", "sentence"),
    [
        ([90, 92], [80, 85], "Noise: plain is highest, 91.0 %; behind plain in every seed: DAMP noise -8.5."),
        (
            [90, 92],
            [91, 94],
            "Noise: DAMP noise is highest, 92.5 % (plain 91.0 %); ahead of plain in every seed: DAMP noise +1.5.",
        ),
        (
            [90, 92],
            [95, 91],
            "Noise: DAMP noise is highest, 93.0 % (plain 91.0 %); none is ahead of or behind plain in every seed.",
        ),
        ([90], [95], "Noise: DAMP noise is highest, 95.0 % (plain 90.0 %)."),
    ],
)
def test_the_findings_say_who_wins_and_who_loses(plain, damp, sentence):
    assert sentence in summary.findings(made_up_table(plain, damp))
