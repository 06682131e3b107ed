"""A discrete law: probabilities of rows, and the integer thresholds by which a 32-bit word draws one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TOLERANCE = 1e-6


def check_probabilities(probabilities: Tensor | Sequence[float], rows: int) -> Tensor:
    """(rows,) float64 that sums to one exactly; ValueError where they are not probabilities of `rows` rows."""
    probabilities = torch.as_tensor(probabilities, dtype=torch.float64).detach().cpu()
    if probabilities.shape != (rows,):
        raise ValueError(
            f"probabilities has shape {tuple(probabilities.shape)}; accepted is ({rows},), one for each row"
        )
    if not (probabilities >= 0).all():  # also catches NaN
        raise ValueError(f"probabilities={probabilities.tolist()}; each must be a number >= 0")
    total = float(probabilities.sum())
    if abs(total - 1) > _TOLERANCE:
        raise ValueError(f"probabilities sum to {total:.6g}; accepted is 1 within {_TOLERANCE:g}")
    return probabilities / total


def thresholds_of(probabilities: Tensor) -> Tensor:
    """(R,) int64 in units of 2**-32: a word u draws row `number of thresholds <= u`."""
    thresholds = (probabilities.cumsum(0) * 2.0**32).round().to(torch.int64)
    thresholds[-1] = 2**32  # no word reaches it: the last row takes the rest
    return thresholds
