"""What must hold of a strategy's forward and backward of a GRU or an LSTM; tests give it the real ones and broken ones."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rnndrop import reference
from rnndrop.cell import CELLS, Weights
from rnndrop.kernels.launch import MaskBits
from rnndrop.mask import Mask
from rnndrop.steps import Steps
from tests import stream
from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

QUARTER = {"hidden": 16384}
EVERY = {"hidden": 16384, "recurrent": 16384, "zoneout": 12000, "candidate": 20000, "cell": 9000, "cell_zoneout": 24000}


def every_kind(cell: str, **others: int) -> dict[str, int]:
    """A threshold for each kind that the cell has."""
    return {kind: EVERY[kind] for kind in CELLS[cell].kinds} | others


class Case(NamedTuple):
    """One layer and direction of a GRU or an LSTM.

    thresholds: of 65536, of the masks there are, by kind. once: the kinds whose mask is the same at all steps. bias: whether
    W_hn of a GRU has one. sizes: the rows of each step of packed data.
    """

    cell: str = "LSTM"
    T: int = 3
    B: int = 3
    H: int = 384
    dtype: torch.dtype = torch.float32
    thresholds: Mapping[str, int] = QUARTER
    once: tuple[str, ...] = ()
    reverse: bool = False
    tf32: bool = False
    bias: bool = True
    sizes: tuple[int, ...] | None = None

    @property
    def options(self) -> dict:
        named = {"cell": self.cell, "reverse": self.reverse, "tf32": self.tf32}
        return named if self.sizes is None else named | {"sizes": self.sizes}

    @property
    def step_sizes(self) -> tuple[int, ...]:
        return self.sizes or (self.B,) * self.T

    @property
    def steps(self) -> Steps:
        sizes = None if self.sizes is None else torch.tensor(self.sizes)
        return Steps(len(self.step_sizes), self.step_sizes[0], sizes, self.reverse)

    def shape(self, columns: int) -> tuple[int, ...]:
        """Of what has a row for each row of the sequences, so many columns in units of H."""
        width = columns * self.H
        return (self.T, self.B, width) if self.sizes is None else (sum(self.sizes), width)

    def scale(self, kind: str) -> float:
        return 1.0 if "zoneout" in kind else stream.scale_of(self.thresholds[kind])


class Inputs(NamedTuple):
    input_projection: Tensor
    states: list[Tensor]
    w_hh: Tensor
    b_hn: Tensor | None
    grad_output: Tensor
    grad_states: list[Tensor | None]
    keeps: dict[str, Tensor]  # booleans (rows, H), by kind


class Results(NamedTuple):
    """On the CPU."""

    output: Tensor
    saved: list[Tensor]
    grad_gates: Tensor
    grad_states: list[Tensor]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The name and the tensor of each."""
        yield "output", self.output
        yield from zip(("saved gates", "saved cell state"), self.saved, strict=False)
        yield "grad_gates", self.grad_gates
        yield from zip(("grad_h_0", "grad_c_0"), self.grad_states, strict=False)


def inputs(case: Case) -> Inputs:
    """Of the case's dtype, on the CPU. W_hh contracts, dropout's scales included, so that errors do not grow with T."""
    generator = torch.Generator().manual_seed(case.B * 1000 + case.H)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * size).to(case.dtype)

    B, H, cell = case.step_sizes[0], case.H, CELLS[case.cell]
    size = 0.7 / H**0.5 / max([1.0, *map(case.scale, case.thresholds)])
    keeps = {
        kind: stream.keep(-7, B if kind in case.once else sum(case.step_sizes), H, threshold, stream.stream_of(kind))
        for kind, threshold in case.thresholds.items()
    }
    return Inputs(
        normal(*case.shape(cell.gates)),
        [normal(B, H) for _ in cell.states],
        normal(cell.gates * H, H, size=size),
        normal(H) if case.bias and case.cell == "GRU" else None,
        normal(*case.shape(1)),
        [normal(B, H) for _ in cell.states],
        keeps,
    )


