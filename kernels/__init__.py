"""Triton kernels, one operation a file; nothing here imports from the rest of `rnndrop`.

    launch              masks and device facts as the launchers take them; why kernels cannot run here at all
    plan                tiles of `resident` and `cooperative`, and which strategy runs a layer
    philox              the mask stream as a value function: sixteen mask bits a call
    activation          tanh and relu and their derivatives as value functions
    cell                what a plain RNN makes of its gate, and back, for every sequence kernel
    gates               what a GRU and an LSTM make of their gates in a step, and back, for every kernel of either
    product             the matrix product of the sequence kernels
    split_product       the same of few rows, shared out among the warps of a program
    mask_bits           the three ways in which the sequence kernels read packed masks
    step_rows           where the rows of each step lie, for the kernels that run a step a launch
    tile_layout         the tile that `resident` keeps in registers
    slice_layout        in which order the columns of a program of `cooperative` lie in its registers
    resident_tile       what the resident kernels load of memory a step ahead
    grid_barrier        where the programs of a cooperative launch meet at each step, its steps and phases
    register_mask       a tile of rows and its mask, made in registers and never stored
    packed_mask         a mask written as bits, which the sequence kernels read
    apply_mask          a packed mask applied to rows
    activation_dropout  tanh and dropout in one pass, masks made in registers
    gated_cell          a step of a GRU or an LSTM from its gates in one pass, masks made in registers
    resident            a whole sequence in one launch, the recurrent weight on one multiprocessor
    cooperative         a whole sequence in one cooperative launch, the weight spread over many multiprocessors
    stepwise            one library product and one pointwise kernel a step
    gated_...           the same of a GRU and an LSTM

`launch` and `plan` can be imported without Triton. RESOURCES.md has what each kernel takes of a multiprocessor, COSTS.md
the instructions and bytes counted, VERSIONS.md the versions of Triton tried.

The folder is installed as `rnndrop.kernels`: a package named `kernels` exists on PyPI.
"""

if __name__ != "rnndrop.kernels":
    raise ImportError("this folder is the package rnndrop.kernels; import it by that name")
