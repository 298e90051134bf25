"""What is refused: by name, and before anything is written."""

import copy

import optim_cases as c
import pytest
import torch

from cases import CASES
from fusedstep.torch import optim

ERRORS = [(rule, *error) for rule in c.RULES for error in CASES[rule].errors]


@pytest.mark.parametrize(("rule", "hypers", "kind", "message"), ERRORS)
def test_hyper_parameters(rule, hypers, kind, message):
    """As the arrays' optimizers refuse them; in a group too."""
    with pytest.raises(kind, match=message):
        c.made(rule, c.parameters(rule), **hypers)
    params = c.parameters(rule)
    optimizer = c.made(rule, params[:1])
    with pytest.raises(kind, match=message):
        optimizer.add_param_group({"params": params[1:], **hypers})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0].update(hypers)
    before = params[0].detach().clone()
    params[0].grad = c.gradient(rule, params[0], 0)
    with pytest.raises(kind, match=message):
        optimizer.step()
    assert torch.equal(params[0], before)


@pytest.fixture(params=[rule for rule in c.RULES if rule not in ("muon", "sparse_adam")])
def rule(request):
    return request.param


@pytest.fixture
def named(rule):
    return dict(zip("abc", c.parameters(rule, dtype=torch.float32), strict=True))


@pytest.fixture
def optimizer(rule, named):
    optimizer = c.made(rule, named.items())
    c.take(rule, optimizer, named.values(), 1)
    for p in named.values():
        p.grad = c.gradient(rule, p, 1)
    return optimizer


@pytest.fixture
def untouched(named, optimizer):
    """Parameters and state are, at the end, what they were."""
    params = {name: p.detach().clone() for name, p in named.items()}
    state = copy.deepcopy(optimizer.state_dict()["state"])
    yield
    for name, p in named.items():
        if name != "b":
            assert torch.equal(p, params[name])
    for entry, old in zip(optimizer.state_dict()["state"].values(), state.values(), strict=True):
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(old[name]))


@pytest.mark.usefixtures("untouched")
class TestStep:
    def test_gradient_of_another_dtype(self, named, optimizer):
        named["b"].grad = None
        named["b"].grad_dtype = None
        named["b"].grad = named["b"].detach().double()
        with pytest.raises(TypeError, match=r"grads\['b'\]: expected dtype float32"):
            optimizer.step()

    def test_parameter_of_another_shape(self, named, optimizer):
        named["b"].data = torch.ones(4, 5)
        named["b"].grad = torch.ones(4, 5)
        if not optimizer.state.get(named["b"], {}).keys() - {"step"}:
            pytest.skip("has no state that it would not fit")
        with pytest.raises(ValueError, match=r"\['b'\].*expected shape \(4, (5|1)\)"):
            optimizer.step()

    def test_parameter_of_another_dtype(self, named, optimizer):
        named["b"].data = named["b"].detach().double()
        named["b"].grad = torch.ones(3, 5).double()
        if not optimizer.state.get(named["b"], {}).keys() - {"step"}:
            pytest.skip("has no state that it would not fit")
        with pytest.raises(TypeError, match=r"\['b'\].*expected dtype float64"):
            optimizer.step()

    def test_storage_that_shrank(self, named, optimizer):
        named["b"].grad.untyped_storage().resize_(4)
        with pytest.raises(ValueError, match=r"grads\['b'\]: its storage is smaller than its shape"):
            optimizer.step()

    def test_storage_that_was_freed(self, named, optimizer):
        named["b"].untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=r"params\['b'\]: its storage is smaller than its shape"):
            optimizer.step()
        named["b"].untyped_storage().resize_(60)

    def test_overlap(self, named, optimizer):
        named["b"].data = named["c"].detach().flatten()[:15].view(3, 5)
        with pytest.raises(ValueError, match=r"params\['[bc]'\]: overlaps params\['[bc]'\] in memory"):
            optimizer.step()

    def test_sparse_gradient(self, rule, named, optimizer):
        if rule in ("sgd", "adagrad"):
            pytest.skip("takes it")
        named["b"].grad = torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 5), (3, 5), check_invariants=True)
        with pytest.raises(TypeError, match=rf"grads\['b'\]: {rule} takes no row-sparse gradient"):
            optimizer.step()

    def test_scaling_by_what_is_no_tensor(self, optimizer):
        optimizer.found_inf = True
        with pytest.raises(TypeError, match="found_inf: expected a tensor of one number, or None, got True"):
            optimizer.step()
        optimizer.found_inf = torch.zeros(())
        optimizer.grad_scale = 2.0
        with pytest.raises(TypeError, match=r"grad_scale: expected a tensor of one number, or None, got 2\.0"):
            optimizer.step()

    @pytest.mark.parametrize("name", ["found_inf", "grad_scale"])
    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            (torch.ones((), dtype=torch.complex64), "torch.complex64 on cpu"),
            (torch.ones((), device="meta"), "torch.float32 on meta"),
            (torch.eye(1).to_sparse(), "torch.float32 on cpu with layout torch.sparse_coo"),
        ],
    )
    def test_scaling_by_what_is_no_number(self, optimizer, name, value, kind):
        setattr(optimizer, name, value)
        with pytest.raises(TypeError, match=f"{name}: expected a dense tensor of one real number, or None.*{kind}"):
            optimizer.step()

    def test_a_state_that_is_none(self, named, optimizer):
        for name, value in list(optimizer.state.get(named["b"], {}).items()):
            if name == "step" or not isinstance(value, torch.Tensor) or value.ndim == 0:
                continue
            optimizer.state[named["b"]][name] = value.to("meta")
            with pytest.raises(TypeError, match=rf"state\['b'\]\['{name}'\]: expected a tensor on the CPU"):
                optimizer.step()
            optimizer.state[named["b"]][name] = value


