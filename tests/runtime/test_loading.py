"""What a loaded state brings along, and what it leaves."""

import warnings

import numpy as np
import pytest

import fusedstep as fs
from helpers import assert_same_bits, ones

F = np.float32


def stepped(**hypers):
    p = ones(5000)
    optimizer = fs.Adam(p, **hypers)
    optimizer.step(np.linspace(-1, 1, 5000, dtype=F))
    return optimizer


class TestHyperParameters:
    def test_replaced_ones_are_named(self):
        saved = stepped(lr=0.25, weight_decay=0.5).state_dict()
        optimizer = fs.Adam(ones(5000), lr=0.125)
        with pytest.warns(UserWarning, match="replaced") as caught:
            optimizer.load_state_dict(saved)
        assert [str(w.message) for w in caught] == [
            "load_state_dict: replaced lr 0.125 by 0.25, weight_decay 0.0 by 0.5; hypers=False keeps one's own"
        ]
        assert caught[0].filename == __file__
        assert (optimizer.lr, optimizer.weight_decay) == (0.25, 0.5)

    def test_ones_own_on_demand(self):
        schedule = fs.schedules.cosine(0.125, 100)
        optimizer = fs.Adam(ones(5000), lr=schedule)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.load_state_dict(stepped(lr=0.25, weight_decay=0.5).state_dict(), hypers=False)
        assert optimizer.lr is schedule
        assert optimizer.weight_decay == 0.0
        assert optimizer.state[0]["step"] == 1

    def test_the_same_are_no_news(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fs.Adam(ones(5000), lr=0.25, betas=[0.9, 0.999]).load_state_dict(stepped(lr=0.25).state_dict())

    def test_a_longer_schedule_of_ones_own(self):
        """A run of 10 steps goes on for 100: with the schedule of the file, its rate would stay 0."""
        p = ones(1)
        first = fs.SGD(p, lr=fs.schedules.cosine(1.0, 10))
        for _ in range(10):
            first.step(ones(1))
        longer = fs.SGD(p, lr=fs.schedules.cosine(1.0, 100))
        longer.load_state_dict(first.state_dict(), hypers=False)
        assert longer.step(ones(1)).lr == pytest.approx(0.5 * (1 + np.cos(np.pi * 10 / 100)))

    def test_of_groups(self):
        def make(rate):
            return fs.SGD([{"params": [ones(1)], "lr": 0.5}, {"params": [ones(1)]}], lr=rate)

        with pytest.warns(UserWarning, match="replaced lr 0.25 by 0.125;"):
            make(0.25).load_state_dict(make(0.125).state_dict())

    def test_lbfgs(self):
        saved = fs.LBFGS(np.ones(2), lr=0.5).state_dict()
        optimizer = fs.LBFGS(np.ones(2))
        optimizer.load_state_dict(saved, hypers=False)
        assert optimizer.param_groups[0]["lr"] == 1.0
        with pytest.warns(UserWarning, match="replaced lr 1.0 by 0.5;"):
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["lr"] == 0.5

    def test_a_checkpoint(self, tmp_path):
        pytest.importorskip("safetensors")
        first = stepped(lr=0.25, betas=(0.8, 0.9))
        fs.save_checkpoint(tmp_path / "run.safetensors", [ones(5000)], first)
        loaded = fs.load_checkpoint(tmp_path / "run.safetensors").optimizer
        same = fs.Adam(ones(5000), lr=0.25, betas=(0.8, 0.9))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            same.load_state_dict(loaded)


class TestStorage:
    """How states are stored is the optimizer's, not the file's."""

    @pytest.mark.parametrize("saved", ["float32", "bfloat16", "8bit"])
    @pytest.mark.parametrize("own", ["float32", "bfloat16", "8bit"])
    @pytest.mark.parametrize("hypers", [True, False])
    def test_stays(self, saved, own, hypers):
        source = stepped(state_dtype=saved)
        optimizer = fs.Adam(ones(5000), state_dtype=own)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.load_state_dict(source.state_dict(), hypers=hypers)
        fresh = stepped(state_dtype=own)
        for name, state in fresh.state[0].items():
            assert getattr(optimizer.state[0][name], "dtype", None) == getattr(state, "dtype", None), name
        if saved == own:
            for name in ("exp_avg", "exp_avg_sq"):
                assert_same_bits(
                    optimizer.state[0][name].view(np.uint8).view("u2"), source.state[0][name].view(np.uint8).view("u2")
                )
        assert optimizer.state_dtype == own
        optimizer.step(ones(5000))

    def test_of_parameters(self):
        saved = fs.Adam(ones(4).astype(np.float16), master_weights=True)
        saved.step(ones(4).astype(np.float16))
        optimizer = fs.Adam(ones(4).astype(np.float16), stochastic_rounding=True, min_8bit_size=7)
        optimizer.load_state_dict(saved.state_dict())
        assert (optimizer.master_weights, optimizer.stochastic_rounding, optimizer.min_8bit_size) == (False, True, 7)
