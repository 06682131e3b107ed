"""Forward-mode derivatives through the ops and layers, and mixtures of forward and reverse mode."""

import pytest
import torch
import watnn
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vmap
from watnn.transforms import Compose, DropConnect, MultiplicativeNoise, RandomAffine

from wat_kernels import Noise, shadow_conv2d, shadow_linear

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
BACKENDS = ["reference", "library", "native"]
SHAPES = {
    "conv2d": ((4, 4, 5, 6), (6, 2, 3, 3), 6),
    "depthwise": ((4, 4, 5, 6), (4, 1, 3, 3), 4),
    "linear": ((4, 5), (6, 5), 6),
}
ops = pytest.mark.parametrize("op", SHAPES)
backends = pytest.mark.parametrize("backend", BACKENDS)


def leaves_of(op, dtype=torch.float64, gain_size=None):
    x, weight, out = SHAPES[op]
    torch.manual_seed(0)
    gain = torch.rand(gain_size or out, dtype=dtype) + 0.5
    return torch.randn(x, dtype=dtype), torch.randn(weight, dtype=dtype), torch.randn(out, dtype=dtype), gain


def function_of(op, backend, noise=None, shadows=2):
    settings = {"key": 7, "noise": noise, "shadows": shadows, "backend": backend}
    if op == "linear":
        return lambda x, w, b, g: shadow_linear(x, w, b, gain=g, **settings)
    groups = 4 if op == "depthwise" else 2
    table = TRANSLATE.tap_table((3, 3))
    return lambda x, w, b, g: shadow_conv2d(x, w, b, gain=g, table=table, padding=1, groups=groups, **settings)


def close(found, right):
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5 * max(1.0, float(right.abs().max())))


@ops
@backends
@pytest.mark.parametrize("noise", [None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.2)])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (0, 1, 2, 3), (1, 3)])
def test_tangents_are_those_of_the_reference_s_jacobian(op, backend, noise, which):
    leaves = leaves_of(op, torch.float32)
    tangents = [torch.randn_like(leaf) for leaf in leaves]
    exact = function_of(op, "reference", noise)
    jacobians = jacrev(exact, argnums=which)(*(leaf.double() for leaf in leaves))
    right = sum(
        (jacobian.flatten(-leaves[i].ndim) @ tangents[i].double().flatten())
        for i, jacobian in zip(which, jacobians, strict=True)
    )
    function = function_of(op, backend, noise)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, tangents[i]) if i in which else t for i, t in enumerate(leaves)]
        y, tangent = forward_ad.unpack_dual(function(*duals))
    close(y, function(*leaves))
    close(tangent, right.float())

    def of_which(*moved):
        given = iter(moved)
        return function(*(next(given) if i in which else t for i, t in enumerate(leaves)))

    primals, moved = tuple(leaves[i] for i in which), tuple(tangents[i] for i in which)
    close(jvp(of_which, primals, moved)[1], right.float())
    close(linearize(of_which, *primals)[1](*moved), right.float())


@ops
@pytest.mark.parametrize("backend", ["reference", "library"])
@pytest.mark.parametrize("gain_size", [1, None])
def test_gradcheck(op, backend, gain_size):
    leaves = [leaf.requires_grad_() for leaf in leaves_of(op, gain_size=gain_size)]
    function = function_of(op, backend, Noise("multiplicative", 0.2))
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, fast_mode=True)


@ops
@backends
def test_jacobians_and_hessians_agree_between_the_modes(op, backend):
    x, weight, bias, gain = leaves_of(op, torch.float32)
    function = function_of(op, backend)
    close(jacfwd(function, argnums=1)(x, weight, bias, gain), jacrev(function, argnums=1)(x, weight, bias, gain))

    def loss(gain):
        return function(x, weight, bias, gain).square().sum()

    exact = function_of(op, "reference")
    doubles = [t.double() for t in (x, weight, bias)]
    close(hessian(loss)(gain), hessian(lambda g: exact(*doubles, g).square().sum())(gain.double()).float())


@ops
@backends
def test_hessian_vector_products_forward_over_reverse(op, backend):
    leaves = leaves_of(op, torch.float32)
    vector = torch.randn_like(leaves[1])

    def gradient_of(function, leaves):
        return lambda weight: grad(lambda w: function(leaves[0], w, *leaves[2:]).pow(3).sum())(weight)

    exact = [leaf.double() for leaf in leaves]
    right = jvp(gradient_of(function_of(op, "reference"), exact), (exact[1],), (vector.double(),))[1]
    found = jvp(gradient_of(function_of(op, backend), leaves), (leaves[1],), (vector,))[1]
    close(found, right.float())
    with forward_ad.dual_level():  # the same without torch.func, and without a graph of the gradient
        weight = forward_ad.make_dual(leaves[1].clone().requires_grad_(), vector)
        y = function_of(op, backend)(leaves[0], weight, *leaves[2:])
        gradient = torch.autograd.grad(y.pow(3).sum(), weight)[0]
        close(forward_ad.unpack_dual(gradient).tangent, right.float())


@backends
def test_vmap_over_tangents(backend):
    leaves = leaves_of("conv2d", torch.float32)
    function = function_of("conv2d", backend)
    tangents = torch.randn(3, *leaves[0].shape)
    moved = vmap(lambda t: jvp(lambda x: function(x, *leaves[1:]), leaves[:1], (t,))[1])(tangents)
    for one, t in zip(moved, tangents, strict=True):
        close(one, jvp(lambda x: function(x, *leaves[1:]), leaves[:1], (t,))[1])


@pytest.mark.parametrize(
    ("layer", "plain", "shape"),
    [
        (watnn.WATConv1d(3, 4, 3), nn.Conv1d(3, 4, 3), (2, 3, 9)),
        (watnn.WATConv2d(3, 4, 3), nn.Conv2d(3, 4, 3), (2, 3, 9, 8)),
        (watnn.WATLinear(3, 4), nn.Linear(3, 4), (2, 3)),
    ],
    ids=["Conv1d", "Conv2d", "Linear"],
)
def test_layers_in_training(layer, plain, shape):
    """The tangent of a training forward is that of the torch layer with the drawn weight."""
    layer.transform = Compose([TRANSLATE, DropConnect(0.2)]) if layer.weight.ndim > 2 else MultiplicativeNoise(0.3)
    x, x_t = torch.randn(shape), torch.randn(shape)
    weight_t = torch.randn_like(layer.weight)
    with watnn.dom(layer, key=3), forward_ad.dual_level():
        parameters = {"weight": forward_ad.make_dual(layer.weight.detach(), weight_t), "bias": layer.bias.detach()}
        found = forward_ad.unpack_dual(functional_call(layer, parameters, forward_ad.make_dual(x, x_t))).tangent
    drawn, drawn_t = jvp(
        lambda w: watnn.shadow_weight(_with_weight(layer, w), 3), (layer.weight.detach(),), (weight_t,)
    )
    right = jvp(
        lambda x, w: functional_call(plain, {"weight": w, "bias": layer.bias.detach()}, x), (x, drawn), (x_t, drawn_t)
    )[1]
    close(found, right)


def _with_weight(layer, weight):
    """A stand-in of `layer` whose weight is a tensor that torch.func follows."""
    stand_in = layer.__class__.__new__(layer.__class__)
    stand_in.__dict__.update(layer.__dict__)
    stand_in._parameters = {**layer._parameters, "weight": weight}
    return stand_in
