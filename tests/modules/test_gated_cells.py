"""GRUCell and LSTMCell: torch.nn's, a step of a layer with the same seed, the oracle's numbers."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import vmap

import rnndrop
from tests import oracle
from tests.helpers import (
    BATCH,
    COLUMNS,
    GATED,
    INPUTS,
    assert_equal,
    assert_near,
    doubled,
    draws_nothing,
    each_kind,
    error_of,
    gradients,
    inside,
    make_rnn,
)
from tests.modules.checks import changed, flat
from tests.oracle import KINDS

SEEDS = [7, -3, 2**63 - 1]
each_cell = pytest.mark.parametrize("cell", GATED)


def cases(cell):
    return {kind: each_kind(cell)[kind] for kind in oracle.INSIDE[cell]} | {"every": inside(cell)}


each_case = pytest.mark.parametrize("cell, case", [(cell, case) for cell in GATED for case in cases(cell)])


def make(cell, **options):
    return getattr(rnndrop, f"{cell}Cell")(**{"input_size": INPUTS, "hidden_size": COLUMNS, "dtype": torch.float64, **options})


def given(cell, dtype=torch.float64):
    """x and hx."""
    hx = tuple(torch.randn(BATCH, COLUMNS, dtype=dtype) for _ in range(1 + (cell == "LSTM")))
    return torch.randn(BATCH, INPUTS, dtype=dtype), hx if len(hx) > 1 else hx[0]


def check(cell, dtype=torch.float64, seed=3, bias=True, **rates):
    """Results and all gradients against the oracle."""
    module, (x, hx) = make(cell, dtype=dtype, bias=bias, **rates), given(cell, dtype)
    states = {f"state {number}": state.requires_grad_() for number, state in enumerate(flat(hx))}
    leaves = {"x": x.requires_grad_(), **states, **dict(module.named_parameters())}
    copies = doubled(leaves)
    found = flat(module(x, hx, seed=seed if isinstance(seed, int) else torch.tensor(seed)))
    exact, *others = copies.values()
    expected = oracle.layer(exact[None], *others, cell=cell, seed=seed, **rates)[1:]
    assert all(y.dtype == dtype for y in found)
    assert_near(found, expected)
    allowed = dict(allow_unused=True, materialize_grads=True)
    assert_near(gradients(found, leaves, **allowed), gradients(expected, copies, **allowed))


@each_case
@pytest.mark.parametrize("bias", [True, False])
def test_against_the_oracle(cell, case, bias):
    for seed in (3, -3, SEEDS):
        check(cell, seed=seed, bias=bias, **cases(cell)[case])
    for p in (1.0, 1e-9):
        check(cell, bias=bias, **dict.fromkeys(cases(cell)[case], p))


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(cell, case, dtype):
    check(cell, dtype=dtype, **cases(cell)[case])


@each_case
def test_it_is_a_step_of_the_layer(cell, case):
    """Seeded, and one step long, they are the same; so is a loop of cells in evaluation, with zoneout's expectation."""
    module, rnn = make(cell, **cases(cell)[case]), make_rnn(cell, **cases(cell)[case])
    rnn.load_state_dict({name + "_l0": p for name, p in module.state_dict().items()})
    x, hx = given(cell)
    first = changed(hx, lambda h: h[None])
    for seed in (3, torch.tensor(SEEDS)):
        assert_equal([y[None] for y in flat(module(x, hx, seed=seed))], flat(rnn(x[None], first, seed=seed)[1]))
        assert_equal([y[None] for y in flat(module(x, seed=seed))], flat(rnn(x[None], seed=seed)[1]))
    module.eval(), rnn.eval()
    xs, outputs, state = torch.stack([x, -x, x / 2]), [], hx
    for one in xs:
        state = module(one, state)
        outputs.append(flat(state)[0])
    assert_near([torch.stack(outputs), *[y[None] for y in flat(state)]], flat(rnn(xs, first)))


@each_cell
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_without_dropout_it_is_torch(cell, training, bias):
    rates = {} if training else {name: p for name, p in inside(cell).items() if "zoneout" not in name}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        module = make(cell, dtype=dtype, bias=bias, **rates).train(training)
        theirs, (x, hx) = module.to_torch(), given(cell, dtype)
        for arguments in [(x, hx), (x,), (x[0], changed(hx, lambda h: h[0])), (x[0],)]:
            assert_equal(flat(draws_nothing(lambda: module(*arguments))), flat(theirs(*arguments)))  # noqa: B023


