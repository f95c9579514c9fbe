"""weight_dropout where the wrappers that people copy break: it drops at every call, and the parameter stays a parameter."""

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import rnndrop
from tests import oracle
from tests.helpers import COLUMNS, INSIDE, assert_equal, assert_near, gradients, inputs_of, make_rnn
from tests.modules.checks import check

ROOT = Path(rnndrop.__file__).parents[1]
SEED, P = 3, 0.45
INSIDE_TOO = [{}, INSIDE]  # PyTorch's layers run it, or ours
others = pytest.mark.parametrize("others", INSIDE_TOO, ids=["alone", "with those inside"])


def make(**options):
    return make_rnn(num_layers=2, bidirectional=True, weight_dropout=P, **options)


def dropped_in(rnn, x, hx, seed=SEED):
    """Whether weights are dropped: it is the network that the oracle has, which no network without them is."""
    outputs, parameters = rnn(x, hx, seed=seed), {name: p.double() for name, p in rnn.named_parameters()}
    assert_near(outputs, oracle.network(rnn, x.double(), hx.double(), seed, parameters=parameters))
    return not torch.allclose(outputs[0].double(), rnn.to_torch()(x, hx)[0].double())


@others
def test_the_state_dict_is_torchs(others):
    """Names, values and order, before and after a call; it goes both ways."""
    rnn = make(**others)
    theirs, (x, hx) = rnn.to_torch(), inputs_of(rnn)
    before = {name: p.clone() for name, p in rnn.state_dict().items()}
    rnn(x, hx, seed=SEED)[0].sum().backward()
    assert [*rnn.state_dict()] == [*theirs.state_dict()] == [name for name, _ in rnn.named_parameters()]
    assert_equal(dict(rnn.state_dict()), before)
    assert not [*rnn.buffers()] and not [*rnn.children()]
    theirs.load_state_dict(rnn.state_dict())
    other = make(**others)
    other.load_state_dict(theirs.state_dict())
    assert_equal(other(x, hx, seed=SEED), rnn(x, hx, seed=SEED))


@others
def test_gradients_reach_the_parameter_itself(others):
    """Those of dropped elements are 0, and an optimizer made before any call moves the weights."""
    rnn = make(**others)
    parameters = dict(rnn.named_parameters())
    optimizer, (x, hx) = torch.optim.SGD(rnn.parameters(), lr=0.1), [v.requires_grad_() for v in inputs_of(rnn)]
    check(rnn, rnn(x, hx, seed=SEED), x, hx, SEED)
    rnn(x, hx, seed=SEED)[0].square().sum().backward()
    for layer, direction in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = parameters[f"weight_hh_l{layer}" + "_reverse" * direction]
        mask = oracle.mask(SEED, COLUMNS, COLUMNS, P, kind="weight", layer=layer, direction=direction)
        assert (weight.grad[mask == 0] == 0).all() and (weight.grad[mask != 0] != 0).double().mean() > 0.9
    before = {name: p.detach().clone() for name, p in parameters.items()}
    clip_grad_norm_(rnn.parameters(), 1.0)
    optimizer.step()
    for name, p in rnn.named_parameters():
        assert p is parameters[name] and p.is_leaf and not torch.equal(p, before[name])
    assert dropped_in(rnn, x, hx)


@others
def test_two_calls_have_two_masks(others):
    rnn = make(**others)
    x, hx = inputs_of(rnn)
    torch.manual_seed(5)
    first, second = rnn(x, hx)[0], rnn(x, hx)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(rnn(x, hx)[0], first)


def test_one_mask_for_all_steps_and_sequences():
    """Of two steps of zeros and a unit state, the second shows rows of W_hh, the same for every sequence."""
    rnn = make_rnn(nonlinearity="relu", bias=False, weight_dropout=0.5)
    with torch.no_grad():
        rnn.weight_hh_l0.fill_(1 / COLUMNS)
    x, hx = torch.zeros(2, COLUMNS, rnn.input_size, dtype=torch.float64), torch.eye(COLUMNS, dtype=torch.float64)[None]
    output = rnn(x, hx, seed=SEED)[0]
    weight = rnn.weight_hh_l0.detach() * oracle.mask(SEED, COLUMNS, COLUMNS, 0.5, kind="weight")
    assert_near(output[0], weight.t())  # row b: what unit b sends to each
    assert_near(output[1], weight.t() @ weight.t())


