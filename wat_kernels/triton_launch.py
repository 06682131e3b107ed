"""Launching Triton kernels: a configuration is measured once for each problem, a warm launch goes straight to the driver.

    plan = tuned.plan(tensors, numbers, programs)   # once a problem: chooses the configuration
    plan(tensors, noise_numbers(noise, amount))     # each call: addresses and amounts, nothing else

A plan holds what stays the same from call to call. Its first launch passes through Triton's own, which compiles, loads
and returns the compiled kernel; later ones hand that kernel's launcher the addresses.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.cache import get_cache_manager, triton_key
from triton.tools.tensor_descriptor import TensorDescriptor

from wat_kernels.dispatch import Call

INTERPRETED = triton.knobs.runtime.interpret
_MEASURES = not INTERPRETED
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_MOST_MEASURED = 6  # configurations of a problem, of all designs together
_MOST_MAPS = 256  # of a plan: addresses that never come back must not fill the memory
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
    """Every plan is made again at its next call."""
    for found in _all_plans:
        found.clear()


_kernels: list[Any] = []  # of every Tuned, in the order in which this package imports them


@cache
def settle_cache_keys() -> None:
    """Once a process, before anything is compiled: the keys by which kernels are found in Triton's cache on disk.

    Triton (3.6, 3.7) puts a constant that a called function reads into the caller's key only where that function got its
    own key earlier. So the keys depend on which kernel comes first, and another process, which begins with another one,
    would compile again what is there. In one order they are always the same.
    """
    if not INTERPRETED:
        for kernel in _kernels:
            kernel.cache_key  # noqa: B018  # a property, kept from then on


class Tuned:
    """A kernel and the configurations it may run with: a design, of which a pass may have several.

    The first plan of a problem measures them (`fastest`, which keeps what it finds on disk). What is drawn, and the amount
    of a noise, is not part of a problem.

    kernel:  a @triton.jit function that takes tensors, then scale and cut of a noise, then numbers, the last ones those
             that the configurations set
    configs: the first that suits is used where nothing can be measured. Of a pass's last design the last, of small tiles,
             suits always
    problem: names of the kernel's arguments that make a problem for the tuner
    fits:    whether a configuration suits a problem, of its sizes and the kernel's arguments by name
    typical: the kernel's arguments by name -> those that are measured with something else than what this launch draws.
             A first draw that happens to leave few taps must not decide for all later ones
    cost:    where given, only `most` configurations of small cost are measured
    boxes:   where given, what a configuration sets -> for each tensor that the kernel takes as a descriptor its name and
             the box. Other designs take addresses
    """

    def __init__(
        self,
        kernel: Any,
        configs: Sequence[triton.Config],
        problem: Sequence[str],
        fits: Callable[[dict], bool],
        typical: Callable[[dict], dict],
        cost: Callable[[dict], float] | None = None,
        boxes: Callable[[dict], dict[str, list[int]]] | None = None,
        most: int = 4,
    ):
        self.kernel, self.configs = kernel, list(configs)
        self.problem, self.typical = tuple(problem), typical
        self._fits, self._cost, self._boxes, self._most = fits, cost, boxes, most
        _kernels.append(kernel)

    def suited(self, arguments: tuple) -> list[triton.Config]:
        """The configurations to choose from for this launch, best first; without a model of `cost` never empty.

        arguments: all that they do not set
        """
        suited = self.fitting(arguments)
        if self._cost is None:
            return suited or self.configs[-1:]
        named, cost = self.named(arguments), self._cost
        suited.sort(key=lambda c: cost({**named, **c.all_kwargs()}))
        first: dict[tuple, triton.Config] = {}
        for config in suited:  # a model cannot tell shapes of boxes apart well: the best of each of the best shapes
            first.setdefault(self._shape(config), config)
        kept = [*first.values()][: self._most - 1]
        return kept + [config for config in suited if config not in kept][: self._most - len(kept)]

    def _shape(self, config: triton.Config) -> tuple:
        """Of the box of pixels, without its channels; without boxes, all that the configuration sets."""
        boxes = self.boxes(config)
        return tuple(boxes[min(boxes)][:-1] if boxes else config.kwargs.values())

    def fitting(self, arguments: tuple) -> list[triton.Config]:
        """All that suit, in the order of `configs`."""
        named = self.named(arguments)
        return [c for c in self.configs if self._fits({**named, **c.all_kwargs()})]

    def named(self, arguments: tuple) -> dict:
        return dict(zip(self.kernel.arg_names, arguments, strict=False))

    def boxes(self, config: triton.Config) -> dict[int, list[int]]:
        """The box of each tensor that is taken as a descriptor, by its place."""
        boxes = {} if self._boxes is None else self._boxes(config.kwargs)
        return {self.kernel.arg_names.index(name): box for name, box in boxes.items()}

    def plan(
        self, tensors: Sequence[Tensor | None], numbers: Sequence[Any], programs: Callable[[dict], int]
    ) -> Planned:
        """How this problem is launched, by the only design that its pass has."""
        return fastest([Design(self, tensors, numbers, programs)])[1]


class Design(NamedTuple):
    """One of the ways to launch a problem.

    tensors:  as the launch will get them; the first is on the device that the kernel runs on. Where the results are
              among them, they hold anything afterwards, and are large enough for every configuration
    numbers:  what the kernel takes after them and the noise's two, and a configuration does not set
    programs: what a configuration sets -> the number of programs
    """

    tuned: Tuned
    tensors: Sequence[Tensor | None]
    numbers: Sequence[Any]
    programs: Callable[[dict], int]

    @property
    def arguments(self) -> tuple:
        return (*self.tensors, 0.0, 0, *self.numbers)

    def planned(self, config: triton.Config, numbers: Sequence[Any] | None = None) -> Planned:
        numbers = self.numbers if numbers is None else numbers
        tail = [config.kwargs[name] for name in self.tuned.kernel.arg_names[len(self.arguments) :]]
        device = self.tensors[0].device  # type: ignore[union-attr]
        boxes = self.tuned.boxes(config)
        return Planned(self.tuned.kernel, config, self.programs(config.kwargs), (*numbers, *tail), device, boxes)

    def typical(self, config: triton.Config) -> Callable[[], None]:
        """A launch as it is measured."""
        named = self.tuned.named(self.arguments)
        values = [*{**named, **self.tuned.typical(named)}.values()]
        tensors, numbers = values[: len(self.tensors)], values[len(self.tensors) + 2 :]
        plan = self.planned(config, numbers)
        return lambda: plan(tensors, (0.0, 0))


def fastest(designs: Sequence[Design]) -> tuple[Design, Planned]:
    """The design, and how it is launched, that is the fastest for this problem: each configuration that suits is measured.

    The answer is kept on disk. Where WAT_TRITON_TUNE is 0, the first configuration runs, which a model finds best; so does
    a problem that is first met inside a CUDA-graph capture, since nothing can be measured there.
    """
    settle_cache_keys()
    choices = [(design, config) for design in designs for config in design.tuned.suited(design.arguments)]
    last = designs[-1]
    if _pick is not None:
        config = _pick(last.tuned.kernel.__name__, [config for _, config in choices])
        design = next(design for design, one in choices if one is config)
    elif not _MEASURES:
        design, config = last, last.tuned.configs[-1]
    elif _capturing() or os.environ.get("WAT_TRITON_TUNE") == "0":
        design, config = choices[0]
    else:
        choices = choices[:_MOST_MEASURED]
        design, config = choices[_measured_best(choices) if len(choices) > 1 else 0]
        named = last.tuned.named(last.arguments)
        problem = tuple(named[name] for name in last.tuned.problem)
        kernel = design.tuned.kernel.__name__
        _chosen[last.tuned.kernel, problem, last.tensors[0].dtype] = Chosen(kernel, problem, config)  # type: ignore[union-attr]
    plan = design.planned(config)
    if _pick is not None:
        _made.append(plan)
    return design, plan


def _measured_best(choices: Sequence[tuple[Design, triton.Config]]) -> int:
    """The place of the fastest one, from the disk where this machine's kind of GPU has measured the same before."""
    last = choices[-1][0]
    named = last.tuned.named(last.arguments)
    first = last.tensors[0]
    assert first is not None
    dtypes = [one.dtype for one in last.tensors if one is not None]
    parts = (
        triton_key(), _gpu_name(first.device), [(d.tuned.kernel.cache_key, str(config)) for d, config in choices],
        [named[name] for name in last.tuned.problem], dtypes,
    )  # fmt: skip
    store = get_cache_manager(hashlib.sha256(repr(parts).encode()).hexdigest())
    kept = f"{last.tuned.kernel.__name__}.fastest.json"
    if path := store.get_file(kept):
        with contextlib.suppress(OSError, ValueError, KeyError), open(path) as file:
            place = json.load(file)["place"]
            if place < len(choices):
                return place
    with _on(first.device):
        times = [_bench(design.typical(config)) for design, config in choices]
    place = min(range(len(times)), key=times.__getitem__)
    store.put(json.dumps({"place": place, "times": times}), kept, binary=False)
    return place