@each_cell
def test_unbatched_is_a_batch_of_one_and_every_call_draws(cell):
    module, (x, hx) = make(cell, **inside(cell)), given(cell)
    one = changed(hx, lambda h: h[:1])
    assert_equal(flat(module(x[0], changed(hx, lambda h: h[0]), seed=3)), [y[0] for y in flat(module(x[:1], one, seed=3))])
    assert_equal(flat(module(x[0], seed=3)), [y[0] for y in flat(module(x[:1], seed=3))])
    assert not torch.equal(flat(module(x, hx))[0], flat(module(x, hx))[0])
    empty = flat(module(x[:0]))
    assert [y.shape for y in empty] == [y.shape for y in flat(module.to_torch()(x[:0]))]


@each_cell
def test_parameters_and_repr_are_those_of_torch(cell):
    ours, theirs = getattr(rnndrop, f"{cell}Cell"), getattr(nn, f"{cell}Cell")
    for options in (dict(), dict(bias=False)):
        torch.manual_seed(5)
        mine = ours(3, 6, **options, candidate_dropout=0.1)
        torch.manual_seed(5)
        other = theirs(3, 6, **options)
        assert [*mine.state_dict()] == [*other.state_dict()] == [name for name, _ in mine.named_parameters()]
        assert all(map(torch.equal, mine.parameters(), other.parameters()))
        mine.load_state_dict(other.state_dict()), other.load_state_dict(mine.state_dict())
        assert repr(ours(3, 6, **options)) == repr(other) == repr(mine.to_torch())
        back = ours.from_torch(other.eval(), zoneout=0.5)
        assert (back.zoneout, back.hidden_dropout, back.training, back.bias) == (0.5, 0.0, False, mine.bias)
    for wrong in (nn.RNNCell(3, 5), getattr(nn, cell)(3, 5), None):
        with pytest.raises(TypeError, match=rf"^module should be a torch\.nn\.{cell}Cell, got {type(wrong).__name__}$"):
            ours.from_torch(wrong)
    arguments = (3, 5, False, "meta", torch.float64)
    assert ours(*arguments).weight_hh.shape == theirs(*arguments).weight_hh.shape and ours(*arguments).weight_ih.is_meta
    with pytest.raises(TypeError):
        ours(*arguments, 0.5)


def test_repr():
    assert repr(rnndrop.LSTMCell(3, 5, bias=False, **dict(reversed(inside("LSTM").items())))) == (
        "LSTMCell(3, 5, bias=False, hidden_dropout=0.3, recurrent_dropout=0.4, zoneout=0.15, cell_dropout=0.2, "
        "cell_zoneout=0.35, candidate_dropout=0.25)"
    )


@each_cell
@pytest.mark.parametrize("name", ["dropout", "input_dropout", "output_dropout", "weight_dropout", "mask_scope", "proj_size"])
def test_arguments_that_a_cell_does_not_have(cell, name):
    with pytest.raises(TypeError, match=rf"^{cell}Cell\.__init__\(\) got an unexpected keyword argument '{name}'$"):
        make(cell, **{name: 0.5})


