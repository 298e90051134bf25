"""Losses of an element each, and the exp and log under all of them."""

import itertools
import os

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from fusedstep.reference.codec import narrowed
from fusedstep.reference.explog import exponential, log_1p, logarithm
from fusedstep.reference.power import integer_power
from helpers import LENGTHS, assert_same_bits, misaligned
from optional import torch

F = np.float32
DTYPES = [F, np.float64, np.float16, ml_dtypes.bfloat16]
EXHAUSTIVE = os.environ.get("FUSEDSTEP_EXHAUSTIVE") == "1"


def losses_of(x, t, reduction):
    yield fs.sigmoid_binary_cross_entropy(x, t, reduction=reduction)
    yield fs.sigmoid_binary_cross_entropy(x, t, pos_weight=2.7, reduction=reduction)
    yield fs.mean_squared_error(x, t, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_same_bits_as_the_reference(dtype, native, threads, rng):
    for n in LENGTHS[1:]:
        x = misaligned((10 * rng.standard_normal(n)).astype(dtype), n % 5)
        t = misaligned(rng.choice([0, 1, 0.3], n).astype(dtype), n % 3)
        for reduction in ("mean", "sum", "none"):
            with fs.runtime.use_isa("numpy"):
                expected = list(losses_of(x, t, reduction))
            for actual, wanted in zip(losses_of(x, t, reduction), expected, strict=True):
                for one, other in zip(actual, wanted, strict=True):
                    assert_same_bits(np.asarray(one), np.asarray(other), f"{n} {reduction}")


def test_non_finite_logits_are_computed_through(native):
    x = np.array([np.nan, np.inf, -np.inf, np.inf, -np.inf, 3e38, -3e38], F)
    t = np.array([0, 1, 0, 0, 1, 1, 0], F)
    with fs.runtime.use_isa("numpy"):
        expected = list(losses_of(x, t, "none"))
    for actual, wanted in zip(losses_of(x, t, "none"), expected, strict=True):
        assert_same_bits(actual[0], wanted[0])
        assert_same_bits(actual[1], wanted[1])


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_binary_against_long_double(target, native, rng):
    """Two ULP and three: neither overflows, nor loses digits where the sigmoid is near 0 or 1."""
    x = np.concatenate([rng.uniform(-87, 87, 20_000), rng.uniform(-1, 1, 5_000), [0, 1e4, -1e4]]).astype(F)
    z = x.astype(np.longdouble)
    sign = 1 - 2 * target
    losses = np.maximum(sign * z, 0) + np.log1p(np.exp(-np.abs(z)))
    gradient = sign / (1 + np.exp(-sign * z))
    loss, dx = fs.sigmoid_binary_cross_entropy(x, np.full_like(x, target), reduction="none")
    normal = losses > 1e-37
    assert (np.abs(loss - losses) <= 2 * np.spacing(np.maximum(losses, 1e-37).astype(F)))[normal].all()
    assert (np.abs(dx - gradient) <= 3 * np.spacing(np.maximum(np.abs(gradient), 1e-37).astype(F)))[normal].all()


def test_an_infinite_logit_that_is_right(native):
    loss, gradient = fs.sigmoid_binary_cross_entropy(
        np.array([np.inf, -np.inf], F), np.array([1, 0], F), reduction="none"
    )
    assert loss.tolist() == [0.0, 0.0]
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_against_torch(reduction, rng):
    x = 5 * rng.standard_normal((30, 7))
    t = rng.uniform(0, 1, (30, 7))
    functional = torch.nn.functional
    for ours, theirs in (
        (
            fs.sigmoid_binary_cross_entropy(x, t, pos_weight=1.5, reduction=reduction),
            lambda a, b: functional.binary_cross_entropy_with_logits(
                a, b, pos_weight=torch.tensor(1.5, dtype=torch.float64), reduction=reduction
            ),
        ),
        (
            fs.mean_squared_error(x, t, reduction=reduction),
            lambda a, b: functional.mse_loss(a, b, reduction=reduction),
        ),
    ):
        tensor = torch.from_numpy(x).requires_grad_()
        expected = theirs(tensor, torch.from_numpy(t))
        expected.sum().backward()
        np.testing.assert_allclose(ours[0], expected.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(ours[1], tensor.grad.numpy(), rtol=1e-11, atol=1e-14)


def test_out_may_be_the_input(native, rng):
    x, t = rng.standard_normal(100, F), rng.uniform(0, 1, 100).astype(F)
    for function in (fs.sigmoid_binary_cross_entropy, fs.mean_squared_error):
        given = x.copy()
        loss, expected = function(x, t)
        assert function(given, t, out=given) == (loss, given)
        assert_same_bits(given, expected)


X = np.zeros(3, F)


@pytest.mark.parametrize(
    ("function", "x", "t", "options", "error", "message"),
    [
        (fs.mean_squared_error, np.zeros(3, int), X, {}, TypeError, "predictions: expected float32, .* got dtype int"),
        (fs.mean_squared_error, X, np.zeros(3), {}, TypeError, "targets: expected dtype float32 as predictions has"),
        (fs.mean_squared_error, X, X[:2], {}, ValueError, r"targets: expected shape \(3,\) as predictions has"),
        (fs.mean_squared_error, X[:0], X[:0], {}, ValueError, "predictions: expected at least one element"),
        (fs.mean_squared_error, X, X, {"out": X[:2]}, ValueError, "out: expected shape"),
        (fs.sigmoid_binary_cross_entropy, X, [1], {}, ValueError, r"targets: expected shape \(3,\) as logits has"),
        (fs.sigmoid_binary_cross_entropy, X, [True] * 3, {}, TypeError, "targets: expected a list of numbers"),
        (fs.mean_squared_error, X, 1.0, {}, TypeError, "targets: expected a NumPy array, got float"),
        (fs.sigmoid_binary_cross_entropy, X, X, {"pos_weight": -1}, ValueError, "pos_weight: expected a finite number"),
        (
            fs.sigmoid_binary_cross_entropy,
            X,
            X,
            {"pos_weight": 1e39},
            ValueError,
            "pos_weight: expected a finite number",
        ),
        (fs.sigmoid_binary_cross_entropy, X, X, {"pos_weight": None}, TypeError, "pos_weight"),
        (fs.sigmoid_binary_cross_entropy, X, X, {"reduction": "all"}, ValueError, "reduction: expected"),
    ],
)
def test_errors(function, x, t, options, error, message):
    with pytest.raises(error, match=message):
        function(x, t, **options)


def test_lists_of_numbers():
    for function in (fs.mean_squared_error, fs.sigmoid_binary_cross_entropy):
        x, t = [0.5, -1, 2.0], [1, 0, 1]
        expected, gradient = function(np.array(x), np.array(t, float))
        for pair in ((x, t), (np.array(x), t), (x, np.array(t, float))):
            loss, dx = function(*pair)
            assert loss == expected
            assert_same_bits(dx, gradient)
        for dtype in (F, np.float16):
            _, gradient = function(np.array(x, dtype), np.array(t, dtype))
            assert_same_bits(function(x, np.array(t, dtype))[1], gradient)
            assert_same_bits(function(np.array(x, dtype), t)[1], gradient)
    words = np.array([0x3F80, 0x4000], np.uint16).view(fs.bfloat16)
    loss, dx = fs.mean_squared_error(words, [1.0, 4.0])
    assert loss == 2
    assert dx.view(np.uint16).tolist() == [0, 0xC000]


@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_of_a_number_without_axes(isa, reduction):
    for dtype in (F, np.float64, np.float16):
        with fs.runtime.use_isa(isa):
            loss, gradient = fs.mean_squared_error(np.array(3, dtype), np.array(1, dtype), reduction=reduction)
        assert loss == 4
        assert gradient.shape == ()
        assert gradient == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
@pytest.mark.parametrize("dtype", [F, np.float64, np.float16, fs.bfloat16])
def test_numbers_at_the_ends_warn_of_nothing(isa, dtype):
    """Infinities of both signs, NaN of both kinds and the largest numbers, where every floating error is raised."""
    with np.errstate(all="ignore"):
        ends = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 65504, 0])
        x = narrowed(ends.astype(F), np.dtype(dtype)) if dtype != np.float64 else ends * np.array(1e250)
    words = {2: np.uint16, 4: np.uint32, 8: np.uint64}[x.itemsize]
    quiet = {np.float16: 0x0200, F: 0x400000, np.float64: 1 << 51}.get(dtype, 0x40)
    x.view(words)[2] ^= words(quiet | 1)  # signals
    t = x[::-1].copy()
    with fs.runtime.use_isa(isa), np.errstate(all="raise"):
        z, wanted = x.reshape(2, 4), np.zeros((2, 4), x.dtype)
        for reduction in ("mean", "sum", "none"):
            fs.mean_squared_error(x, t, reduction=reduction, out=np.zeros_like(x))
            fs.sigmoid_binary_cross_entropy(z, wanted, reduction=reduction, out=np.zeros_like(z))
            for smoothing in (0.0, 0.1):
                fs.softmax_cross_entropy(z, np.array([0, 3]), label_smoothing=smoothing, reduction=reduction)
        fs.softmax(x)
        fs.log_softmax(x)
        fs.dropout(x, 0.5, seed=0, residual=t)
        mean, var = np.zeros(4, F), np.ones(4, F)
        t = t.reshape(2, 4)
        _, saved = fs.batch_norm(z, None, None, mean, var, training=True, activation="relu", residual=t)
        fs.batch_norm_backward(t, saved)
        fs.batch_norm(z, None, None, np.zeros(4, F), np.ones(4, F), training=False)


