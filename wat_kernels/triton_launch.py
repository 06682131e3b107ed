"""Launching Triton kernels: a configuration is measured once for each problem, and never while a graph is captured."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import torch
import triton

from wat_kernels.dispatch import Call

INTERPRETED = triton.knobs.runtime.interpret
_AMOUNTS = ("scale", "cut")  # of noise, as kernels name them


class Tuned:
    """A kernel and the configurations it may run with.

    The first launch of a problem measures them (`triton.autotune`, which keeps what it finds on disk); later ones go
    straight to the kernel. A problem that is first met inside a CUDA-graph capture runs with the first configuration,
    since nothing can be measured there. What is drawn, and the amount of a noise, is no part of a problem.

    kernel:  a @triton.jit function whose last arguments are those that the configurations set
    configs: the first that suits is used where nothing can be measured; the last, of small tiles, always suits
    problem: names of the kernel's arguments that make a problem
    fits:    whether a configuration suits a problem, of its sizes and the kernel's arguments by name
    typical: the kernel's arguments by name -> those that are measured with something else than what this launch draws.
             A first draw that happens to leave few taps must not decide for all later ones
    zeroed:  names of the arguments that the caller has filled with zeros because a launch does not write all of them.
             How much it writes depends on the configuration, so they are cleared of what measuring left there
    """

    def __init__(
        self,
        kernel: Any,
        configs: Sequence[triton.Config],
        problem: Sequence[str],
        fits: Callable[[dict], bool],
        typical: Callable[[dict], dict],
        zeroed: Sequence[str] = (),
    ):
        self.kernel, self.configs = kernel, list(configs)
        self._fits, self._typical, self._zeroed = fits, typical, tuple(zeroed)
        prune = {"early_config_prune": lambda configs, arguments, **_: self._suited(arguments)}
        self._tuner = triton.autotune(self.configs, key=list(problem), prune_configs_by=prune, cache_results=True)(
            kernel
        )
        self._described = [name not in _AMOUNTS for name in kernel.arg_names]
        self._chosen: dict[Hashable, dict] = {}

    def suited(self, arguments: tuple) -> list[triton.Config]:
        """The configurations to choose from for this launch; never empty."""
        return self._suited(self._named(arguments))

    def _suited(self, named: dict) -> list[triton.Config]:
        return [c for c in self.configs if self._fits({**named, **c.all_kwargs()})] or self.configs[-1:]

    def _named(self, arguments: tuple) -> dict:
        return dict(zip(self.kernel.arg_names, arguments, strict=False))

    def problem_of(self, arguments: tuple) -> tuple:
        """What tells this launch from others that may want another configuration: tensors as their dtypes."""
        return tuple(
            a.dtype if isinstance(a, torch.Tensor) else a
            for a, described in zip(arguments, self._described, strict=False)
            if described
        )

    def launch(self, programs: Callable[[dict], int], arguments: tuple) -> None:
        """programs: what a configuration sets -> the number of programs. arguments: all that it does not set.

        The first argument is a tensor, on whose device the kernel runs.
        """
        device = arguments[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():  # Triton takes the current one
            with torch.cuda.device(device):
                return self.launch(programs, arguments)

        def grid(meta):
            return (programs(meta),)

        problem = (device, self.problem_of(arguments))
        chosen = self._chosen.get(problem)
        if chosen is None:
            if INTERPRETED:
                chosen = self._chosen[problem] = self.configs[-1].kwargs
            elif torch.cuda.is_current_stream_capturing():
                chosen = self.suited(arguments)[0].all_kwargs()
            else:
                chosen = self._chosen[problem] = self._measure(grid, arguments)
        self.kernel[grid](*arguments, **chosen)
        return None

    def _measure(self, grid: Callable, arguments: tuple) -> dict:
        """What the fastest configuration sets. The results hold anything after it, but what is `zeroed` is zero."""
        named = self._named(arguments)
        self._tuner[grid](*{**named, **self._typical(named)}.values())
        for name in self._zeroed:
            if named[name] is not None:
                named[name].zero_()
        return self._tuner.best_config.all_kwargs()


def configs_of(names: Sequence[str], rows: Sequence[tuple[int, ...]]) -> list[triton.Config]:
    """rows: the sizes that `names` names, then warps and pipeline stages."""
    return [
        triton.Config(
            dict(zip(names, sizes, strict=True)),
            num_warps=warps,
            num_stages=min(stages, 2) if torch.version.hip else stages,  # AMD's local memory is 64 KiB
        )
        for *sizes, warps, stages in rows
    ]


def refusal(call: Call) -> str:
    """Why no Triton kernel of this package runs this call, or an empty string."""
    if call.device != "cuda" and not (call.device == "cpu" and INTERPRETED):
        return f"x is on {call.device}; it runs on cuda"
    if call.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"x is {call.dtype}; it computes in float32, float16 and bfloat16"
    return ""


def fp32_precision(switch: str) -> str:
    """Triton's name for what torch is told to do with fp32 operands. switch: torch's `fp32_precision` of the op."""
    return "tf32" if switch == "tf32" else "ieee"


def is_wide(*tensors: torch.Tensor) -> bool:
    """Whether an offset into one of these can pass 2**31."""
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) >= 2**31 - 2**16
        for t in tensors
    )


def noise_numbers(noise: int, amount: float) -> tuple[float, int]:
    """(scale, cut) as `triton_philox.noise_factor` takes them."""
    if noise == 2:
        return 1 / (1 - amount), round(65536 * amount)
    return float(amount), 0


def splits_of(tiles: int, blocks: int, programs: int) -> int:
    """The same as in `triton_gemm`."""
    return max(1, min(programs // tiles, blocks))


@cache
def programs_wanted(device: torch.device) -> int:
    """How many programs a reduction that can be cut aims at: two a multiprocessor. It bounds the scratch, too."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 10


_arrivals: dict[tuple, torch.Tensor] = {}


def arrivals(device: torch.device) -> torch.Tensor:
    """Counters that are zero between launches, `programs_wanted` of them.

    One set for each stream, since launches on two streams may overlap. A graph may be replayed on any: it has its own.
    """
    count = programs_wanted(device)
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    place = (device, torch.cuda.current_stream(device).cuda_stream)
    if place not in _arrivals:
        _arrivals[place] = torch.zeros(count, dtype=torch.int32, device=device)
    return _arrivals[place]
