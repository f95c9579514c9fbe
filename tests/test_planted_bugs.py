"""The checks of the other files must fail on the bugs that other libraries had, and on some of our own, planted here."""

import pytest

import rnndrop.layer
from rnndrop import dropouts, functional
from rnndrop.backends.base import Result
from rnndrop.backends.cpu import Cpu, rnn
from rnndrop.mask import Mask
from rnndrop.ops import mask as mask_operator
from rnndrop.steps import Steps
from tests.backends import test_cpu
from tests.helpers import inputs_of, make_layer, make_rnn
from tests.modules import checks

RATES = [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4)]
each_rate = pytest.mark.parametrize("rates", RATES, ids=str)
KEEP_BYTES = mask_operator.keep_bytes


def check(**rates):
    test_cpu.check(make_layer(), **rates)


def check_module(lengths=None, **options):
    module = make_rnn(num_layers=2, **options)
    x, hx = (v.requires_grad_() for v in inputs_of(module))
    checks.check(module, checks.run_packed(module, x, hx, lengths), x, hx, 3, lengths)


@pytest.fixture(autouse=True)
def without_a_bug():
    for rates in RATES:
        check(**rates)


def caught(run=check, **rates):
    with pytest.raises(AssertionError, match="not close"):
        run(**rates)


def planted_in(monkeypatch, function, change):
    """Cpu's function, on arguments that are changed: (input, states, weights, masks, steps, cell), or a layer's."""
    original = getattr(Cpu, function)

    def planted(self, first, *rest):
        if function == "forward":
            return original(self, first, *change(rest))
        return original(self, change(first), *rest)

    monkeypatch.setattr(Cpu, function, planted)


@each_rate
def test_the_mask_of_the_first_step_for_all_steps_in_backward(monkeypatch, rates):
    """haste's zoneout."""

    def first_step(layer):
        masks = {kind: Mask(keep[:3].repeat(5, 1), scale) for kind, (keep, scale) in layer.masks.items()}
        return layer._replace(masks=masks)

    planted_in(monkeypatch, "backward", first_step)
    caught(**rates)


def test_recurrent_dropout_that_is_ignored(monkeypatch):
    """Keras's SimpleRNN."""
    planted_in(monkeypatch, "forward", lambda rest: (*rest[:2], {}, *rest[3:]))
    caught(recurrent_dropout=0.4)


@each_rate
def test_a_mask_repeated_over_rows(monkeypatch, rates):
    """xformers."""
    repeated = lambda seed, rows, *rest: KEEP_BYTES(seed, 1, *rest).repeat(rows, 1)  # noqa: E731
    monkeypatch.setattr(mask_operator, "keep_bytes", repeated)
    caught(**rates)


def test_a_slope_from_the_sign_of_the_output(monkeypatch):
    """trident's dropout."""

    def planted(gates, output, ranges, scale, start):
        gates.copy_(output[start : start + len(gates)] > 0).mul_(scale)
        return iter([gates.numpy()[first - start : last - start] for first, last in ranges])

    monkeypatch.setattr(rnn, "slopes_of", planted)
    caught(hidden_dropout=0.3)


@each_rate
def test_a_mask_without_its_scale(monkeypatch, rates):
    monkeypatch.setattr(dropouts, "scale", lambda p: 1.0)
    caught(**rates)


@each_rate
def test_a_mask_one_step_late(monkeypatch, rates):
    late = lambda seed, rows, *rest: KEEP_BYTES(seed, rows + 3, *rest)[3:]  # noqa: E731
    monkeypatch.setattr(mask_operator, "keep_bytes", late)
    caught(**rates)


@each_rate
def test_a_swapped_direction(monkeypatch, rates):
    steps = functional._steps
    monkeypatch.setattr(functional, "_steps", lambda input, sizes, reverse: steps(input, sizes, not reverse))
    caught(**rates)


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_a_transposed_recurrent_weight(monkeypatch, function):
    transposed = lambda weights: weights._replace(w_hh=weights.w_hh.t())  # noqa: E731
    changes = {
        "forward": lambda rest: (rest[0], transposed(rest[1]), *rest[2:]),
        "backward": lambda layer: layer._replace(weights=transposed(layer.weights)),
    }
    planted_in(monkeypatch, function, changes[function])
    caught(hidden_dropout=0.3)


def test_memory_that_is_never_written(monkeypatch):
    """An output that is left as it was allocated is NaN here, and seen."""
    empty = lambda self, x, states, *_: Result(x.new_empty(*x.shape[:-1], 17), [states[0].clone()], [])  # noqa: E731
    monkeypatch.setattr(Cpu, "forward", empty)
    caught(hidden_dropout=0.3)


def test_the_states_of_sequences_that_ended_are_taken_from_the_next(monkeypatch):
    """A packed batch in which each sequence goes on where the one before it ended."""
    before = Steps.before
    monkeypatch.setattr(Steps, "before", lambda self, output, initial: before(self, output, initial).roll(1, 0))
    caught(lambda: test_cpu.check(make_layer(), [5, 3, 1], recurrent_dropout=0.4))


@pytest.mark.parametrize("rates", [*RATES, dict(dropout=0.25)], ids=str)
def test_masks_of_packed_data_in_the_order_of_its_sorting(monkeypatch, rates):
    """Ours, before version 0.2."""
    check_module([2, 5, 3], **rates)
    draw = mask_operator.sequence_mask
    unordered = lambda *args: draw(*args[:-2], None, args[-1])  # noqa: E731
    monkeypatch.setattr(rnndrop.layer, "sequence_mask", unordered)
    caught(check_module, lengths=[2, 5, 3], **rates)


@pytest.mark.parametrize("rates", [*RATES, dict(dropout=0.25)], ids=str)
@pytest.mark.parametrize("forgotten", ["layer", "direction", "kind"])
def test_a_mask_for_two(monkeypatch, rates, forgotten):
    """The same for each layer, direction or kind."""
    options = dict(bidirectional=True, hidden_dropout=0.3, recurrent_dropout=0.4) | rates
    check_module(**options)
    stream = rnndrop.layer.stream
    streams = {
        "layer": lambda kind, layer, direction: stream(kind, 0, direction),
        "direction": lambda kind, layer, direction: stream(kind, layer, 0),
        "kind": lambda kind, layer, direction: stream("hidden", layer, direction),
    }
    monkeypatch.setattr(rnndrop.layer, "stream", streams[forgotten])
    caught(check_module, **options)


def test_a_mask_per_step_where_one_per_sequence_was_asked_for(monkeypatch):
    check(hidden_dropout=0.3, mask_scope="sequence")
    inside = rnndrop.layer.MaskSource.inside

    def planted(self, kind, dropouts, rows, columns):
        return inside(self, kind, dropouts.replace("mask_scope", "step"), rows, columns)

    monkeypatch.setattr(rnndrop.layer.MaskSource, "inside", planted)
    caught(hidden_dropout=0.3, mask_scope="sequence")
