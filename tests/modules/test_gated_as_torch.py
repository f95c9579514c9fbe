"""GRU and LSTM as modules of torch.nn: their parameters, names and options, and without dropout their results, bit for bit."""

import copy
import io
import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnndrop
from tests.helpers import (
    BATCH,
    COLUMNS,
    GATED,
    INPUTS,
    assert_equal,
    assert_near,
    draws_nothing,
    every_kind,
    gradients,
    inputs_of,
    inside,
    make_rnn,
)
from tests.modules.checks import changed, flat, leaves_of

CONFIGURATIONS = [
    dict(),
    dict(bias=False),
    dict(bidirectional=True),
    dict(num_layers=3, bidirectional=True),
    dict(num_layers=2, dropout=0.5, batch_first=True),
]
PROJECTED = [dict(proj_size=5), dict(proj_size=5, num_layers=2, bidirectional=True, bias=False)]
EVERYWHERE = dict(num_layers=2, bidirectional=True)
each_cell = pytest.mark.parametrize("cell", GATED)
each_configuration = pytest.mark.parametrize(
    "cell, options", [(cell, o) for cell in GATED for o in CONFIGURATIONS + PROJECTED * (cell == "LSTM")], ids=str
)
modes = pytest.mark.parametrize("training", [True, False])


def theirs_of(cell):
    return getattr(nn, cell)


def like_torch(rnn, *given):
    """Outputs and gradients are those of torch.nn's module, and nothing is drawn."""
    theirs = rnn.to_torch()
    outputs, expected = flat(draws_nothing(lambda: rnn(*given))), flat(theirs(*given))
    for mine, exact in zip(outputs, expected, strict=True):
        assert torch.equal(mine, exact) and mine.dtype == exact.dtype and mine.stride() == exact.stride()
    if torch.is_grad_enabled():
        pairs = [gradients(y, dict(module.named_parameters())) for y, module in ((outputs, rnn), (expected, theirs))]
        assert_equal(*pairs)


@modes
@each_configuration
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_dropout_it_is_torch(cell, options, training, dtype):
    rates = {} if training else {name: p for name, p in every_kind(cell).items() if "zoneout" not in name}
    rnn = make_rnn(cell, **rates | options | dict(dtype=dtype) | dict(dropout=0.0)).train(training)
    x, hx = inputs_of(rnn)
    first = x.transpose(0, 1).contiguous() if rnn.batch_first else x
    like_torch(rnn, first, hx)
    like_torch(rnn, first)
    like_torch(rnn, x[:, 0], changed(hx, lambda h: h[:, 0]))
    like_torch(rnn, pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False), hx)
    like_torch(rnn, pack_padded_sequence(x, [5, 3, 3]))
    with torch.no_grad():
        like_torch(rnn, first, hx)


