"""torch.func and what else asks for derivatives in other ways, of every module: beside one call after another."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence

import rnndrop
from rnndrop.backends.cpu import Cpu
from tests.modules.checks import flat

SEED = 3
CASES = {
    "one layer": dict(hidden_dropout=0.3),
    "every kind": dict(
        input_dropout=0.2, hidden_dropout=0.3, recurrent_dropout=0.2, weight_dropout=0.2, zoneout=0.2, output_dropout=0.2
    ),
    "evaluation": dict(hidden_dropout=0.3),
    "expectation": dict(zoneout=0.3),
}
MORE = {"GRU": dict(candidate_dropout=0.2), "LSTM": dict(candidate_dropout=0.2, cell_dropout=0.2, cell_zoneout=0.2)}
each_layer = pytest.mark.parametrize("layer", ["RNN", "LSTM", "GRU"])
PACKED = torch.tensor([3, 2, 2, 1]), torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])  # batch sizes, the order and back
CELL_KINDS = dict(hidden_dropout=0.3, recurrent_dropout=0.2, zoneout=0.2)


def make(name, case):
    """A module in float64."""
    training = case not in ("evaluation", "expectation")
    if name.endswith("Cell"):
        rates = dict(zoneout=0.3) if case == "expectation" else CELL_KINDS if case == "every kind" else dict(hidden_dropout=0.3)
        return getattr(rnndrop, name)(3, 4, dtype=torch.float64, **rates).train(training)
    options = CASES[case] | (MORE.get(name, {}) if case == "every kind" else {})
    layers = dict(num_layers=2, dropout=0.2, bidirectional=True) if case == "every kind" else {}
    return getattr(rnndrop, name)(3, 4, dtype=torch.float64, **layers, **options).train(training)


@pytest.fixture(params=["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def name(request):
    return request.param


@pytest.fixture(params=CASES)
def module(request, name):
    return make(name, request.param)


@pytest.fixture
def x(name):
    return torch.randn((6, 3) if name.endswith("Cell") else (3, 2, 3), dtype=torch.float64)


def first(module, x, seed=SEED):
    """The output of a layer, or the (first) new state of a cell."""
    result = module(x, seed=seed)
    return result if isinstance(result, torch.Tensor) else result[0]


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_forward_mode(module, x):
    along = torch.randn_like(x)
    output, found = jvp(lambda x: first(module, x), (x,), (along,))
    jacobian = torch.autograd.functional.jacobian(lambda x: first(module, x), x)
    expected = torch.einsum("...abc,abc->..." if x.dim() == 3 else "...ab,ab->...", jacobian, along)
    assert expected.abs().max() > 1e-3
    assert_near(output, first(module, x))
    assert_near(found, expected)
    with forward_ad.dual_level():
        assert_near(forward_ad.unpack_dual(first(module, forward_ad.make_dual(x, along))).tangent, expected)
    assert_near(jacfwd(lambda x: first(module, x))(x), jacobian)


def test_forward_mode_of_the_parameters(module, x):
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters):
        result = functional_call(module, parameters, (x,), dict(seed=SEED))
        return (result if isinstance(result, torch.Tensor) else result[0]).square().sum()

    found = jvp(loss, (parameters,), ({name: torch.ones_like(p) for name, p in parameters.items()},))[1]
    assert_near(found, sum(gradient.sum() for gradient in grad(loss)(parameters).values()))


def test_hessian(name):
    for case in ("one layer", "expectation"):
        module, x = make(name, case), torch.randn((1, 3) if name.endswith("Cell") else (2, 1, 3), dtype=torch.float64)
        found = hessian(lambda x, module=module: first(module, x).square().sum())(x)
        expected = jacrev(jacrev(lambda x, module=module: first(module, x).square().sum()))(x)
        assert expected.abs().max() > 1e-3
        assert_near(found, expected)


def test_batches_of_gradients(module, x):
    x.requires_grad_()
    output = first(module, x)
    each = torch.randn(3, *output.shape, dtype=torch.float64)
    leaves = [x, *module.parameters()]
    found = torch.autograd.grad(output, leaves, each, is_grads_batched=True, retain_graph=True)
    expected = zip(*(torch.autograd.grad(output, leaves, one, retain_graph=True) for one in each), strict=True)
    assert_near(found, tuple(torch.stack(gradients) for gradients in expected))


@pytest.mark.parametrize("case", ["every kind", "evaluation", "expectation"])
def test_an_ensemble(name, x, case):
    models = [make(name, case) for _ in range(3)]
    parameters, buffers = stack_module_state(models)

    def run(parameters, buffers):
        result = functional_call(models[0], (parameters, buffers), (x,), dict(seed=SEED))
        return result if isinstance(result, torch.Tensor) else result[0]

    assert_near(vmap(run)(parameters, buffers), torch.stack([first(model, x) for model in models]))


def test_gradients_of_each_sample(name, x):
    module = make(name, "every kind")
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    samples = torch.stack([x, torch.randn_like(x)])

    def loss(parameters, x):
        result = functional_call(module, parameters, (x,), dict(seed=SEED))
        return (result if isinstance(result, torch.Tensor) else result[0]).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        assert_near({name: gradient[i] for name, gradient in found.items()}, grad(loss)(parameters, sample))


def run_packed(module, data, parameters=None):
    """The output's data and the states at the end, of three sequences that were not sorted."""
    packed = PackedSequence(data, *PACKED)
    parameters = dict(module.named_parameters()) if parameters is None else parameters
    return flat(functional_call(module, parameters, (packed,), dict(seed=SEED)))


