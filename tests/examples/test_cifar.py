"""The CIFAR example, from the archive to the table of results, on small archives in the released format."""

import csv
import hashlib
import json
import math
import signal

import numpy as np
import pytest
import torch
import watnn
from torch import nn
from watnn.bench.networks import NETWORKS

from examples.cifar import archive
from examples.cifar.__main__ import main
from examples.cifar.archive import ArchiveError, Images, read_archive
from examples.cifar.batches import Normalization, TrainingBatches, cropped_and_flipped
from examples.cifar.evaluation import evaluate
from examples.cifar.recipes import RECIPES
from tests.examples.cifar_archive import python2_pickle, write_archive

TINY = [
    "--network",
    "resnet18",
    "--width",
    "0.125",
    "--batch",
    "16",
    "--draws",
    "2",
    "--device",
    "cpu",
    "--no-checksum",
]


def run(path, output, *arguments):
    return main([str(path), "--output", str(output), *TINY, *arguments])


# the archive


@pytest.mark.parametrize("classes", [10, 100])
def test_an_archive_is_read_as_it_was_written(tmp_path, classes):
    data = read_archive(write_archive(tmp_path / "archive", classes, train=23, test=7), checksum=False)
    assert data.name == f"CIFAR-{classes}" and data.classes == tuple(f"class {index}" for index in range(classes))
    for images, count in ((data.train, 23), (data.test, 7)):
        assert images.pixels.shape == (count, 3, 32, 32) and images.pixels.dtype == torch.uint8
        bright = images.pixels.float().mean((1, 2, 3)) > 110
        assert torch.equal(bright.long(), images.labels) and 0 < images.labels.sum() < count


def test_pixels_are_in_the_order_of_the_release(tmp_path):
    """Red, then green, then blue, each row by row."""
    row = np.arange(3072) // 32 % 32 + 64 * (np.arange(3072) // 1024)

    def change(members):
        for name in members:
            if not name.endswith("meta"):
                members[name] = python2_pickle({b"fine_labels": [5], b"data": row.astype(np.uint8)[None]})

    data = read_archive(write_archive(tmp_path / "archive", 100, change=change), checksum=False)
    expected = torch.arange(3)[:, None, None] * 64 + torch.arange(32)[:, None].expand(32, 32)
    assert torch.equal(data.test.pixels[0].long(), expected) and data.test.labels.tolist() == [5]


def test_a_missing_archive_says_where_it_is_to_be_had(tmp_path, capsys):
    assert run(tmp_path / "nothing.tar.gz", tmp_path) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "nothing.tar.gz is not a file" in message
    assert "cifar-10-python.tar.gz and cifar-100-python.tar.gz" in message
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in message


def test_the_checksum_refuses_all_but_the_released_archives(tmp_path):
    with pytest.raises(
        ArchiveError, match=r"damaged or another file: its MD5 is [0-9a-f]{32}.*c58f3.*eb905.*--no-check"
    ):
        read_archive(write_archive(tmp_path / "archive", 10))


