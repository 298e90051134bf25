"""`fs.Muon` of a whole network's arrays: its matrices as `fs.Muon` steps them, all else as `fs.AdamW` does."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import fusedstep as fs
from optional import torch

MUON = {"lr": 0.02, "momentum": 0.9}
ADAMW = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
ARGUMENTS = MUON | {f"adamw_{name}": value for name, value in ADAMW.items()}
SHAPES = {"stem": (5, 4), "conv": (6, 4, 3, 3), "gain": (6,), "body": (5, 6), "embed": (7, 5), "tail": (2, 5)}
HIDDEN = ["conv", "body"]
REST = [name for name in SHAPES if name not in HIDDEN]


def arrays(seed, dtype=np.float32):
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def take(opt, steps, first=0, dtype=np.float32):
    return [opt.step(arrays(100 + step, dtype)) for step in range(first, first + steps)][-1]


def flat(values, names):
    return {name: values[name].reshape(len(values[name]), -1) for name in names}


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def made(params, **named):
    return fs.Muon(params, **(ARGUMENTS | named))


class TestSteps:
    def test_values(self):
        params, expected = arrays(0), arrays(0)
        opt = made(params)
        matrices, rest = flat(expected, HIDDEN), {name: expected[name] for name in REST}
        muon, adamw = fs.Muon(matrices, **MUON), fs.AdamW(rest, **ADAMW)
        for step in range(4):
            grads = arrays(100 + step)
            opt.step(grads)
            muon.step(flat(grads, HIDDEN))
            adamw.step({name: grads[name] for name in REST})
        assert same(params, expected)
        assert not any(np.array_equal(p, arrays(0)[name]) for name, p in params.items())

    def test_clips_by_the_norm_of_all(self):
        params, expected = arrays(0, np.float64), arrays(0, np.float64)
        opt, plain = made(params, max_grad_norm=0.5), made(expected)
        for step in range(3):
            grads = arrays(100 + step, np.float64)
            report = opt.step(grads)
            norm = np.sqrt(sum(np.square(g).sum() for g in grads.values()))
            plain.step({name: g * (0.5 / (norm + 1e-6)) for name, g in grads.items()})
            assert report.grad_norm == pytest.approx(norm, rel=1e-12)
            assert report.clip_coefficient == pytest.approx(0.5 / (norm + 1e-6), rel=1e-12)
            assert report.lr == (0.02, 3e-3)
        for name in SHAPES:
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-11)

    @pytest.mark.parametrize("wrong", ["conv", "gain"])
    def test_skips_the_step_of_both(self, wrong):
        params = arrays(0)
        opt = made(params, skip_nonfinite=True)
        take(opt, 1)
        before, grads = copy.deepcopy(params), arrays(7)
        grads[wrong].flat[1] = np.nan
        report = opt.step(grads)
        assert (report.skipped, report.nonfinite, report.step) == (True, 1, 1)
        assert same(params, before)
        assert take(opt, 1).step == 2

    def test_missing_gradients(self):
        params = arrays(0)
        opt = made(params)
        grads = arrays(1) | {"conv": None, "gain": None}
        opt.step(grads)
        still = [name for name, p in params.items() if np.array_equal(p, arrays(0)[name])]
        assert still == ["conv", "gain"]

    def test_schedules_and_attributes(self):
        opt = fs.Muon(arrays(0), lr=lambda t: 0.1 / (t + 1), adamw_lr=0.5)
        assert take(opt, 2).lr == (0.05, 0.5)
        opt.lr, opt.adamw_lr, opt.max_grad_norm = 0.25, 0.125, 3.0
        assert [group["lr"] for group in opt.param_groups] == [0.25, 0.125]
        assert (opt.lr, opt.adamw_lr, opt.max_grad_norm, opt.momentum) == (0.25, 0.125, 3.0, 0.95)
        with pytest.raises(AttributeError, match="adamw_lrr: not a hyper-parameter of Muon; did you mean 'adamw_lr'"):
            opt.adamw_lrr = 1.0


class TestChoice:
    def test_default(self):
        groups = made(arrays(0)).param_groups
        assert [group["param_names"] for group in groups] == [HIDDEN, REST]

    def test_predicate_and_nested_names(self):
        params = {"a": {"w": np.ones((2, 2)), "b": np.ones(2)}, "c": [np.ones((2, 3))]}
        seen = []
        opt = fs.Muon(params, use_muon=lambda name, p: seen.append(name) or p.ndim == 2)
        assert seen == ["a.w", "a.b", "c.0"]
        assert [group["param_names"] for group in opt.param_groups] == [["a.w", "c.0"], ["a.b"]]
        opt.step({"a": {"w": np.ones((2, 2)), "b": np.ones(2)}, "c": [np.ones((2, 3))]})
        assert (params["a"]["b"] < 1).all()

    def test_matrices_alone_as_before(self):
        for given in ({"a": np.ones((2, 2)), "head": np.ones((2, 3))}, [np.ones((2, 2))]):
            assert type(fs.Muon(given)) is fs.Muon
        assert isinstance(made(arrays(0)), fs.Muon)


class TestState:
    def test_round_trip(self):
        mine, other = arrays(0), arrays(0)
        opt = made(mine, ema_decay=0.9)
        take(opt, 2)
        for name, p in mine.items():
            other[name][...] = p
        saved = opt.state_dict()
        assert saved["state"][0]["momentum_buffer"].shape == SHAPES["conv"]
        assert [group["rule"] for group in saved["param_groups"]] == ["muon", "adamw"]
        its = made(other, ema_decay=0.9)
        its.load_state_dict(saved)
        take(opt, 2, 2)
        assert take(its, 2, 2).step == 4
        assert same(mine, other)
        assert same(opt.ema, its.ema)
        assert {name: average.shape for name, average in opt.ema.items()} == SHAPES

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_a_copy_steps_the_copied_arrays(self, copied):
        params = arrays(0)
        opt = made(params)
        take(opt, 1)
        others, its = copied((params, opt))
        before = copy.deepcopy(params)
        take(its, 1, 1)
        assert same(params, before)
        take(opt, 1, 1)
        assert same(params, others)

    def test_checkpoint(self, tmp_path):
        pytest.importorskip("safetensors")
        params = arrays(0)
        opt = made(params)
        take(opt, 2)
        fs.save_checkpoint(tmp_path / "run.safetensors", params, opt)
        loaded = fs.load_checkpoint(tmp_path / "run.safetensors")
        its = made(loaded.params)
        its.load_state_dict(loaded.optimizer)
        take(opt, 1, 2)
        take(its, 1, 2)
        assert same(params, loaded.params)

    def test_shown(self):
        shown = repr(made(arrays(0))).splitlines()
        assert (shown[0], shown[1], shown[-1]) == ("MuonNetwork(", "    Muon(", ")")
        assert shown[2].startswith("        2 arrays of 246 parameters: lr=0.02, ")

    def test_convert_and_rebind(self):
        params = arrays(0)
        opt = made(params, min_8bit_size=1)
        take(opt, 1)
        size = opt.nbytes
        opt.convert_states("8bit")
        assert opt.nbytes < size / 2
        moved = {name: p.copy() for name, p in params.items()}
        opt.rebind(moved)
        before = copy.deepcopy(params)
        take(opt, 1, 1)
        assert same(params, before)
        assert not same(moved, before)

    def test_errors(self):
        opt = made(arrays(0))
        take(opt, 1)
        saved, before = opt.state_dict(), opt.state_dict()
        saved["state"][5]["exp_avg"] = np.ones(3, np.float32)
        saved["state"][0]["momentum_buffer"][...] = 3
        with pytest.raises(ValueError, match="exp_avg"):
            opt.load_state_dict(saved)
        after = opt.state_dict()
        assert np.array_equal(after["state"][0]["momentum_buffer"], before["state"][0]["momentum_buffer"])
        with pytest.raises(ValueError, match=r"expected a group of 'muon' and one of 'adamw', got \[None\]"):
            opt.load_state_dict(fs.Muon([np.ones((2, 2))]).state_dict())

    def test_the_torch_network_goes_on_here(self):
        from fusedstep.torch import optim

        params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in arrays(0).items()}
        theirs = optim.Muon(list(params.items()), **ARGUMENTS)
        mine = arrays(0)

        def step_torch(step):
            for name, grad in arrays(100 + step).items():
                params[name].grad = torch.tensor(grad)
            theirs.step()

        for step in range(2):
            step_torch(step)
        for name, p in params.items():
            mine[name][...] = p.detach().numpy()
        opt = made(mine)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opt.load_state_dict(theirs.state_dict())
        take(opt, 2, 2)
        for step in range(2, 4):
            step_torch(step)
        assert same(mine, {name: p.detach().numpy() for name, p in params.items()})


class TestErrors:
    @pytest.mark.parametrize(
        ("named", "kind", "message"),
        [
            ({"use_muon": 3}, TypeError, "use_muon: expected a function of a name and an array, got 3"),
            ({"adamw_lr": -1.0}, ValueError, "adamw_lr: expected a finite number >= 0, got -1.0"),
            ({"adamw_betas": (1.0, 0.5)}, ValueError, r"adamw_betas: expected numbers in \[0, 1\)"),
            ({"lr": -1.0}, ValueError, "^lr: expected a finite number >= 0, got -1.0"),
            ({"telemetry": True}, ValueError, "telemetry: expected False in Muon for a whole network"),
            ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm: expected a number > 0"),
            ({"adamw_momentum": 1.0}, TypeError, "adamw_momentum: not a hyper-parameter of Muon"),
            ({"use_muon": lambda *_: False}, ValueError, r"use_muon: expected some of the parameters \['stem'"),
            ({"use_muon": lambda *_: True}, ValueError, r"use_muon: expected some of the parameters \['stem'"),
            ({"use_muon": lambda name, _: name == "gain"}, ValueError, r"params\['gain'\]: expected 2 axes or more"),
        ],
    )
    def test_arguments(self, named, kind, message):
        with pytest.raises(kind, match=message):
            made(arrays(0), **named)

    def test_names_are_needed(self):
        for given in ([np.ones((2, 2))], [{"params": {"a": np.ones((2, 2))}}], np.ones((2, 2))):
            with pytest.raises(ValueError, match="params: expected a dict of names for a whole network"):
                fs.Muon(given, adamw_lr=0.1)
        with pytest.raises(ValueError, match="add_param_group: expected a new optimizer"):
            made(arrays(0)).add_param_group({"params": np.ones((2, 2))})

    @pytest.mark.parametrize("wrong", SHAPES)
    def test_nothing_is_written(self, wrong):
        """Whichever of the two rules has the wrong gradient, the other has not stepped."""
        params = arrays(0)
        opt = made(params)
        take(opt, 1)
        before, state = copy.deepcopy(params), opt.state_dict()
        for value in (np.ones(3, np.float32), np.ones(SHAPES[wrong]), "x"):
            with pytest.raises((TypeError, ValueError), match=rf"grads\['{wrong}'\]"):
                opt.step(arrays(1) | {wrong: value})
        assert same(params, before)
        after = opt.state_dict()
        assert after["step"] == 1
        for k, entry in state["state"].items():
            assert all(np.array_equal(value, after["state"][k][name]) for name, value in entry.items())

    def test_names_of_gradients(self):
        opt = made(arrays(0))
        with pytest.raises(ValueError, match="grads: no gradient for 'gain'"):
            opt.step({name: g for name, g in arrays(1).items() if name != "gain"})
        with pytest.raises(ValueError, match="grads: 'more' is not the name of a parameter"):
            opt.step(arrays(1) | {"more": np.ones(2, np.float32)})

    def test_a_replaced_array(self):
        params = arrays(0)
        opt = made(params)
        params["conv"] = params["conv"].copy()
        with pytest.raises(ValueError, match=r"params\['conv'\]: holds another array than the one that is trained"):
            take(opt, 1)

    def test_overlaps_between_the_rules(self):
        memory = np.ones(40, np.float32)
        params = {"matrix": memory[:16].reshape(4, 4), "vector": memory[12:20]}
        opt = fs.Muon(params, use_muon=lambda name, _: name == "matrix")
        with pytest.raises(ValueError, match=r"params\['vector'\]: overlaps params\['matrix'\] in memory"):
            opt.step({name: np.ones_like(p) for name, p in params.items()})
        assert (memory == 1).all()

    def test_options_that_differ(self):
        opt = made(arrays(0))
        opt.param_groups[1]["max_grad_norm"] = 2.0
        with pytest.raises(ValueError, match="max_grad_norm: holds for the whole step"):
            take(opt, 1)
