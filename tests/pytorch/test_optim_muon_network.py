"""Muon for a whole network: its matrices as `fs.Muon` steps them, all else as `fs.AdamW` does."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import fusedstep as fs
from fusedstep.torch import optim

MUON = {"lr": 0.02, "momentum": 0.9}
ADAMW = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
ARGUMENTS = MUON | {f"adamw_{name}": value for name, value in ADAMW.items()}
HIDDEN = ["body.0.weight", "body.3.weight"]


def network(seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 5)]
    parts = {"stem": nn.Conv2d(3, 4, 1), "body": nn.Sequential(*body), "embed": nn.Embedding(7, 5)}
    return nn.ModuleDict(parts | {"head": nn.Linear(5, 3), "tail": nn.Linear(3, 2)})


def give_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def take(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        give_gradients(model, step)
        optimizer.step()


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def rules(optimizer):
    return {name: g["rule"] for g in optimizer.param_groups for name in g["param_names"]}


def as_arrays(tensors, names):
    return {name: tensors[name].numpy().reshape(len(tensors[name]), -1).copy() for name in names}


class TestSteps:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_values(self, layout):
        """Of channels last, the columns of a matrix come in the order of memory."""
        model = network()
        model = model.to(memory_format=layout)
        optimizer = optim.Muon(model.named_parameters(), **ARGUMENTS)
        start, places = copies(model), {}
        for name in HIDDEN:
            p = start[name]
            places[name] = (0, 2, 3, 1) if p.ndim == 4 and layout == torch.channels_last else tuple(range(p.ndim))
        matrices = as_arrays({name: start[name].permute(places[name]) for name in HIDDEN}, HIDDEN)
        rest = {name: p.numpy().copy() for name, p in start.items() if name not in HIDDEN}
        muon, adamw = fs.Muon(matrices, **MUON), fs.AdamW(rest, **ADAMW)
        for step in range(4):
            give_gradients(model, step)
            grads = {name: p.grad for name, p in model.named_parameters()}
            optimizer.step()
            muon.step(as_arrays({name: grads[name].permute(places[name]) for name in HIDDEN}, HIDDEN))
            adamw.step({name: grads[name].numpy() for name in rest})
        for name, p in copies(model).items():
            if name in HIDDEN:
                p = p.permute(places[name]).reshape(len(p), -1)
            assert np.array_equal(p.numpy(), (matrices | rest)[name]), name
            assert not np.array_equal(p.numpy().ravel(), start[name].numpy().ravel())
        buffer = optimizer.state[model["body"][0].weight]["momentum_buffer"]
        assert buffer.stride() == model["body"][0].weight.stride()

    def test_missing_gradients(self):
        model = network()
        optimizer = optim.Muon(model.named_parameters(), **ARGUMENTS)
        optimizer.step()
        assert optimizer.report is None
        give_gradients(model, 0)
        model["body"][0].weight.grad = model["tail"].weight.grad = None
        before = copies(model)
        optimizer.step()
        still = {name for name, p in copies(model).items() if torch.equal(p, before[name])}
        assert still == {"body.0.weight", "tail.weight"}

    def test_one_step_for_hooks_and_report(self):
        model, calls = network(), []
        optimizer = optim.Muon(model.named_parameters(), **ARGUMENTS)
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        take(model, optimizer, 2)
        assert len(calls) == 2
        report = optimizer.report
        assert (report.step, report.lr, report.grad_norm, report.skipped) == (2, (0.02, 3e-3), None, False)
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())

    def test_in_the_backward_pass(self):
        stepped, model = network(), network()
        optimizer = optim.Muon(model.named_parameters(), in_backward=True, **ARGUMENTS)
        whole = optim.Muon(stepped.named_parameters(), **ARGUMENTS)
        for each in (model, stepped):
            sum((p**2).sum() for p in each.parameters()).backward()
        whole.step()
        optimizer.step()
        assert same(model, stepped)

    def test_autograd_is_told(self):
        model = network()
        optimizer = optim.Muon(model.named_parameters(), **ARGUMENTS)
        take(model, optimizer, 1)
        weight = model["body"][0].weight
        saved = [weight, optimizer.state[weight]["momentum_buffer"]]
        versions = [tensor._version for tensor in saved]
        take(model, optimizer, 1)
        assert all(tensor._version > version for tensor, version in zip(saved, versions, strict=True))

    @pytest.mark.parametrize("options", [{"state_dtype": "8bit", "min_8bit_size": 0}, {"ema_decay": 0.9}])
    def test_options_reach_both(self, options):
        model = network()
        optimizer = optim.Muon(model.named_parameters(), **ARGUMENTS, **options)
        take(model, optimizer, 3)
        for p in model.parameters():
            entry = optimizer.state[p]
            if "ema_decay" in options:
                assert entry["ema"].shape == p.shape
                assert not torch.equal(entry["ema"], p)
            else:
                kept = entry["momentum_buffer" if "momentum_buffer" in entry else "exp_avg"]
                assert (kept.dtype, kept.shape) == (torch.uint8, p.shape)


class TestWholeStep:
    @pytest.mark.parametrize("limit", [0.5, 1e6, float("inf")])
    def test_clips_by_the_norm_of_all(self, limit):
        model, other = network().double(), network().double()
        optimizer = optim.Muon(model.named_parameters(), max_grad_norm=limit, **ARGUMENTS)
        plain = optim.Muon(other.named_parameters(), **ARGUMENTS)
        for step in range(3):
            for each in (model, other):
                give_gradients(each, step)
            norm = float(nn.utils.clip_grad_norm_(other.parameters(), limit))
            optimizer.step()
            plain.step()
            assert optimizer.report.grad_norm == pytest.approx(norm, rel=1e-12)
            assert optimizer.report.clip_coefficient == pytest.approx(min(1.0, limit / (norm + 1e-6)), rel=1e-12)
        for one, its in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, its, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("rule", ["muon", "adamw"])
    def test_norm_of_one_rule_alone(self, rule):
        model = network()
        optimizer = optim.Muon(model.named_parameters(), max_grad_norm=float("inf"), **ARGUMENTS)
        give_gradients(model, 0)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = p.grad if group["rule"] == rule else None
        norm = float(nn.utils.get_total_norm([p.grad.double() for p in model.parameters() if p.grad is not None]))
        optimizer.step()
        assert optimizer.report.grad_norm == pytest.approx(norm, rel=1e-12)

    @pytest.mark.parametrize("wrong", [HIDDEN[0], "head.bias"])
    def test_skips_the_step_of_both(self, wrong):
        model = network()
        optimizer = optim.Muon(model.named_parameters(), skip_nonfinite=True, **ARGUMENTS)
        take(model, optimizer, 1)
        before = copies(model)
        give_gradients(model, 1)
        model.get_parameter(wrong).grad.flatten()[0] = float("nan")
        optimizer.step()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert (optimizer.report.skipped, optimizer.report.nonfinite, optimizer.report.step) == (True, 1, 1)
        take(model, optimizer, 1, 2)
        assert (optimizer.report.skipped, optimizer.report.step) == (False, 2)
        other = network()
        its = optim.Muon(other.named_parameters(), **ARGUMENTS)
        take(other, its, 1)
        take(other, its, 1, 2)
        assert same(model, other)

    def test_the_same_for_all_groups(self):
        optimizer = optim.Muon(network().named_parameters(), max_grad_norm=1.0, **ARGUMENTS)
        optimizer.param_groups[1]["max_grad_norm"] = 2.0
        with pytest.raises(ValueError, match="max_grad_norm: holds for the whole step: expected the same in all"):
            optimizer.step()

    @pytest.mark.parametrize("place", ["params", "state"])
    def test_overlaps_between_the_rules(self, place):
        memory = torch.ones(40)
        matrix = memory[:16].view(4, 4).requires_grad_()
        vector = (memory[12:20] if place == "params" else torch.ones(8)).requires_grad_()
        pairs = [("matrix", matrix), ("vector", vector)]
        optimizer = optim.Muon(pairs, use_muon=lambda name, _: name == "matrix")
        if place == "state":
            optimizer.state[vector] = {
                "step": torch.tensor(1.0), "exp_avg": memory[8:16], "exp_avg_sq": torch.ones(8)
            }  # fmt: skip
        matrix.grad, vector.grad = torch.ones(4, 4), torch.ones(8)
        names = {"params": r"params\['vector'\]", "state": r"state\['vector'\]\['exp_avg'\]"}
        with pytest.raises(ValueError, match=rf"{names[place]}: overlaps params\['matrix'\] in memory"):
            optimizer.step()
        assert bool((memory == 1).all())
        assert matrix not in optimizer.state


class TestChoice:
    def test_default(self):
        optimizer = optim.Muon(network().named_parameters())
        assert [name for name, rule in rules(optimizer).items() if rule == "muon"] == HIDDEN
        assert len(rules(optimizer)) == len(list(network().parameters()))

    @pytest.mark.parametrize(
        ("name", "rule"),
        [
            ("h.0.attn.weight", "muon"),
            ("multihead_attn.out.weight", "muon"),
            ("lm_head.weight", "adamw"),
            ("word_embeddings.weight", "adamw"),
            ("transformer.wpe.weight", "adamw"),
        ],
    )
    def test_names(self, name, rule):
        first, last, bias = (torch.zeros(s, requires_grad=True) for s in ((2, 2), (2, 2), (2,)))
        pairs = [("a", first), (name, torch.zeros(2, 3, requires_grad=True)), ("b", bias), ("z", last)]
        assert rules(optim.Muon(pairs)) == {"a": "adamw", name: rule, "b": "adamw", "z": "adamw"}

    def test_predicate(self):
        model, seen = network(), []
        optimizer = optim.Muon(
            model.parameters(), use_muon=lambda name, p: seen.append(name) or p.ndim == 4, adamw_lr=0.5
        )
        assert set(seen) == {None}
        assert {g["rule"]: len(g["params"]) for g in optimizer.param_groups} == {"muon": 2, "adamw": 11}
        named = optim.Muon(model.named_parameters(), use_muon=lambda name, _: name == "tail.weight")
        assert [name for name, rule in rules(named).items() if rule == "muon"] == ["tail.weight"]

    def test_matrices_alone_as_before(self):
        params = [torch.zeros(2, 3, requires_grad=True), torch.zeros(3, 2, requires_grad=True)]
        for given in (params, [("embed", params[0]), ("head", params[1])]):
            (group,) = optim.Muon(given, 0.1).param_groups
            assert not {"rule", "use_muon", "adamw_lr"} & group.keys()
            assert (len(group["params"]), group["lr"]) == (2, 0.1)

    def test_groups(self):
        model = network()
        named = list(model.named_parameters())
        optimizer = optim.Muon(
            [{"params": named[:4], "lr": 0.5, "adamw_lr": 0.25}, {"params": named[4:-2]}], **ARGUMENTS
        )
        assert [(g["rule"], g["lr"]) for g in optimizer.param_groups] == [
            ("muon", 0.5),
            ("adamw", 0.25),
            ("muon", 0.02),
            ("adamw", 3e-3),
        ]
        optimizer.add_param_group({"params": named[-2:], "rule": "adamw", "betas": (0.1, 0.2)})
        group = optimizer.param_groups[-1]
        assert (group["rule"], group["betas"], group["lr"]) == ("adamw", (0.1, 0.2), 1e-3)
        take(model, optimizer, 1)


class TestState:
    def test_round_trip(self):
        one, other = network(), network()
        mine = optim.Muon(one.named_parameters(), **ARGUMENTS)
        take(one, mine, 2)
        other.load_state_dict(one.state_dict())
        theirs = optim.Muon(other.named_parameters())
        file = io.BytesIO()
        torch.save(mine.state_dict(), file)
        file.seek(0)
        theirs.load_state_dict(torch.load(file, weights_only=True))
        for model, optimizer in ((one, mine), (other, theirs)):
            take(model, optimizer, 2, 2)
        assert same(one, other)
        fresh = network()
        take(fresh, optim.Muon(fresh.named_parameters(), **ARGUMENTS), 4)
        assert same(one, fresh)

    def test_deepcopy(self):
        model = network()
        optimizer = optim.Muon(model.named_parameters(), **ARGUMENTS)
        take(model, optimizer, 2)
        copied, its = copy.deepcopy((model, optimizer))
        before = copies(model)
        take(copied, its, 1, 2)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        take(model, optimizer, 1, 2)
        assert same(model, copied)
        its.add_param_group({"params": [("more", torch.ones(2, 2, 2, requires_grad=True))]})
        assert its.param_groups[-1]["rule"] == "muon"

    def test_schedulers_act_on_both(self):
        model = network()
        optimizer = optim.Muon(model.named_parameters(), **ARGUMENTS)
        scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
        take(model, optimizer, 1)
        scheduler.step()
        assert [g["lr"] for g in optimizer.param_groups] == [0.01, 1.5e-3]
        cycle = lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=5)
        take(model, optimizer, 1, 1)
        cycle.step()
        assert optimizer.report.lr[1] == pytest.approx(0.2 / 25)

    def test_of_matrices_alone(self):
        params = [torch.zeros(2, 3, requires_grad=True), torch.zeros(3, 2, requires_grad=True)]
        network_of = optim.Muon(params, use_muon=lambda *_: True)
        with pytest.raises(ValueError, match=r"param_groups'\]\[0\]: expected a group with 'rule' 'muon', got None"):
            network_of.load_state_dict(optim.Muon(params).state_dict())
        with pytest.raises(ValueError, match="expected a group with 'rule' None, got 'muon'"):
            optim.Muon(params).load_state_dict(network_of.state_dict())


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"max_grad_norm": -1.0}, ValueError, "max_grad_norm: expected a number > 0, or None, got -1.0"),
            ({"telemetry": True}, ValueError, "telemetry: expected False in Muon for a whole network"),
            ({"use_muon": 3}, TypeError, "use_muon: expected a function of a name and a parameter, got 3"),
            ({"adamw_lr": -1.0}, ValueError, "adamw_lr: expected a finite number >= 0, got -1.0"),
            ({"adamw_betas": (1.0, 0.5)}, ValueError, r"adamw_betas: expected numbers in \[0, 1\)"),
            ({"lr": -1.0}, ValueError, "lr: expected a finite number >= 0, got -1.0"),
            ({"adamw_momentum": 1.0}, TypeError, "Muon: got an unexpected keyword argument 'adamw_momentum'"),
            ({"use_muon": lambda *_: True}, ValueError, r"params\['stem.bias'\]: expected 2 axes or more for Muon"),
        ],
    )
    def test_arguments(self, arguments, kind, message):
        with pytest.raises(kind, match=message):
            optim.Muon(network().named_parameters(), **arguments)

    def test_names_are_needed(self):
        with pytest.raises(ValueError, match="use_muon: expected a predicate for parameters without names"):
            optim.Muon(network().parameters(), adamw_lr=0.1)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"use_muon": True}, "use_muon: expected an argument of the optimizer"),
            ({"rule": "adamw", "adamw_lr": 0.1}, "adamw_lr: expected none in a group with a rule, got 0.1"),
        ],
    )
    def test_keys_of_groups(self, keys, message):
        given = [{"params": [torch.zeros(2, 2, requires_grad=True)], **keys}]
        with pytest.raises(ValueError, match=message):
            optim.Muon(given)
        optimizer = optim.Muon(network().named_parameters())
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [("w", torch.zeros(2, 2, requires_grad=True))], **keys})

    def test_groups_with_rules_are_a_network(self):
        params = [torch.zeros(2, 2, requires_grad=True) for _ in range(3)]
        groups = [{"params": params[:1], "rule": "muon"}, {"params": params[1:2], "rule": "adamw", "lr": 0.5}]
        assert [(g["rule"], g["lr"]) for g in optim.Muon(groups).param_groups] == [("muon", 1e-3), ("adamw", 0.5)]
        with pytest.raises(ValueError, match="rule: expected none in a group of Muon for matrices alone"):
            optim.Muon(params[:2]).add_param_group({"params": params[2:], "rule": "adamw"})

    def test_groups_stay_as_they_were(self):
        model = network()
        optimizer = optim.Muon(model.named_parameters())
        twice = [("new", torch.ones(2, 2, requires_grad=True)), ("again", model["tail"].bias)]
        with pytest.raises(ValueError, match=r"params\['again'\]: comes twice, and as params\['tail.bias'\]"):
            optimizer.add_param_group({"params": twice})
        with pytest.raises(ValueError, match="rule: expected 'muon' or 'adamw', got 'sgd'"):
            optimizer.add_param_group({"params": twice[:1], "rule": "sgd"})
        assert len(optimizer.param_groups) == 2

    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("wrong", ["body.0.weight", "body.3.weight", "stem.bias", "embed.weight"])
    def test_nothing_is_written(self, wrong, named):
        """Whichever of the two rules has the wrong parameter, the other has not stepped."""
        model = network()
        given = model.named_parameters() if named else model.parameters()
        chosen = {id(model.get_parameter(name)) for name in HIDDEN}
        optimizer = optim.Muon(given, use_muon=lambda _, p: id(p) in chosen)
        take(model, optimizer, 1)
        give_gradients(model, 1)
        before, state = copies(model), copy.deepcopy(optimizer.state_dict()["state"])
        param = model.get_parameter(wrong)
        place = next(k for k, p in enumerate(p for g in optimizer.param_groups for p in g["params"]) if p is param)
        param.grad = None
        param.grad_dtype = None
        param.grad = param.detach().double()
        with pytest.raises(TypeError, match=rf"grads\['?{wrong if named else place}'?\]: expected dtype"):
            optimizer.step()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        for place, entry in optimizer.state_dict()["state"].items():
            assert all(torch.equal(value, state[place][name]) for name, value in entry.items())