def _bench(call: Callable[[], None]) -> float:
    """Milliseconds of a launch; infinite where it does not compile or needs more than the chip has. An error of the GPU is one."""
    from triton.runtime.errors import TritonError

    try:
        return float(triton.testing.do_bench(call, warmup=5, rep=30, return_mode="median"))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (TritonError, RuntimeError):  # the latter where a pass of the compiler fails
        return float("inf")


def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@cache
def moves_boxes(device: torch.device) -> bool:
    """Whether this device has a unit that moves boxes of a tensor, and memory for tiles that are worth it: NVIDIA's
    compute capabilities 9 to 11. Those of 12 have the unit, and less than half of the shared memory."""
    if INTERPRETED:
        return True
    with _on(device):
        return torch.version.hip is None and 90 <= triton.runtime.driver.active.get_current_target().arch < 120


def has_boxes(tensor: Tensor, dims: Sequence[int]) -> bool:
    """Whether boxes of these axes, the last with adjacent elements, can be moved: strides of whole 16 bytes."""
    unit = 16 // tensor.element_size()
    *outer, inner = dims
    return tensor.stride(inner) == 1 and all(
        tensor.shape[dim] == 1 or (tensor.stride(dim) > 0 and tensor.stride(dim) % unit == 0) for dim in outer
    )