def _stopping(function, after, error):
    """The function, which raises instead from some call on."""
    left = iter(range(after))

    def stopping(*arguments, **options):
        if next(left, None) is None:
            raise error
        return function(*arguments, **options)

    return stopping


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_reference_that_is_interrupted_has_written_nothing(monkeypatch, error, reduction):
    """Wherever it stops: at every call of a function of the reference."""
    from fusedstep.reference import batch_norm, dropout, losses

    x, t = np.linspace(-1, 1, 12, dtype=F).reshape(3, 4), np.linspace(0, 1, 12, dtype=F).reshape(3, 4)
    out, mean, var = np.full((3, 4), 7, F), np.zeros(4, F), np.ones(4, F)
    _, saved = fs.batch_norm(x, None, None, None, None, training=True, activation="relu", residual=t)
    stats = fs.batch_norm_stats(x)
    names = ["exponential", "logarithm", "log_1p", "lane_sum", "term_sum", "narrowed", "widened", "element_words"]
    names += ["total", "store", "packed", "per_channel", "view", "moments", "masked", "channel_sums"]
    names += ["inverse_deviation", "channel_scale", "running_statistics", "all_finite", "parameter_gradients"]
    names += ["mean_divisor", "row_cross_entropies", "goal_of", "dropped_words"]
    calls = [
        lambda: fs.softmax(x, out=out),
        lambda: fs.softmax_cross_entropy(x, np.array([0, 1, 2]), reduction=reduction, out=out),
        lambda: fs.softmax_cross_entropy(x, fs.softmax(t), reduction=reduction, out=out),
        lambda: fs.sigmoid_binary_cross_entropy(x, t, reduction=reduction, out=out),
        lambda: fs.mean_squared_error(x, t, reduction=reduction, out=out),
        lambda: fs.dropout(x, 0.5, seed=1, out=out),
        lambda: fs.batch_norm(x, None, None, mean, var, training=True, activation="relu", out=out),
        lambda: fs.batch_norm(x, None, None, mean, var, training=True, skip_nonfinite=True, out=out),
        lambda: fs.batch_norm(x, None, None, mean, var, training=False, out=out),
        lambda: fs.update_running_stats(mean, var, stats, skip_nonfinite=True),
        lambda: fs.batch_norm_backward(x, saved, out=out, residual_out=other),
    ]
    other = np.full((3, 4), 7, F)
    stopped = 0
    for call, module, name in itertools.product(calls, (losses, dropout, batch_norm), names):
        if not hasattr(module, name):
            continue
        for after in range(8):
            stopping = _stopping(getattr(module, name), after, error)
            with fs.runtime.use_isa("numpy"), monkeypatch.context() as patch:
                patch.setattr(module, name, stopping)
                try:
                    call()
                except error:
                    stopped += 1
                    assert (out == 7).all(), name
                    assert (other == 7).all(), name
                    assert (mean == 0).all(), name
                    assert (var == 1).all(), name
            out[...], other[...], mean[...], var[...] = 7, 7, 0, 1
    assert stopped > 50