@others
@pytest.mark.parametrize(
    "change",
    [
        lambda rnn: rnn.flatten_parameters(),
        lambda rnn: rnn.to(torch.float32).to(torch.float64),
        lambda rnn: rnn.eval().train(),
        lambda rnn: rnn.zero_grad(),
        lambda rnn: rnn.load_state_dict(make().state_dict()),
        lambda rnn: rnn.load_state_dict(make().state_dict(), assign=True),
        lambda rnn: rnn.to("meta").to_empty(device="cpu").reset_parameters(),
        lambda rnn: rnn.requires_grad_(False).requires_grad_(True),
        lambda rnn: rnn.share_memory(),
        lambda rnn: setattr(rnn, "weight_hh_l0", nn.Parameter(torch.eye(COLUMNS, dtype=torch.float64))),
    ],
    ids=["flatten", "dtype", "modes", "zero_grad", "load", "assign", "meta", "frozen and thawed", "shared", "replaced"],
)
def test_it_drops_after_anything_is_done_to_the_module(others, change):
    """After calls, between a call and its backward pass, and before any call."""
    rnn = make(**others)
    x, hx = inputs_of(rnn)
    rnn(x, hx, seed=SEED)[0].sum().backward()
    with torch.no_grad():
        change(rnn)
    assert rnn.training and dropped_in(rnn, x, hx)
    rnn.zero_grad()
    rnn(x, hx, seed=SEED)[0].sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in rnn.parameters())


def test_flatten_parameters_between_forward_and_backward():
    rnn = make()
    x, hx = inputs_of(rnn)
    expected = gradients(rnn(x, hx, seed=SEED), dict(rnn.named_parameters()))
    outputs = rnn(x, hx, seed=SEED)
    rnn.flatten_parameters()
    assert_equal(gradients(outputs, dict(rnn.named_parameters())), expected)


def through_file(rnn):
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    return torch.load(file)