def z(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


BAD = [
    (z(2, 2, 4),),
    (z(),),
    (z(3, 5),),
    (z(5),),
    (z(3, 4), z(2, 17)),
    (z(3, 4), z(3, 16)),
    (z(3, 4), z(3, 1, 17)),
    (z(4), z(16)),
    (z(3, 4, dtype=torch.float32),),
    (z(3, 4, dtype=torch.int64),),
    (z(3, 4), z(3, 17, dtype=torch.float32)),
    (z(3, 4), z(17)),
    ("x",),
    (None,),
    (),
]
BAD_PAIRS = [
    (z(3, 4), z(3, 17)),
    (z(3, 4), (z(3, 17),)),
    (z(3, 4), (z(3, 17), z(3, 17), z(3, 17))),
    (z(3, 4), ()),
    (z(3, 4), (z(3, 17), None)),
    (z(3, 4), (z(3, 17), z(3, 16))),
    (z(3, 4), (z(3, 17), z(3, 1, 17))),
    (z(4), (z(17), z(16))),
]


CASES = [("GRU", args) for args in BAD] + [("LSTM", args) for args in BAD_PAIRS]
CASES += [("LSTM", (args[0], (args[1], args[1])) if len(args) == 2 else args) for args in BAD]


@pytest.mark.parametrize("cell, args", CASES)
def test_bad_inputs(cell, args):
    """An error of torch.nn's type, dropping or not; nothing is drawn."""
    for rates in (dict(), dict(hidden_dropout=0.5), inside(cell)):
        module = make(cell, **rates)
        expected = error_of(module.to_torch(), *args)
        assert expected is not None
        assert draws_nothing(lambda: error_of(module, *args)) is expected, rates  # noqa: B023


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("wrong", [(2, 17), (3, 16)], ids=str)
def test_the_words_about_a_state_of_another_size(kind, wrong):
    """Those of torch.nn, of each state."""
    right, other = z(3, 17), z(*wrong)
    for hx in [(other, right), (right, other)] if kind == "LSTMCell" else [other]:
        module, words = getattr(rnndrop, kind)(INPUTS, 17, dtype=torch.float64, hidden_dropout=0.5), []
        for run in (module, module.to_torch()):
            with pytest.raises(RuntimeError, match="hidden") as raised:
                run(z(3, INPUTS), hx)
            words.append(str(raised.value))
        assert words[0] == words[1]


@each_cell
def test_a_bad_seed_is_refused_where_it_would_be_ignored(cell):
    module = make(cell, **inside(cell)).eval()
    for seed, error in [(1.5, TypeError), (True, TypeError), (torch.tensor([1, 2]), ValueError)]:
        with pytest.raises(error, match=r"^seed should be"):
            draws_nothing(lambda seed=seed: module(z(3, 4), seed=seed))
    assert_equal(flat(draws_nothing(lambda: module(z(3, 4), seed=1))), flat(module(z(3, 4))))


@pytest.mark.parametrize("cell, case", [(cell, case) for cell in GATED for case in [*cases(cell), "none"]])
def test_vmap(cell, case):
    """Over seeds, inputs and states, in training and in evaluation; every gradient under vmap too."""
    module, (x, hx) = make(cell, **cases(cell).get(case, {})), given(cell)
    seeds = torch.tensor([[4, 5, 6], SEEDS])
    expected = [flat(module(x, hx, seed=seed)) for seed in seeds]
    found = vmap(lambda seed: flat(module(x, hx, seed=seed)))(seeds)
    assert_near([[y[i] for y in found] for i in range(2)], expected)
    for training in (True, False):
        module.train(training)
        xs, states = torch.stack([x, 2 * x]), changed(hx, lambda h: torch.stack([h, -h]))
        found = vmap(lambda x, hx: flat(module(x, hx, seed=7)))(xs, states)
        expected = [flat(module(xs[i], changed(states, lambda h: h[i]), seed=7)) for i in range(2)]  # noqa: B023
        assert_near([[y[i] for y in found] for i in range(2)], expected)


@each_cell
def test_derivatives(cell):
    """gradcheck of both orders; the gradient under create_graph is the plain one."""
    module = make(cell, input_size=2, hidden_size=3, **inside(cell))
    states = tuple(torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(1 + (cell == "LSTM")))
    leaves = (torch.randn(2, 2, dtype=torch.float64, requires_grad=True), *states, *module.parameters())

    def run(x, *_):
        return tuple(flat(module(x, states if cell == "LSTM" else states[0], seed=1)))

    assert torch.autograd.gradcheck(run, leaves) and torch.autograd.gradgradcheck(run, leaves)


@each_cell
def test_copies(cell):
    module, (x, hx) = make(cell, **inside(cell)), given(cell)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(twin) is type(module) and repr(twin) == repr(module)
        assert_equal(flat(twin(x, hx, seed=1)), flat(module(x, hx, seed=1)))


@each_cell
def test_a_rate_is_set_between_calls(cell):
    module, (x, hx) = make(cell), given(cell)
    plain = flat(module(x, hx, seed=3))
    for kind in oracle.INSIDE[cell]:
        setattr(module, KINDS[kind], 0.5)
        expected = oracle.layer(x[None], *flat(hx), *module.parameters(), cell=cell, seed=3, **{KINDS[kind]: 0.5})[1:]
        assert_near(flat(module(x, hx, seed=3)), expected)
        setattr(module, KINDS[kind], 0.0)
        assert_equal(flat(module(x, hx, seed=3)), plain)
        with pytest.raises(ValueError, match=KINDS[kind]):
            setattr(module, KINDS[kind], 2)