@pytest.mark.parametrize("rule", c.RULES)
class TestConstruction:
    @pytest.mark.parametrize(
        ("tensor", "kind", "message"),
        [
            (lambda: torch.zeros(2, 3, device="meta"), TypeError, "expected a tensor on the CPU, got one on meta"),
            (lambda: torch.zeros(2, 3, dtype=torch.complex64), TypeError, "expected float32, .*got complex64"),
            (lambda: torch.zeros(2, 3, dtype=torch.int64), TypeError, "expected float32, .*got int64"),
            (lambda: torch.zeros(2, 3).to_sparse(), TypeError, "expected a dense tensor"),
        ],
        ids=["device", "complex", "integer", "sparse"],
    )
    def test_parameters(self, rule, tensor, kind, message):
        with pytest.raises(kind, match=rf"params\['w'\]: {message}"):
            c.made(rule, [("w", tensor())])
        with pytest.raises(kind, match=rf"params\[0\]: {message}"):
            c.made(rule, [tensor()])

    def test_inference_tensor(self, rule):
        with torch.inference_mode():
            tensor = torch.zeros(2, 3)
        with pytest.raises(ValueError, match=r"params\['w'\]: .*made in inference mode"):
            c.made(rule, [("w", tensor)])

    def test_no_leaf(self, rule):
        with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
            c.made(rule, [c.parameters(rule)[0] * 2])

    def test_twice(self, rule):
        a, b = c.parameters(rule)[:2]
        with pytest.raises(ValueError, match=r"params\['y'\]: comes twice, and as params\['x'\]"):
            c.made(rule, [("x", a), ("y", a)])
        with pytest.raises(ValueError, match=r"params\['z'\]: comes twice, and as params\['x'\]"):
            c.made(rule, [{"params": [("x", a)]}, {"params": [("y", b), ("z", a)]}])

    def test_an_argument_that_there_is_not(self, rule):
        name = type(c.made(rule, c.parameters(rule))).__name__
        with pytest.raises(TypeError, match=rf"^{name}: got an unexpected keyword argument 'learning_rate'"):
            c.made(rule, c.parameters(rule), learning_rate=1.0)

    def test_ways_to_compute(self, rule):
        known = optim.REGISTRY[rule].arguments.parameters
        for name in ("capturable", "differentiable"):
            if name in known:
                with pytest.raises(ValueError, match=rf"{name}: expected False"):
                    c.made(rule, c.parameters(rule), **{name: True})
        for name in ("foreach", "fused"):
            for value in (True, False, None):
                if name in known:
                    c.made(rule, c.parameters(rule), **{name: value})
        if "fused" in known:
            with pytest.raises(ValueError, match="fused: expected no foreach=True"):
                c.made(rule, c.parameters(rule), fused=True, foreach=True)


