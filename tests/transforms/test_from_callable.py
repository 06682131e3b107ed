"""Any linear callable as a tap table; any other is refused with what is wrong."""

import random

import pytest
import torch
from torch import nn
from watnn.transforms import FromCallable, RandomHorizontalFlip
from watnn.transforms import functional as TF


def mirror(x):
    return x.flip(-1)


def mirror_or_not(x):
    return x.flip(-1) if torch.rand(()) < 0.5 else x


def mirror_or_not_by_python(x):
    return x.flip(-1) if random.random() < 0.5 else x


def in_place(x):
    return x.mul_(2)


def sometimes_relu(x):
    return x.relu() if torch.rand(()) < 0.1 else x


def scale_each_filter(x):
    return x * torch.arange(1, len(x) + 1).reshape(-1, 1, 1)


_elsewhere = torch.Generator().manual_seed(0)


def draw_elsewhere(x):
    return x * torch.rand((), generator=_elsewhere)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 3), (5, 5)])
def test_a_fixed_callable_is_one_map(size):
    table = FromCallable(mirror, num_maps=4).tap_table(size)
    assert len(table) == 1 and table.kernel_size == size
    torch.testing.assert_close(table.maps[0], TF.hflip(size))
    torch.testing.assert_close(FromCallable(in_place, 2).tap_table(size).maps[0], 2 * torch.eye(size[0] * size[1]))


@pytest.mark.parametrize("fn", [mirror_or_not, mirror_or_not_by_python])
def test_a_random_callable_is_sampled(fn):
    table = FromCallable(fn).tap_table(3)
    exact = RandomHorizontalFlip().tap_table(3)
    assert len(table) == 2
    for tap_map, probability in zip(table.maps, table.probabilities.tolist(), strict=True):
        assert any(torch.equal(tap_map, other) for other in exact.maps)
        assert probability == pytest.approx(0.5, abs=4 * 0.5 / 256**0.5)


def test_a_convolution_of_each_filter_is_a_map():
    class Blur(nn.Module):
        def forward(self, x):
            weight = torch.full((len(x), 1, 3, 3), 1 / 9, requires_grad=True)
            return torch.conv2d(x.unsqueeze(0), weight, padding=1, groups=len(x))[0]

    (tap_map,) = FromCallable(Blur(), 1).tap_table((3, 4)).maps
    kernel = torch.randn(3, 4)
    expected = torch.conv2d(kernel[None, None], torch.full((1, 1, 3, 3), 1 / 9), padding=1).flatten()
    torch.testing.assert_close(tap_map @ kernel.flatten(), expected)


def test_generators_are_put_back_and_do_not_matter():
    torch.manual_seed(1)
    random.seed(1)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    first = FromCallable(mirror_or_not_by_python, 8)._build_table((3, 3))
    second = FromCallable(mirror_or_not, 8)._build_table((3, 3))
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    torch.manual_seed(2)
    random.seed(2)
    assert FromCallable(mirror_or_not_by_python, 8)._build_table((3, 3)) == first
    assert FromCallable(mirror_or_not, 8)._build_table((3, 3)) == second


def test_generators_are_put_back_after_an_error():
    def fail(x):
        raise RuntimeError("broken")

    state, python_state = torch.get_rng_state(), random.getstate()
    with pytest.raises(RuntimeError, match="broken"):
        FromCallable(fail).tap_table(3)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (torch.relu, ValueError, "not linear"),
        (torch.abs, ValueError, "not linear"),
        (torch.sin, ValueError, "not linear"),
        (lambda x: x.clamp(0, 1), ValueError, "not linear"),
        (lambda x: x.clamp(-5, 5), ValueError, "not linear"),
        (lambda x: x / x.norm(), ValueError, "not linear"),
        (lambda x: (x * 255).round() / 255, ValueError, "not linear"),
        (sometimes_relu, ValueError, "not linear"),
        (lambda x: x + 1, ValueError, "maps zeros to other numbers"),
        (lambda x: x - x.mean(0, keepdim=True), ValueError, "mixes filters"),
        (lambda x: x.roll(1, 0), ValueError, "mixes filters"),
        (scale_each_filter, ValueError, "mixes filters or treats them differently"),
        (draw_elsewhere, ValueError, "draws random numbers from elsewhere"),
        (lambda x: x[..., :-1], ValueError, "shape"),
        (lambda x: x.int(), ValueError, "int32"),
        (lambda x: x / 0, ValueError, "NaN or infinity"),
        (lambda x: x.numpy(), TypeError, "ndarray"),
        (lambda x: None, TypeError, "NoneType"),
    ],
)
def test_what_is_not_linear_is_refused(fn, error, message):
    with pytest.raises(error, match=message):
        FromCallable(fn).tap_table(3)


def test_the_name_of_the_callable_is_in_its_repr():
    assert repr(FromCallable(mirror)) == "FromCallable(mirror)"
    assert repr(FromCallable(mirror, num_maps=3)) == "FromCallable(mirror, num_maps=3)"
