"""What PyTorch's tests ask of each of its optimizers, asked anew of all of these."""

import copy
import io
import pickle
import weakref

import optim_cases as c
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fusedstep.torch import optim

pytestmark = pytest.mark.parametrize("rule", c.RULES)
#: Whose steps do not depend on the learning rate that they have at the time.
SIZED_ONCE = {"rprop", "asgd"}


def same(params, others):
    return all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


def copies(params):
    return [p.detach().clone() for p in params]


def loss_of(params):
    return sum(((p - 0.3) ** 2).sum() for p in params)


class TestSteps:
    def test_all_at_once_is_one_by_one(self, rule):
        together, apart = c.parameters(rule), c.parameters(rule)
        all_of = c.made(rule, together)
        singles = [c.made(rule, [p]) for p in apart]
        shared = {"prodigy"}  # one step size for all parameters
        for step in range(7):
            for p in (*together, *apart):
                p.grad = c.gradient(rule, p, step)
            all_of.step()
            for one in singles:
                one.step()
        assert same(together, apart) != (rule in shared)

    @pytest.mark.parametrize("maximize", [False, True])
    def test_goes_down_or_up(self, rule, maximize):
        params = c.parameters(rule)
        optimizer = c.made(rule, params, maximize=maximize)
        before = loss_of(params)
        for step in range(20):
            for p in params:
                p.grad = c.gradient(rule, p, step)
            optimizer.step()
        assert (loss_of(params) > before) == maximize

    def test_missing_frozen_and_thawed(self, rule):
        """Without a gradient in step 2, frozen in 3 and 4: as if the parameter had taken the other steps alone."""
        mixed, alone = c.parameters(rule), c.parameters(rule)
        if rule == "prodigy":
            pytest.skip("one step size for all parameters")
        optimizer = c.made(rule, mixed)
        single = c.made(rule, [alone[1]])
        for step in range(7):
            for p in mixed:
                p.grad = c.gradient(rule, p, step)
            if step in (2, 3, 4):
                before = copies(mixed)
                mixed[1].grad = None
                mixed[1].requires_grad_(step == 2)
                optimizer.step()
                assert torch.equal(mixed[1], before[1])
                assert not torch.equal(mixed[0], before[0])
                continue
            mixed[1].requires_grad_(True)
            alone[1].grad = c.gradient(rule, alone[1], step)
            optimizer.step()
            single.step()
            assert torch.equal(mixed[1], alone[1])

    def test_no_axes_and_no_elements(self, rule):
        if rule in ("muon", "sparse_adam"):
            pytest.skip("its parameters are matrices, or have rows")
        params = c.parameters(rule, shapes=[(), (0,), (3, 0), (2,)])
        optimizer = c.made(rule, params)
        before = copies(params)
        c.take(rule, optimizer, params, 3)
        assert not torch.equal(params[0], before[0])
        assert not torch.equal(params[3], before[3])
        state = optimizer.state_dict()
        again = c.parameters(rule, shapes=[(), (0,), (3, 0), (2,)])
        c.made(rule, again).load_state_dict(state)

    def test_without_gradients_nothing_happens(self, rule):
        params = c.parameters(rule)
        optimizer = c.made(rule, params)
        before = copies(params)
        assert optimizer.step() is None
        assert same(params, before)
        assert not optimizer.state
        versions = [p._version for p in params]
        c.take(rule, optimizer, params, 1)
        kept = copy.deepcopy(optimizer.state_dict())
        versions = [p._version for p in params]
        optimizer.zero_grad()
        before = copies(params)
        optimizer.step()
        assert same(params, before)
        assert [p._version for p in params] == versions
        assert_states_equal(optimizer.state_dict(), kept)

    def test_closure(self, rule):
        if rule == "sparse_adam":
            pytest.skip("a closure's gradients are dense")
        params, others = c.parameters(rule), c.parameters(rule)
        optimizer, plain = c.made(rule, params), c.made(rule, others)

        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = loss_of(params)
            loss.backward()
            return loss

        with torch.no_grad():
            loss = optimizer.step(closure)
        assert loss == loss_of(others)
        loss_of(others).backward()
        plain.step()
        assert same(params, others)

    def test_backward_through_changed_weights_is_refused(self, rule):
        params = c.parameters(rule)
        optimizer = c.made(rule, params)
        losses = [(p * p).sum() for p in params]
        c.take(rule, optimizer, params, 1)
        for loss in losses:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_backward_through_a_changed_state_is_refused(self, rule):
        params = c.parameters(rule)
        optimizer = c.made(rule, params, **({"momentum": 0.9} if rule == "sgd" else {}))
        c.take(rule, optimizer, params, 1)
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        states = {k: v for k, v in optimizer.state[params[0]].items() if isinstance(v, torch.Tensor)}
        losses = [(weight * value).sum() for value in states.values()]
        c.take(rule, optimizer, params, 1, first=1)
        assert losses
        for loss in losses:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def assert_states_equal(state, other):
    assert state["param_groups"] == other["param_groups"]
    assert state["state"].keys() == other["state"].keys()
    for key, entry in state["state"].items():
        assert entry.keys() == other["state"][key].keys()
        for name, value in entry.items():
            theirs = other["state"][key][name]
            assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs


