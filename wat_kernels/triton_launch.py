"""Launching Triton kernels: a configuration is measured once for each problem, a warm launch goes straight to the driver.

    plan = tuned.plan(tensors, numbers, programs)   # once a problem: chooses the configuration
    plan(tensors, noise_numbers(noise, amount))     # each call: addresses and amounts, nothing else

A plan holds what stays the same from call to call. Its first launch passes through Triton's own, which compiles, loads
and returns the compiled kernel; later ones hand that kernel's launcher the addresses.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from wat_kernels.dispatch import Call

INTERPRETED = triton.knobs.runtime.interpret
_MEASURES = not INTERPRETED
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_MOST_PLANS = 4096  # of a pass: shapes that never come back must not fill the memory
_runtime: Any = triton.knobs.runtime
Plan = TypeVar("Plan")


class Chosen(NamedTuple):
    """What was measured to be the fastest configuration of a kernel for a problem."""

    kernel: str
    problem: tuple
    config: triton.Config


_chosen: dict[tuple, Chosen] = {}
_pick: Callable[[str, list[triton.Config]], triton.Config] | None = None
_made: list[Planned] = []  # plans of the innermost `choosing`


def chosen() -> list[Chosen]:
    """What tuning chose so far in this process, in order."""
    return list(_chosen.values())


@contextlib.contextmanager
def choosing(pick: Callable[[str, list[triton.Config]], triton.Config] | None) -> Iterator[list[Planned]]:
    """A block in which `pick`, of a kernel's name and the configurations that suit, chooses and nothing is measured.
    With None, configurations are measured as usual, also within such a block.

    Gives the list of the plans that are made within, in their order. Not for several threads. Plans made before are
    forgotten, and so are afterwards those made within.
    """
    global _pick, _made
    before, (_pick, _made) = (_pick, _made), (pick, [])
    forget_plans()
    try:
        yield _made
    finally:
        _pick, _made = before
        forget_plans()


_all_plans: list[dict] = []


def plans() -> dict[Hashable, Any]:
    """A new dictionary of plans, by what tells problems apart; to be filled by `keep`."""
    found: dict[Hashable, Any] = {}
    _all_plans.append(found)
    return found


def keep(of: dict[Hashable, Plan], problem: Hashable, plan: Plan) -> Plan:
    """`plan`, remembered for later calls. One that is made while a graph is captured is not: nothing was measured for it."""
    if not _capturing():
        if len(of) >= _MOST_PLANS:
            of.clear()
        of[problem] = plan
    return plan


def forget_plans() -> None:
    """Every plan is made anew at its next call."""
    for found in _all_plans:
        found.clear()


_kernels: list[Any] = []  # of every Tuned, in the order in which this package imports them


@cache
def settle_cache_keys() -> None:
    """Once a process, before anything is compiled: the keys by which kernels are found in Triton's cache on disk.

    Triton (3.6, 3.7) puts a constant that a called function reads into the caller's key only where that function got its
    own key earlier. So the keys depend on which kernel comes first, and another process, which begins with another one,
    would compile anew what is there. In one order they are always the same.
    """
    if not INTERPRETED:
        for kernel in _kernels:
            kernel.cache_key  # noqa: B018  # a property, kept from then on


class _Tuner(Autotuner):
    """Triton's tuner, whose results on disk are told apart by the name of the GPU, too: H100 and H200 are one target."""

    def check_disk_cache(self, tuning_key: Any, configs: Any, bench_fn: Any) -> bool:
        named = (*tuning_key, torch.cuda.get_device_name())
        found = super().check_disk_cache(named, configs, bench_fn)
        if named in self.cache:  # where it came from the disk
            self.cache[tuning_key] = self.cache.pop(named)
        return found


