"""The fused backends of this machine, by op."""

import torch

from benchmarks.gpu_check.passes import accepting
from wat_kernels import dispatch
from wat_kernels.ops import conv, linear

_OPS = {"shadow_conv": conv.BACKENDS, "shadow_linear": linear.BACKENDS}


def fused(op: str, call: dispatch.Call) -> list[str]:
    """Those that run `call`; none on a machine without a GPU."""
    return accepting(_OPS[op], call) if torch.cuda.is_available() else []


DENSE = dispatch.Call("cuda", torch.float32, (3, 3), 16, 16)
DEPTHWISE = dispatch.Call("cuda", torch.float32, (3, 3), 16, 16, 16)
LINEAR = dispatch.Call("cuda", torch.float32)
