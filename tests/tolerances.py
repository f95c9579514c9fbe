"""How far a result may be from float64, by dtype, and why."""

import torch

# One rounding to the nearest is half of this, relative.
EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

# Activation and dropout of one element: relative. fp32: tanh to 2 units, one product. 16 bit: computed in fp32 with
# 2**-14 to spare, then one rounding. fp64: a few roundings.
POINTWISE = {
    torch.float64: 4 * EPSILON[torch.float64],
    torch.float32: 3 * EPSILON[torch.float32],
    torch.float16: 0.6 * EPSILON[torch.float16],
    torch.bfloat16: 0.51 * EPSILON[torch.bfloat16],
}

# The gradient comes from the stored output, and 1 - f*f doubles its error: absolute, for a gradient of size 1 and
# scale 1; then one more rounding.
POINTWISE_GRADIENT = {dtype: 2 * bound + EPSILON[dtype] for dtype, bound in POINTWISE.items()}

# A whole sequence, relative to the largest element. Each step rounds its state once, and the recurrence of a trained or
# freshly initialised layer contracts, so errors of a few steps add up, not those of all of them.
SEQUENCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
    "tf32": 5e-3,  # products take operands of 10 bits, like fp16; everything else is fp32
}