@each_layer
@pytest.mark.parametrize("case", ["every kind", "evaluation", "expectation"])
def test_packed_data_and_an_ensemble_of_it(layer, case):
    models, data = [make(layer, case) for _ in range(3)], torch.randn(3, 8, 3, dtype=torch.float64)
    found = vmap(lambda data: run_packed(models[0], data))(data)
    assert_near(found, [torch.stack(ys) for ys in zip(*(run_packed(models[0], one) for one in data), strict=True)])
    assert_near(vmap(lambda x: run_packed(models[0], x), 1, 1)(data.transpose(0, 1)), [y.transpose(0, 1) for y in found])
    found = vmap(lambda parameters: run_packed(models[0], data[0], parameters))(stack_module_state(models)[0])
    assert_near(found, [torch.stack(ys) for ys in zip(*(run_packed(model, data[0]) for model in models), strict=True)])


@each_layer
@pytest.mark.parametrize("case", ["every kind", "expectation"])
def test_derivatives_of_packed_data(layer, case):
    """Of nothing but PyTorch's own layers, as in evaluation, torch.func has none."""
    module = make(layer, case)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    samples = torch.randn(2, 8, 3, dtype=torch.float64)

    def loss(parameters, data):
        return sum(y.square().sum() for y in run_packed(module, data, parameters))

    found = vmap(grad(loss, (0, 1)), (None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        leaf = sample.clone().requires_grad_()
        loss(dict(module.named_parameters()), leaf).backward()
        assert_near(
            {name: gradient[i] for name, gradient in found[0].items()}, {n: p.grad for n, p in module.named_parameters()}
        )
        assert_near(found[1][i], leaf.grad)
        module.zero_grad()
    along = torch.randn_like(samples[0])
    _, tangents = jvp(lambda data: tuple(run_packed(module, data)), (samples[0],), (along,))
    for number, tangent in enumerate(tangents):
        jacobian = torch.autograd.functional.jacobian(lambda data, n=number: run_packed(module, data)[n], samples[0])
        assert_near(tangent, (jacobian * along).sum((-1, -2)))


def test_randomness(name, x):
    """Without a seed, masks are as random as `randomness` says: as of nn.Dropout."""
    torch.manual_seed(5)
    module, samples = make(name, "one layer"), x.expand(4, *x.shape)
    same = vmap(lambda x: first(module, x, seed=None), randomness="same")(samples)
    different = vmap(lambda x: first(module, x, seed=None), randomness="different")(samples)
    assert (same == same[0]).all() and (same == 0).any()
    dropped = (different == 0).flatten(1)
    assert all((dropped[i] != dropped[j]).any() for i in range(4) for j in range(i))
    with pytest.raises(RuntimeError, match=r"vmap: called random operation while in randomness error mode"):
        vmap(lambda x: first(module, x, seed=None))(samples)


def test_tanh_dropout_in_forward_mode():
    x, along = torch.randn(2, 5, 7, dtype=torch.float64)
    mask = rnndrop.dropout_mask(SEED, 5, 7, 0.5).double()
    found = jvp(lambda x: rnndrop.functional.tanh_dropout(x, 0.5, seed=SEED), (x,), (along,))
    assert_near(found, jvp(lambda x: torch.tanh(x) * mask, (x,), (along,)))


def test_inputs_of_shared_weights_run_as_one_batch(monkeypatch):
    """In one call of the backend, with the masks that each has alone."""
    calls = []
    forward = Cpu.forward
    monkeypatch.setattr(Cpu, "forward", lambda self, *args: calls.append(1) or forward(self, *args))
    for name in ("RNN", "LSTM", "GRU"):
        kinds = dict(hidden_dropout=0.3, recurrent_dropout=0.2, zoneout=0.2, mask_scope={"recurrent": "sequence"})
        module = getattr(rnndrop, name)(3, 4, bidirectional=True, dtype=torch.float64, **kinds)
        x = torch.randn(5, 6, 2, 3, dtype=torch.float64)
        for run in (lambda x, module=module: first(module, x), lambda x, module=module: module(x, seed=SEED)[1]):
            expected = [run(one) for one in x]
            calls.clear()
            found = vmap(run)(x)
            assert len(calls) == 2  # a direction each
            for i, one in enumerate(expected):
                assert_near(torch.utils._pytree.tree_map(lambda y, i=i: y[i], found), one)
        found = vmap(lambda x, module=module: first(module, x), in_dims=2, out_dims=1)(x.permute(1, 2, 0, 3))
        assert_near(found, torch.stack([first(module, one) for one in x], 1))
        pull = vmap(grad(lambda x, module=module: first(module, x).square().sum()))
        assert_near(pull(x), torch.stack([grad(lambda x, module=module: first(module, x).square().sum())(one) for one in x]))


def test_states_of_shared_weights_run_as_one_batch():
    module, x = rnndrop.LSTM(3, 4, hidden_dropout=0.3, dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    h, c = torch.randn(2, 5, 1, 2, 4, dtype=torch.float64)
    found = vmap(lambda h: module(x, (h, c[0]), seed=SEED)[0])(h)
    assert_near(found, torch.stack([module(x, (one, c[0]), seed=SEED)[0] for one in h]))


def test_a_batch_of_second_derivatives():
    module, x = rnndrop.GRU(3, 4, hidden_dropout=0.3, dtype=torch.float64), torch.randn(3, 2, 3, dtype=torch.float64)
    x.requires_grad_()
    (first_gradient,) = torch.autograd.grad(module(x, seed=SEED)[0].square().sum(), x, create_graph=True)
    each = torch.randn(3, *x.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(first_gradient, x, each, is_grads_batched=True, retain_graph=True)
    assert_near(found, torch.stack([torch.autograd.grad(first_gradient, x, one, retain_graph=True)[0] for one in each]))


def test_a_bias_changed_before_a_batch_of_gradients():
    module, x = rnndrop.RNN(3, 4, hidden_dropout=0.3), torch.randn(3, 2, 3, requires_grad=True)
    output = module(x)[0]
    with torch.no_grad():
        module.bias_ih_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation: a bias"):
        torch.autograd.grad(output, x, torch.ones(2, *output.shape), is_grads_batched=True)
