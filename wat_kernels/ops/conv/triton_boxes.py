"""The designs that move boxes of pixels, beside those of computed addresses: for which problems, and with which tiles.

They take what a layer of stride 1 mostly is: images and a weight in channels_last of bf16 or fp16. Strides or an image's
row that are no multiple of 16 bytes, strided convolutions and other chips are left to the others. Tuning measures both.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from wat_kernels.ops.conv.geometry import Convolution
from wat_kernels.ops.conv.triton_box_kernels import conv2d_bwd_weight_box_kernel, conv2d_gather_box_kernel
from wat_kernels.ops.conv.triton_configs import all_taps
from wat_kernels.signature import Draw
from wat_kernels.triton_launch import INTERPRETED, Design, Scratch, Tuned, configs_of, has_boxes, moves_boxes

_MOST_MIXED = 4  # input taps of an output tap: each is a box of the weight in every step
_PIXELS = {  # boxes of images, rows and columns by the pixels in them; the first ones for the largest images
    128: [(1, 4, 32), (1, 8, 16), (4, 2, 16), (2, 8, 8), (8, 4, 4), (16, 1, 8)],
    64: [(1, 2, 32), (1, 4, 16), (2, 2, 16), (1, 8, 8), (4, 4, 4), (8, 1, 8)],
}
GATHER_CONFIGS = configs_of(
    ("BI", "BH", "BW", "BN", "BK"),
    [(*box, width, depth, 4, stages) for box in _PIXELS[128] for width, depth, stages in
     [(128, 64, 3), (64, 64, 3), (64, 64, 4), (128, 32, 4), (64, 32, 4), (32, 32, 4)]],
)  # fmt: skip
# of tiles that have been right on a GPU over long sums; see "boxes" in README.md for what has not
WEIGHT_CONFIGS = configs_of(
    ("BI", "BH", "BW", "BO", "BC"),
    [(*box, 128, 128, 8, 3) for box in _PIXELS[64]]
    + [(*box, *tile, 4, stages) for box in _PIXELS[128] for *tile, stages in
       [(128, 64, 3), (64, 128, 3), (64, 64, 4)]],
)  # fmt: skip


def _times(size: int, tile: int) -> int:
    return -(-size // tile)


def _boxes(a: dict) -> int:
    return _times(a["images"], a["BI"]) * _times(a["height"], a["BH"]) * _times(a["width"], a["BW"])


def _gather_fits(a: dict) -> bool:
    """Tiles not much larger than what they cover, and within the group and the chunk that they are of."""
    columns, sums = a["out_channels"], a["in_channels"]
    if a["BACKWARD"]:
        columns, sums = sums, columns
    whole = columns % a["BN"] == 0 and sums % a["BK"] == 0
    if a["groups"] > 1 and not whole:
        return False
    if not a["BACKWARD"] and sums % a["BK"]:  # behind a tap's channels are the next tap's
        return False
    made = a["NOISE"] == 1 or a["WIDTH"] > 1  # tiles of SW in registers
    if made and a["BN"] * a["BK"] > 64 * 64:
        return False
    return a["BN"] <= max(32, columns) and (a["shadows"] == 1 or a["images"] % a["BI"] == 0)


def _gather_cost(a: dict) -> float:
    """Multiply-adds with those of pixels and channels that do not exist; small tiles read more and are dearer."""
    columns = a["in_channels"] if a["BACKWARD"] else a["out_channels"]
    work = _boxes(a) * 128 * _times(columns, a["BN"]) * a["BN"]
    return work * (1 + 16 / a["BN"]) * (1 + 4 / a["BK"]) * (1 + 0.01 * a["num_stages"])


def _weight_fits(a: dict) -> bool:
    if a["NOISE"] == 1 and a["BO"] * a["BC"] > 64 * 64:  # Gaussian noise: registers
        return False
    return a["BO"] <= max(64, a["out_channels"]) and a["BC"] <= max(64, a["in_channels"])


def _weight_cost(a: dict) -> float:
    pixels = a["BI"] * a["BH"] * a["BW"]
    boxes = _times(a["images"], a["BI"]) * _times(a["out_height"], a["BH"]) * _times(a["out_width"], a["BW"])
    tiles = _times(a["out_channels"], a["BO"]) * a["BO"] * _times(a["in_channels"], a["BC"]) * a["BC"]
    return boxes * pixels * tiles * (1 + 8 / a["BO"] + 8 / a["BC"])


_PROBLEM = ("images", "groups", "in_channels", "out_channels", "TAPS", "WIDTH", "NOISE")
GATHER = Tuned(
    conv2d_gather_box_kernel, GATHER_CONFIGS, _PROBLEM, _gather_fits, all_taps, _gather_cost,
    lambda c: {
        "image": [c["BI"], c["BH"], c["BW"], c["BK"]],
        "weight": [c["BN"], c["BK"]],
        "out": [c["BI"], c["BH"], c["BW"], c["BN"]],
    },
)  # fmt: skip
BACKWARD_GATHER = Tuned(
    conv2d_gather_box_kernel, GATHER_CONFIGS, _PROBLEM, _gather_fits, all_taps, _gather_cost,
    lambda c: {
        "image": [c["BI"], c["BH"], c["BW"], c["BK"]],
        "weight": [c["BK"], c["BN"]],
        "out": [c["BI"], c["BH"], c["BW"], c["BN"]],
    },
)  # fmt: skip
WEIGHT = Tuned(
    conv2d_bwd_weight_box_kernel, WEIGHT_CONFIGS, _PROBLEM, _weight_fits, all_taps, _weight_cost,
    lambda c: {"dy": [c["BI"], c["BH"], c["BW"], c["BO"]], "x": [c["BI"], c["BH"], c["BW"], c["BC"]]},
)  # fmt: skip


def takes(x: Tensor, y: Tensor, weight: Tensor, draw: Draw, layout: Convolution) -> bool:
    """Whether boxes of these images, of x or dx and of y or dy, can be moved.

    Boxes begin at whole 16 bytes of a pixel, so that groups of few channels have none: an H200 met an illegal instruction in
    weight gradients of depthwise convolutions, whose boxes did not.
    """
    taps = weight.shape[2] * weight.shape[3]
    width = (draw.table.taps.shape[1] - 1 - taps) // (2 * taps)
    return (
        moves_boxes(x.device)
        and (x.element_size() == 2 or INTERPRETED)
        and tuple(layout.stride) == (1, 1)
        and width <= _MOST_MIXED
        and (
            layout.groups == 1 or not any(c * x.element_size() // layout.groups % 16 for c in (x.shape[1], y.shape[1]))
        )
        and has_boxes(x, (0, 2, 3, 1))
        and has_boxes(y, (0, 2, 3, 1))
    )


def has_rows(weight: Tensor) -> bool:
    """Whether the weight is (O, taps * I) in memory, with rows of whole 16 bytes."""
    _, inputs, height, width = weight.shape
    wanted = (height * width * inputs, 1, width * inputs, inputs)
    dense = all(size == 1 or a == b for size, a, b in zip(weight.shape, weight.stride(), wanted, strict=True))
    return dense and height * width * inputs * weight.element_size() % 16 == 0


def gather_design(
    image: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None, gain: Tensor | None, draw: Draw, numbers: tuple,
    backward: bool,
) -> Design:  # fmt: skip
    """numbers: what `conv2d_gather_box_kernel` takes between the noise's and a configuration's"""
    groups, columns = numbers[3], weight.shape[1] if backward else weight.shape[0] // numbers[3]

    def programs(meta: dict) -> int:
        images, height, width = out.shape[0] // draw.shadows, out.shape[2], out.shape[3]
        boxes = _times(images, meta["BI"]) * _times(height, meta["BH"]) * _times(width, meta["BW"])
        return groups * draw.shadows * boxes * _times(columns, meta["BN"])

    tensors = (image, weight, bias, gain, out, draw.key, draw.table.thresholds, draw.table.taps)
    return Design(BACKWARD_GATHER if backward else GATHER, tensors, numbers, programs)


def _weight_tiles(weight: Tensor, groups: int, meta: dict) -> int:
    """Tiles of one tap."""
    return _times(weight.shape[0] // groups, meta["BO"]) * _times(weight.shape[1], meta["BC"]) * groups


def _wanted(meta: dict, programs: int) -> int:
    """As the kernel has it."""
    return programs // 2 if meta["BO"] * meta["BC"] > 128 * 64 else programs


def weight_programs(weight: Tensor, groups: int, programs: int) -> Callable[[dict], int]:
    """What a configuration sets -> programs: enough for every tap, whatever the row reaches."""
    taps = weight.shape[2] * weight.shape[3]
    return lambda meta: max(_wanted(meta, programs), _weight_tiles(weight, groups, meta) * taps)


def weight_scratch(weight: Tensor, groups: int, programs: int, needs_gain: bool) -> Callable[[dict], Scratch]:
    """What a configuration sets -> the memory it takes. A row that reaches few taps is cut into the most parts."""
    taps = weight.shape[2] * weight.shape[3]

    def scratch(meta: dict) -> Scratch:
        tiles, wanted = _weight_tiles(weight, groups, meta), _wanted(meta, programs)
        lines = _times(weight.shape[1], meta["BC"]) * taps if needs_gain else 0
        if wanted // tiles < 2:
            return Scratch(lines, 0, 0)
        return Scratch(lines, wanted * meta["BO"] * meta["BC"], tiles * taps)

    return scratch
