"""The fused backends of this machine, by op."""

import torch

from wat_kernels import dispatch
from wat_kernels.ops import conv2d, linear

_OPS = {"shadow_conv2d": conv2d.BACKENDS, "shadow_linear": linear.BACKENDS}


def fused(op: str, call: dispatch.Call) -> list[str]:
    """Those that run `call`; none on a machine without a GPU."""
    if not torch.cuda.is_available():
        return []
    return [name for name in ("cuda", "triton") if name in _OPS[op] and _OPS[op][name].supports(call)[0]]


DENSE = dispatch.Call("cuda", torch.float32, (3, 3), 16, 16)
DEPTHWISE = dispatch.Call("cuda", torch.float32, (3, 3), 16, 16, 16)
LINEAR = dispatch.Call("cuda", torch.float32)