def test_the_checksum_admits_a_released_archive(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "archive", 10)
    released = [release._replace(md5=hashlib.md5(path.read_bytes()).hexdigest()) for release in archive._RELEASES[:1]]
    monkeypatch.setattr(archive, "_RELEASES", released)
    assert read_archive(path).name == "CIFAR-10"


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.pop("cifar-100-python/train"), "is damaged: KeyError.*cifar-100-python/train"),
        (lambda members: members.pop("cifar-100-python/meta"), "holds no cifar-10-batches-py/batches.meta or"),
        (lambda members: members.update({"cifar-100-python/test": b"no pickle"}), "is damaged: UnpicklingError"),
        (
            lambda members: members.update({"cifar-100-python/test": python2_pickle(Malicious())}),
            "is damaged: UnpicklingError: a pickle in it asks for __builtin__.print",
        ),
        (lambda members: members.update({"cifar-100-python/test": python2_pickle([1])}), "holds a list, not a dict"),
        (
            lambda members: members.update(
                {"cifar-100-python/test": python2_pickle({b"data": [1], b"fine_labels": [1]})}
            ),
            "test: data is not a uint8 array",
        ),
    ],
)
def test_a_damaged_archive_is_named(tmp_path, capsys, change, message):
    path = write_archive(tmp_path / "archive", 100, change=change)
    with pytest.raises(ArchiveError, match=message) as raised:
        read_archive(path, checksum=False)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_a_truncated_archive_is_damaged(tmp_path, capsys):
    content = write_archive(tmp_path / "whole", 10).read_bytes()
    (tmp_path / "archive").write_bytes(content[: len(content) // 2])
    assert run(tmp_path / "archive", tmp_path) == 2
    assert "archive is damaged: EOFError" in capsys.readouterr().err


# batches and recipes


def test_crops_and_flips_are_those_of_the_padded_image():
    pixels = torch.arange(1, 1 + 2 * 3 * 8 * 8, dtype=torch.int32).view(2, 3, 8, 8)
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    candidates = {}
    for image in range(2):
        for dy in range(9):
            for dx in range(9):
                window = padded[image, :, dy : dy + 8, dx : dx + 8]
                candidates[image, tuple(window.flatten().tolist())] = (dy, dx, False)
                candidates[image, tuple(window.flip(2).flatten().tolist())] = (dy, dx, True)
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(1000):
        moved = cropped_and_flipped(pixels, generator)
        seen |= {(image, candidates[image, tuple(moved[image].flatten().tolist())]) for image in range(2)}
    assert len(seen) > 0.99 * 2 * 9 * 9 * 2


def test_a_pass_has_every_image_once_and_the_next_another_order():
    images = Images(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    batches = TrainingBatches(images, Normalization(images), 5, augment=False, seed=0)
    passes = [torch.cat([batches.next()[1] for _ in range(batches.per_epoch)]) for _ in range(3)]
    assert all(torch.equal(order.sort().values, torch.arange(10)) for order in passes)
    assert not torch.equal(passes[0], passes[1])


def test_normalised_training_images_have_mean_0_and_deviation_1():
    pixels = torch.randint(20, 90, (50, 3, 32, 32), dtype=torch.uint8)
    x = Normalization(Images(pixels, torch.zeros(50)))(pixels)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_recipes_are_as_described():
    parameter = nn.Parameter(torch.zeros(1))

    def rates(name, epochs):
        optimizer = RECIPES[name].optimizer(nn.ParameterList([parameter]))
        schedule, values = RECIPES[name].schedule(optimizer, 10, epochs), []
        for _ in range(10 * epochs):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return optimizer.param_groups[0], values

    group, official = rates("official", 2)
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 0)
    assert official == [0.01] * 20
    assert not RECIPES["official"].augment and RECIPES["official"].label_smoothing == 0
    group, modern = rates("modern", 20)
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)
    assert modern[:50] == pytest.approx([0.1 * (step + 1) / 51 for step in range(50)])
    assert modern[50:] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 150)) for step in range(150)])


# the whole program


@pytest.mark.parametrize(("classes", "recipe", "transform"), [(10, "official", "wat"), (100, "modern", "translate")])
def test_training_separates_what_is_separable(tmp_path, classes, recipe, transform):
    path = write_archive(tmp_path / "archive", classes)
    assert run(path, tmp_path / "out", "--recipe", recipe, "--transform", transform, "--epochs", "8") == 0
    epochs = [
        {name: float(value) for name, value in row.items()}
        for row in csv.DictReader((tmp_path / "out/epochs.csv").open())
    ]
    assert [row["epoch"] for row in epochs] == list(range(1, 9))
    assert epochs[-1]["train_loss"] < 0.6 * epochs[0]["train_loss"]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [score["mode"] for score in results["scores"]] == ["AOM", "DOM", "DOM"]
    for score in results["scores"]:
        assert score["accuracy"] > 90, score  # chance is 50 between the two classes, 100 / classes without training
    aom, *dom = (score["mflop"] for score in results["scores"])
    assert all(0.2 * aom < work < 0.95 * aom for work in dom)


@pytest.mark.filterwarnings("error")
def test_a_plain_network_has_one_score(tmp_path, capsys):
    path = write_archive(tmp_path / "archive", 10)
    assert run(path, tmp_path / "out", "--transform", "none", "--epochs", "1") == 0
    (score,) = json.loads((tmp_path / "out/results.json").read_text())["scores"]
    assert score["mode"] == "plain" and score["key"] is None
    assert run(path, tmp_path / "other", "--transform", "none", "--gain", "layer") == 2
    assert "--gain layer has no layer to scale" in capsys.readouterr().err


