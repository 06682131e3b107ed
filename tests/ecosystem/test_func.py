"""torch.func on ops, layers and models: grad, vmap, functional_call, and their compositions."""

import functools

import pytest
import torch
import torch.nn.functional as F
import watnn
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vjp, vmap
from watnn.transforms import WAT, Compose, DropConnect, MultiplicativeNoise, RandomAffine

from wat_kernels import MatrixGrid, Noise, TapTable, shadow_conv2d, shadow_linear
from wat_kernels.extension import NATIVE

TRANSLATE = RandomAffine(degrees=0, translate=(0.3, 0.3))
KEYS = torch.tensor([5, -3, 2**40, 7, 0])
backends = pytest.mark.parametrize(
    "backend",
    [
        pytest.param("native", marks=pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)),
        "library",
        "reference",
    ],
)
ops = pytest.mark.parametrize("op", ["conv2d", "linear"])


def problem(op, backend, **arguments):
    """(function of x, weight, bias, gain and key, the four tensors)."""
    torch.manual_seed(0)
    if op == "conv2d":
        function = functools.partial(shadow_conv2d, table=TRANSLATE.tap_table(3), noise=Noise("dropconnect", 0.2))
        tensors = torch.randn(4, 3, 6, 5), torch.randn(4, 3, 3, 3), torch.randn(4), torch.rand(4) + 0.5
    else:
        grid = MatrixGrid(torch.tensor([[0, 0, 0, 0], [0, 1, 2**16, 0]]), [0.5, 0.5], (4, 6))
        function = functools.partial(shadow_linear, grid=grid, noise=Noise("multiplicative", 0.3))
        tensors = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4), torch.rand(())

    def call(x, weight, bias, gain, key):
        return function(x, weight, bias, gain=gain, key=key, backend=backend, **arguments)

    return call, tensors


@ops
@backends
@pytest.mark.parametrize("shadows", [1, 2])
def test_vmap_over_keys_is_one_call_for_each_key(op, backend, shadows):
    call, tensors = problem(op, backend, shadows=shadows)
    together = vmap(lambda key: call(*tensors, key))(KEYS)
    apart = torch.stack([call(*tensors, int(key)) for key in KEYS])
    torch.testing.assert_close(together, apart)
    assert len({tuple(y.flatten().tolist()) for y in together}) == len(KEYS)


@ops
@backends
@pytest.mark.parametrize("shadows", [1, 2])
@pytest.mark.parametrize(
    "in_dims",
    [(0, None, None, None, None), (1, None, None, None, None), (0, 0, None, None, 0), (None, 1, 0, None, None)],
    ids=str,
)
def test_vmap_over_anything_is_one_call_for_each_element(op, backend, shadows, in_dims):
    call, tensors = problem(op, backend, shadows=shadows)
    arguments = [
        t if dim is None else torch.stack([t, t.flip(0), t * 2], dim)
        for t, dim in zip((*tensors, torch.tensor(3)), in_dims, strict=True)
    ]
    if in_dims[4] == 0:
        arguments[4] = KEYS[:3]
    together = vmap(call, in_dims)(*arguments)
    for i, y in enumerate(together):
        each = [a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)]
        torch.testing.assert_close(y, call(*each))


def test_vmap_over_nothing_says_so():
    call, tensors = problem("linear", "library")
    with pytest.raises(ValueError, match="vmap over 0 elements"):
        vmap(lambda key: call(*tensors, key))(KEYS[:0])


def test_vmap_over_unbatched_images_and_of_vmap():
    layer, x = watnn.WATConv2d(3, 4, 3, transform=WAT()), X
    watnn.dom(layer, key=3)
    torch.testing.assert_close(vmap(layer)(x), layer(x))
    torch.testing.assert_close(vmap(vmap(layer), in_dims=1)(x.unsqueeze(1)), layer(x).unsqueeze(0))
    sequences = watnn.WATConv1d(3, 4, 3, transform=DropConnect(0.3))
    watnn.dom(sequences, key=3)
    torch.testing.assert_close(vmap(sequences, chunk_size=2)(x[..., 0]), sequences(x[..., 0]))