class _Maps:
    """The tensor maps of a compiled kernel, which say to the chip where the boxes of a tensor lie; made once for an address.

    Triton makes them again at each launch, in a step around its launcher (3.6, 3.7), which costs more than the launch.
    """

    def __init__(self, compiled: Any, launcher: Callable, layouts: dict[int, tuple[list[int], list[int]]]):
        from triton.backends.nvidia.driver import make_tensordesc_arg

        self.run = copy.copy(compiled.run)
        self.run.launch = launcher
        self._make, self._described = make_tensordesc_arg, compiled.metadata.tensordesc_meta
        self._layouts, self._order = layouts, sorted(layouts)
        self._made: dict[tuple[int, int], list[Any]] = {}

    @classmethod
    def of(cls, compiled: Any, layouts: dict[int, tuple[list[int], list[int]]]) -> _Maps | None:
        """None where this Triton has no such step, and every launch has to pass through it."""
        launch = compiled.run.launch
        inner = inspect.getclosurevars(launch).nonlocals if inspect.isfunction(launch) else {}
        return cls(compiled, inner["launcher"], layouts) if "launcher" in inner else None

    def arguments(self, place: int, tensor: Tensor, address: int) -> list[Any]:
        """What the launcher takes for the tensor at this place: its map, sizes and strides."""
        found = self._made.get((place, address))
        if found is None:
            if len(self._made) >= _MOST_MAPS:
                self._made.clear()
            described = TensorDescriptor(
                tensor, *self._layouts[place], self._described[self._order.index(place)]["block_size"]
            )
            found = self._make(described, self._described[self._order.index(place)])
            self._made[place, address] = found
        return found