@each_configuration
def test_parameters_and_state_dict_are_those_of_torch(cell, options):
    torch.manual_seed(5)
    mine = getattr(rnndrop, cell)(6, 9, **options, hidden_dropout=0.1)
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    theirs = theirs_of(cell)(6, 9, **options)
    assert torch.equal(torch.get_rng_state(), drawn)
    for a, b in [
        (mine.named_parameters(), theirs.named_parameters()),
        (mine.state_dict().items(), theirs.state_dict().items()),
    ]:
        a, b = list(a), list(b)
        assert [name for name, _ in a] == [name for name, _ in b]
        assert all(torch.equal(p, q) for (_, p), (_, q) in zip(a, b, strict=True))
    assert [[w.shape for w in ws] for ws in mine.all_weights] == [[w.shape for w in ws] for ws in theirs.all_weights]
    fresh = [getattr(package, cell)(6, 9, **options) for package in (rnndrop, nn)]
    assert str(fresh[0].load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert str(fresh[1].load_state_dict(mine.state_dict())) == "<All keys matched successfully>"
    assert repr(fresh[0]) == repr(theirs)


@each_configuration
def test_from_torch_and_to_torch(cell, options):
    theirs = theirs_of(cell)(INPUTS, COLUMNS, **options, dtype=torch.float64).eval()
    theirs.weight_hh_l0.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = getattr(rnndrop, cell).from_torch(theirs, candidate_dropout=0.25, mask_scope={"candidate": "sequence"})
    assert not mine.training and (mine.candidate_dropout, mine.hidden_dropout) == (0.25, 0.0)
    assert mine.mask_scope == {"candidate": "sequence"} and mine.dropout == theirs.dropout
    back = mine.to_torch()
    assert type(back) is theirs_of(cell) and repr(back) == repr(theirs) and not back.training
    for name, p in theirs.named_parameters():
        for other in (mine, back):
            q = other.get_parameter(name)
            assert torch.equal(p, q) and p.requires_grad == q.requires_grad and p.dtype == q.dtype
            assert p.data_ptr() != q.data_ptr()


@each_cell
def test_every_dropout_is_an_argument_of_from_torch(cell):
    kind, theirs = getattr(rnndrop, cell), theirs_of(cell)(INPUTS, COLUMNS, 2)
    for name in every_kind(cell):
        mine = kind.from_torch(theirs, **{name: 0.25})
        assert [other for other in every_kind(cell) if getattr(mine, other)] == [name]
        with pytest.raises(ValueError, match=f"^{name} should be a number"):
            kind.from_torch(theirs, **{name: 1.5})
    for wrong in (nn.RNN(3, 5), getattr(nn, f"{cell}Cell")(3, 5), nn.GRU(3, 5) if cell == "LSTM" else nn.LSTM(3, 5), None):
        with pytest.raises(TypeError, match=rf"^module should be a torch\.nn\.{cell}, got {type(wrong).__name__}$"):
            kind.from_torch(wrong)


@pytest.mark.parametrize(
    "cell, name",
    [("RNN", "cell_dropout"), ("RNN", "cell_zoneout"), ("RNN", "candidate_dropout"), ("GRU", "cell_dropout")]
    + [("GRU", "cell_zoneout"), ("GRU", "nonlinearity"), ("LSTM", "nonlinearity"), ("LSTM", "p"), ("GRU", "hidden_drop")],
)
def test_arguments_that_a_module_does_not_have(cell, name):
    for kind in (cell, f"{cell}Cell"):
        ours, theirs = getattr(rnndrop, kind), getattr(nn, kind)
        for make in (lambda **options: ours(3, 5, **options), lambda **options: ours.from_torch(theirs(3, 5), **options)):  # noqa: B023
            with pytest.raises(TypeError, match=rf"^{kind}\.__init__\(\) got an unexpected keyword argument '{name}'$"):
                make(**{name: 0.5})
        assert not hasattr(ours(3, 5), name)


@each_cell
def test_positional_arguments_are_those_of_torch(cell):
    arguments = (3, 5, 2, False, True, 0.5, True, *[2] * (cell == "LSTM"))
    theirs, arguments = theirs_of(cell)(*arguments), (*arguments, "cpu", torch.float64)  # nn.GRU takes its device for proj_size
    mine = getattr(rnndrop, cell)(*arguments)
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size", "mode"]
    assert [getattr(mine, name) for name in names] == [getattr(theirs, name) for name in names]
    assert mine.weight_ih_l0.dtype == torch.float64
    with pytest.raises(TypeError):
        getattr(rnndrop, cell)(*arguments, 0.5)  # the dropouts are given by name


def test_repr():
    """In the order of torch.nn, then of DESIGN's table; eval makes the same again."""
    rates = dict(reversed(every_kind("LSTM").items()))
    rnn = rnndrop.LSTM(3, 5, 2, proj_size=2, mask_scope={"cell": "sequence"}, **rates)
    assert repr(rnn) == (
        "LSTM(3, 5, proj_size=2, num_layers=2, dropout=0.25, input_dropout=0.2, hidden_dropout=0.3, recurrent_dropout=0.4, "
        "output_dropout=0.35, weight_dropout=0.45, zoneout=0.15, cell_dropout=0.2, cell_zoneout=0.35, candidate_dropout=0.25, "
        "mask_scope={'cell': 'sequence'})"
    )
    assert eval(repr(rnn), {"LSTM": rnndrop.LSTM}).extra_repr() == rnn.extra_repr()
    assert repr(rnndrop.GRU(3, 5, candidate_dropout=0.5)) == "GRU(3, 5, candidate_dropout=0.5)"


@each_cell
def test_the_warning_of_torch(cell):
    with pytest.warns(UserWarning) as mine:
        getattr(rnndrop, cell)(3, 5, dropout=0.5)
    with pytest.warns(UserWarning) as theirs:
        theirs_of(cell)(3, 5, dropout=0.5)
    assert str(mine[0].message) == str(theirs[0].message) and mine[0].filename == __file__


def saved_and_loaded(module, **options):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: saved_and_loaded(module, weights_only=True),
}