@ops
@backends
def test_grad_is_what_autograd_gives(op, backend):
    call, tensors = problem(op, backend)
    ours = grad(lambda tensors: call(*tensors, 5).square().sum())(tensors)
    leaves = [t.detach().requires_grad_() for t in tensors]
    for found, expected in zip(ours, torch.autograd.grad(call(*leaves, 5).square().sum(), leaves), strict=True):
        torch.testing.assert_close(found, expected)


@ops
@backends
def test_gradients_of_an_ensemble(op, backend):
    """vmap within grad (the mean over keys) and grad within vmap (the gradient of each key)."""
    call, (x, weight, bias, gain) = problem(op, backend)

    def loss(weight, key):
        return call(x, weight, bias, gain, key).square().mean()

    apart = torch.stack([grad(loss)(weight, int(key)) for key in KEYS])
    torch.testing.assert_close(vmap(grad(loss), (None, 0))(weight, KEYS), apart)
    torch.testing.assert_close(grad(lambda w: vmap(loss, (None, 0))(w, KEYS).mean())(weight), apart.mean(0))
    trained = weight.clone().requires_grad_()  # the optimizer's way, with ordinary autograd outside
    vmap(loss, (None, 0))(trained, KEYS).mean().backward()
    torch.testing.assert_close(trained.grad, apart.mean(0))


@ops
@backends
def test_second_derivatives(op, backend):
    call, (x, weight, bias, gain) = problem(op, backend)
    small = weight.flatten()[:3]

    def loss(part):
        return call(x, torch.cat([part, weight.flatten()[3:]]).view_as(weight), bias, gain, 5).pow(3).sum()

    found = (
        hessian(loss)(small) if backend == "reference" else jacrev(grad(loss))(small)
    )  # fused backends: reverse mode
    torch.testing.assert_close(found, torch.autograd.functional.hessian(loss, small), atol=1e-3, rtol=1e-4)


@backends
def test_batched_gradients_of_ordinary_autograd(backend):
    call, (x, weight, bias, gain) = problem("linear", backend)
    weight.requires_grad_()
    y = call(x, weight, bias, gain, 5)
    seeds = torch.randn(3, *y.shape)
    (found,) = torch.autograd.grad(y, weight, seeds, is_grads_batched=True, retain_graph=True)
    for seed, each in zip(seeds, found, strict=True):
        torch.testing.assert_close(each, torch.autograd.grad(y, weight, seed, retain_graph=True)[0])


def network(backend="auto"):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5)
    )
    noisy = Compose([TRANSLATE, DropConnect(0.2)])
    model = watnn.convert(model, noisy, gain="channel", backend=backend)
    return watnn.convert(model, MultiplicativeNoise(0.2), include=nn.Linear, backend=backend)


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 3, 1, 4])


@backends
def test_functional_call_trains_without_touching_the_module(backend):
    model = network(backend)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters):
        return F.cross_entropy(functional_call(model, parameters, (X,)), TARGET)

    torch.manual_seed(8)
    found = grad(loss)(parameters)
    torch.manual_seed(8)
    F.cross_entropy(model(X), TARGET).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=name)
    other = {name: p * 0.5 for name, p in parameters.items()}
    with watnn.dom(model, key=3):
        y = functional_call(model, other, (X,))
        model.load_state_dict(other)
        torch.testing.assert_close(y, model(X))


