"""What every recurrent module has: parameters, checks, packing, layers and directions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..autocast import autocasts, cast, compute_dtype, dtype_beside
from ..cell import CELLS, Cell, Weights
from ..checks import check_dtype, check_length, check_tensors
from ..dispatch import mask_form
from ..dropouts import Dropouts, LayerAttributes
from ..layer import (
    MaskSource,
    both_directions,
    outside_dropout,
    recurrent_layer,
    resolved,
    seed_tensor,
    takes_both_directions,
    weight_dropout,
)
from ..mask import check_seed
from ..ops.eager import beyond_torch
from ..ops.torch_layers import compacting, runs_again, torch_layers
from ..replicated import distributed, is_distributed, local
from ..steps import Steps, check_order, checked_batch_sizes
from .leaf import call_of, is_symbolic

Self = TypeVar("Self", bound="RNNBase")
States = TypeVar("States")


class Call(Protocol[States]):
    """`forward` as the module is called, which nn.Module has as Callable[..., Any]: for type checkers."""

    @overload
    def __call__(
        self, input: Tensor, hx: States | None = None, *, seed: int | Tensor | None = None
    ) -> tuple[Tensor, States]: ...

    @overload
    def __call__(
        self, input: PackedSequence, hx: States | None = None, *, seed: int | Tensor | None = None
    ) -> tuple[PackedSequence, States]: ...


class RNNBase(LayerAttributes, nn.Module):
    """Layers of one kind of cell, which `mode` names as in :class:`torch.nn.RNNBase`.

    What that class has for its users and heirs is here too, the checks and `permute_hidden` to be overridden, and of its
    private names `_all_weights`, `_flat_weights` and `_flat_weights_names`. Not here, on purpose: `__constants__` and
    `__jit_unused_properties__`, which only ``torch.jit.script`` reads (it takes ``rnndrop.to_torch(model)``), and
    `_flat_weight_refs`, `_init_flat_weights`, `_update_flat_weights` and `_weights_have_changed`, which keep a list of weights
    up to date: here weights are looked up by name at every call.
    """

    proj_size = 0  # units of a projected state, 0 where it is not projected

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        bidirectional: bool,
        device: Any,
        dtype: torch.dtype | None,
        dropouts: Dropouts,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        _check_arguments(input_size, hidden_size, num_layers, bias, batch_first, proj_size)
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        if proj_size:
            self.proj_size = proj_size
        self._dropouts = dropouts
        if self.dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={self.dropout} and num_layers={num_layers}",
                stacklevel=3,
            )
        self._all_weights = _weight_names(num_layers, bidirectional, bias, proj_size > 0)
        rows, output = self.cell.gates * hidden_size, self._state_sizes[0]
        for number, names in enumerate(self._all_weights):
            shapes = [(rows, self._width(number // self.num_directions)), (rows, output), *[(rows,)] * 2 * bias]
            for name, shape in zip(names, [*shapes, (proj_size, hidden_size)], strict=False):
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.flatten_parameters()
        self.reset_parameters()

    @property
    def cell(self) -> Cell:
        return CELLS[self.mode]

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def _width(self, layer: int) -> int:
        """The features of a layer's input."""
        return self._state_sizes[0] * self.num_directions if layer else self.input_size

    @property
    def _state_sizes(self) -> list[int]:
        """The units of each state."""
        return [self.proj_size or self.hidden_size, self.hidden_size][: len(self.cell.states)]

    def _batch(self, input: Tensor, batch_sizes: Tensor | None) -> int:
        return int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if self.batch_first else 1)

    def _sizes(self, batch: int) -> list[tuple[int, int, int]]:
        """The shapes of the states."""
        return [(self.num_layers * self.num_directions, batch, units) for units in self._state_sizes]

    def reset_parameters(self) -> None:
        reset_parameters(self)

    def flatten_parameters(self) -> None:
        """Lays the weights out in one block for cuDNN, which evaluation uses on CUDA; elsewhere does nothing."""
        nn.RNNBase.flatten_parameters(self)  # type: ignore[arg-type]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [*chain(*self._all_weights)]

    @property
    def _flat_weights(self) -> list[Any]:
        """The weights as they are now, None where a wrapper has taken one out. To assign them is to assign each by its name."""
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Any]) -> None:
        for name, before, weight in zip(self._flat_weights_names, self._flat_weights, weights, strict=True):
            if weight is not before:
                setattr(self, name, weight)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None, seed: int | Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, seed: int | Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, seed: int | Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if is_symbolic(input):
            return call_of(self, input, hx, seed)
        output, (h_n,) = self._run(input, None if hx is None else [hx], seed)
        return output, h_n

    if TYPE_CHECKING:
        __call__: Call[Tensor]

    def _run(
        self, input: Tensor | PackedSequence, states: Sequence[Tensor] | Tensor | None, seed: int | Tensor | None
    ) -> tuple[Any, Sequence[Tensor]]:
        """The output and the states at the end (L*D, B, units), or without B, of what `forward` was given."""
        if isinstance(input, PackedSequence):
            order, back = input.sorted_indices, input.unsorted_indices
            if states is not None and not (isinstance(states, Tensor) and order is None):
                states = _states(self.permute_hidden(_hidden(states), order))
            output, ends = self._run_batch(input.data, states, seed, input.batch_sizes, order)
            ends = _states(self.permute_hidden(_hidden(ends), back))
            return PackedSequence(output, input.batch_sizes, order, back), ends
        if input.dim() not in (2, 3):
            got = f"{input.dim()}D tensor" if self.cell.name == "RNN" else f"{input.dim()}D"
            raise ValueError(f"{self.cell.name}: Expected input to be 2D or 3D, got {got} instead")
        if states is not None and any(state.dim() != input.dim() for state in states):
            kind, dims = "unbatched" if input.dim() == 2 else "batched", ", ".join(f"{state.dim()}-D" for state in states)
            names, got = ("hx", f"{dims} tensor") if len(states) == 1 else ("hx and cx", f"({dims}) tensors")
            raise RuntimeError(f"For {kind} {input.dim()}-D input, {names} should also be {input.dim()}-D but got {got}")
        if input.dim() == 3:
            return self._run_batch(input, states, seed)
        batch_dim = 0 if self.batch_first else 1
        states = None if states is None else [state.unsqueeze(1) for state in states]
        output, ends = self._run_batch(input.unsqueeze(batch_dim), states, seed)
        return output.squeeze(batch_dim), [state.squeeze(1) for state in ends]

    def _run_batch(
        self,
        input: Tensor,
        states: Sequence[Tensor] | Tensor | None,
        seed: int | Tensor | None,
        batch_sizes: Tensor | None = None,
        order: Tensor | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Likewise of a batched input, or of packed data, the b-th of which is sequence order[b] of the user's batch."""
        batch = self._batch(input, batch_sizes)
        if states is None:
            states = [torch.zeros(size, dtype=input.dtype, device=input.device) for size in self._sizes(batch)]
        if batch_sizes is None or not torch.compiler.is_compiling():  # in a graph each count of sequences is another
            self.check_forward_args(input, _hidden(states), batch_sizes)
        self._check_dtypes(input, states)
        if isinstance(states, Tensor):  # both in one, which only unbatched and permuted states are taken out of
            raise TypeError("lstm(): argument 'hx' must be tuple of Tensors, not Tensor")
        if seed is not None:
            check_seed(seed, batch)
        dropouts = self._dropouts if self.training else self._dropouts.in_evaluation()
        dtypes = self._dtypes(input, states, batch_sizes) if autocasts(input.device.type) else None
        if not dropouts.any(self.num_layers) and self._by_torch(input, states, batch_sizes):
            found = self._torch_layers(input, states, self._flat_weights, batch_sizes, self.num_layers, self.batch_first)
            return _as(dtypes, *found) if torch.compiler.is_compiling() else found
        batch_first = batch_sizes is None and self.batch_first
        x = input.transpose(0, 1) if batch_first else input
        output, ends = _as(dtypes, *self._with_dropout(x, states, dropouts, seed, batch, batch_sizes, order))
        if is_distributed(x):
            output, *ends = [distributed(y, x) for y in (output, *ends)]
        return output.transpose(0, 1) if batch_first else output, ends

    def _with_dropout(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        dropouts: Dropouts,
        seed: int | Tensor | None,
        batch: int,
        batch_sizes: Tensor | None,
        order: Tensor | None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        check_length(x.shape[0])
        if batch_sizes is not None and not torch.compiler.is_compiling():
            checked_batch_sizes(batch_sizes, x.shape[0])
            if order is not None:
                check_order(order, batch)
        steps = Steps.of(x, batch, batch_sizes)
        x, states, layers = self._cast_and_checked(x, states, batch)
        drawn = dropouts.inside if self.training else ()
        strategy = "torch"
        if dropouts.inside or not self._by_torch(x, states, batch_sizes):
            runs = "reference" if self.proj_size else "auto"
            strategy = resolved(runs, x, steps, self.hidden_size, self.cell, drawn)
        masks = None
        if self.training and dropouts.any(self.num_layers):  # the seed is drawn after all that can be wrong
            seed = seed_tensor(seed, x.device, batch)
            masks = MaskSource(seed, steps, mask_form("auto", x.device), order=order)
            x, layers = self._dropped_before(x, layers, dropouts, masks)
        x, states = self._layers(x, states, layers, dropouts, masks, steps, strategy)
        if masks is not None and "output" in dropouts.on:
            x = outside_dropout(x, "output", dropouts, masks._replace(layer=self.num_layers - 1), self.num_directions)
        return x, states

    def _dropped_before(
        self, x: Tensor, layers: list[list[Weights]], dropouts: Dropouts, masks: MaskSource
    ) -> tuple[Tensor, list[list[Weights]]]:
        """The input and the weights, with what is dropped of them before anything runs."""
        if "input" in dropouts.on:
            x = outside_dropout(x, "input", dropouts, masks)
        if "weight" in dropouts.on:
            layers = [
                [weight_dropout(w, dropouts, masks._replace(layer=layer, direction=d)) for d, w in enumerate(weights)]
                for layer, weights in enumerate(layers)
            ]
        return x, layers

    def _layers(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        layers: list[list[Weights]],
        dropouts: Dropouts,
        masks: MaskSource | None,
        steps: Steps,
        strategy: str,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """All layers, with the dropouts inside and between them; PyTorch's own where `strategy` is "torch"."""
        if strategy == "torch" and "between" not in dropouts.on:
            return self._torch_layers_of(layers, x, states, steps)
        drawn = () if masks is None else dropouts.inside
        at_once = self.bidirectional and takes_both_directions(strategy, x, steps, self.hidden_size, self.cell, drawn)
        ends: list[Sequence[Tensor]] = []
        for number, weights in enumerate(layers):
            if masks is not None and number and "between" in dropouts.on:
                x = outside_dropout(x, "between", dropouts, masks._replace(layer=number - 1), self.num_directions)
            initial = [state.narrow(0, number * self.num_directions, self.num_directions) for state in states]
            numbered = None if masks is None else masks._replace(layer=number)
            if strategy == "torch":
                x, last = self._torch_layers_of([weights], x, initial, steps)
            elif at_once:
                x, last = both_directions(x, initial, weights, dropouts, numbered, steps, self.cell, strategy)
            else:
                x, last = self._layer(x, initial, weights, dropouts, numbered, steps, strategy)
            ends.append(last)
        return x, ends[0] if len(ends) == 1 else [torch.cat(every) for every in zip(*ends, strict=True)]

    def _layer(
        self,
        x: Tensor,
        initial: Sequence[Tensor],
        weights: Sequence[Weights],
        dropouts: Dropouts,
        masks: MaskSource | None,
        steps: Steps,
        strategy: str,
    ) -> tuple[Tensor, list[Tensor]]:
        """The output of one layer, and the last states (D, B, units) of its directions."""
        outputs, ends = [], []
        for direction, states in enumerate(zip(*[state.unbind(0) for state in initial], strict=True)):
            one = steps.backwards() if direction else steps
            source = None if masks is None else masks._replace(direction=direction)
            output, last = recurrent_layer(x, states, weights[direction], dropouts, source, one, self.cell, strategy)
            outputs.append(output)
            ends.append(last)
        if len(outputs) == 1:
            return outputs[0], [state.unsqueeze(0) for state in ends[0]]
        return torch.cat(outputs, -1), [torch.stack(pair) for pair in zip(*ends, strict=True)]

    def _by_torch(self, x: Tensor, states: Sequence[Tensor], batch_sizes: Tensor | None) -> bool:
        """Whether PyTorch's layers run those with nothing dropped inside."""
        ours = self.training and not self.proj_size and runs_again(self.mode, x, states, batch_sizes)
        return not ours and not beyond_torch()

    def _torch_layers_of(
        self, layers: Sequence[Sequence[Weights]], x: Tensor, states: Sequence[Tensor], steps: Steps
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Some of the layers, with weights that may be others than the module's."""
        weights = [tensor for layer in layers for one in layer for tensor in one if tensor is not None]
        with compacting(x):
            return self._torch_layers(x, states, weights, steps.batch_sizes, len(layers))

    def _torch_layers(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        batch_sizes: Tensor | None,
        num_layers: int = 1,
        batch_first: bool = False,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        return torch_layers(
            self.mode, x, states, weights, batch_sizes, self.bias, num_layers, self.training, self.bidirectional, batch_first
        )

    def _cast_and_checked(
        self, x: Tensor, states: Sequence[Tensor], batch: int
    ) -> tuple[Tensor, Sequence[Tensor], list[list[Weights]]]:
        """The tensors as autocast wants them, the weights by layer and direction; RuntimeError where one does not fit."""
        # not all_weights: the AttributeError of a property would name the property, not the weight
        every = [Weights.of([getattr(self, name) for name in names], self.bias) for names in self._all_weights]
        if autocasts(x.device.type):
            x, states, every = cast(x), [cast(state) for state in states], [weights.map(cast) for weights in every]
        if is_distributed(x):
            x, states, every = local(x), [local(state) for state in states], [weights.map(local) for weights in every]
        names = ["hx", "cx"][: len(states)]
        for number, (one, *of_one) in enumerate(zip(every, *[state.unbind(0) for state in states], strict=True)):
            check_tensors(x, self._width(number // self.num_directions), batch, names, of_one, one, self.cell)
        check_dtype(f"{self.cell.name.lower()}_layer", x)
        step = self.num_directions
        return x, states, [every[i : i + step] for i in range(0, len(every), step)]

    def _dtypes(self, input: Tensor, states: Sequence[Tensor], batch_sizes: Tensor | None) -> list[torch.dtype]:
        """Those of the new states, as torch.nn's under autocast: an RNN's and a projected one are products, the others sums
        with the old one. A padded LSTM is oneDNN's, which casts all; where oneDNN has no 16 bits, nn.LSTM raises."""
        product, beside = compute_dtype(input), dtype_beside(states[-1])
        if self.cell.name == "RNN" or (self.cell.name == "LSTM" and batch_sizes is None and not self.proj_size):
            beside = product
        return [product if self.proj_size else beside, beside][: len(states)]

    def _check_dtypes(self, input: Tensor, states: Sequence[Tensor] | Tensor) -> None:
        for name, state in zip(("hx", "cx"), states, strict=False):
            if state.dtype != input.dtype and not autocasts(input.device.type):
                raise RuntimeError(f"expected input and {name} to have the same dtype, got {input.dtype} and {state.dtype}")

    # What heirs of torch.nn's modules call and override.

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        dtype = self.weight_ih_l0.dtype
        if input.dtype != dtype and not autocasts(input.device.type):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        dims = 3 if batch_sizes is None else 2
        if input.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}")

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Of a state, or of the pair of an LSTM."""
        self.check_input(input, batch_sizes)
        self.check_hidden_size(hidden, self.get_expected_hidden_size(input, batch_sizes))

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        return self._sizes(self._batch(input, batch_sizes))[0]

    def check_hidden_size(
        self, hx: Tensor, expected_hidden_size: tuple[int, int, int], msg: str = "Expected hidden size {}, got {}"
    ) -> None:
        if hx.size() != expected_hidden_size:
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.size())))

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """A state, or the pair of an LSTM, in another order of the batch."""
        return hx if permutation is None else hx.index_select(1, permutation)

    def extra_repr(self) -> str:
        usual = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        changed = {name: value for name in usual if (value := getattr(self, name)) != usual[name]}
        return extra_repr(self, changed | self._dropouts.changed())


def _hidden(states: Sequence[Tensor] | Tensor) -> Any:
    """As forward is given them: a state, or the pair of an LSTM."""
    return states[0] if len(states) == 1 else tuple(states)


def _states(hidden: Any) -> list[Tensor]:
    return [hidden] if isinstance(hidden, Tensor) else [*hidden]


def _as(dtypes: Sequence[torch.dtype] | None, output: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """An output and states of these dtypes, if any are given; the output's is that of the first state."""
    if dtypes is None:
        return output, states
    given = zip((output, *states), (dtypes[0], *dtypes), strict=True)
    output, *states = [x if x.dtype == dtype else x.to(dtype) for x, dtype in given]
    return output, states


def _weight_names(num_layers: int, bidirectional: bool, bias: bool, projected: bool) -> list[list[str]]:
    """The names of the parameters of each layer and direction, in torch.nn's order."""
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * bias + ["weight_hr"] * projected
    ends = [f"_l{layer}{end}" for layer in range(num_layers) for end in ("", "_reverse")[: 1 + bidirectional]]
    return [[kind + end for kind in kinds] for end in ends]


def reset_parameters(module: Any) -> None:
    bound = 1.0 / math.sqrt(module.hidden_size) if module.hidden_size > 0 else 0.0
    for weight in module.parameters():
        nn.init.uniform_(weight, -bound, bound)


def extra_repr(module: Any, changed: dict[str, Any]) -> str:
    """The sizes, and what is not as usual."""
    return ", ".join([str(module.input_size), str(module.hidden_size), *(f"{k}={v}" for k, v in changed.items())])


def _check_arguments(input_size: Any, hidden_size: Any, num_layers: Any, bias: Any, batch_first: Any, proj_size: Any) -> None:
    typed: list[tuple[str, Any, type]] = [("bias", bias, bool), ("batch_first", batch_first, bool)]
    typed += [("input_size", input_size, int), ("hidden_size", hidden_size, int)]
    for name, value, kind in typed:
        if not isinstance(value, kind):
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")
