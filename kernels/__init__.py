"""Triton kernels, one operation a file; nothing here imports from the rest of `rnndrop`.

    philox          the mask stream as a value function: sixteen keep bits a call
    activation      tanh and relu and their derivatives as value functions
    packed_mask     a mask written as bits, which the sequence kernels read
    tanh_dropout    activation and dropout in one pass, masks made in registers
    sequence        what the next two share
    resident        a whole sequence in one launch, the recurrent weight on one multiprocessor
    cooperative     a whole sequence in one cooperative launch, the weight spread over many multiprocessors
    stepwise        one library product and one pointwise kernel a step
    strategy        which of the three runs, and why

RESOURCES.md has what each takes of a multiprocessor, COSTS.md the instructions and bytes counted.

The folder is installed as `rnndrop.kernels`: a package named `kernels` exists on PyPI.
"""

if __name__ != "rnndrop.kernels":
    raise ImportError("this folder is the package rnndrop.kernels; import it by that name")