class Tuned:
    """A kernel and the configurations it may run with.

    The first plan of a problem measures them (Triton's autotuner, which keeps what it finds on disk). A problem that is
    first met inside a CUDA-graph capture runs with the first configuration, since nothing can be measured there. What is
    drawn, and the amount of a noise, is no part of a problem.

    kernel:  a @triton.jit function that takes tensors, then scale and cut of a noise, then numbers, the last ones those
             that the configurations set
    configs: the first that suits is used where nothing can be measured; the last, of small tiles, always suits
    problem: names of the kernel's arguments that make a problem for the tuner
    fits:    whether a configuration suits a problem, of its sizes and the kernel's arguments by name
    typical: the kernel's arguments by name -> those that are measured with something else than what this launch draws.
             A first draw that happens to leave few taps must not decide for all later ones
    """

    def __init__(
        self,
        kernel: Any,
        configs: Sequence[triton.Config],
        problem: Sequence[str],
        fits: Callable[[dict], bool],
        typical: Callable[[dict], dict],
    ):
        self.kernel, self.configs = kernel, list(configs)
        self._problem, self._fits, self._typical = tuple(problem), fits, typical
        _kernels.append(kernel)
        prune = {"early_config_prune": lambda configs, arguments, **_: self._suited(arguments)}
        self._tuner = _Tuner(kernel, kernel.arg_names, self.configs, list(problem), None, None,
                             prune_configs_by=prune, cache_results=True)  # fmt: skip

    def suited(self, arguments: tuple) -> list[triton.Config]:
        """The configurations to choose from for this launch; never empty. arguments: all that they do not set."""
        return self._suited(self._named(arguments))

    def _suited(self, named: dict) -> list[triton.Config]:
        return [c for c in self.configs if self._fits({**named, **c.all_kwargs()})] or self.configs[-1:]

    def _named(self, arguments: tuple) -> dict:
        return dict(zip(self.kernel.arg_names, arguments, strict=False))

    def plan(
        self, tensors: Sequence[Tensor | None], numbers: Sequence[Any], programs: Callable[[dict], int]
    ) -> Planned:
        """How this problem is launched.

        tensors:  as the launch will get them; the first is on the device that the kernel runs on. Where the results are
                  among them, they hold anything afterwards, and are large enough for every configuration
        numbers:  what the kernel takes after them and the noise's two, and a configuration does not set
        programs: what a configuration sets -> the number of programs
        """
        settle_cache_keys()
        arguments = (*tensors, 0.0, 0, *numbers)
        config = self._choose(programs, arguments)
        tail = [config.kwargs[name] for name in self.kernel.arg_names[len(arguments) :]]
        planned = Planned(self.kernel, config, programs(config.kwargs), (*numbers, *tail), tensors[0].device)  # type: ignore[union-attr]
        if _pick is not None:
            _made.append(planned)
        return planned

    def _choose(self, programs: Callable[[dict], int], arguments: tuple) -> triton.Config:
        if _pick is not None:
            return _pick(self.kernel.__name__, self.suited(arguments))
        if not _MEASURES:
            return self.configs[-1]
        if _capturing():
            return self.suited(arguments)[0]
        named = self._named(arguments)
        with _on(arguments[0].device):
            self._tuner[lambda meta: (programs(meta),)](*{**named, **self._typical(named)}.values())
        best = self._tuner.best_config
        problem = tuple(named[name] for name in self._problem)
        _chosen[self.kernel, problem, arguments[0].dtype] = Chosen(self.kernel.__name__, problem, best)
        return best


class Planned:
    """A launch of which only addresses and the amounts of a noise change.

    name, config: of the kernel, and the configuration that it has
    compiled:     what Triton made of it at the last launch that passed through Triton, None before and where it interprets
    """

    def __init__(self, kernel: Any, config: triton.Config, programs: int, numbers: tuple, device: torch.device):
        self.name, self.config = kernel.__name__, config
        self.compiled: Any = None
        self._kernel, self._programs, self._numbers, self._device = kernel, programs, numbers, device
        self._index = device.index or 0
        options = {name: value for name, value in config.all_kwargs().items() if name not in config.kwargs}
        self._options = {} if INTERPRETED else options
        self._launch: Callable[..., None] | None = None
        self._function: Any = None
        self._metadata: Any = None

    def __call__(self, tensors: Sequence[Tensor | None], amounts: tuple[float, int]) -> None:
        """tensors: with the sizes, strides and dtypes of those that the plan was made for. amounts: scale and cut."""
        launch = self._launch
        if launch is None or _hooked():
            return self._through_triton(tensors, amounts)
        addresses: list[int | None] = []
        together = 0
        for tensor in tensors:
            if tensor is None:
                addresses.append(None)
            else:
                address = tensor.data_ptr()
                together |= address
                addresses.append(address)
        if together & 15:
            return self._through_triton(tensors, amounts)
        driver = triton.runtime.driver.active
        if driver.get_current_device() != self._index:
            with _on(self._device):
                return self(tensors, amounts)
        launch(self._programs, 1, 1, driver.get_current_stream(self._index), self._function, self._metadata,
               None, None, None, *addresses, *amounts, *self._numbers)  # fmt: skip
        return None

    def _through_triton(self, tensors: Sequence[Tensor | None], amounts: tuple[float, int]) -> None:
        """As Triton launches kernels: it looks at every argument, compiles and loads where it must."""
        aligned = all(tensor is None or tensor.data_ptr() % 16 == 0 for tensor in tensors)
        with _on(self._device), _loading_in_a_capture():
            compiled = self._kernel[(self._programs,)](*tensors, *amounts, *self._numbers, **self._options)
        self.compiled = compiled
        # What is compiled for addresses that are no multiples of 16 is for those alone. On AMD it also depends on the size
        # of the storages, which a plan does not know.
        if aligned and not INTERPRETED and torch.version.hip is None:
            self._launch, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata


