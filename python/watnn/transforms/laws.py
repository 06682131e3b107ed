"""Probabilities of what a random transform can draw, by integration over its parameters.

Each law is finite because taps are: a parameter that runs over an interval changes the tap map only where a sampling
point crosses from one tap to the next.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from watnn.transforms.functional import centered

_CROP_TRIES = 10  # of torchvision's RandomResizedCrop before it falls back to the centre
_NEGLIGIBLE_ANGLE = 1e-12  # two critical angles nearer than this are one, found with other rounding errors
_NARROW = 1e-6  # relative width of a range of scales or ratios that counts as a point


def shift_law(max_shift: float) -> dict[int, float]:
    """{shift: probability} of int(round(uniform(-max_shift, max_shift)))."""
    if max_shift <= 0.5:  # Python rounds 0.5 to 0
        return {0: 1.0}
    reach = math.ceil(max_shift - 0.5)
    lengths = {k: min(k + 0.5, max_shift) - max(k - 0.5, -max_shift) for k in range(-reach, reach + 1)}
    # 0.1 * 15 is a little more than 1.5: no shift of 2 for that
    return {k: length / (2 * max_shift) for k, length in lengths.items() if length > 1e-12}


def rotation_law(
    size: tuple[int, int],
    degrees: tuple[float, float],
    center: tuple[float, float] | None,
    translate: tuple[int, int] = (0, 0),
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Nearest-neighbour `functional.affine` with an angle uniform over `degrees` and everything else fixed.

    The output tap at X, from the moved centre and divided by the scale, is sampled at centre + R(-angle) X. Each
    coordinate of that is |X| cos(angle - phase), so the angles where it is halfway between two taps are
    phase +- acos(half-way / |X|). Between two neighbouring angles of all taps together the map is constant.

    Returns sources (R, K) int64, the input tap that each output tap copies or -1, and probabilities (R,) float64.
    """
    kh, kw = size
    center_x, center_y = centered(center, size)
    middle_x, middle_y = (kw - 1) / 2, (kh - 1) / 2
    tap_x = (torch.arange(kw, dtype=torch.float64) - middle_x - center_x - translate[0]).repeat(kh) / scale  # (K,)
    tap_y = (torch.arange(kh, dtype=torch.float64) - middle_y - center_y - translate[1]).repeat_interleave(kw) / scale
    radius = torch.hypot(tap_x, tap_y)
    critical = []
    for phase, steps, middle, origin in (
        (torch.atan2(tap_y, tap_x), kw, middle_x, center_x),
        (torch.atan2(-tap_x, tap_y), kh, middle_y, center_y),
    ):
        halfway = torch.arange(steps + 1, dtype=torch.float64) - 0.5 - middle - origin  # (steps + 1,)
        cosine = halfway / radius.unsqueeze(1)  # (K, steps + 1); NaN or infinite for a tap on the centre: none
        turn = torch.acos(cosine)
        critical += [(phase.unsqueeze(1) + turn), (phase.unsqueeze(1) - turn)]
    turned = torch.cat([angles[angles.isfinite()] for angles in critical]) % (2 * math.pi)

    low, high = math.radians(degrees[0]), math.radians(degrees[1])
    turns = math.floor((high - low) / (2 * math.pi))
    angles, lengths = _middles(turned, low, high - turns * 2 * math.pi)
    if turns:
        whole_angles, whole_lengths = _middles(turned, 0.0, 2 * math.pi)
        angles, lengths = torch.cat([angles, whole_angles]), torch.cat([lengths, whole_lengths * turns])

    cos, sin = torch.cos(angles).unsqueeze(1), torch.sin(angles).unsqueeze(1)  # (R, 1)
    column = torch.floor(center_x + cos * tap_x + sin * tap_y + middle_x + 0.5).long()  # (R, K)
    row = torch.floor(center_y - sin * tap_x + cos * tap_y + middle_y + 0.5).long()
    inside = (column >= 0) & (column < kw) & (row >= 0) & (row < kh)
    sources = torch.where(inside, row * kw + column, -1)
    sources, index = torch.unique(sources, dim=0, return_inverse=True)
    probabilities = torch.zeros(len(sources), dtype=torch.float64).index_add_(0, index, lengths / lengths.sum())
    return sources, probabilities


def maps_of_sources(sources: Tensor) -> Tensor:
    """(R, K) input tap of each output tap, -1 for none, to (R, K, K) tap maps."""
    rows, taps = sources.shape
    maps = torch.zeros(rows, taps, taps + 1)
    maps.scatter_(2, torch.where(sources < 0, taps, sources).unsqueeze(2), 1.0)
    return maps[:, :, :taps].contiguous()