def test_an_output_that_overlaps_the_targets():
    memory = np.zeros(10, F)
    with pytest.raises(ValueError, match="out: overlaps targets"):
        fs.mean_squared_error(np.ones(5, F), memory[:5], out=memory[3:8])
    with pytest.raises(ValueError, match="out: overlaps predictions"):
        fs.mean_squared_error(memory[:5], np.ones(5, F), out=memory[3:8])


def every_float(least, most):
    """All float32 from least to most (the bits of both of one sign), or a fortieth of them, in parts."""
    first, last = sorted(int(np.array(x, F).view(np.uint32)) for x in (least, most))
    step = 1 if EXHAUSTIVE else 40
    for start in range(first, last + 1, step << 16):  # parts that stay in the cache with what is computed of them
        yield np.arange(start, min(start + (step << 16), last + 1), step, dtype=np.uint32).view(F)


def assert_ulps(actual, expected, ulps):
    """Of the results that are normal numbers."""
    normal = (np.abs(expected) >= 1.2e-38) & (np.abs(expected) <= 3.4e38)
    error = np.abs(actual[normal] - expected[normal])
    assert (error <= ulps * np.spacing(np.abs(expected[normal]).astype(F))).all()


def mapped(function, x):
    out = np.empty_like(x)
    getattr(_core.testing, function)(x, out)
    return out


