"""What the Lightning callback does, apart from which of Lightning's two packages it is made for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim.swa_utils import update_bn

from watnn.conversion import convert
from watnn.layers import shadow_layers
from watnn.modes import ModeSwitch, aom, dom
from watnn.transforms import Transform


class WATHooks:
    """Converts a LightningModule before its optimizer is made, and evaluates it in one mode.

    transform:  what is drawn; the module is converted in place when it is set up, unless it has shadow layers already
    mode:       "aom" or "dom": what validation, test and prediction compute with. Training goes on as before
    key:        with mode="dom": the key of `watnn.dom`; by default a fresh draw at each forward
    bn_loader:  batches over which BatchNorm statistics are estimated again, for the weights of `mode`, before every
                evaluation and at the end of fit; a batch is what `module(batch)` takes, or a tuple of it and others.
                Without it they are those that training gathered over shadow weights
    scheduler:  a function from the converted module to a scheduler, such as
                `lambda module: watnn.StrengthScheduler(module, steps=20)`: stepped after each training epoch, kept in
                checkpoints, its strength logged as "wat_strength"
    options:    those of `watnn.convert`: include, exclude, gain, shadows, backend

    Layers that the module makes in `configure_model` come too late: convert them there. Place this callback before
    others that copy the module, such as WeightAveraging.
    Raises TypeError or ValueError as `watnn.convert` and `watnn.dom` do, ValueError for another mode.
    """

    def __init__(
        self,
        transform: Transform,
        *,
        mode: str = "aom",
        key: int | None = None,
        bn_loader: Iterable | None = None,
        scheduler: Callable[[nn.Module], Any] | None = None,
        **options: Any,
    ):
        super().__init__()
        if mode not in ("aom", "dom"):
            raise ValueError(f"mode={mode!r}; accepted are 'aom' and 'dom'")
        if mode == "aom" and key is not None:
            raise ValueError(f"key={key} with mode='aom'; PW has no draw")
        if "inplace" in options:
            raise ValueError("inplace is not an option here: the module is converted in place")
        self.transform = transform
        self.mode = mode
        self.key = key
        self.bn_loader = bn_loader
        self.options = options
        self._make_scheduler = scheduler
        self._scheduler: Any = None
        self._switch: ModeSwitch | None = None

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Before the checkpoint is restored, the optimizer made and the module wrapped for distributed training."""
        if not shadow_layers(pl_module):
            convert(pl_module, self.transform, inplace=True, **self.options)
        if stage == "fit" and self._make_scheduler is not None:
            self._scheduler = self._make_scheduler(pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._scheduler is not None:
            pl_module.log("wat_strength", float(self._scheduler.get_last_strength()))

    def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
        if self._scheduler is not None:
            self._scheduler.step()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self._enter(pl_module)
        self._leave()

    def on_validation_start(self, trainer: Any, pl_module: nn.Module) -> None:
        self._enter(pl_module, estimate=not trainer.sanity_checking)

    def on_test_start(self, trainer: Any, pl_module: nn.Module) -> None:
        self._enter(pl_module)

    def on_predict_start(self, trainer: Any, pl_module: nn.Module) -> None:
        self._enter(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self._leave()

    def on_test_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self._leave()

    def on_predict_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self._leave()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._scheduler is None else {"scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._scheduler is not None and "scheduler" in state_dict:
            self._scheduler.load_state_dict(state_dict["scheduler"])

    def _enter(self, pl_module: Any, estimate: bool = True) -> None:
        self._switch = aom(pl_module) if self.mode == "aom" else dom(pl_module, self.key)
        if estimate and self.bn_loader is not None:
            update_bn(self.bn_loader, pl_module, device=pl_module.device)

    def _leave(self) -> None:
        if self._switch is not None:
            self._switch.__exit__(None, None, None)
            self._switch = None
