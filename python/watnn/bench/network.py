"""The contenders of a whole network: a training step of it plain, with our layers, and with the official pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import watnn
from wat_kernels import dispatch
from wat_kernels.ops.conv import BACKENDS
from watnn.bench import official
from watnn.bench.case import Contender, Options, Run
from watnn.bench.memory import saved_bytes
from watnn.bench.networks import NETWORKS, Network
from watnn.bench.verify import along_output, check_layer
from watnn.export import row_box
from watnn.transforms import GridTransform, RandomAffine, RandomResizedCrop, functional

_LAYER, _PLAIN, _PIPELINE = "WATConv2d", "nn.Conv2d", "torchvision pipeline"
_CLASSES = 10
_CHECK_KEY = 1


class Variant(NamedTuple):
    """A transform, and the same in the official pipeline: draw(k) gives what apply(weight, drawn) applies.

    example: for a kernel size, something drawn and its tap map (K, K)
    """

    transform: GridTransform
    draw: Callable[[int], Any]
    apply: Callable[[Tensor, Any], Tensor]
    example: Callable[[int], tuple[object, Tensor]]


VARIANTS = {
    "translate": Variant(
        RandomAffine(0, translate=(official.TRANSLATE, official.TRANSLATE)),
        official.draw_shift,
        official.translated,
        lambda size: ((1, 0), functional.affine(size, 0.0, (1, 0), 1.0, 0.0)),
    ),
    "resized_crop": Variant(
        RandomResizedCrop(scale=official.CROP_SCALE),
        official.draw_box,
        official.resized_crop,
        lambda size: ((0, 1, size, size - 1), _one_column_less(size)),
    ),
}


def contenders(name: str, batch: int, options: Options) -> list[Contender]:
    """Everything that is measured for one network, ours first, all from the same weights on the same batch.

    The only mode is "full", a training step: forward, backward, SGD with momentum. Draws are fresh in every step.
    """
    network = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network.build(num_classes=_CLASSES)
        x, y = torch.randn(batch, 3, 32, 32), torch.randint(_CLASSES, (batch,))
    model = model.to(options.device, options.dtype).to(memory_format=torch.channels_last)
    x = x.to(options.device, options.dtype, memory_format=torch.channels_last)
    y = y.to(options.device)
    found = [
        _ours(network, model, variant, backend, x, y, options) for backend in options.backends for variant in VARIANTS
    ]
    if all(contender.backend != "library" for contender in found):
        found += [_ours(network, model, variant, "library", x, y, options) for variant in VARIANTS]
    found.append(Contender("plain", _PLAIN, "", [_training_run(copy.deepcopy(model), x, y)]))
    for variant in VARIANTS:
        moved = _with_pipeline(network, model, variant)
        run = _training_run(moved, x, y, lambda moved=moved: _check_official(moved, x))
        found.append(Contender("official", _PIPELINE, variant, [run]))
    return found


def dom_shares(model: nn.Module, x: Tensor) -> dict[str, float]:
    """What DOM saves in a converted model, as shares of the operations of all its convolutions.

        shadow_share:   those of the shadow layers, computed with PW
        expected_share: all of them in an exported DOM model, on average over the draws
        least_share:    the same with the cheapest draw in every layer

    x: (N, 3, H, W)
    """
    convolutions = [
        (model.get_submodule(layer.name), layer)
        for layer in watnn.flops(model, x).layers
        if isinstance(model.get_submodule(layer.name), nn.Conv2d)
    ]
    dense = sum(layer.dense for _, layer in convolutions)
    shadow = [(module, layer) for module, layer in convolutions if isinstance(module, watnn.WATConv2d)]
    saved = sum(layer.dense - layer.exported for _, layer in shadow)
    most_saved = sum(layer.dense * (1 - _least_taps(module) / _taps(module)) for module, layer in shadow)
    return {
        "shadow_share": sum(layer.dense for _, layer in shadow) / dense,
        "expected_share": 1 - saved / dense,
        "least_share": 1 - most_saved / dense,
    }


def _least_taps(layer: watnn.WATConv2d) -> int:
    boxes = [row_box(layer, row) for row in range(len(layer.tap_table))]
    return min(box.taps if box else 1 for box in boxes)


def _taps(layer: watnn.WATConv2d) -> int:
    return layer.tap_table.maps.shape[1]


def _ours(
    network: Network, model: nn.Module, variant: str, backend: str, x: Tensor, y: Tensor, options: Options
) -> Contender:
    """The network converted where the paper applies WAT; as a baseline where `backend` is "library"."""
    role = "library" if backend == "library" and "library" not in options.backends else "wat"
    converted = network.convert(model, VARIANTS[variant].transform, gain="layer", backend=backend)
    try:
        chosen = sorted({_chosen(layer, backend, options) for layer in _shadow_layers(converted).values()})
    except RuntimeError as error:
        return Contender(role, _LAYER, variant, backend=backend, missing=str(error))
    run = _training_run(converted, x, y, lambda: _check_ours(converted, x))
    facts = dom_shares(converted, x[:1]) if role == "wat" else {}
    return Contender(role, _LAYER, variant, [run], backend="+".join(chosen), facts=facts)


def _chosen(layer: watnn.WATConv2d, backend: str, options: Options) -> str:
    call = dispatch.Call(
        torch.device(options.device).type,
        options.dtype,
        layer.kernel_size,
        layer.in_channels,
        layer.out_channels,
        layer.groups,
    )
    return dispatch.choose("shadow_conv", BACKENDS, backend, dispatch.environment(), call)


def _shadow_layers(model: nn.Module) -> dict[str, watnn.WATConv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, watnn.WATConv2d)}


def _training_run(model: nn.Module, x: Tensor, y: Tensor, check: Callable[[], None] | None = None) -> Run:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9)

    def forward() -> Tensor:
        return F.cross_entropy(model(x), y)

    def step() -> None:
        loss = forward()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    known = [x, y, *model.parameters(), *model.buffers()]
    return Run({"full": lambda: step}, check=check, saved=lambda: saved_bytes(forward, known))


class OfficialConv2d(nn.Conv2d):
    """nn.Conv2d as the paper's code has it: the weight through torchvision's transform at each forward, times a scale."""

    def __init__(self, conv: nn.Conv2d, variant: Variant):
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            groups=conv.groups, bias=conv.bias is not None, device=conv.weight.device, dtype=conv.weight.dtype,
        )  # fmt: skip
        self.load_state_dict(conv.state_dict())
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)
        self.gain = nn.Parameter(self.weight.new_ones(()))
        self.variant = variant

    def forward(self, x: Tensor, drawn: object = None) -> Tensor:
        """drawn: what to apply; by default a fresh draw"""
        drawn = self.variant.draw(self.kernel_size[0]) if drawn is None else drawn
        return self._conv_forward(x, self.variant.apply(self.weight, drawn) * self.gain, self.bias)


def _with_pipeline(network: Network, model: nn.Module, variant: str) -> nn.Module:
    """A copy of `model` with OfficialConv2d where the paper applies WAT."""
    names = _shadow_layers(network.convert(model, VARIANTS[variant].transform))
    model = copy.deepcopy(model)
    for name in names:
        model.set_submodule(name, OfficialConv2d(model.get_submodule(name), VARIANTS[variant]))
    return model


def _check_ours(model: nn.Module, x: Tensor) -> None:
    """Each shadow layer alone, one of those that are alike, against the reference. Raises WrongResult."""
    for layer, given in _distinct_layers(model, x, watnn.WATConv2d):
        reference = copy.copy(layer)
        reference.backend = "reference"
        with watnn.dom(layer, _CHECK_KEY), watnn.dom(reference, _CHECK_KEY):
            _check_layer(layer, given, _as_function(layer), _as_function(reference))


def _check_official(model: nn.Module, x: Tensor) -> None:
    """Each layer of the pipeline alone, with what a draw may give, against the tap map of that. Raises WrongResult."""
    for layer, given in _distinct_layers(model, x, OfficialConv2d):
        drawn, tap_map = layer.variant.example(layer.kernel_size[0])

        def expected(x: Tensor, weight: Tensor, gain: Tensor, layer=layer, tap_map=tap_map) -> Tensor:
            shadow = torch.einsum("tp,oip->oit", tap_map.to(weight), weight.flatten(2)).view_as(weight)
            return layer._conv_forward(x, shadow * gain, None)

        _check_layer(layer, given, _as_function(layer, drawn), expected)


def _check_layer(layer: nn.Conv2d, x: Tensor, got: Callable[..., Tensor], expected: Callable[..., Tensor]) -> None:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, layer.weight, layer.gain)]
    check_layer(got, expected, leaves, along_output(expected, leaves))


def _as_function(layer: nn.Conv2d, *more: object) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, weight, gain: functional_call(layer, {"weight": weight, "gain": gain}, (x, *more))


def _distinct_layers(model: nn.Module, x: Tensor, kind: type[nn.Conv2d]) -> list[tuple[nn.Conv2d, Tensor]]:
    """One layer of each shape that occurs, with the input it gets."""
    found: dict[tuple, tuple[nn.Conv2d, Tensor]] = {}

    def record(layer: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        key = (inputs[0].shape, layer.weight.shape, layer.stride, layer.groups)
        found.setdefault(key, (layer, inputs[0]))

    hooks = [module.register_forward_pre_hook(record) for module in model.modules() if isinstance(module, kind)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        functional_call(model, buffers, (x,))  # BatchNorm's running statistics stay as they are
    for hook in hooks:
        hook.remove()
    return list(found.values())


def _one_column_less(size: int) -> Tensor:
    """The tap map of a crop that leaves out the first column, in fp64: its entries are multiples of 1 / (2 size)."""
    return (functional.resized_crop(size, 0, 1, size, size - 1).double() * 2 * size).round() / (2 * size)
