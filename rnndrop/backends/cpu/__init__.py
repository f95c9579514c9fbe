"""One layer, one direction on the CPU: in-place matrix products by PyTorch, everything per element by NumPy.

The rows of a sequence lie one step after another in matrices of N rows, N = T*B for a padded batch and the sum of the
batch sizes for a packed one, so that the product with the input and those for the weight gradients are one each. What is
left in the loop is one product a step, by the fastest of three libraries, the gates and the masks, which NumPy does in a
fraction of the time that PyTorch's operators need for a matrix of this size. A mask is a byte an element, -1 where kept and 0
where dropped; it is applied by a bitwise and, so that a dropped NaN is 0. An RNN's scale 1/(1-p) is folded into the recurrent
weight and multiplied into the outputs once, after the loop.

loop            the loop over time, for every cell, there and back
rnn, gru, lstm  what a cell does in a step of it
zone            units that keep the state before a step
product         the product of a step
collected       the products of many steps that give the gradients of the weights
elements        rows as NumPy sees them, masks as wide as they
pointwise       dropout, and tanh with dropout, without a recurrence
"""

from .loop import Cpu

__all__ = ["Cpu"]