def test_inference_mode_makes_no_states_that_autograd_does_not_know():
    params = c.parameters("adam")
    optimizer = optim.Adam(params)
    with torch.inference_mode():
        c.take("adam", optimizer, params, 1)
    c.take("adam", optimizer, params, 1)
    assert not any(v.is_inference() for entry in optimizer.state.values() for v in entry.values())


def _saved(change):
    """PyTorch's state dict of AdamW after a step, changed."""
    params = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    optimizer = torch.optim.AdamW(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"][1], saved["param_groups"][0])
    return saved


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda entry, group: entry.update(exp_avg=torch.ones(4, 3)),
            ValueError,
            r"\[1\]\['exp_avg'\]: expected shape",
        ),
        (
            lambda entry, group: entry.update(exp_avg=torch.ones(1, 1)),
            ValueError,
            r"\[1\]\['exp_avg'\]: expected shape",
        ),
        (
            lambda entry, group: entry.update(exp_avg=torch.ones(3, 4, device="meta")),
            TypeError,
            r"\[1\]\['exp_avg'\]: expected a tensor with data",
        ),
        (
            lambda entry, group: entry.update(exp_avg=torch.ones(3, 4).to_sparse()),
            TypeError,
            r"\[1\]\['exp_avg'\]: expected a dense tensor",
        ),
        (lambda entry, group: entry.pop("step"), ValueError, r"\[1\]: no 'step'"),
        (lambda entry, group: group.update(capturable=True), ValueError, "capturable: expected False"),
    ],
    ids=["shape", "broadcast", "meta", "sparse", "no step", "capturable"],
)
def test_a_state_dict_that_cannot_be_is_refused_when_it_is_loaded(change, kind, message):
    params = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    optimizer = optim.AdamW(params, lr=0.2)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(kind, match=message):
        optimizer.load_state_dict(_saved(change))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for place, entry in before["state"].items():
        for name, value in entry.items():
            assert torch.equal(after["state"][place][name], value)


@pytest.mark.parametrize("given", [None, 5, []])
def test_a_state_dict_that_is_none(given):
    with pytest.raises(TypeError, match="state_dict: expected a dict, got"):
        optim.AdamW([torch.nn.Parameter(torch.ones(2))]).load_state_dict(given)


def test_a_factored_state_of_another_shape():
    params = [torch.nn.Parameter(torch.ones(3, 4))]
    optimizer, theirs = optim.Adafactor(params), torch.optim.Adafactor(params)
    params[0].grad = torch.ones(3, 4)
    theirs.step()
    saved = copy.deepcopy(theirs.state_dict())
    optimizer.load_state_dict(saved)
    assert optimizer.state[params[0]]["col_var"].shape == (1, 4)
    saved["state"][0]["col_var"] = torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"\['col_var'\]: expected shape \(1, 4\), got \(3, 1\)"):
        optimizer.load_state_dict(saved)


def test_a_closure_that_is_no_function():
    with pytest.raises(TypeError, match="closure: expected a function, got int"):
        optim.AdamW([torch.nn.Parameter(torch.ones(2))]).step(5)


