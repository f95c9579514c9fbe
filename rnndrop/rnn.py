"""RNN and RNNCell: torch.nn's modules, with dropout inside the recurrence."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import _VF, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional
from .functional import MASK_SCOPES, NONLINEARITIES, check_choice, seed_tensor
from .mask import check_probability


class RNN(nn.Module):
    r"""DOC"""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        hidden_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        mask_scope: str = "step",
    ) -> None:
        super().__init__()
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        check_choice("mask_scope", mask_scope, MASK_SCOPES)
        _check_arguments(input_size, hidden_size, num_layers, bias, batch_first)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.nonlinearity = nonlinearity
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = check_probability("dropout", dropout)
        self.bidirectional = bidirectional
        self.hidden_dropout = check_probability("hidden_dropout", hidden_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.mask_scope = mask_scope
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        for names in self._weight_names():
            layer_input = input_size if names[0].startswith("weight_ih_l0") else hidden_size * self._directions
            shapes = [(hidden_size, layer_input), (hidden_size, hidden_size), (hidden_size,), (hidden_size,)]
            for name, shape in zip(names, shapes, strict=False):
                setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.flatten_parameters()
        self.reset_parameters()

    @classmethod
    def from_torch(cls, rnn: nn.RNN, **dropouts: Any) -> RNN:
        """A copy of an ``nn.RNN``, its weights, device, dtype and mode, with this module's dropouts.

        Args:
            rnn: the ``nn.RNN`` to copy.
            dropouts: ``hidden_dropout``, ``recurrent_dropout``, ``mask_scope``, ``dropout``.

        Raises:
            TypeError: `rnn` is no ``nn.RNN``, or an argument is unknown.
        """
        if not isinstance(rnn, nn.RNN):
            raise TypeError(f"rnn should be a torch.nn.RNN, got {type(rnn).__name__}")
        return _copy(rnn, cls, **{"dropout": rnn.dropout, **dropouts})

    def to_torch(self) -> nn.RNN:
        """A copy as ``nn.RNN``: the same function in evaluation, without the dropout inside the recurrence in training."""
        return _copy(self, nn.RNN, dropout=self.dropout)

    def reset_parameters(self) -> None:
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """Lays the weights out in one block for cuDNN, which evaluation uses on CUDA; elsewhere does nothing."""
        nn.RNNBase.flatten_parameters(self)  # type: ignore[arg-type]

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        return [[getattr(self, name) for name in names] for names in self._weight_names()]

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None, *, seed: int | Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(input, PackedSequence):
            if hx is not None and input.sorted_indices is not None:
                hx = hx.index_select(1, input.sorted_indices)
            output, h_n = self._run(input.data, hx, seed, input.batch_sizes)
            if input.unsorted_indices is not None:
                h_n = h_n.index_select(1, input.unsorted_indices)
            return PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices), h_n
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        if hx is not None and hx.dim() != input.dim():
            kind = "unbatched" if input.dim() == 2 else "batched"
            raise RuntimeError(
                f"For {kind} {input.dim()}-D input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor"
            )
        if input.dim() == 3:
            return self._run(input, hx, seed)
        batch_dim = 0 if self.batch_first else 1
        output, h_n = self._run(input.unsqueeze(batch_dim), None if hx is None else hx.unsqueeze(1), seed)
        return output.squeeze(batch_dim), h_n.squeeze(1)

    def _run(
        self, input: Tensor, hx: Tensor | None, seed: int | Tensor | None, batch_sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(output, h_n) of a batched input or of packed data."""
        self._check_input(input, batch_sizes)
        batch = int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if self.batch_first else 1)
        expected = (self.num_layers * self._directions, batch, self.hidden_size)
        if hx is None:
            hx = torch.zeros(expected, dtype=input.dtype, device=input.device)
        elif hx.size() != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.size())}")
        drops_inside = self.hidden_dropout or self.recurrent_dropout
        if not self.training or not (drops_inside or self.dropout and self.num_layers > 1):
            return self._torch_rnn(input, hx, self._flat_weights, batch_sizes, self.num_layers, self.batch_first)
        seed = seed_tensor(seed, input.device)
        time_first = batch_sizes is None and self.batch_first
        x = input.transpose(0, 1) if time_first else input
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        states = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = functional.dropout_between(x, self.dropout, seed, layer - 1, self._directions, sizes)
            x, h_n = self._layer(x, hx, seed, layer, batch_sizes, sizes)
            states.append(h_n)
        return x.transpose(0, 1) if time_first else x, torch.cat(states)

    def _layer(
        self, x: Tensor, hx: Tensor, seed: Tensor, layer: int, batch_sizes: Tensor | None, sizes: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Output and states (D, B, H) of one layer in all its directions."""
        numbers = range(layer * self._directions, (layer + 1) * self._directions)
        weights = [self.all_weights[number] for number in numbers]
        if not (self.hidden_dropout or self.recurrent_dropout):
            return self._torch_rnn(x, hx[numbers.start : numbers.stop], sum(weights, []), batch_sizes)
        results = [
            functional.rnn_layer(
                x,
                hx[number],
                *weights[direction],
                nonlinearity=self.nonlinearity,
                hidden_dropout=self.hidden_dropout,
                recurrent_dropout=self.recurrent_dropout,
                mask_scope=self.mask_scope,
                seed=seed,
                layer=layer,
                direction=direction,
                batch_sizes=sizes,
            )
            for direction, number in enumerate(numbers)
        ]
        outputs, states = zip(*results, strict=True)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1), torch.stack(states)

    def _torch_rnn(
        self,
        x: Tensor,
        hx: Tensor,
        weights: list[nn.Parameter],
        batch_sizes: Tensor | None,
        num_layers: int = 1,
        batch_first: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """PyTorch's own layers (cuDNN's on CUDA), without dropout."""
        run = _VF.rnn_tanh if self.nonlinearity == "tanh" else _VF.rnn_relu
        options = self.bias, num_layers, 0.0, self.training, self.bidirectional
        if batch_sizes is None:
            return run(x, hx, weights, *options, batch_first)
        return run(x, batch_sizes, hx, weights, *options)

    def _check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        dtype = self.weight_ih_l0.dtype
        if input.dtype != dtype and not torch.is_autocast_enabled(input.device.type):
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        dims = 3 if batch_sizes is None else 2
        if input.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )

    def extra_repr(self) -> str:
        defaults = dict(num_layers=1, bias=True, batch_first=False, dropout=0, bidirectional=False)
        defaults |= dict(hidden_dropout=0, recurrent_dropout=0, mask_scope="step")
        changed = [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _weight_names(self) -> list[list[str]]:
        """The names of the parameters of each layer and direction, in nn.RNN's order."""
        kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * self.bias
        ends = [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ("", "_reverse")[: self._directions]]
        return [[kind + end for kind in kinds] for end in ends]

    # What flatten_parameters of nn.RNNBase reads.
    proj_size = 0

    @property
    def mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"

    @property
    def _flat_weights_names(self) -> list[str]:
        return sum(self._weight_names(), [])

    @property
    def _flat_weights(self) -> list[nn.Parameter]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def _apply(self, fn: Any, recurse: bool = True) -> RNN:
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self


