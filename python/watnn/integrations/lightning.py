"""The callback for `lightning`: `from watnn.integrations.lightning import WATCallback`."""

from watnn.integrations.callback import WATHooks

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError(
        "watnn.integrations.lightning needs the package lightning: pip install 'wat-kernels[lightning]'"
    ) from error


class WATCallback(WATHooks, Callback):
    __doc__ = WATHooks.__doc__