class TestLearningRate:
    def test_a_tensor_is_its_number(self, rule):
        params, others = c.parameters(rule), c.parameters(rule)
        optimizer, plain = c.made(rule, params, lr=torch.tensor(0.015625)), c.made(rule, others, lr=0.015625)
        c.take(rule, optimizer, params, 3)
        c.take(rule, plain, others, 3)
        assert same(params, others)
        optimizer.param_groups[0]["lr"].mul_(0.5)
        plain.param_groups[0]["lr"] *= 0.5
        c.take(rule, optimizer, params, 3, first=3)
        c.take(rule, plain, others, 3, first=3)
        assert same(params, others)

    @pytest.mark.parametrize(
        "schedule",
        [
            lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
            lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8, cycle_momentum=False),
            lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.25),
            lambda o: lr_scheduler.SequentialLR(
                o,
                [lr_scheduler.ConstantLR(o, factor=0.5, total_iters=2), lr_scheduler.ExponentialLR(o, gamma=0.5)],
                milestones=[3],
            ),
        ],
        ids=["LambdaLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR"],
    )
    def test_schedulers(self, rule, schedule):
        """The rates of the schedule are those of the steps: written into the group by hand they give the same."""
        params, others = c.parameters(rule), c.parameters(rule)
        optimizer, plain = c.made(rule, params, lr=0.0625), c.made(rule, others, lr=0.0625)
        scheduler = schedule(optimizer)
        rates = []
        for step in range(6):
            for p, q in zip(params, others, strict=True):
                p.grad, q.grad = c.gradient(rule, p, step), c.gradient(rule, q, step)
            rates.append(optimizer.param_groups[0]["lr"])
            plain.param_groups[0]["lr"] = float(rates[-1])
            optimizer.step()
            plain.step()
            scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        assert same(params, others)
        assert len(set(rates)) > 1


class TestHooks:
    def test_order_and_arguments(self, rule):
        params = c.parameters(rule)
        optimizer = c.made(rule, params)
        called = []
        handles = [
            register_optimizer_step_pre_hook(lambda o, a, k: called.append(("global before", a, k))),
            register_optimizer_step_post_hook(lambda o, a, k: called.append(("global after", a, k))),
            optimizer.register_step_pre_hook(lambda o, a, k: called.append(("before", a, k))),
            optimizer.register_step_post_hook(lambda o, a, k: called.append(("after", a, k))),
        ]
        try:
            c.take(rule, optimizer, params, 1)
            optimizer.step(closure=None)
        finally:
            for handle in handles:
                handle.remove()
        order = ["global before", "before", "after", "global after"]
        assert [name for name, _, _ in called] == order * 2
        assert all(arguments == (optimizer,) and named == {} for _, arguments, named in called[:4])
        assert all(named == {"closure": None} for _, _, named in called[4:])
        c.take(rule, optimizer, params, 1)
        assert len(called) == 8

    def test_a_hook_before_may_replace_the_arguments(self, rule):
        optimizer = c.made(rule, c.parameters(rule))
        optimizer.register_step_pre_hook(lambda o, a, k: ((o, lambda: 3.5), {}))
        assert optimizer.step() == 3.5

    def test_the_profiler_sees_a_step(self, rule):
        optimizer = c.made(rule, c.parameters(rule))
        with torch.autograd.profiler.profile() as profile:
            optimizer.step()
        name = type(optimizer).__name__
        assert f"Optimizer.step#{name}.step" in [event.name for event in profile.function_events]

    def test_state_dict_hooks(self, rule):
        params = c.parameters(rule)
        optimizer = c.made(rule, params)
        c.take(rule, optimizer, params, 1)
        called = []
        optimizer.register_state_dict_pre_hook(lambda o: called.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda o, s: {**s, "more": called.append("after saving")})
        optimizer.register_load_state_dict_pre_hook(lambda o, s: called.append("before loading"))
        optimizer.register_load_state_dict_post_hook(lambda o: called.append("after loading"))
        state = optimizer.state_dict()
        assert "more" in state
        optimizer.load_state_dict(state)
        assert called == ["before saving", "after saving", "before loading", "after loading"]