@backends
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_per_sample_gradients(backend, randomness):
    """The weight unbatched, the images batched: one draw for all of them, or one for each."""
    model = network(backend)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, target):
        return F.cross_entropy(functional_call(model, parameters, (x.unsqueeze(0),)), target.unsqueeze(0))

    torch.manual_seed(2)
    found = vmap(grad(loss), (None, 0, 0), randomness=randomness)(parameters, X, TARGET)
    torch.manual_seed(2)  # the keys, drawn as the layers draw them: one after the other
    shape = (4,) if randomness == "different" else ()
    keys = [torch.randint(-(2**63), 2**63 - 1, shape, dtype=torch.int64).expand(4) for _ in range(3)]
    for i in range(4):
        for layer, drawn in zip((model[0], model[2], model[4]), keys, strict=True):
            watnn.dom(layer, key=int(drawn[i]))
        expected = grad(loss)(parameters, X[i], TARGET[i])
        for name in parameters:
            torch.testing.assert_close(found[name][i], expected[name], atol=1e-5, rtol=1e-4, msg=f"{name}, sample {i}")


@backends
@pytest.mark.parametrize("layer", ["conv2d", "linear"])
def test_randomness_is_treated_as_that_of_dropout(backend, layer):
    if layer == "conv2d":
        module, x = watnn.WATConv2d(3, 4, 3, transform=DropConnect(0.5), backend=backend), X[:1].expand(6, -1, -1, -1)
    else:
        module, x = watnn.WATLinear(6, 4, transform=DropConnect(0.5), backend=backend), X[0, 0, :1].expand(6, 6)
    messages = []
    for function in (module, nn.Dropout()):
        with pytest.raises(RuntimeError, match="randomness error mode") as caught:
            vmap(function)(x)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    same = vmap(module, randomness="same")(x)
    torch.testing.assert_close(same, same[:1].expand_as(same))
    different = vmap(module, randomness="different")(x)
    assert len({tuple(y.flatten().tolist()) for y in different}) == 6
    vmap(module.eval())(x)  # PW draws nothing, as Dropout in eval()


def test_an_ensemble_of_whole_models():
    """vmap over stacked parameters, and over draws of one model."""
    models = [watnn.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), WAT()) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)

    def run(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (X,))

    for model in models:
        watnn.dom(model, key=12)
    together = vmap(run)(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([model(X) for model in models]))
    watnn.dom(models[1])
    torch.manual_seed(4)
    draws = vmap(lambda _: models[1](X), randomness="different")(torch.arange(20))
    torch.manual_seed(4)
    keys = torch.randint(-(2**63), 2**63 - 1, (20,), dtype=torch.int64)
    for y, key in zip(draws, keys, strict=True):
        with watnn.dom(models[1], key=int(key)):
            torch.testing.assert_close(y, models[1](X))


def test_vjp_asks_only_for_what_is_differentiated():
    call, (x, weight, bias, gain) = problem("conv2d", "library")
    y, pull = vjp(lambda bias: call(x, weight, bias, gain, 5), bias)
    (found,) = pull(torch.ones_like(y))
    torch.testing.assert_close(found, torch.full((4,), float(y[:, 0].numel())))


def test_what_a_table_keeps_belongs_to_no_transform():
    grid = MatrixGrid(torch.tensor([[0, 1, 0, 0]]), [1.0], (4, 6))
    table = TapTable(torch.eye(9).unsqueeze(0), [1.0])
    kept = []

    def loss(x):  # the first use on a device, inside a transform
        kept.extend([*table.on(torch.device("meta")), *grid.on(torch.device("meta"))])
        return x.sum()

    grad(loss)(torch.ones(2))
    assert len(kept) == 5 and not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in kept)


@backends
def test_compiled_transforms_give_the_gradients_of_eager_ones(backend):
    call, (x, weight, bias, gain) = problem("conv2d", backend)

    def run(weight, keys):
        return vmap(grad(lambda w, key: call(x, w, bias, gain, key).square().sum()), (None, 0))(weight, keys)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="aot_eager")(weight, KEYS), run(weight, KEYS))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.func runs shadow ops outside of compiled graphs"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(weight, KEYS)
