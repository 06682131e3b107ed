"""The callback for `pytorch_lightning`, whose Trainer takes no callback made for `lightning`."""

from watnn.integrations.callback import WATHooks

try:
    from pytorch_lightning import Callback
except ImportError as error:
    raise ImportError(
        "watnn.integrations.pytorch_lightning needs the package pytorch_lightning: pip install pytorch-lightning"
    ) from error


class WATCallback(WATHooks, Callback):
    __doc__ = WATHooks.__doc__