def test_steps_in_the_backward_pass_are_the_whole_optimizers():
    """A group cannot ask for them alone, and a state dict does not: the hooks are there or they are not."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = optim.SGD(params[:1], lr=0.1)
    with pytest.raises(ValueError, match="in_backward: holds for all groups: expected False, got True"):
        optimizer.add_param_group({"params": params[1:2], "in_backward": True})
    assert len(optimizer.param_groups) == 1
    optimizer.load_state_dict(optim.SGD(params[2:], lr=0.1, in_backward=True).state_dict())
    assert optimizer.param_groups[0]["in_backward"] is False
    params[0].sum().backward()
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), torch.full((2,), 0.9))


def test_a_count_of_steps_whose_storage_was_freed():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.AdamW([p])
    p.grad = torch.ones(2)
    optimizer.step()
    before = p.detach().clone()
    optimizer.state[p]["step"].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"state\[0\]\['step'\]: its storage is smaller than its shape"):
        optimizer.step()
    assert torch.equal(p, before)


class TestMissingStates:
    """Where torch's own raise a KeyError."""

    @pytest.mark.parametrize("missing", ["exp_avg", "exp_avg_sq", "step"])
    @pytest.mark.parametrize("rule", ["adam", "adamw", "radam", "nadam", "lamb"])
    def test_named(self, rule, missing):
        params = [("a", torch.ones(3)), ("b", torch.ones(2))]
        optimizer = c.made(rule, [(name, p.requires_grad_()) for name, p in params])
        c.take("adam", optimizer, [p for _, p in params], 2)
        before = [p.detach().clone() for _, p in params]
        entry = optimizer.state[params[1][1]]
        del entry[missing]
        kept = {name: value.clone() for name, value in entry.items()}
        with pytest.raises(ValueError, match=rf"state\['b'\]\['{missing}'\]: missing, and the state has \["):
            c.take("adam", optimizer, [p for _, p in params], 1)
        assert all(torch.equal(p, old) for (_, p), old in zip(params, before, strict=True))
        assert all(torch.equal(entry[name], value) for name, value in kept.items())

    @pytest.mark.parametrize(("rule", "missing"), [("nadam", "mu_product"), ("asgd", "eta"), ("rprop", "prev")])
    def test_others(self, rule, missing):
        p = torch.ones(3, requires_grad=True)
        optimizer = c.made(rule, [p])
        c.take(rule, optimizer, [p], 1)
        del optimizer.state[p][missing]
        with pytest.raises(ValueError, match=rf"state\[0\]\['{missing}'\]: missing, and the state has \["):
            c.take(rule, optimizer, [p], 1)

    def test_a_count_alone_is_no_state(self):
        p = torch.ones(3, requires_grad=True)
        optimizer = optim.AdamW([p])
        optimizer.state[p]["step"] = torch.tensor(3.0)
        with pytest.raises(ValueError, match=r"state\[0\]\['exp_avg'\]: missing, and the state has \['step'\]"):
            c.take("adamw", optimizer, [p], 1)

    @pytest.mark.parametrize("emptied", ["entry", "state"])
    def test_an_emptied_state_begins_anew(self, emptied):
        """As with torch's."""
        mine, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
        for p, optimizer in ((mine, optim.Adam([mine])), (theirs, torch.optim.Adam([theirs]))):
            c.take("adam", optimizer, [p], 2)
            (optimizer.state if emptied == "state" else optimizer.state[p]).clear()
            c.take("adam", optimizer, [p], 1)
        torch.testing.assert_close(mine, theirs)

    @pytest.mark.parametrize(
        ("rule", "option", "added"),
        [
            ("adam", {"amsgrad": True}, "max_exp_avg_sq"),
            ("adamw", {"ema_decay": 0.9}, "ema"),
            ("rmsprop", {"momentum": 0.9}, "momentum_buffer"),
            ("sgd", {"momentum": 0.9}, "momentum_buffer"),
        ],
    )
    def test_an_option_switched_on_later_adds_one(self, rule, option, added):
        p = torch.ones(3, requires_grad=True)
        optimizer = c.made(rule, [p])
        c.take(rule, optimizer, [p], 2)
        assert added not in optimizer.state.get(p, {})
        optimizer.param_groups[0].update(option)
        c.take(rule, optimizer, [p], 1)
        assert optimizer.state[p][added].shape == p.shape