def test_exp_of_every_float(native):
    """Within 1 ULP; a denormal result within one unit. FUSEDSTEP_EXHAUSTIVE=1 takes every float, not a fortieth."""
    for least, most in ((-0.0, -np.inf), (0.0, np.inf)):
        for x in every_float(least, most):
            with np.errstate(over="ignore", under="ignore"):
                expected = np.exp(x.astype(np.float64))
            actual = mapped("exponential", x)
            assert_ulps(actual, expected, 1)
            tiny = expected < 1.2e-38
            assert (np.abs(actual[tiny] - expected[tiny]) <= 2.0**-149).all()
            assert np.isinf(actual[expected > 3.41e38]).all()
    edges = np.array([-np.inf, -200, 0, -0.0, 200, np.inf, np.nan], F)
    assert_same_bits(mapped("exponential", edges), np.array([0, 0, 1, 1, np.inf, np.inf, np.nan], F))


def test_log_1p_of_every_float(native):
    """Of [0, 1], which is all that is asked of it: within 1.5 ULP."""
    for x in every_float(0.0, 1.0):
        assert_ulps(mapped("log_1p", x), np.log1p(x.astype(np.float64)), 1.5)


def test_same_bits_as_the_reference_of_every_float(native):
    for function, reference, ranges in (
        ("exponential", exponential, [(-0.0, -np.inf), (0.0, np.inf)]),
        ("log_1p", log_1p, [(0.0, 1.0)]),
    ):
        for least, most in ranges:
            for x in every_float(least, most):
                part = x if EXHAUSTIVE else x[::8].copy()
                with np.errstate(all="ignore"):
                    expected = reference(part)
                assert_same_bits(mapped(function, part), expected)


def test_exp_of_doubles_within_one_ulp(rng):
    x = np.concatenate([rng.uniform(-708, 709, 200_000), np.linspace(-1, 1, 10_001)])
    expected = np.exp(x.astype(np.longdouble))
    assert (np.abs(exponential(x) - expected) <= np.spacing(expected.astype(np.float64))).all()
    with np.errstate(all="ignore"):
        edges = exponential(np.array([-np.inf, -800, 0, 800, np.inf, np.nan]))
    assert_same_bits(edges, np.array([0, 0, 1, np.inf, np.inf, np.nan]))


def test_log_of_doubles_within_one_ulp(rng):
    x = np.concatenate([1 + rng.uniform(0, 1, 100_000), np.exp(rng.uniform(0, 50, 100_000)), [1.0]])
    expected = np.log(x)
    assert (np.abs(logarithm(x) - expected) <= np.spacing(expected)).all()


