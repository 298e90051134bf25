"""Forms of one name that differ, forms that are the same, and what users of other libraries met: by hand and by torch.

Numbers with a # are issues of those libraries.
"""

import math

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES
from fusedstep.optimizers import REGISTRY
from helpers import assert_same_bits, gradient_for, ones
from optional import torch
from runs import HYPERS, TORCH, snapshot

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

F, D = np.float32, np.float64
DTYPES = [F, D]


@pytest.fixture(params=["numpy", fs.runtime.available_isas()[-1]], autouse=True)
def isa(request):
    with fs.runtime.use_isa(request.param):
        yield request.param


@pytest.fixture
def double():
    """Torch keeps some scalars of its states in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train(steps, rng, param, peer, torch_optimizer, *optimizers):
    """The same random gradients for all."""
    for _ in range(steps):
        grad = rng.standard_normal(param.shape)
        for optimizer in optimizers:
            optimizer.step(grad)
        peer.grad = torch.from_numpy(grad.copy())
        torch_optimizer.step()
    return peer.detach().numpy()


class TestForms:
    def test_mean_of_squares_with_a_falling_rate_is_their_sum(self, rng):
        """η / √t over √(Σg² / t) is η over √Σg², where eps is 0; torch has the sum."""
        mean = rng.standard_normal(30)
        total, peer = mean.copy(), torch.nn.Parameter(torch.from_numpy(mean.copy()))
        expected = train(
            50,
            rng,
            mean,
            peer,
            torch.optim.Adagrad([peer], lr=0.3, eps=0.0),
            fs.Adagrad(mean, lr=lambda taken: 0.3 / math.sqrt(taken + 1), eps=0.0, accumulator="mean"),
            fs.Adagrad(total, lr=0.3, eps=0.0),
        )
        np.testing.assert_allclose(mean, expected, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(total, expected, rtol=1e-13, atol=1e-13)

    def test_mean_of_squares_at_a_constant_rate_is_not(self):
        """A steady gradient: four steps of lr, or of lr / √t."""
        mean, total = np.zeros(1), np.zeros(1)
        by_mean, by_sum = fs.Adagrad(mean, lr=1.0, eps=0.0, accumulator="mean"), fs.Adagrad(total, lr=1.0, eps=0.0)
        for _ in range(4):
            by_mean.step(np.full(1, 7.0))
            by_sum.step(np.full(1, 7.0))
        assert mean[0] == pytest.approx(-4.0, rel=1e-15)
        assert total[0] == pytest.approx(-(1 + 1 / math.sqrt(2) + 1 / math.sqrt(3) + 1 / 2), rel=1e-15)

    @pytest.mark.parametrize("nesterov", [False, True])
    def test_momenta_agree_at_a_constant_rate(self, nesterov, rng):
        """The velocity is −lr times the buffer."""
        hypers = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}
        inside = rng.standard_normal(30)
        outside, peer = inside.copy(), torch.nn.Parameter(torch.from_numpy(inside.copy()))
        theirs, classical = torch.optim.SGD([peer], **hypers), fs.Momentum(inside, **hypers)
        expected = train(30, rng, inside, peer, theirs, classical, fs.SGD(outside, **hypers))
        np.testing.assert_allclose(inside, expected, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(outside, expected, rtol=1e-13, atol=1e-14)
        buffer = theirs.state[peer]["momentum_buffer"].numpy()
        np.testing.assert_allclose(classical.state[0]["velocity"], -0.1 * buffer, rtol=1e-12, atol=1e-14)

    def test_momenta_differ_when_the_rate_changes(self):
        """By hand: g = 1, momentum ½, lr 1 and then ¼.

        Inside: v = −1, −¾, −⅝, so p = −1, −1¾, −2⅜. Outside: b = 1, 1½, 1¾, so p = −1, −1⅜, −1 13/16. They differ in
        what moves on at the old rate: ½ b · (1 − ¼) = ⅜ at the second step, and half of that more at the third.
        """
        rates = (1.0, 0.25, 0.25)
        inside, outside = np.zeros(1), np.zeros(1)
        classical = fs.Momentum(inside, lr=lambda taken: rates[taken], momentum=0.5)
        buffered = fs.SGD(outside, lr=lambda taken: rates[taken], momentum=0.5)
        seen = []
        for _ in rates:
            classical.step(np.ones(1))
            buffered.step(np.ones(1))
            seen.append((inside[0], outside[0]))
        assert seen == [(-1.0, -1.0), (-1.75, -1.375), (-2.375, -1.8125)]
        assert [b - a for a, b in seen] == [0.0, 0.375, 0.375 + 0.1875]


class TestStepCounts:
    @pytest.mark.parametrize("rule", TORCH)
    @pytest.mark.usefixtures("double")
    def test_each_parameter_counts_its_own(self, rule, rng):
        """Groups that alternate and a parameter that pauses, as torch, one by one (DeepSpeed#1643, #7819, #8471)."""
        params = [rng.standard_normal(6) for _ in range(3)]
        peers = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
        optimizer = REGISTRY[rule]([{"params": params[:1]}, {"params": params[1:]}], **HYPERS[rule])
        theirs = getattr(torch.optim, CASES[rule].torch)(peers, **HYPERS[rule])
        for step in range(8):
            present = (step % 2 == 0, step % 2 == 1, step in (0, 6, 7))
            grads = [rng.standard_normal(6) if there else None for there in present]
            for peer, grad in zip(peers, grads, strict=True):
                peer.grad = None if grad is None else torch.from_numpy(grad.copy())
            optimizer.step(grads)
            theirs.step()
        assert [optimizer.state[k]["step"] for k in range(3)] == [4, 4, 3]
        for mine, peer in zip(params, peers, strict=True):
            np.testing.assert_allclose(mine, peer.detach().numpy(), rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_past_what_float32_can_count(self, dtype):
        """At 2²⁴ a counter in float32 stands still, and βᵗ in float32 is far off (torchao#4915)."""
        p = np.ones(3, dtype)
        rest = 2.0**-26
        optimizer = fs.Adam(p, lr=0.25, betas=(0.0, 1.0 - rest), eps=0.0)
        optimizer.step(np.ones(3, dtype))
        state = optimizer.state[0]
        state["step"] = 2**24
        for count in (2**24 + 1, 2**24 + 2):
            p[...] = 0.0
            state["exp_avg_sq"][...] = 0.5
            optimizer.step(np.ones(3, dtype))
            assert (type(state["step"]), state["step"]) == (int, count)
            correction = -math.expm1(count * math.log1p(-rest))  # 1 − βᵗ, about 0.22
            expected = -0.25 / math.sqrt((0.5 * (1.0 - rest) + rest) / correction)
            np.testing.assert_allclose(p, expected, rtol=1e-6 if dtype == F else 1e-14)

    def test_one_minus_beta_is_rounded_once(self):
        """1 − 0.999 is 0.001 to float32's precision, and not 1 − float32(0.999) (tt-metal#55935)."""
        optimizer = fs.Adam(ones(2))
        optimizer.step(ones(2))
        assert_same_bits(optimizer.state[0]["exp_avg_sq"], np.full(2, 1.0 - 0.999, F))
        assert_same_bits(optimizer.state[0]["exp_avg"], np.full(2, 1.0 - 0.9, F))
        assert F(1) - F(0.999) != F(1.0 - 0.999)


class TestEps:
    """A gradient as large as eps = 1e-8, which is neither 0 nor scaled by accident (optax#1754, pytorch#22628)."""

    @pytest.mark.parametrize(
        ("rule", "hypers", "expected"),
        [
            # Added to the root, after its correction: g / (√g² + eps) at the first step.
            ("adam", {}, 1 / 2),
            ("adamw", {"weight_decay": 0.0}, 1 / 2),
            ("adagrad", {}, 1 / 2),
            ("ademamix", {"alpha": 0.0}, 1 / 2),
            ("lamb", {"weight_decay": 0.0}, 1 / 2),
            ("schedule_free_adamw", {}, 1 / 2),
            ("adan", {"betas": (0.5, 0.5, 0.75)}, 1 / 2),
            # Before it: √v is √(1 − β2) |g|, and eps with it; 1 − β2 = ¼.
            ("sparse_adam", {"betas": (0.9, 0.75)}, 1 / 3),
            # No correction.
            ("rmsprop", {"alpha": 0.75}, 2 / 3),
            # Added to |g|.
            ("adamax", {}, 1 / 2),
            # Inside both roots.
            ("adadelta", {"rho": 0.0}, math.sqrt(1e-8) / math.sqrt(1e-16 + 1e-8) * 1e-8),
        ],
    )
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_where_it_stands(self, rule, hypers, expected, dtype):
        p = np.zeros((1, 2), dtype)
        grad = np.full((1, 2), 1e-8, dtype)
        if rule == "sparse_adam":
            grad = fs.RowSparse([0], grad, p.shape)
        REGISTRY[rule](p, lr=0.5, eps=1e-8, **hypers).step(grad)
        np.testing.assert_allclose(p, -0.5 * expected, rtol=1e-6 if dtype == F else 1e-12)

    def test_of_adopt_is_the_least_divisor(self):
        """max(√v, eps), with the v of the step before."""
        p = np.zeros(2)
        optimizer = fs.ADOPT(p, lr=0.5, betas=(0.0, 0.5), eps=1e-8)
        optimizer.step(np.array([1e-9, 1e-8]))
        optimizer.step(np.array([1e-9, 5e-9]))
        np.testing.assert_allclose(p, [-0.05, -0.25], rtol=1e-12)


@pytest.mark.parametrize("optimizer_class", [fs.Adam, fs.AdamW])
def test_amsgrad_keeps_the_maximum_of_the_uncorrected(optimizer_class):
    """By hand, g = 1 and then 0, β2 = ½: v = ½, ¼, of which the largest is ½, corrected ½ / ¾ = ⅔.

    The largest of the corrected, ½ / ½ and ¼ / ¾, would be 1 (optax#1389).
    """
    p = np.zeros(1)
    optimizer = optimizer_class(p, lr=1.0, betas=(0.5, 0.5), eps=0.0, weight_decay=0.0, amsgrad=True)
    optimizer.step(np.ones(1))
    assert p[0] == pytest.approx(-1.0, rel=1e-15)
    optimizer.step(np.zeros(1))
    assert p[0] == pytest.approx(-1.0 - 0.25 / 0.75 / math.sqrt(2 / 3), rel=1e-15)
    assert optimizer.state[0]["max_exp_avg_sq"].tolist() == [0.5]


@pytest.mark.parametrize(("dtype", "other"), [(F, D), (D, F)])
def test_state_is_never_cast_on_the_way_in(optimizer_class, dtype, other, rng):
    """A state of another precision than the parameter's is refused, not rounded (pytorch#43706)."""
    rule = optimizer_class.rule
    p, q = np.ones((4, 3), dtype), np.ones((4, 3), other)
    optimizer, source = optimizer_class(p, **HYPERS[rule]), optimizer_class(q, **HYPERS[rule])
    optimizer.step(gradient_for(rule, p, rng))
    source.step(gradient_for(rule, q, rng))
    before = snapshot(optimizer)
    expected = rf"state_dict\['state'\]\[0\]\['\w+'\]: expected dtype {np.dtype(dtype)}, got {np.dtype(other)}"
    with pytest.raises(TypeError, match=expected):
        optimizer.load_state_dict(source.state_dict())
    assert snapshot(optimizer) == before


def test_adagrad_decays_numerator_and_denominator():
    """DeepSpeed's does one. g + ½ p = 2 in both: a step of 2 / √4, not 2 / √1 nor 1 / √4."""
    p = np.full(1, 2.0)
    optimizer = fs.Adagrad(p, lr=0.25, weight_decay=0.5, eps=0.0)
    optimizer.step(np.ones(1))
    assert (p[0], optimizer.state[0]["sum"][0]) == (1.75, 4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cautious", [False, True])
def test_lion_at_zero(dtype, cautious):
    """The sign of ±0 is 0, of a mix that cancels too; the least of numbers has one."""
    p, zeros = np.ones(20, dtype), np.zeros(20, dtype)
    zeros[::2] = -0.0
    optimizer = fs.Lion(p, lr=0.5, betas=(0.5, 0.0), weight_decay=0.0, cautious=cautious)
    optimizer.step(zeros)
    assert_same_bits(p, np.ones(20, dtype))
    optimizer.state[0]["exp_avg"][...] = 3.0
    optimizer.step(np.full(20, -3.0, dtype))
    assert_same_bits(p, np.ones(20, dtype))
    if not cautious:  # u · g > 0 of these rounds to 0
        optimizer.state[0]["exp_avg"][...] = 0.0
        optimizer.step(np.full(20, 2 * np.finfo(dtype).smallest_subnormal, dtype))
        assert_same_bits(p, np.full(20, 0.5, dtype))
