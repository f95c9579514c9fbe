"""The operators: what autograd, the compiler and torch.func see of a mask, a dropout and a layer.

Eager mode calls an operator as an autograd.Function, whose call costs less than a torch.library operator's; the compiler
sees the torch.library operator. Both are made of the same functions. "auto" is resolved inside of them, where there are
numbers to compute with, so that a traced graph carries no device's choice.
"""