def _hooked() -> bool:
    """Whether somebody, a profiler most often, wants to be told of launches."""
    return bool(
        getattr(_runtime.launch_enter_hook, "calls", _runtime.launch_enter_hook)
        or getattr(_runtime.launch_exit_hook, "calls", _runtime.launch_exit_hook)
    )


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """A block in which this GPU is the current one, on which Triton measures, loads and launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _loading_in_a_capture() -> Iterator[None]:
    """A block in which a kernel can be loaded while this thread captures a graph.

    Loading may allocate, which a capture in the usual, global mode forbids; it is no part of the graph.
    """
    if torch.version.cuda is None or not _capturing():
        yield
        return
    mode = ctypes.c_int(_RELAXED)
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


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


class WeightPlan(NamedTuple):
    """The launch of a weight gradient, and what it takes besides its results.

    weight_format: that PW is copied to first; None where it is read as it is
    """

    launch: Planned
    scratch: Scratch
    weight_format: torch.memory_format | None = None


class Scratch(NamedTuple):
    """What a weight gradient needs of memory.

    sums:  lines of the gain's gradient that are to be added up
    parts: fp32 numbers of the parts of a sum that is cut
    tiles: counters of the parts that have arrived
    """

    sums: int
    parts: int
    tiles: int

    def new(self, x: Tensor, outputs: int, zeroed: bool = False) -> tuple[Tensor | None, ...]:
        """dgain (sums, outputs), parts, arrived as kernels take them. zeroed: where some sums may stay unwritten

        The counters are zeroed at each call. Kept ones would save a fill, but could lie in the memory of a CUDA graph that
        was recorded around the call, and be gone with it.
        """
        new_sums = x.new_zeros if zeroed else x.new_empty
        return (
            new_sums((self.sums, outputs), dtype=torch.float32) if self.sums else None,
            x.new_empty(self.parts, dtype=torch.float32) if self.parts else None,
            x.new_zeros(self.tiles, dtype=torch.int32) if self.parts else None,
        )


class Cut(NamedTuple):
    """A sum over `blocks` blocks for each of `tiles` tiles of `size` numbers, in as many parts as the device wants."""

    tiles: int
    blocks: int
    size: int

    def splits(self, programs: int) -> int:
        return splits_of(self.tiles, self.blocks, programs)

    def scratch(self, sums: int, programs: int) -> Scratch:
        splits = self.splits(programs)
        return Scratch(sums, splits * self.tiles * self.size, self.tiles) if splits > 1 else Scratch(sums, 0, 0)


def most_scratch(each: Sequence[Scratch]) -> Scratch:
    """Enough for every one of them."""
    return Scratch(*(max(column) for column in zip(*each, strict=True)))


def meta_of(tensor: Tensor | None) -> tuple | None:
    """What a plan knows of a gain: how many elements, and of which dtype."""
    return None if tensor is None else (tensor.numel(), tensor.dtype)


def dense(vector: Tensor | None) -> Tensor | None:
    """A bias or a gain whose elements are adjacent, as kernels read it."""
    return vector if vector is None or vector.is_contiguous() else vector.contiguous()
