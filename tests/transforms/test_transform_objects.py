"""Transforms as values: repr, equality, hash, pickle, copies, the cache of tables, figures."""

import copy
import enum
import io
import pickle
import sys

import pytest
import torch
from watnn import transforms as T

EXAMPLES = [
    T.RandomAffine(0, translate=(0.3, 0.3)),
    T.RandomAffine((-10, 25.5), None, (0.5, 1.5), (1, 2, 3, 4), "bilinear", (1, 0.5), num_maps=32),
    T.RandomAffine(7, shear=3),
    T.RandomRotation(90),
    T.RandomRotation((5, 10), "bilinear", center=(0, 1), num_maps=8),
    T.RandomResizedCrop(),
    T.RandomResizedCrop((0.8, 1.0), (1 / 3, 3), "nearest"),
    T.RandomHorizontalFlip(),
    T.RandomVerticalFlip(0.1),
    T.RandomChoice([T.RandomHorizontalFlip(), T.RandomVerticalFlip()], p=[0.25, 0.75]),
    T.RandomApply(T.RandomRotation(3), p=0.1),
    T.RandomApply([T.RandomRotation(3), T.Identity()]),
    T.Compose([T.RandomHorizontalFlip(), T.Compose([T.RandomRotation(9), T.DropConnect(0.2)])]),
    T.Identity(),
    T.TapDensity([[1, 0.5, 0.25]]),
    T.TapDensity([[2.0]]),
    T.FromCallable(torch.fliplr, num_maps=2),
    T.MultiplicativeNoise(0.2),
    T.DropConnect(0.5),
    T.WAT(),
]


@pytest.mark.parametrize("transform", EXAMPLES, ids=repr)
def test_repr_makes_an_equal_transform(transform):
    again = eval(repr(transform), {**vars(T), "fliplr": torch.fliplr})
    assert again == transform and hash(again) == hash(transform) and repr(again) == repr(transform)


@pytest.mark.parametrize("transform", EXAMPLES, ids=repr)
def test_pickle_and_copies(transform):
    again = pickle.loads(pickle.dumps(transform))
    assert again == transform and hash(again) == hash(transform)
    assert copy.copy(transform) is transform and copy.deepcopy(transform) is transform


def test_all_examples_differ():
    assert len(set(EXAMPLES)) == len(EXAMPLES)


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (T.RandomAffine(0, (0.3, 0.3)), "RandomAffine(degrees=0, translate=(0.3, 0.3))"),
        (T.RandomRotation((-90, 90)), "RandomRotation(degrees=90)"),
        (T.RandomRotation((0, 90.5)), "RandomRotation(degrees=(0, 90.5))"),
        (T.RandomResizedCrop(), "RandomResizedCrop()"),
        (
            T.RandomChoice([T.Identity(), T.Identity()], [0.5, 0.5]),
            "RandomChoice([Identity(), Identity()], p=(0.5, 0.5))",
        ),
        (T.RandomApply(T.Identity(), 1), "RandomApply([Identity()], p=1)"),
        (T.DropConnect(0.1), "DropConnect(p=0.1)"),
    ],
)
def test_repr(transform, text):
    assert repr(transform) == text


def test_equal_however_written():
    assert T.RandomAffine(10) == T.RandomAffine((-10.0, 10.0)) == T.RandomAffine([-10, 10])
    assert T.RandomAffine(0, [0.3, 0.3]) == T.RandomAffine(0, (0.3, 0.3))
    assert T.TapDensity([[1, 2]]) == T.TapDensity(torch.tensor([[1, 2]])) == T.TapDensity(((1.0, 2.0),))
    assert T.RandomApply(T.Identity()) == T.RandomApply([T.Identity()])
    assert T.WAT() == T.RandomChoice([T.RandomAffine(0, translate=(0.3, 0.3)), T.RandomResizedCrop(scale=(0.8, 1.0))])
    assert T.RandomHorizontalFlip() != T.RandomVerticalFlip()
    assert T.MultiplicativeNoise(0.1) != T.DropConnect(0.1)


def test_an_enumeration_of_interpolations_is_taken():
    class InterpolationMode(enum.Enum):
        NEAREST = "nearest"
        BILINEAR = "bilinear"

    assert T.RandomAffine(5, interpolation=InterpolationMode.BILINEAR) == T.RandomAffine(5, interpolation="bilinear")


def test_frozen():
    with pytest.raises(AttributeError):
        T.RandomHorizontalFlip().p = 0.3


def test_equal_transforms_share_a_table():
    table = T.RandomAffine(0, translate=(0.25, 0.3)).tap_table(3)
    assert T.RandomAffine((0, 0), translate=[0.25, 0.3]).tap_table((3, 3)) is table
    assert T.RandomAffine(0, translate=(0.25, 0.3)).tap_table([3, 3]) is table
    assert T.RandomAffine(0, translate=(0.25, 0.3)).tap_table((3, 5)) is not table
    assert pickle.loads(pickle.dumps(T.RandomAffine(0, translate=(0.25, 0.3)))).tap_table(3) is table
    flip = T.RandomHorizontalFlip(0.3)
    assert flip.matrix_grid((4, 6)) is T.RandomHorizontalFlip(0.3).matrix_grid((4, 6))


def test_density_multiplies_taps():
    density = torch.tensor([[0.5, -2.0, 0.0], [1.0, 3.0, 4.0]])
    (tap_map,) = T.TapDensity(density).tap_table((2, 3)).maps
    kernel = torch.randn(2, 3)
    torch.testing.assert_close(tap_map @ kernel.flatten(), (density * kernel).flatten())


@pytest.mark.parametrize("size", [3, (1, 7)], ids=str)
@pytest.mark.parametrize(
    "transform",
    [T.WAT(), T.RandomRotation(30), T.Compose([T.RandomAffine(9, scale=(0.9, 1.1)), T.DropConnect(0.1)]), T.DropConnect(0.2),
     T.MultiplicativeNoise(0.1), T.MultiplicativeNoise(0), T.Identity()],
    ids=repr,
)  # fmt: skip
def test_plot(transform, size):
    figure = transform.plot(size)
    assert type(figure).__name__ == "Figure"
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=30)
    assert image.getvalue().startswith(b"\x89PNG")
    texts = [text.get_text() for text in figure.texts] + [figure.get_suptitle()]
    assert any(text.startswith(repr(transform)[:20]) for text in texts)


def test_plot_shows_the_most_probable_first():
    texts = [text.get_text() for text in T.RandomAffine(0, translate=(0.3, 0.3)).plot(3).texts]
    shown = [float(text.removesuffix(" %")) for text in texts if text.endswith(" %")]
    assert shown == [30.9, *[12.3] * 4, *[4.9] * 4]
    texts = [text.get_text() for text in T.RandomAffine(0, translate=(0.5, 0.5)).plot(7).texts]
    assert sum(text.endswith(" %") for text in texts) == 15
    assert any("49 tap maps, the 15 most probable shown" in text for text in texts)


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot needs matplotlib"):
        T.WAT().plot(3)