def test_scores_are_of_the_weights_in_use_and_leave_the_model_alone(tmp_path):
    """AOM and DOM against the exported models with BatchNorm estimated again on them."""
    data = read_archive(write_archive(tmp_path / "archive", 10, train=40, test=200), checksum=False)
    normalization, network = Normalization(data.train), NETWORKS["resnet18"]
    model = network.convert(network.build(width_multiplier=0.125), watnn.transforms.WAT())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # statistics that are wrong
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = evaluate(model, data, normalization, keys=[3])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x, test = normalization(data.train.pixels), normalization(data.test.pixels)
    for score, exported in zip(scores, (watnn.export(model, "aom"), watnn.export(model, "dom", 3)), strict=True):
        with torch.no_grad():
            trained = 100 * float((exported(test).argmax(1) == data.test.labels).double().mean())
            torch.optim.swa_utils.update_bn([x], exported)
            again = 100 * float((exported(test).argmax(1) == data.test.labels).double().mean())
        assert score.as_trained == pytest.approx(trained) and score.accuracy == pytest.approx(again)
        assert score.mflop == pytest.approx(watnn.flops(exported, test[:1]).dense / 1e6)


def interrupt_at_step(monkeypatch, step):
    """Ctrl-C during the given step of the next training."""
    count, draw = 0, TrainingBatches.next

    def draw_and_interrupt(self):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGINT)
        return draw(self)

    monkeypatch.setattr(TrainingBatches, "next", draw_and_interrupt)


@pytest.mark.parametrize("step", [4, 7])  # the end of an epoch, the middle of one
def test_a_continued_training_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, capsys, step):
    path = write_archive(tmp_path / "archive", 10)
    arguments = ("--transform", "wat", "--gain", "channel", "--epochs", "3")
    assert run(path, tmp_path / "whole", *arguments) == 0
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, step)
        assert run(path, tmp_path / "parts", *arguments) == 130
    assert f"stopped after {step} of 12 steps" in capsys.readouterr().out
    torch.manual_seed(99)  # nothing but the checkpoint decides
    assert run(path, tmp_path / "parts", *arguments, "--resume") == 0
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    for record in (*whole["history"], *parts["history"]):
        del record["seconds"]
    del whole["epoch"]["seconds"], parts["epoch"]["seconds"]
    assert_same(whole, parts)
    assert whole["steps_done"] == 12 and len(whole["history"]) == 3
    results = [(tmp_path / name / "results.json").read_text() for name in ("whole", "parts")]
    assert results[0] == results[1]
    assert len((tmp_path / "parts/epochs.csv").read_text().splitlines()) == 4


def assert_same(a, b):
    """Equal to the bit, tensors in nested dicts and lists included."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_a_checkpoint_is_neither_overwritten_nor_continued_with_other_settings(tmp_path, capsys):
    path, output = write_archive(tmp_path / "archive", 10), tmp_path / "out"
    assert run(path, output, "--resume") == 2
    assert "there is no" in capsys.readouterr().err
    assert run(path, output, "--epochs", "1") == 0
    written = (output / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    assert run(path, output, "--epochs", "1") == 2
    assert "checkpoint.pt exists; --resume continues it" in capsys.readouterr().err
    assert run(path, output, "--epochs", "2", "--resume") == 2
    assert "epochs=2, but" in (message := capsys.readouterr().err) and "made with 1" in message
    assert (output / "checkpoint.pt").read_bytes() == written
    (output / "checkpoint.pt").write_bytes(written[:1000])
    assert run(path, output, "--epochs", "1", "--resume") == 2
    assert "is damaged or no checkpoint" in capsys.readouterr().err


def test_tensorboard_has_the_epochs_of_both_parts(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path, output = write_archive(tmp_path / "archive", 10), tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 6)
        assert run(path, output, "--epochs", "2", "--tensorboard") == 130
    assert run(path, output, "--epochs", "2", "--tensorboard", "--resume") == 0
    events = accumulator.EventAccumulator(str(output / "tensorboard")).Reload().Scalars("train_loss")
    written = list(csv.DictReader((output / "epochs.csv").open()))
    assert [event.step for event in events] == [1, 2]
    assert [event.value for event in events] == pytest.approx([float(row["train_loss"]) for row in written])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "65"), "batch=65; accepted is 1 to 64"),
        (("--device", "nowhere"), "--device nowhere: "),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, message):
    assert run(write_archive(tmp_path / "archive", 10), tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("--epochs", "0"), ("--width", "-1"), ("--network", "alexnet")])
def test_arguments_out_of_range_are_refused(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as raised:
        run(tmp_path, tmp_path, *arguments)
    assert raised.value.code == 2 and f"argument {arguments[0]}" in capsys.readouterr().err