def masks(case: Case, keeps: Mapping[str, Tensor], device: str) -> dict[str, MaskBits]:
    """As the launchers take them."""
    return {kind: MaskBits(stream.pack(keep).to(device), case.scale(kind)) for kind, keep in keeps.items()}


def rows_of(case: Case, kind: str, keep: Tensor) -> Tensor:
    """A mask's rows as the data has them, (rows of data, H)."""
    return torch.cat([keep[:n] for n in case.step_sizes]) if kind in case.once else keep


def oracle(case: Case, given: Inputs, expectations: Mapping[str, float] | None = None) -> Results:
    """By the steps of the plain loop in float64. What has been projected already, W_ih leaves as it is. `expectations`: the old
    state's share, by kind of zoneout."""
    H, gru, step = case.H, case.cell == "GRU", reference.STEP[case.cell]
    x = given.input_projection.double().view(-1, given.input_projection.shape[-1]).requires_grad_()
    first = [state.double().requires_grad_() for state in given.states]
    b_hh = None if given.b_hn is None else torch.cat([given.b_hn.new_zeros(2 * H), given.b_hn]).double()
    weights = Weights(torch.eye(x.shape[1], dtype=torch.float64), given.w_hh.double(), None, b_hh)
    of_rows = {kind: rows_of(case, kind, keep) for kind, keep in given.keeps.items()}
    shares = {kind: Mask(torch.empty(0, H), share) for kind, share in (expectations or {}).items()}

    rows, states = {}, first  # by their first row, since a reverse direction makes the last first
    for start, stop in case.steps.ranges:
        old = [state[: stop - start] for state in states]
        now = {kind: Mask(keep[start:stop], case.scale(kind)) for kind, keep in of_rows.items()} | shares
        new = step(x[start:stop], tuple(old), weights, now, "tanh")
        of_h = torch.nn.functional.linear(reference.dropout(old[0], now.get("recurrent")), weights.w_hh, b_hh)
        rows[start] = new[0], _saved_gates(x[start:stop], of_h, gru), *new[1:]
        states = [torch.cat([after, before[stop - start :]]) for after, before in zip(new, states, strict=True)]
    output, *saved = (torch.cat(parts) for parts in zip(*(rows[start] for start in sorted(rows)), strict=True))

    grads = [grad.double() for grad in (given.grad_output.view(-1, H), *given.grad_states) if grad is not None]
    ends = [state for state, grad in zip(states, given.grad_states, strict=True) if grad is not None]
    grad_gates, *grad_states = torch.autograd.grad([output, *ends], [x, *first], grads)
    if gru:
        r, d_n = saved[0].detach()[:, H : 2 * H], grad_gates[:, 2 * H :]
        grad_gates = torch.cat([r * d_n, grad_gates], 1)
    shaped = (y.detach().view(case.shape(y.shape[1] // H)) for y in (output, *saved, grad_gates))
    output, *saved, grad_gates = shaped
    return Results(output, saved, grad_gates, grad_states)


def _saved_gates(of_x: Tensor, of_h: Tensor, gru: bool) -> Tensor:
    """hn, r, z, n of a GRU, i, f, g, o of an LSTM, by their definition."""
    if gru:
        (x_r, x_z, x_n), (h_r, h_z, hn) = of_x.chunk(3, 1), of_h.chunk(3, 1)
        r = torch.sigmoid(x_r + h_r)
        return torch.cat([hn, r, torch.sigmoid(x_z + h_z), torch.tanh(x_n + r * hn)], 1)
    i, f, g, o = (of_x + of_h).chunk(4, 1)
    return torch.cat([torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)], 1)


def run(strategy, case: Case, given: Inputs, device: str) -> Results:
    """A strategy's forward and backward."""

    def there(tensors):
        return [None if x is None else x.to(device) for x in tensors]

    x, w_hh, b_hn, grad_output = there([given.input_projection, given.w_hh, given.b_hn, given.grad_output])
    states, grad_ends = there(given.states), there(given.grad_states)
    made = masks(case, given.keeps, device)
    output, saved = strategy.forward(x, states, w_hh, made, b_hn=b_hn, **case.options)
    grad_gates, grad_states = strategy.backward(grad_output, grad_ends, states, output, saved, w_hh, made, **case.options)
    results = Results(output.cpu(), [y.cpu() for y in saved], grad_gates.cpu(), [y.cpu() for y in grad_states])
    shapes = [case.shape(columns) for columns in (1, *CELLS[case.cell].saved, CELLS[case.cell].columns)]
    shapes += [state.shape for state in given.states]
    for (name, y), shape in zip(results.named(), shapes, strict=True):
        assert y.shape == shape and y.dtype == case.dtype and y.is_contiguous(), name
    return results


def bound_of(case: Case) -> float:
    """How far a result may be from float64, in units of its largest element."""
    cut = 2 if case.dtype == torch.bfloat16 and backend() == "interpreter" else 1  # it truncates to bf16
    return cut * SEQUENCE["tf32" if case.tf32 else case.dtype]


def assert_near(case: Case, name: str, found: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item()
    worst = (found.double() - expected).abs().max().item()  # NaN is not below anything
    assert worst <= bound_of(case) * max(1.0, largest), f"{name} differs by {worst:.3g}, largest element {largest:.3g}"


def against_float64(strategy, case: Case, device: str) -> None:
    """Output, what is saved and gradients near the oracle's, and exact zeros where a mask drops."""
    given = inputs(case)
    got, expected = run(strategy, case, given, device), oracle(case, given)
    for (name, found), (_, y) in zip(got.named(), expected.named(), strict=True):
        assert_near(case, name, found, y)
    zeros_where_dropped(case, given, got)


def zeros_where_dropped(case: Case, given: Inputs, got: Results) -> None:
    """What a mask drops is 0, and so is the gradient of what made it."""
    H = case.H
    dropped = {kind: ~rows_of(case, kind, keep) for kind, keep in given.keeps.items()}
    gates = dict(zip(gate_names(case), got.grad_gates.view(-1, 4 * H).split(H, 1), strict=True))
    if "hidden" in dropped:
        assert "zoneout" in dropped or (got.output.view(-1, H)[dropped["hidden"]] == 0).all()
        for gate in "o" if case.cell == "LSTM" else gates:
            assert (gates[gate][dropped["hidden"]] == 0).all(), f"the hidden mask drops d_{gate}"
    if "cell" in dropped:
        assert "cell_zoneout" in dropped or (got.saved[1].view(-1, H)[dropped["cell"]] == 0).all()
        for gate in "ifg":
            assert (gates[gate][dropped["cell"]] == 0).all(), f"the cell mask drops d_{gate}"
    if "candidate" in dropped:
        for gate in "g" if case.cell == "LSTM" else ("hn", "r", "n"):
            assert (gates[gate][dropped["candidate"]] == 0).all(), f"the candidate mask drops d_{gate}"


def gate_names(case: Case) -> tuple[str, ...]:
    return ("i", "f", "g", "o") if case.cell == "LSTM" else ("hn", "r", "z", "n")


def gradient_has_the_mask_of_the_output(strategy, case: Case, device: str) -> None:
    """With a hidden mask alone: every kept unit of every step passes its gradient to its gates, and no other."""
    given = inputs(case)
    given.grad_output.fill_(8.0)  # nothing can undo it
    given.input_projection.mul_(0.3)  # no gate is 0 or 1, where its slope is 0
    got = run(strategy, case, given, device)
    keep = rows_of(case, "hidden", given.keeps["hidden"])
    assert torch.equal(got.output.view(-1, case.H) != 0, keep), "the output's mask is not the given one"
    last = got.grad_gates.view(-1, 4 * case.H)[:, 3 * case.H :]  # o, or n
    assert torch.equal(last != 0, keep), "the gradient's mask is not the given one"


def without_gradients_of_the_states(strategy, case: Case, device: str) -> None:
    """Where nobody asks for the states at the end; each alone."""
    given = inputs(case)
    for missing in range(len(given.states)):
        given.grad_states[missing] = None
        if any(grad is not None for grad in given.grad_states) or missing + 1 == len(given.states):
            got, expected = run(strategy, case, given, device), oracle(case, given)
            for (name, found), (_, y) in zip(got.named(), expected.named(), strict=True):
                assert_near(case, name, found, y)


def not_a_number(strategy, case: Case, device: str) -> None:
    """A NaN of the input stays in its sequence, one of the last gradient in its row; a mask that drops it stops it."""
    assert case.sizes is None and not case.reverse and "hidden" in case.thresholds
    given = inputs(case)
    candidate = slice(2 * case.H, 3 * case.H)  # g, or n
    given.input_projection[1, 0, candidate] = float("nan")
    given.grad_output[-1, 2] = float("nan")
    got = run(strategy, case, given, device)
    keeps = {kind: rows_of(case, kind, keep).view(case.T, case.B, -1) for kind, keep in given.keeps.items()}
    made = keeps["candidate"] & keeps["cell"] if case.cell == "LSTM" else keeps["candidate"]
    keep = keeps["hidden"]
    assert torch.equal(got.output[1, 0].isnan(), made[1, 0] & keep[1, 0]) and not got.output[:, 1:].isnan().any()
    assert (got.output[~keep] == 0).all()
    if case.cell == "LSTM":
        assert torch.equal(got.saved[1][1, 0].isnan(), made[1, 0])
    gates = got.grad_gates[..., 3 * case.H :]  # o, or n
    assert torch.equal(gates[-1, 2].isnan(), keep[-1, 2] if case.cell == "LSTM" else keep[-1, 2] & keeps["candidate"][-1, 2])
    assert not got.grad_gates[:, 1].isnan().any()


def expectation_of_zoneout(strategy, case: Case, device: str) -> None:
    """The output in evaluation, of shares that no mask has; with the masks that a case has besides."""
    given, shares = inputs(case), {"zoneout": 0.3125}
    if case.cell == "LSTM":
        shares["cell_zoneout"] = 0.4375
    bits = masks(case, given.keeps, device)
    bits |= {kind: MaskBits(torch.empty(0, 0, dtype=torch.int32), share) for kind, share in shares.items()}
    states = [state.to(device) for state in given.states]
    b_hn = None if given.b_hn is None else given.b_hn.to(device)
    x, w_hh = given.input_projection.to(device), given.w_hh.to(device)
    output, saved = strategy.forward(x, states, w_hh, bits, b_hn=b_hn, **case.options)
    expected = oracle(case, given, shares)
    assert_near(case, "output", output.cpu(), expected.output)
    for name, found, y in zip(("saved gates", "saved cell state"), saved, expected.saved, strict=False):
        assert_near(case, name, found.cpu(), y)


def zoneout_chooses(strategy, case: Case, device: str) -> None:
    """A NaN of a state that is not taken goes nowhere, forward and backward. Nothing of h goes through W_hh or a carry here:
    it is dropped on its way there, and a GRU, whose carry cannot be, is not asked."""
    case = case._replace(cell="LSTM", T=2, thresholds={"recurrent": 65536, "zoneout": 32768, "cell_zoneout": 24576})
    given, H = inputs(case), case.H
    h_0, _ = given.states
    given.input_projection[0, :, 3 * H :][:, ::2] = float("nan")  # o: it reaches h alone
    h_0[:, 1::2] = float("nan")
    given.grad_output[0] = float("nan")
    new = given.keeps["zoneout"][: case.B]
    got = run(strategy, case, given, device)
    assert torch.equal(got.output[0].isnan(), torch.where(torch.arange(H) % 2 == 0, new, ~new))
    assert not got.saved[1].isnan().any()
    grad_o, new_odd = got.grad_gates[0, :, 3 * H :][:, 1::2], new[:, 1::2]  # where o is a number
    assert torch.equal(grad_o.isnan(), new_odd) and (grad_o[~new_odd] == 0).all()
    assert torch.equal(got.grad_states[0].isnan(), ~new) and (got.grad_states[0][new] == 0).all()
