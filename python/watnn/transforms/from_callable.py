"""FromCallable: any linear image transform as a tap table."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wat_kernels.tap_table import TapTable
from watnn.transforms.base import GridTransform
from watnn.transforms.checks import check_count

_TOLERANCE = 1e-4  # of fp32 interpolation, relative to the largest number that comes out of a filter
_ROUNDING = 1e-5  # relative to the largest number that went in
_FIRST_SEED = 0x5EED


@dataclass(frozen=True, repr=False)
class FromCallable(GridTransform):
    """A callable that maps a (..., kh, kw) float tensor to one of the same shape, one draw a call.

    fn:       linear in its input and the same for all filters, e.g. a torchvision transform with zero fill; hashable
    num_maps: calls that go into the table, each as likely as the others

    Each call is made with the generators of torch (CPU) and of Python's `random` seeded with a fixed number, and they
    are put back afterwards. A callable that draws from other generators is refused.
    Building the table raises TypeError or ValueError, naming what was wrong, for a callable that is not linear, mixes
    filters or treats them differently. It is tried on random filters of several magnitudes in every draw.
    """

    fn: Callable[[Tensor], Tensor]
    num_maps: int = 256

    def __post_init__(self):
        if not callable(self.fn):
            raise TypeError(f"fn={self.fn!r}; accepted is a callable")
        try:
            hash(self.fn)
        except TypeError as error:
            raise TypeError(f"fn={self.fn!r} is not hashable; accepted is a hashable callable") from error
        object.__setattr__(self, "num_maps", check_count("num_maps", self.num_maps))

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", None) or repr(self.fn)
        return f"FromCallable({name}{'' if self.num_maps == 256 else f', num_maps={self.num_maps}'})"

    def _build_table(self, size: tuple[int, int]) -> TapTable:
        maps = torch.stack([self._map(size, _FIRST_SEED + draw) for draw in range(self.num_maps)])
        return TapTable(maps, [1 / self.num_maps] * self.num_maps, size)

    def _map(self, size: tuple[int, int], seed: int) -> Tensor:
        """The (K, K) tap map of one draw."""
        taps = size[0] * size[1]
        units = torch.eye(taps).reshape(taps, *size)
        responses = self._call(units, seed)  # filter p is column p
        generator = torch.Generator().manual_seed(seed)
        magnitudes = torch.tensor([100.0, 1.0, 0.01]).repeat(taps)[:taps, None, None]
        filters = torch.randn(taps, *size, generator=generator) * magnitudes
        shadow = self._call(filters, seed)
        if not (responses.isfinite().all() and shadow.isfinite().all()):
            raise ValueError(f"fn={self.fn!r} returned NaN or infinity; accepted is a callable with finite results")
        mapped = torch.einsum("pt,fp->ft", responses.flatten(1), filters.flatten(1)).view_as(filters)
        if not _same(shadow, mapped, filters):
            raise ValueError(self._what_is_wrong(units, responses, filters, shadow, seed))
        return responses.flatten(1).T

    def _call(self, filters: Tensor, seed: int) -> Tensor:
        with _seeded(seed), torch.no_grad():
            result = self.fn(filters.clone())
        if not isinstance(result, Tensor):
            raise TypeError(f"fn={self.fn!r} returned {type(result).__name__}; accepted is a tensor")
        if result.shape != filters.shape or not result.is_floating_point():
            raise ValueError(
                f"fn={self.fn!r} returned {result.dtype} of shape {tuple(result.shape)} for a float32 tensor of shape "
                f"{tuple(filters.shape)}; accepted is a floating-point tensor of the same shape"
            )
        return result.detach().to("cpu", torch.float32).clone()

    def _what_is_wrong(self, units: Tensor, responses: Tensor, filters: Tensor, shadow: Tensor, seed: int) -> str:
        accepted = "accepted is a callable that is linear and does the same to every filter"
        if not _same(self._call(units, seed), responses, units):
            return (
                f"fn={self.fn!r} gives two results for one seed, so it draws random numbers from elsewhere; "
                "accepted is torch's CPU generator and Python's `random`"
            )
        if self._call(torch.zeros_like(units), seed).any():
            return f"fn={self.fn!r} is not linear: it maps zeros to other numbers; {accepted}"
        total, double = self._call(units + filters, seed), self._call(2 * filters, seed)
        if not (_same(double, 2 * shadow, filters) and _same(total, responses + shadow, units + filters)):
            return f"fn={self.fn!r} is not linear: a sum or a multiple of its inputs gives another result; {accepted}"
        return f"fn={self.fn!r} mixes filters or treats them differently; {accepted}"


def _same(a: Tensor, b: Tensor, inputs: Tensor) -> bool:
    """Equal filter by filter, up to rounding; a, b and the inputs they came from: (filters, kh, kw)."""
    results = torch.maximum(a.abs(), b.abs()).amax((1, 2), keepdim=True)
    rounding = _ROUNDING * inputs.abs().amax((1, 2), keepdim=True)  # of sums that cancel
    return bool(((a - b).abs() <= _TOLERANCE * results + rounding).all())


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