def crop_law(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> list[tuple[float, int, int, int, int]]:
    """[(probability, top, left, height, width)] of torchvision's RandomResizedCrop.

    A try draws an area and the logarithm of a ratio, both uniform, and rounds to a height and a width; one that fits
    is taken, at a uniform position. After ten that do not, a central crop of a ratio within the range.
    """
    kh, kw = size
    tried = {
        (height, width): _try_probability(height, width, kh * kw, scale, ratio)
        for height in range(1, kh + 1)
        for width in range(1, kw + 1)
    }
    fits = min(1.0, sum(tried.values()))
    reached = sum((1 - fits) ** tries for tries in range(_CROP_TRIES))  # tries made on average
    law = []
    for (height, width), probability in tried.items():
        if probability > 0:
            tops, lefts = range(kh - height + 1), range(kw - width + 1)
            each = probability * reached / (len(tops) * len(lefts))
            law += [(each, top, left, height, width) for top, left in itertools.product(tops, lefts)]
    never = (1 - fits) ** _CROP_TRIES
    if never > 1e-12:
        law.append((never, *_fallback_crop(size, ratio)))
    return law


def _fallback_crop(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest central crop of an accepted ratio."""
    kh, kw = height, width = size
    if kw / kh < ratio[0]:
        height = round(kw / ratio[0])
    elif kw / kh > ratio[1]:
        width = round(kh * ratio[1])
    if height < 1 or width < 1:
        raise ValueError(f"ratio={ratio}: a crop of a {kh}x{kw} kernel rounds to nothing; accepted is a wider range")
    return (kh - height) // 2, (kw - width) // 2, height, width


def _try_probability(
    height: int, width: int, taps: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> float:
    """Probability that one try rounds to (height, width).

    With L the log ratio, width = round(sqrt(area e^L)) and height = round(sqrt(area e^-L)). So for each L the area is
    between the largest of three lower curves c e^(kL) and the smallest of three upper ones, k = -1, 1, 0; between the
    crossings of all six the integral over L is that of two exponentials.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    # of a narrower range, shares would be rounding error
    if scale[1] - scale[0] <= _NARROW * scale[1]:
        scale = (scale[0], scale[0])
    if log_high - log_low <= _NARROW:
        log_high = log_low
    if scale[0] == scale[1] and log_low == log_high:  # a single point, which may be a tie: torchvision's own fp32
        area = taps * torch.tensor(scale[0]).item()
        aspect = math.exp(log_low) if log_low else 1.0
        return float((height, width) == (round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))))
    lower = [((width - 0.5) ** 2, -1), ((height - 0.5) ** 2, 1), (taps * scale[0], 0)]
    upper = [((width + 0.5) ** 2, -1), ((height + 0.5) ** 2, 1), (taps * scale[1], 0)]

    def span(log_ratio: float) -> tuple[tuple[float, int], tuple[float, int], float]:
        """The highest lower curve and the lowest upper curve at a log ratio, and the distance between them."""
        floor = max(lower, key=lambda curve: _at(curve, log_ratio))
        ceiling = min(upper, key=lambda curve: _at(curve, log_ratio))
        return floor, ceiling, _at(ceiling, log_ratio) - _at(floor, log_ratio)

    area_range = taps * (scale[1] - scale[0])
    if log_low == log_high:
        return max(0.0, span(log_low)[2]) / area_range
    crossings = {
        math.log(c1 / c2) / (k2 - k1) for (c1, k1), (c2, k2) in itertools.combinations(lower + upper, 2) if k1 != k2
    }
    ends = [log_low, *sorted(x for x in crossings if log_low < x < log_high), log_high]
    total = 0.0
    for start, end in itertools.pairwise(ends):
        floor, ceiling, distance = span((start + end) / 2)
        if area_range == 0:
            total += (end - start) if distance >= 0 else 0.0
        elif distance > 0:
            total += (_integral(ceiling, start, end) - _integral(floor, start, end)) / area_range
    return max(0.0, total) / (log_high - log_low)


def _at(curve: tuple[float, int], x: float) -> float:
    return curve[0] * math.exp(curve[1] * x)


def _integral(curve: tuple[float, int], start: float, end: float) -> float:
    c, k = curve
    return c * (end - start) if k == 0 else c / k * (math.exp(k * end) - math.exp(k * start))


def _middles(critical: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Middles and lengths of the pieces that critical angles, in [0, 2 pi), cut [low, high] into; at most one turn."""
    offset = (critical - low) % (2 * math.pi)
    ends = torch.cat([offset[offset < high - low], torch.tensor([0.0, high - low], dtype=torch.float64)]).sort().values
    lengths = ends.diff()
    kept = lengths > _NEGLIGIBLE_ANGLE
    return (low + (ends[:-1] + ends[1:]) / 2)[kept], lengths[kept]


def quasi_random(count: int, dimensions: int) -> Tensor:
    """(count, dimensions) float64 in (0, 1): the Sobol sequence, the same at every call.

    Points are moved by half of the finest step, so that for a power of two each coordinate takes the middles of `count`
    equal intervals: a symmetric range gives a symmetric law.
    """
    points = torch.quasirandom.SobolEngine(dimensions).draw(count, dtype=torch.float64)
    return points + 0.5 / 2 ** math.ceil(math.log2(count))