@pytest.mark.parametrize("through", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("options", [dict(cell="GRU"), dict(cell="LSTM"), dict(cell="LSTM", proj_size=5)], ids=str)
def test_copies(through, options):
    rnn = make_rnn(**EVERYWHERE, mask_scope={"input": "sequence"}, **every_kind(options["cell"]), **options)
    x, hx = inputs_of(rnn)
    twin = through(rnn)
    assert type(twin) is type(rnn) and repr(twin) == repr(rnn)
    for _ in range(2):
        assert_equal(flat(twin(x, hx, seed=1)), flat(rnn(x, hx, seed=1)))
        twin.eval(), rnn.eval()
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    assert not torch.equal(twin(x, hx)[0], rnn(x, hx)[0])


@each_cell
@modes
def test_functional_call(cell, training):
    rnn = make_rnn(cell, **EVERYWHERE, **every_kind(cell)).train(training)
    x, hx = inputs_of(rnn)
    hx = changed(hx, torch.zeros_like)
    zeros = {name: torch.zeros_like(p) for name, p in rnn.named_parameters()}
    outputs = flat(torch.func.functional_call(rnn, zeros, (x, hx), {"seed": 1}))
    assert all((y == 0).all() for y in outputs) and (rnn(x, hx, seed=1)[0] != 0).any()


@each_cell
@modes
def test_weight_norm_on_a_weight(cell, training):
    plain = make_rnn(cell, num_layers=2, **every_kind(cell))
    rnn = parametrizations.weight_norm(copy.deepcopy(plain), "weight_hh_l0")
    rnn.train(training), plain.train(training)
    x, hx = inputs_of(rnn)
    assert_near(flat(rnn(x, hx, seed=1)), flat(plain(x, hx, seed=1)))
    sum(y.sum() for y in flat(rnn(x, hx, seed=1))).backward()
    assert all(p.grad is not None for p in rnn.parameters())


@each_cell
def test_shared_and_replaced_parameters(cell):
    rnn = make_rnn(cell, num_layers=2, input_size=COLUMNS, **inside(cell))
    rnn.weight_hh_l1 = rnn.weight_hh_l0
    x, hx = inputs_of(rnn)
    apart = copy.deepcopy(rnn)
    apart.weight_hh_l1 = nn.Parameter(rnn.weight_hh_l0.detach().clone())
    for module in (rnn, apart):
        sum(y.square().sum() for y in flat(module(x, hx, seed=1))).backward()
    assert len([*rnn.parameters()]) == len([*apart.parameters()]) - 1
    assert_near(rnn.weight_hh_l0.grad, apart.weight_hh_l0.grad + apart.weight_hh_l1.grad)


@each_cell
def test_device_and_dtype(cell):
    rnn = getattr(rnndrop, cell)(3, 5, 2, device="meta", dtype=torch.float16, hidden_dropout=0.5)
    assert {(p.device.type, p.dtype) for p in rnn.parameters()} == {("meta", torch.float16)}
    real = rnn.to_empty(device="cpu")
    real.reset_parameters()
    assert all(p.abs().max() <= 5**-0.5 for p in real.double().parameters())
    assert real(torch.randn(4, 2, 3, dtype=torch.float64), seed=1)[0].dtype == torch.float64
    assert not isinstance(rnn, nn.RNNBase)  # torch.compile refuses those


# What shares memory, and what requires a gradient.


@each_cell
@pytest.mark.parametrize("case", ["none", "inside", "between"])
@modes
@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_states_share_no_memory_with_anything(cell, case, training, steps):
    """Neither with the output, nor with one another, nor with what backward needs."""
    rates = dict(inside=inside(cell), between=dict(num_layers=2, dropout=0.5)).get(case, {})
    rnn = make_rnn(cell, **rates).train(training)
    x, hx = inputs_of(rnn, steps=steps)
    leaves = leaves_of(rnn, x, hx)
    output, *ends = flat(rnn(x, hx, seed=1))
    assert torch.equal(output[-1], ends[0][-1])
    expected = [gradients([output], leaves, retain_graph=True), [y.detach().clone() for y in (output, *ends)]]
    for changed_one in range(len(ends)):
        outputs = flat(rnn(x, hx, seed=1))
        with torch.no_grad():
            outputs[1 + changed_one].fill_(7)
        for number, (y, other) in enumerate(zip(outputs, expected[1], strict=True)):
            assert number == 1 + changed_one or torch.equal(y, other)
        assert_equal(gradients(outputs[:1], leaves), expected[0])


@each_cell
@pytest.mark.parametrize("change", [lambda y: y.mul_(2), lambda y: y[0].zero_(), lambda y: y.add_(y.detach())])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_backward_after_a_result_was_changed_in_place(cell, change, which):
    """As with torch.nn: the right gradient or an error, never a wrong gradient."""
    rnn = make_rnn(cell, **inside(cell))
    x, hx = inputs_of(rnn)
    leaves, found = leaves_of(rnn, x, hx), []
    for copied in (True, False):
        outputs = flat(rnn(x, hx, seed=1))
        if which == len(outputs):
            return
        outputs = [y.clone() for y in outputs] if copied else outputs
        change(outputs[which])
        try:
            found.append(gradients(outputs, leaves))
        except RuntimeError as error:
            assert not copied and "modified by an inplace operation" in str(error)
            return
    assert_near(found[1], found[0])


@each_cell
def test_inputs_stay_as_they_are_and_gradients_accumulate(cell):
    rnn = make_rnn(cell, **EVERYWHERE, **every_kind(cell))
    x, hx = inputs_of(rnn)
    leaves = leaves_of(rnn, x, hx)
    before = [leaf.detach().clone() for leaf in leaves.values()]
    sum(y.sum() for y in flat(rnn(x, hx, seed=1))).backward()
    assert all(map(torch.equal, before, leaves.values()))
    once = [leaf.grad.clone() for leaf in leaves.values()]
    sum(y.sum() for y in flat(rnn(x, hx, seed=1))).backward()
    assert all(torch.equal(leaf.grad, 2 * g) for leaf, g in zip(leaves.values(), once, strict=True))
    grads = [p.grad for p in rnn.parameters()]
    assert len({g.untyped_storage().data_ptr() for g in grads}) == len(grads)  # clipping one in place leaves the others


@each_cell
@pytest.mark.parametrize("frozen", ["weight_hh_l0", "bias_hh_l0 weight_ih_l0", "bias_ih_l0", "x", "hx cx"])
def test_frozen_leaves(cell, frozen):
    """The gradients of the others are what they were; the frozen have none."""
    rnn = make_rnn(cell, **inside(cell))
    leaves = leaves_of(rnn, *inputs_of(rnn))

    def run():
        hx = (leaves["hx"], leaves["cx"]) if "cx" in leaves else leaves["hx"]
        sum(y.square().sum() for y in flat(rnn(leaves["x"], hx, seed=1))).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    whole = run()
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen.split()).grad = None
    for name, grad in run().items():
        assert grad is None if name in frozen.split() else torch.equal(grad, whole[name])