def _layout(tensor: Tensor, box: list[int]) -> tuple[list[int], list[int]]:
    """Sizes and strides of a descriptor: of images (N, H, W, C) for boxes of four axes, of a weight (O, taps * I) for two."""
    if len(box) == 2:
        return [tensor.shape[0], tensor[0].numel()], [max(tensor.stride(0), tensor[0].numel()), 1]
    tensor = tensor if tensor.ndim == 4 else tensor.unsqueeze(2)  # a sequence is an image of height 1
    unit = 16 // tensor.element_size()
    (n, c, h, w), (stride_n, _, stride_h, stride_w) = tensor.shape, tensor.stride()
    strides = [
        s if size > 1 else -(-c // unit) * unit
        for size, s in zip((n, h, w), (stride_n, stride_h, stride_w), strict=True)
    ]
    return [n, h, w, c], [*strides, 1]


class Planned:
    """A launch of which only addresses and the amounts of a noise change.

    name, config: of the kernel, and the configuration that it has
    compiled:     what Triton made of it at the last launch that passed through Triton, None before and where it interprets
    """

    def __init__(
        self,
        kernel: Any,
        config: triton.Config,
        programs: int,
        numbers: tuple,
        device: torch.device,
        boxes: dict[int, list[int]],
    ):
        self.name, self.config = kernel.__name__, config
        self.compiled: Any = None
        self._kernel, self._programs, self._numbers, self._device = kernel, programs, numbers, device
        self._index, self._boxes = device.index or 0, boxes
        self._layouts: dict[int, tuple[list[int], list[int]]] = {}
        self._maps: _Maps | None = None
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
        addresses: list[Any] = []
        together = 0
        maps = self._maps
        for place, tensor in enumerate(tensors):
            if tensor is None:
                addresses.append(None)
                continue
            address = tensor.data_ptr()
            together |= address
            if maps is not None and place in self._boxes and not address & 15:
                addresses += maps.arguments(place, tensor, address)
            else:
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
        if self._boxes:
            tensors = self._described(tensors)
        with _on(self._device), _loading_in_a_capture():
            compiled = self._kernel[(self._programs,)](*tensors, *amounts, *self._numbers, **self._options)
        self.compiled = compiled
        # What is compiled for addresses that are no multiples of 16 is for those alone. On AMD it also depends on the size
        # of the storages, which a plan does not know.
        if aligned and not INTERPRETED and torch.version.hip is None:
            self._maps = _Maps.of(compiled, self._layouts) if self._boxes else None
            if self._boxes and self._maps is None:
                return
            self._launch = compiled.run if self._maps is None else self._maps.run
            self._function, self._metadata = compiled.function, compiled.packed_metadata

    def _described(self, tensors: Sequence[Tensor | None]) -> list[Any]:
        """Those that have boxes as descriptors. One whose first element does not lie at a multiple of 16 bytes is copied."""
        found: list[Any] = list(tensors)
        for place, box in self._boxes.items():
            tensor = found[place]
            self._layouts[place] = shape, strides = _layout(tensor, box)
            if tensor.data_ptr() % 16:
                tensor = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
                ).copy_(tensor)
            found[place] = TensorDescriptor(tensor, shape, strides, box)
        return found


def _hooked() -> bool:
    """Whether a hook, most often a profiler's, watches launches."""
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

    Loading may allocate, which a capture in the usual, global mode forbids; it is not part of the graph.
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