@others
@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), through_file])
def test_copies(others, through):
    """Of a module that has run and been trained, which share nothing with it."""
    rnn = make(mask_scope={"input": "sequence"}, **others)
    x, hx = inputs_of(rnn)
    rnn(x, hx)[0].sum().backward()
    twin = through(rnn)
    assert repr(twin) == repr(rnn) and twin.mask_scope == {"input": "sequence"}
    assert_equal(twin(x, hx, seed=SEED), rnn(x, hx, seed=SEED))
    with torch.no_grad():
        twin.weight_hh_l0.mul_(2)
    assert dropped_in(twin, x, hx) and dropped_in(rnn, x, hx)
    assert not torch.equal(twin(x, hx, seed=SEED)[0], rnn(x, hx, seed=SEED)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_dtype(dtype):
    """The same elements of the weight."""
    rnn = make().to(dtype)
    x, hx = inputs_of(rnn)
    rnn(x, hx, seed=SEED)[0].float().square().sum().backward()
    mask = oracle.mask(SEED, COLUMNS, COLUMNS, P, kind="weight")
    assert rnn.weight_hh_l0.grad.dtype == dtype and (rnn.weight_hh_l0.grad[mask == 0] == 0).all()
    assert dropped_in(rnn, x, hx)


def test_the_meta_device():
    rnn = make().to("meta")
    output, h_n = rnn(torch.zeros(5, 3, 4, dtype=torch.float64, device="meta"))
    output.sum().backward()
    assert output.shape == (5, 3, 2 * COLUMNS) and h_n.shape == (4, 3, COLUMNS) and rnn.weight_hh_l0.grad.is_meta


@others
def test_a_weight_that_is_parametrised(others):
    """The function of its parametrisation is dropped, and the gradient goes through it to the original."""
    rnn = make(**others)
    plain, (x, hx) = copy.deepcopy(rnn), inputs_of(rnn)
    parametrizations.weight_norm(rnn, "weight_hh_l0")
    parametrize.register_parametrization(rnn, "weight_hh_l1_reverse", nn.Identity())
    assert_near(rnn(x, hx, seed=SEED), plain(x, hx, seed=SEED))
    rnn(x, hx, seed=SEED)[0].square().sum().backward()
    plain(x, hx, seed=SEED)[0].square().sum().backward()
    assert_near(rnn.parametrizations.weight_hh_l1_reverse.original.grad, plain.weight_hh_l1_reverse.grad)
    originals = rnn.parametrizations.weight_hh_l0
    assert all(p.grad.abs().max() > 0 for p in (originals.original0, originals.original1))
    assert not torch.equal(rnn(x, hx)[0], rnn(x, hx)[0])
    rnn.flatten_parameters()
    rnn.float().double()
    assert torch.allclose(rnn(x, hx, seed=SEED)[0], plain(x, hx, seed=SEED)[0], atol=1e-6)


@others
def test_a_weight_that_is_shared(others):
    """By both directions, and as a transpose of another: each use has a mask of its own, the gradients add up."""
    rnn = make(**others)
    rnn.weight_hh_l0_reverse = rnn.weight_hh_l0
    x, hx = inputs_of(rnn)
    apart = copy.deepcopy(rnn)
    apart.weight_hh_l0_reverse = nn.Parameter(rnn.weight_hh_l0.detach().clone())
    assert len([*rnn.parameters()]) == len([*apart.parameters()]) - 1
    assert_equal(rnn(x, hx, seed=SEED), apart(x, hx, seed=SEED))
    for module in (rnn, apart):
        module(x, hx, seed=SEED)[0].square().sum().backward()
    assert_near(rnn.weight_hh_l0.grad, apart.weight_hh_l0.grad + apart.weight_hh_l0_reverse.grad)
    strided = copy.deepcopy(apart)
    strided.weight_hh_l0 = nn.Parameter(apart.weight_hh_l0.detach().t().contiguous().t())
    assert not strided.weight_hh_l0.is_contiguous()
    assert_near(strided(x, hx, seed=SEED), apart(x, hx, seed=SEED))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant):
    """Run again in the backward pass, it drops the same."""
    rnn = make(output_dropout=0.3)
    x, hx = inputs_of(rnn)

    def step(through):
        torch.manual_seed(5)
        rnn.zero_grad()
        through(lambda x: rnn(x, hx)[0], x.clone().requires_grad_()).square().sum().backward()
        return [p.grad for p in rnn.parameters()]

    plain = step(lambda run, x: run(x))
    assert_equal(step(lambda run, x: checkpoint(run, x, use_reentrant=use_reentrant)), plain)


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "weight_ih_l0", "bias_hh_l1"])
@others
def test_frozen_weights(others, frozen):
    rnn = make(**others)
    x, hx = inputs_of(rnn)
    rnn(x, hx, seed=SEED)[0].square().sum().backward()
    expected = {name: p.grad for name, p in rnn.named_parameters()}
    rnn.zero_grad()
    rnn.get_parameter(frozen).requires_grad_(False)
    rnn(x, hx, seed=SEED)[0].square().sum().backward()
    for name, p in rnn.named_parameters():
        assert p.grad is None if name == frozen else torch.equal(p.grad, expected[name])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_distributed_data_parallel(tmp_path):
    """In a process of its own, which is the only one of its group: gradients and masks are those of the bare module."""
    program = f"""
        import torch, torch.distributed as distributed, rnndrop
        from torch.nn.parallel import DistributedDataParallel
        distributed.init_process_group("gloo", init_method="file://{tmp_path}/group", rank=0, world_size=1)
        for options in ({{}}, {INSIDE!r}):
            torch.manual_seed(0)
            rnn = rnndrop.RNN(4, 8, 2, bidirectional=True, weight_dropout=0.5, **options)
            x, wrapped, found = torch.randn(5, 3, 4), DistributedDataParallel(rnn), []
            for module in (rnn, wrapped):
                for _ in range(2):
                    rnn.zero_grad()
                    output, h_n = module(x, seed=3)
                    (output.square().sum() + h_n.sum()).backward()
                    found.append([output, *(p.grad.clone() for p in rnn.parameters())])
            for other in found[1:]:
                assert all(map(torch.equal, found[0], other))
            assert not torch.equal(wrapped(x)[0], wrapped(x)[0])
            assert [*wrapped.module.state_dict()] == [*rnn.to_torch().state_dict()]
        distributed.destroy_process_group()
        print("done")
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert ran.stdout == "done\n", ran.stderr


def test_evaluation_drops_nothing():
    rnn = make().eval()
    x, hx = inputs_of(rnn)
    assert_equal(rnn(x, hx), rnn.to_torch()(x, hx))
    assert rnndrop.explain(rnn, x).strategy == "torch.nn.RNN"