def refused_by_torch(rnn, given):
    """As an LSTM is on a CPU whose oneDNN has no 16 bits; ours is refused there by the same words."""
    try:
        rnn.to_torch()(*given)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            rnn(*given)
        return True
    return False


@each_cell
@modes
@pytest.mark.parametrize("case", ["none", "inside"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(cell, training, case, dtype):
    """What float64 gives, but for the rounding; gradients of the parameters' dtype; float64 stays as it is."""
    rnn = make_rnn(cell, dtype=torch.float32, **(inside(cell) if case == "inside" else {})).train(training)
    x, hx = inputs_of(rnn)
    for given in ((x.to(dtype), hx), (x.to(dtype),)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if case == "none" and refused_by_torch(rnn, given):
                continue
            outputs = flat(rnn(*given, seed=1))
        exact = flat(copy.deepcopy(rnn).double()(*[changed(v, torch.Tensor.double) for v in given], seed=1))
        assert_near([y.bfloat16() for y in outputs], exact)
        sum(y.float().sum() for y in outputs).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rnn.parameters())
    double = copy.deepcopy(rnn).double()
    outputs = flat(double(x.double(), seed=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(flat(double(x.double(), seed=1)), outputs)


@each_cell
def test_packed_comes_back_packed(cell):
    rnn = make_rnn(cell, **EVERYWHERE, **every_kind(cell))
    x, hx = inputs_of(rnn)
    for enforce_sorted in (True, False):
        packed = pack_padded_sequence(x, [5, 3, 2] if enforce_sorted else [2, 5, 3], enforce_sorted=enforce_sorted)
        output, _ = rnn(packed, hx, seed=3)
        assert isinstance(output, PackedSequence) and all(a is b for a, b in zip(output[1:], packed[1:], strict=True))
        zeros = changed(hx, torch.zeros_like)
        assert_equal(flat(rnn(packed, seed=3)), flat(rnn(packed, zeros, seed=3)))


def test_a_pair_may_be_a_list():
    rnn = make_rnn("LSTM", **inside("LSTM"))
    x, hx = inputs_of(rnn)
    output, states = rnn(x, [*hx], seed=3)
    assert isinstance(states, tuple) and len(states) == 2 and states[0].shape == (1, BATCH, COLUMNS)
    assert_equal([output, *states], flat(rnn(x, hx, seed=3)))
