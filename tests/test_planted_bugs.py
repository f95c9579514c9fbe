"""The checks of test_cpu.py must fail on the bugs that other libraries had, planted here."""

import pytest

from rnndrop import autograd, cpu, mask
from tests import test_cpu
from tests.helpers import make_layer

RATES = [dict(hidden_dropout=0.3), dict(recurrent_dropout=0.4)]


def check(**rates):
    test_cpu.check(make_layer(), strategy="torch", **rates)


@pytest.fixture(autouse=True)
def without_a_bug():
    for rates in RATES:
        check(**rates)


def caught(**rates):
    with pytest.raises(AssertionError, match="not close"):
        check(**rates)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_the_mask_of_the_first_step_for_all_steps_in_backward(monkeypatch, rates):
    """haste's zoneout."""
    backward = cpu.backward

    def first_step(m):
        return m and mask.Mask(m.keep[:3].repeat(5, 1), m.scale, m.per_step)

    def planted(*args, **options):
        *tensors, hidden, recurrent = args
        return backward(*tensors, first_step(hidden), first_step(recurrent), **options)

    monkeypatch.setattr(cpu, "backward", planted)
    caught(**rates)


def test_recurrent_dropout_that_is_ignored(monkeypatch):
    """Keras's SimpleRNN."""
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *args, **options: forward(*args[:-1], None, **options))
    caught(recurrent_dropout=0.4)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_a_mask_repeated_over_rows(monkeypatch, rates):
    """xformers."""
    keep_bytes = cpu.keep_bytes
    monkeypatch.setattr(cpu, "keep_bytes", lambda seed, rows, *rest: keep_bytes(seed, 1, *rest).repeat(rows, 1))
    caught(**rates)


def test_a_slope_from_the_sign_of_the_output(monkeypatch):
    """trident's dropout."""

    def planted(grad_a, output, spans, scale, nonlinearity):
        grad_a.copy_(output > 0).mul_(scale)
        return iter([grad_a.numpy()[start:stop] for start, stop in spans])

    monkeypatch.setattr(cpu, "_slopes", planted)
    caught(hidden_dropout=0.3)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_a_mask_without_its_scale(monkeypatch, rates):
    monkeypatch.setattr(autograd, "scale", lambda p: 1.0)
    caught(**rates)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_a_mask_one_step_late(monkeypatch, rates):
    keep_bytes = cpu.keep_bytes
    monkeypatch.setattr(cpu, "keep_bytes", lambda seed, rows, *rest: keep_bytes(seed, rows + 3, *rest)[3:])
    caught(**rates)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_a_swapped_direction(monkeypatch, rates):
    spans = autograd.Layer.spans
    monkeypatch.setattr(autograd.Layer, "spans", lambda self, *args: spans(self._replace(direction=1 - self.direction), *args))
    caught(**rates)


@pytest.mark.parametrize("function", ["forward", "backward"])
def test_a_transposed_recurrent_weight(monkeypatch, function):
    original, place = getattr(cpu, function), {"forward": 3, "backward": 4}[function]

    def planted(*args, **options):
        return original(*args[:place], args[place].t(), *args[place + 1 :], **options)

    monkeypatch.setattr(cpu, function, planted)
    caught(hidden_dropout=0.3)


def test_memory_that_is_never_written(monkeypatch):
    """An output that is left as it was allocated is NaN here, and seen."""
    monkeypatch.setattr(cpu, "forward", lambda x, h0, *rest, **options: (x.new_empty(*x.shape[:-1], h0.shape[1]), h0.clone()))
    caught(hidden_dropout=0.3)
