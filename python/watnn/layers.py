"""Drop-in layers: `nn.Conv2d`, `nn.Conv1d` and `nn.Linear` whose weight is redrawn at every forward.

Nothing random is kept on a module: each forward draws a key from torch's generator and everything follows from it. So
one module used twice, two forwards before one backward, copies, checkpoints and exponential averages are all right.
Only `watnn.sync_draws` and `watnn.dom` with a key give a layer keys of its own.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from wat_kernels import MatrixGrid, MixedGrid, MixedTable, Noise, TapTable, shadow_conv1d, shadow_conv2d, shadow_linear
from wat_kernels.dispatch import check_name
from wat_kernels.mixture import check_strength
from wat_kernels.noise import TensorNoise
from watnn.bypass import Watch, note_call, watch_weight
from watnn.keys import SharedKeys, fresh_key
from watnn.transforms import Transform

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # at run time they would need Python 3.11

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
Layer = TypeVar("Layer", bound=nn.Module)
Function = TypeVar("Function", bound=Callable)
GAINS = (None, "layer", "channel")
MODES = ("auto", "aom", "dom")


class _Settings(TypedDict, total=False):
    gain: str | None
    shadows: int
    backend: str
    aom_gain: bool


class ShadowArguments(_Settings, total=False):
    """The arguments that a shadow layer takes by keyword, besides those of torch's layer. What they mean: `ShadowLayer`.

    For type checkers and editors; `_DEFAULTS` has their defaults, and help() shows both.
    """

    transform: Transform | None


_KINDS = {name: kind.__forward_arg__ for name, kind in ShadowArguments.__annotations__.items()}  # as they are written
_DEFAULTS: dict[str, Any] = {"transform": None, "gain": None, "shadows": 1, "backend": "auto", "aom_gain": True}


def _show_arguments(function: Function) -> Function:
    """Has help() and inspect.signature show the keyword arguments one by one, with their defaults."""
    written = inspect.signature(function)
    kept = [one for one in written.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_KINDS[name])
        for name, default in _DEFAULTS.items()
        if name not in written.parameters
    ]
    function.__signature__ = written.replace(parameters=[*kept, *shown])  # type: ignore[attr-defined]
    return function


class ShadowLayer(nn.Module):
    """What the three layers share: transform, gain, shadows, backend, mode.

    transform: a watnn transform, or None for a layer that never draws
    gain:      None, "layer" (one learnable scale) or "channel" (one per output channel), starting at 1
    shadows:   how many SWs one forward uses; the batch is cut into that many chunks, each of which computes as a
               micro-batch with a draw of its own: accumulating gradients and `shadows` do the same to the weight
    backend:   "auto" or the name of a wat_kernels backend
    aom_gain:  whether the gain also scales PW in AOM. The default keeps BatchNorm statistics valid in both modes;
               False is what the paper's code does
    mode:      "auto": SW while training, PW in eval(). "aom": PW. "dom": SW, of `dom_key` if that is set. Switched by
               `watnn.auto`, `watnn.aom` and `watnn.dom`
    """

    weight: Tensor
    bias: Any  # Tensor | None; torch's own layers do not agree on how to say so
    gain: nn.Parameter | None
    torch_layer: type[nn.Module]  # the layer this one stands in for
    parametrizations: nn.ModuleDict  # where torch.nn.utils.parametrize has made one
    _strength = 1.0
    _scaled_noise: TensorNoise | None = None
    _watch: Watch | None = None  # set by convert

    def _set_up(self, given: ShadowArguments) -> None:
        """Raises TypeError for a keyword that no layer has, ValueError for a value that is not accepted."""
        unknown = sorted(given.keys() - _DEFAULTS.keys())
        if unknown:
            raise TypeError(
                f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}; accepted besides torch's own "
                f"are {', '.join(_DEFAULTS)}"
            )
        self._take(**{**_DEFAULTS, **given})

    def _take(self, transform: Transform | None, gain: str | None, shadows: int, backend: str, aom_gain: bool) -> None:
        if gain not in GAINS:
            raise ValueError(f"gain={gain!r}; accepted are {', '.join(map(repr, GAINS))}")
        if not isinstance(shadows, int) or isinstance(shadows, bool) or shadows < 1:
            raise ValueError(f"shadows={shadows!r}; accepted is an int >= 1")
        self.transform = transform
        self.shadows = shadows
        self.backend = check_name(backend)
        self.aom_gain = aom_gain
        self.mode = "auto"
        self.dom_key = None
        self.shared_keys: SharedKeys | None = None
        scale = None
        if gain is not None:  # one element and not a scalar: FSDP shards no scalars
            scale = nn.Parameter(self.weight.new_ones(1 if gain == "layer" else self.weight.shape[0]))
        self.register_parameter("gain", scale)

    @classmethod
    @_show_arguments
    def from_module(
        cls,
        module: nn.Module,
        transform: Transform | None = None,
        **shadow: Unpack[_Settings],
    ) -> Self:
        """A shadow layer with the Parameters, hooks and settings of `module`, which stays as it is.

        module: the torch layer that this class stands in for.
        Raises TypeError for another layer, ValueError when its weight is not a leaf Parameter.
        """
        if type(module) is not cls.torch_layer:
            advice = ", which its first forward turns it into: call it once" if is_lazy(module) else ""
            raise TypeError(
                f"module is {type(module).__name__}; accepted is torch.nn.{cls.torch_layer.__name__}{advice}"
            )
        if not isinstance(module._parameters.get("weight"), nn.Parameter) or not module.weight.is_leaf:
            raise ValueError(
                f"module.weight of {module} is not a leaf Parameter (weight_norm or pruning?); "
                "make it one first, and apply such a method to the shadow layer"
            )
        layer = adopt(module, cls)
        layer._set_up(ShadowArguments(transform=transform, **shadow))
        return layer

    @property
    def transform(self) -> Transform | None:
        """What is drawn; another one can be assigned at any time."""
        return self._transform

    @transform.setter
    def transform(self, transform: Transform | None) -> None:
        if transform is not None and not isinstance(transform, Transform):
            raise TypeError(
                f"transform is {type(transform).__name__}; accepted is a watnn.transforms transform or None"
            )
        self._compile_transform(transform)
        self._transform = transform
        self.noise: Noise | None = None if transform is None else transform.noise
        if "_strength" in self.__dict__:
            self.strength = self._strength
        self._place_draws()

    @property
    def strength(self) -> float:
        """How much of the transform there is, 0 to 1: a draw is the identity with probability 1 - strength, and the amount
        of an elementwise noise is multiplied by it. `watnn.StrengthScheduler` assigns it."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        strength = check_strength(strength)
        if self._transform is not None and self._transform.grid is not None:
            self._mix(strength)
        if self._transform is not None and self._transform.noise is not None:
            self.noise = self._transform.noise.scaled(strength)
            if self._scaled_noise is None or self._scaled_noise.kind != self.noise.kind:
                amount = torch.zeros((), dtype=torch.float64, device="cpu")
                self._scaled_noise = TensorNoise(self.noise.kind, amount)
            self._scaled_noise.amount.fill_(self.noise.amount)
        self._strength = strength
        self._place_draws()

    @property
    def computes_shadow(self) -> bool:
        """Whether the next forward uses SW; otherwise it uses PW."""
        if self._transform is None or self.mode == "aom":
            return False
        return self.training or self.mode == "dom"

    @property
    def dom_key(self) -> int | None:
        """The key of the SW that mode "dom" computes with; None for a fresh draw at each forward."""
        return None if self._dom_key is None else int(self._dom_key)

    @dom_key.setter
    def dom_key(self, key: int | None) -> None:
        # a tensor: to a compiled graph another key is then other data, where another int would be another graph
        device = torch.device("cpu") if self.weight.is_meta else self.weight.device
        self._dom_key: Tensor | None = None if key is None else torch.tensor(key, device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.dom_key = self.dom_key  # where the weight is now
        self._place_draws()
        return self

    def _place_draws(self) -> None:
        """Puts the table or grid where the weight is. A compiled graph that had to do so would be compiled a second time."""
        drawn, device = self._draws(), self.weight.device
        if drawn is not None and device.type != "meta":
            drawn.on(device)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            watch_weight(self)
        return self

    def _key(self, input: Tensor) -> Tensor:
        self._warn_of_a_gain_without_optimizer()
        if self.mode == "dom" and self._dom_key is not None:
            return self._dom_key.to(input.device)
        if self.shared_keys is not None:
            return self.shared_keys.draw().to(input.device)
        return fresh_key(input.device)

    def _warn_of_a_gain_without_optimizer(self) -> None:
        """An optimizer that was built before the gain existed clears and updates the weight, and never the gain."""
        if torch.compiler.is_compiling() or self.gain is None or not self.gain.is_leaf:
            return
        if (
            self.gain.grad is not None
            and self.weight.is_leaf
            and self.weight.requires_grad
            and self.weight.grad is None
        ):
            warnings.warn(
                "the gradient of a shadow layer's weight was cleared and that of its gain was not: was the optimizer "
                "built before the gain existed? Convert the model first, then build the optimizer",
                stacklevel=2,
            )

    def _drawn_noise(self) -> Noise | TensorNoise | None:
        """The noise as the op takes it. To a compiled graph an amount that has been scaled is data, not a constant."""
        if self._scaled_noise is not None and self.noise is not None and torch.compiler.is_compiling():
            scaled = self._scaled_noise
            return TensorNoise(scaled.kind, scaled.amount.clone())  # a backward pass draws what its forward drew
        return self.noise

    def _plain_weight(self) -> Tensor:
        if self.gain is None or not self.aom_gain:
            return self.weight
        scale = self.gain.reshape(-1, *[1] * (self.weight.ndim - 1))
        try:
            return self.weight * scale.to(self.weight.dtype)
        except NotImplementedError as error:
            raise TypeError(
                f"weight is {type(self.weight).__name__}, which cannot be multiplied by the gain; "
                "quantize what watnn.export returns, where the gain is folded in"
            ) from error

    def reset_parameters(self) -> None:
        """As the torch layer does; the gain becomes 1."""
        super().reset_parameters()  # type: ignore[misc]  # of the torch layer, which comes next in the order of bases
        gain = self._parameters.get("gain")  # not there yet when the torch layer's constructor calls this
        if gain is not None:
            nn.init.ones_(gain)

    def __prepare_scriptable__(self) -> NoReturn:
        # torch.jit.script asks for what to script in a module's place; it would put that into the model itself
        raise TypeError(
            f"{type(self).__name__} cannot be scripted; export the model first: torch.jit.script(watnn.export(model))"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: list[str],
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if prefix + "gain" in missing_keys:  # the state of a torch layer: the gain keeps its value
            missing_keys.remove(prefix + "gain")

    def extra_repr(self) -> str:
        words = [super().extra_repr(), f"transform={self.transform!r}"]
        if self.gain is not None:
            words.append("gain=" + ("'layer'" if self.gain.numel() == 1 else "'channel'"))
        for name, default in (
            ("shadows", 1),
            ("backend", "auto"),
            ("aom_gain", True),
            ("strength", 1.0),
            ("mode", "auto"),
            ("dom_key", None),
        ):
            if getattr(self, name) != default:
                words.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(words)

    def _compile_transform(self, transform: Transform | None) -> None:
        raise NotImplementedError  # each layer: the transform as a tap table or a matrix grid

    def _mix(self, strength: float) -> None:
        raise NotImplementedError  # each layer: that table or grid, mixed with the identity

    def _draws(self) -> TapTable | MatrixGrid | None:
        raise NotImplementedError  # each layer: that table or grid


class ShadowConv(ShadowLayer):
    """What the convolutions share."""

    tap_table: TapTable
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: PaddingMode
    _reversed_padding_repeated_twice: list[int]

    def _compile_transform(self, transform: Transform | None) -> None:
        kernel = as_image(self.kernel_size)
        if transform is None or transform.grid is None:
            self.tap_table = TapTable.identity(kernel)
        else:
            self.tap_table = transform.grid.tap_table(kernel)

    def _mix(self, strength: float) -> None:
        if isinstance(self.tap_table, MixedTable):
            self.tap_table.strength = strength
        else:  # a table of its own: the plain one is shared by all layers with this transform
            self.tap_table = MixedTable(self.tap_table, strength)

    def _draws(self) -> TapTable:
        return self.tap_table


class WATConv2d(ShadowConv, nn.Conv2d):
    """`nn.Conv2d` whose weight is redrawn at every forward. Source: WAT, arXiv 2405.19590.

    Takes nn.Conv2d's arguments and then, by keyword, those of ShadowLayer.

        x: (N, C_in, H, W) or (C_in, H, W) -> (N, C_out, H_out, W_out) or (C_out, H_out, W_out)
        training: y = gain * conv2d(x, SW) + bias, SW = (M PW) * eps, drawn again
        eval:     y = gain * conv2d(x, PW) + bias
    """

    torch_layer = nn.Conv2d

    @_show_arguments
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        **shadow: Unpack[ShadowArguments],
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._set_up(shadow)

    def forward(self, input: Tensor) -> Tensor:
        note_call(self)
        if not self.computes_shadow:
            return self._conv_forward(input, self._plain_weight(), self.bias)
        _check_input(input)
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return shadow_conv2d(
            input,
            self.weight,
            self.bias,
            table=self.tap_table,
            key=self._key(input),
            gain=self.gain,
            noise=self._drawn_noise(),
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            shadows=self.shadows,
            backend=self.backend,
        )


class WATConv1d(ShadowConv, nn.Conv1d):
    """`nn.Conv1d` whose weight is redrawn at every forward. Transforms see a kernel of k taps as an image of 1 x k.

    Takes nn.Conv1d's arguments and then, by keyword, those of ShadowLayer.

        x: (N, C_in, L) or (C_in, L) -> (N, C_out, L_out) or (C_out, L_out)
    """

    torch_layer = nn.Conv1d

    @_show_arguments
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        **shadow: Unpack[ShadowArguments],
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._set_up(shadow)

    def forward(self, input: Tensor) -> Tensor:
        note_call(self)
        if not self.computes_shadow:
            return self._conv_forward(input, self._plain_weight(), self.bias)
        _check_input(input)
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return shadow_conv1d(
            input,
            self.weight,
            self.bias,
            table=self.tap_table,
            key=self._key(input),
            gain=self.gain,
            noise=self._drawn_noise(),
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            shadows=self.shadows,
            backend=self.backend,
        )


class WATLinear(ShadowLayer, nn.Linear):
    """`nn.Linear` whose weight is redrawn at every forward.

    Takes nn.Linear's arguments and then, by keyword, those of ShadowLayer. Noise acts on each weight; translation and
    flips act on the whole (out, in) matrix as on an image.

        x: (..., in) -> (..., out)
        training: y = gain * x SW^T + bias
        eval:     y = gain * x PW^T + bias
    """

    torch_layer = nn.Linear
    matrix_grid: MatrixGrid | None

    @_show_arguments
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        **shadow: Unpack[ShadowArguments],
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_up(shadow)

    def _compile_transform(self, transform: Transform | None) -> None:
        if transform is None or transform.grid is None:
            self.matrix_grid = None
        else:
            self.matrix_grid = transform.grid.matrix_grid((self.out_features, self.in_features))

    def _mix(self, strength: float) -> None:
        if isinstance(self.matrix_grid, MixedGrid):
            self.matrix_grid.strength = strength
        elif self.matrix_grid is not None:
            self.matrix_grid = MixedGrid(self.matrix_grid, strength)

    def _draws(self) -> MatrixGrid | None:
        return self.matrix_grid

    def forward(self, input: Tensor) -> Tensor:
        note_call(self)
        if not self.computes_shadow:
            return F.linear(input, self._plain_weight(), self.bias)
        _check_input(input)
        return shadow_linear(
            input,
            self.weight,
            self.bias,
            key=self._key(input),
            gain=self.gain,
            grid=self.matrix_grid,
            noise=self._drawn_noise(),
            shadows=self.shadows,
            backend=self.backend,
        )


def _check_input(input: object) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input is {type(input).__name__}; accepted is a tensor")


def as_image(kernel: tuple[int, ...]) -> tuple[int, int]:
    """The (height, width) of the tiny image that transforms see in a kernel; that of sequences has a height of 1."""
    height, width = kernel if len(kernel) == 2 else (1, *kernel)
    return height, width


SHADOW_CLASSES: Sequence[type[ShadowLayer]] = (WATConv2d, WATConv1d, WATLinear)


def adopt(module: nn.Module, cls: type[Layer]) -> Layer:
    """A `cls` with everything `module` holds: the same Parameters, buffers, hooks and attributes."""
    layer = cls.__new__(cls)
    # the registries (of parameters, of hooks, ...) are copied so that what is added to one module stays off the other
    layer.__dict__.update(
        {name: value.copy() if isinstance(value, dict | set) else value for name, value in module.__dict__.items()}
    )
    return layer


def is_lazy(module: nn.Module) -> bool:
    """Whether this is one of torch's lazy layers whose weight has no shape before the first forward."""
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


def shadow_layers(model: nn.Module) -> list[tuple[str, ShadowLayer]]:
    """(name, layer) of every shadow layer, each once, in the order of named_modules."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ShadowLayer)]
