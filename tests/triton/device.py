"""Where the Triton kernels run in these checks: on a GPU, or interpreted on the CPU under TRITON_INTERPRET=1."""

import triton

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