def test_log_1p_of_doubles(rng):
    """Within 1.5 ULP; the worst of it lies a little above √2 − 1."""
    worst = 0.4 + 10.0 ** -rng.uniform(1, 9, 100_000)
    x = np.concatenate([10.0 ** rng.uniform(-20, 0, 100_000), 2.0 ** rng.uniform(-1000, 0, 10_000), worst])
    x = np.concatenate([x, [0.0, 1.0]])
    expected = np.log1p(x.astype(np.longdouble))
    assert (np.abs(log_1p(x) - expected) <= 1.5 * np.spacing(expected.astype(np.float64))).all()


@pytest.mark.parametrize("base", [0.0, 0.5, 0.9, 0.999, 0.9999, 0.3, np.nextafter(1.0, 0)])
def test_powers_of_the_reference(base):
    """Against exact rational arithmetic, where it is affordable."""
    from fractions import Fraction

    for n in (1, 2, 3, 7, 30, 100, 1000):
        exact = Fraction(base) ** n
        if exact > Fraction(1, 10**20):
            assert integer_power(base, n) == float(exact)
        else:
            assert integer_power(base, n) < 1e-20


class TestTargets:
    """Targets that are no probabilities are refused by the place of the first."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
    @pytest.mark.parametrize("value", [-0.25, 1.5, np.nan, np.inf])
    def test_outside_of_the_unit_interval(self, dtype, value):
        logits, targets = np.zeros((2, 3), dtype), np.full((2, 3), 0.25, dtype)
        targets[1, 2] = value
        for loss, name in ((fs.sigmoid_binary_cross_entropy, "targets"), (fs.softmax_cross_entropy, "labels")):
            out = np.ones_like(logits)
            with pytest.raises(ValueError, match=rf"{name}\[1, 2\]: expected .* in \[0, 1\], got {value:g}"):
                loss(logits, targets, out=out)
            assert (out == 1).all()
            loss(logits, targets, check_targets=False)

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
    @pytest.mark.parametrize("share", [0.0, 0.8, 1.25])
    def test_rows_that_do_not_sum_to_1(self, dtype, share):
        logits, targets = np.zeros((2, 2, 4), dtype), np.full((2, 2, 4), 0.25, dtype)
        targets[1, 0] *= dtype(share)
        with pytest.raises(ValueError, match=r"labels\[1, 0\]: expected probabilities that sum to 1, got the sum"):
            fs.softmax_cross_entropy(logits, targets)
        fs.softmax_cross_entropy(logits, targets, check_targets=False)
        fs.sigmoid_binary_cross_entropy(logits, np.minimum(targets, dtype(1)))

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
    @pytest.mark.parametrize("classes", [1, 2, 10, 1000])
    def test_rounded_probabilities(self, dtype, classes, rng):
        """Of a softmax, a mixture, smoothed labels: rounded to the dtype, they are taken."""
        logits = rng.standard_normal((50, classes)).astype(dtype)
        smooth = np.full((50, classes), 0.1 / classes)
        smooth[:, 0] += 0.9
        for targets in (rng.dirichlet(np.ones(classes), 50), fs.softmax(logits), smooth):
            fs.softmax_cross_entropy(logits, targets.astype(dtype))

    def test_words_of_bfloat16(self):
        half = np.full((3, 2), 0x3F00, np.uint16)
        assert fs.softmax_cross_entropy(half.view(fs.bfloat16), half.view(fs.bfloat16))[0] == pytest.approx(np.log(2))
        with pytest.raises(ValueError, match=r"labels\[0, 0\]: expected probabilities"):
            fs.softmax_cross_entropy(half.view(fs.bfloat16), (half | 0x8000).view(fs.bfloat16))

    def test_other_errors_come_first(self):
        with pytest.raises(ValueError, match="reduction"):
            fs.softmax_cross_entropy(np.zeros((2, 2), F), np.full((2, 2), 7, F), reduction="none?")
        with pytest.raises(TypeError, match="check_targets: expected True or False"):
            fs.softmax_cross_entropy(np.zeros((2, 2), F), np.full((2, 2), 7, F), check_targets=1)
