"""The memory format of y and of the gradients is nn.Conv2d's, strides of sizes of 1 included: the next layer reads it off them."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from watnn import WATConv1d, WATConv2d

from tests.conftest import DEVICE
from wat_kernels import TapTable, dispatch, shadow_conv2d
from wat_kernels.ops.conv import BACKENDS
from wat_kernels.ops.conv.geometry import laid_out, memory_format

CALL = dispatch.Call(DEVICE, torch.float32, (3, 3), 8, 8)
RUNNING = [name for name, backend in BACKENDS.items() if backend.supports(CALL)[0]]
FORMS = (torch.contiguous_format, torch.channels_last)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def new(shape, form, dtype=torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=form, device=DEVICE).normal_()


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def computed(x: Tensor, weight: Tensor, backend: str | None, **arguments) -> list[Tensor]:
    """y, dx, dweight, and the gradients as they arrive in x.grad and weight.grad; backend None is torch."""
    x, weight = leaf(x), leaf(weight)
    if backend is None:
        y = F.conv2d(x, weight, **arguments)
    else:
        table = TapTable.identity(weight.shape[2:])
        y = shadow_conv2d(x, weight, table=table, key=1, backend=backend, **arguments)
    dy = torch.cos(torch.arange(y.numel(), device=DEVICE)).to(y.dtype).view_as(y)
    found = [y, *torch.autograd.grad(y, (x, weight), dy, retain_graph=True)]
    y.backward(dy)
    return [*found, x.grad, weight.grad]


def check(x: Tensor, weight: Tensor, backend: str, **arguments) -> None:
    found, right = computed(x, weight, backend, **arguments), computed(x, weight, None, **arguments)
    small = weight.dtype == torch.float32 and (len(x) == 1 or weight.shape[2:] == (1, 1))
    unsupported = weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if DEVICE == "cpu" and (small or unsupported):
        # torch may take this for too small for oneDNN, or the processor has no bf16 for it; what it runs instead gives
        # dweight the weight's own format
        found, right = ([y, dx, x_grad] for y, dx, _, x_grad, _ in (found, right))
    case = (tuple(x.shape), x.stride(), tuple(weight.shape), weight.stride(), arguments)
    assert [t.stride() for t in found] == [t.stride() for t in right], case
    tolerance = 1e-4 if x.dtype == torch.float32 else 2e-2
    for one, other in zip(found, right, strict=True):
        scale = other.abs().max().clamp(min=1)
        torch.testing.assert_close(one / scale, other / scale, rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("backend", [name for name in RUNNING if name != "triton"])  # which is slow when interpreted
def test_every_combination_of_sizes_of_1_and_of_formats(backend, dtype):
    images = (1, 2) if dtype == torch.float32 else (1,)
    sizes = product(images, (1, 3), (1, 4), (1, 5), (1, 6), ((1, 1), (3, 3), (3, 1)))
    for (n, c, o, h, w, kernel), x_form, weight_form in product(sizes, FORMS, FORMS):
        x, weight = new((n, c, h, w), x_form, dtype), new((o, c, *kernel), weight_form, dtype)
        check(x, weight, backend, padding=(kernel[0] // 2, kernel[1] // 2))


@DTYPES
@pytest.mark.parametrize("backend", [name for name in RUNNING if name != "triton"])
def test_groups_and_depthwise(backend, dtype):
    for groups, width, x_form, weight_form in product((2, 4), (1, 6), FORMS, FORMS):
        for outputs in (4, 8):
            x, weight = new((2, 4, 5, width), x_form, dtype), new((outputs, 4 // groups, 3, 3), weight_form, dtype)
            check(x, weight, backend, padding=1, groups=groups)


@pytest.mark.parametrize("backend", RUNNING)
def test_one_channel_with_a_channels_last_weight(backend):
    x, weight = new((2, 1, 8, 8), torch.contiguous_format), new((8, 1, 3, 3), torch.channels_last)
    y, dx, dweight = computed(x, weight, backend)[:3]
    assert y.stride() == (288, 1, 48, 8) and dx.stride() == (64, 1, 8, 1) and dweight.stride() == (9, 1, 3, 1)


@pytest.mark.parametrize("backend", RUNNING)
def test_views_of_other_layouts(backend):
    x, weight = new((2, 8, 5, 6), torch.contiguous_format), new((6, 8, 3, 3), torch.contiguous_format)
    channels_last = x.to(memory_format=torch.channels_last)
    images = (x, channels_last, x.mT, channels_last.mT, x.transpose(1, 3).contiguous().transpose(1, 3))
    images += (channels_last[..., ::2], channels_last[:1].expand(2, -1, -1, -1))
    for image in images:
        check(image, weight.transpose(2, 3), backend, padding=1)
    for slices in (x[:, ::2], channels_last[:, :4], channels_last[:, 1:2].expand(-1, 4, -1, -1)):
        check(slices, weight[:, ::2], backend, padding=1)
    check(x[:, :6], weight[:, :6].transpose(0, 1), backend, padding=1)


@pytest.mark.parametrize("backend", [name for name in RUNNING if name != "triton"])
def test_layers_of_unbatched_input_and_of_sequences(backend):
    for channels, form in product((1, 4), FORMS):
        layer = WATConv2d(channels, 3, 3, backend=backend, device=DEVICE).to(memory_format=form)
        plain = nn.Conv2d(channels, 3, 3, device=DEVICE).to(memory_format=form)
        x = new((1, channels, 5, 6), torch.contiguous_format)[0]
        for image in (x, x.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
            assert layer(image).stride() == plain(image).stride()
        sequences, plain = WATConv1d(channels, 3, 3, backend=backend, device=DEVICE), nn.Conv1d(channels, 3, 3)
        plain = plain.to(DEVICE)
        for x in (new((2, channels, 1, 7), form)[:, :, 0], new((2, 1, 7, channels), form)[:, 0].mT):
            ours, right = leaf(x), leaf(x)
            y, expected = sequences(ours), plain(right)
            assert y.stride() == expected.stride()
            y.sum().backward()
            expected.sum().backward()
            assert ours.grad.stride() == right.grad.stride()
            assert sequences.weight.grad.stride() == plain.weight.grad.stride()
            sequences.zero_grad(), plain.zero_grad()


@pytest.mark.parametrize("backend", [name for name in RUNNING if name not in ("reference", "triton")])
def test_fakes_have_the_strides_of_results(backend):
    """What torch.compile plans with, where formats are mixed and sizes are 1 or 0."""
    forward, backward = (getattr(getattr(torch.ops.wat_kernels, op), backend)
                         for op in ("shadow_conv", "shadow_conv_bwd"))  # fmt: skip
    key, gain = torch.tensor(3, device=DEVICE), torch.ones(4, device=DEVICE)
    draw = (key, *TapTable.identity((3, 3)).on(gain.device), [1, 1], [1, 1, 1, 1], [1, 1], 1, False, 1, 0, 0.0)
    for n, c, size, x_form, weight_form in product((0, 2), (1, 2), (1, 5), FORMS, FORMS):
        x, weight = new((n, c, size, size), x_form), new((4, c, 3, 3), weight_form)
        for form, kernels in product(FORMS, (weight, weight.mT)):
            torch.library.opcheck(forward, (x, kernels, None, gain, *draw), test_utils="test_faketensor")
            arguments = (new((n, 4, size, size), form), x, kernels, gain, *draw, [True, True, False, True])
            torch.library.opcheck(backward, arguments, test_utils="test_faketensor")


def test_the_format_is_read_as_torch_reads_it():
    """Against torch's own Python twin of suggest_memory_format()."""
    weight = torch.empty(1, 1, 1, 1)
    for size in product((0, 1, 2), (0, 1, 3), (0, 1, 4), (0, 1, 5)):
        for form in FORMS:
            image = torch.empty(size, memory_format=form)
            for view in (image, image[..., ::2], image[:, ::2], image.mT, image.transpose(1, 3)):
                like_channels_last = torch._prims_common.suggest_memory_format(view) == torch.channels_last
                assert (memory_format(view, weight) == torch.channels_last) == like_channels_last
            assert laid_out(image, form).stride() == image.stride()