class TestState:
    def test_is_the_same_for_the_same_steps(self, rule):
        params, others = c.parameters(rule), c.parameters(rule)
        optimizer, other = c.made(rule, params), c.made(rule, others)
        c.take(rule, optimizer, params, 3)
        c.take(rule, other, others, 3)
        assert_states_equal(optimizer.state_dict(), other.state_dict())
        assert list(optimizer.state_dict()["state"]) == [k for k, p in enumerate(params) if p in optimizer.state]

    def test_goes_on_after_loading(self, rule):
        params, others = c.parameters(rule), c.parameters(rule)
        optimizer = c.made(rule, params, maximize=True)
        c.take(rule, optimizer, params, 3)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other = c.made(rule, others)
        with torch.no_grad():
            for p, q in zip(params, others, strict=True):
                q.copy_(p)
        other.load_state_dict(torch.load(file, weights_only=True))
        c.take(rule, optimizer, params, 3, first=3)
        c.take(rule, other, others, 3, first=3)
        assert same(params, others)

    def test_loaded_tensors_are_copies(self, rule):
        params = c.parameters(rule)
        optimizer, other = c.made(rule, params), c.made(rule, c.parameters(rule))
        c.take(rule, optimizer, params, 2)
        state = optimizer.state_dict()
        kept = copy.deepcopy(state)
        other.load_state_dict(state)
        c.take(rule, other, other.param_groups[0]["params"], 2)
        assert_states_equal(optimizer.state_dict(), kept)

    def test_older_state_without_the_younger_options(self, rule):
        params, others = c.parameters(rule), c.parameters(rule)
        optimizer, other = c.made(rule, params), c.made(rule, others)
        c.take(rule, optimizer, params, 2)
        state = copy.deepcopy(optimizer.state_dict())
        own = {*optim.REGISTRY[rule].arguments.parameters} - {"params"}
        for name in ("maximize", "foreach", "fused", "capturable", "differentiable", "seed", "ema_decay"):
            if name in own:
                del state["param_groups"][0][name]
        for entry in state["state"].values():
            if "step" in entry:
                entry["step"] = int(entry["step"])
        other.load_state_dict(state)
        with torch.no_grad():
            for p, q in zip(params, others, strict=True):
                q.copy_(p)
        c.take(rule, optimizer, params, 2, first=2)
        c.take(rule, other, others, 2, first=2)
        assert same(params, others)

    def test_of_another_optimizer_is_refused(self, rule):
        params = c.parameters(rule, shapes=[(4, 3)])
        other_rule = "adadelta" if rule != "adadelta" else "rprop"
        other_params = c.parameters(other_rule, shapes=[(4, 3)])
        other = c.made(other_rule, other_params)
        c.take(other_rule, other, other_params, 1)
        optimizer = c.made(rule, params)
        kept = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=rf"expected a state of '{rule}'|not a state of '{rule}'"):
            optimizer.load_state_dict(other.state_dict())
        assert_states_equal(optimizer.state_dict(), kept)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_copies_keep_the_link_to_the_copied_parameters(self, rule, copied):
        params = torch.nn.ParameterList(c.parameters(rule))
        optimizer = c.made(rule, params.parameters())
        c.take(rule, optimizer, list(params), 2)
        others, other = copied((params, optimizer))
        assert type(other) is type(optimizer)
        assert all(p is q for p, q in zip(other.param_groups[0]["params"], others, strict=True))
        before = copies(params)
        c.take(rule, other, list(others), 2, first=2)
        assert same(params, before)
        c.take(rule, optimizer, list(params), 2, first=2)
        assert same(params, others)

    def test_nobody_is_kept_alive(self, rule):
        params = c.parameters(rule)
        optimizer = c.made(rule, params)
        c.take(rule, optimizer, params, 2)
        watched = [weakref.ref(p.grad) for p in params]
        optimizer.zero_grad()
        assert [ref() for ref in watched] == [None] * len(params)

    def test_groups_are_added_after_steps(self, rule):
        params, later = c.parameters(rule), c.parameters(rule, seed=1)
        others, others_later = c.parameters(rule), c.parameters(rule, seed=1)
        if rule == "prodigy":
            pytest.skip("one step size for all parameters")
        optimizer = c.made(rule, params)
        c.take(rule, optimizer, params, 2)
        optimizer.add_param_group({"params": later, "lr": 0.25})
        c.take(rule, optimizer, [*params, *later], 3, first=2)
        first, second = c.made(rule, others), c.made(rule, others_later, lr=0.25)
        c.take(rule, first, others, 5)
        c.take(rule, second, others_later, 3, first=2)
        assert same([*params, *later], [*others, *others_later])


class TestDrawnIn:
    def test_names_and_generators(self, rule):
        params = c.parameters(rule)
        names = [f"p{k}" for k in range(len(params))]
        optimizer = c.made(rule, zip(names, params, strict=True))
        assert optimizer.param_groups[0]["param_names"] == names
        groups = [{"params": (p for p in params[:1])}, {"params": params[1]}]
        optimizer = c.made(rule, groups)
        assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
        c.take(rule, optimizer, params[:2], 1)

    def test_shared_memory(self, rule):
        params, others = c.parameters(rule), c.parameters(rule)
        for p in params:
            p.share_memory_()
        optimizer, other = c.made(rule, params), c.made(rule, others)
        c.take(rule, optimizer, params, 2)
        c.take(rule, other, others, 2)
        assert all(p.is_shared() for p in params)
        assert same(params, others)

    def test_is_torchs(self, rule):
        optimizer = c.made(rule, c.parameters(rule))
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert type(optimizer).__name__ in repr(optimizer)
        assert getattr(optim, type(optimizer).__name__) is type(optimizer)