class RNNCell(nn.Module):
    r"""DOC"""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        hidden_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.nonlinearity = nonlinearity
        self.hidden_dropout = check_probability("hidden_dropout", hidden_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.weight_ih = nn.Parameter(torch.empty((hidden_size, input_size), device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty((hidden_size, hidden_size), device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            parameter = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    reset_parameters = RNN.reset_parameters

    def forward(self, input: Tensor, hx: Tensor | None = None, *, seed: int | Tensor | None = None) -> Tensor:
        if input.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if self.nonlinearity not in NONLINEARITIES:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        if input.dim() == 1:
            return self.forward(input.unsqueeze(0), None if hx is None else hx.unsqueeze(0), seed=seed).squeeze(0)
        if hx is None:
            hx = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        if not self.training or not (self.hidden_dropout or self.recurrent_dropout):
            return (_VF.rnn_tanh_cell if self.nonlinearity == "tanh" else _VF.rnn_relu_cell)(input, hx, *weights)
        self._check_sizes(input, hx)
        output, _ = functional.rnn_layer(
            input.unsqueeze(0),
            hx,
            *weights,
            nonlinearity=self.nonlinearity,
            hidden_dropout=self.hidden_dropout,
            recurrent_dropout=self.recurrent_dropout,
            seed=seed,
        )
        return output.squeeze(0)

    def _check_sizes(self, input: Tensor, hx: Tensor) -> None:
        if input.size(1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {self.input_size}")
        if input.size(0) != hx.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden0 batch size {hx.size(0)}")
        if hx.size(1) != self.hidden_size:
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {hx.size(1)}, expected {self.hidden_size}")

    def extra_repr(self) -> str:
        defaults = dict(bias=True, nonlinearity="tanh", hidden_dropout=0, recurrent_dropout=0)
        changed = [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])


def _check_arguments(input_size: Any, hidden_size: Any, num_layers: Any, bias: Any, batch_first: Any) -> None:
    typed = [("bias", bias, bool), ("batch_first", batch_first, bool)]
    typed += [("input_size", input_size, int), ("hidden_size", hidden_size, int)]
    for name, value, kind in typed:
        if not isinstance(value, kind):
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero")


def _copy(rnn: Any, kind: type, **dropouts: Any) -> Any:
    """A `kind` with the configuration, weights and mode of `rnn`."""
    weight = rnn.weight_ih_l0
    names = "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "bidirectional"
    with warnings.catch_warnings():  # about dropout of a single layer: the original has given it
        warnings.simplefilter("ignore")
        copy = kind(**{name: getattr(rnn, name) for name in names}, device=weight.device, dtype=weight.dtype, **dropouts)
    copy.load_state_dict(rnn.state_dict())
    for mine, theirs in zip(copy.parameters(), rnn.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return copy.train(rnn.training)
