"""Softmax cross-entropy and softmax: the bits of the reference, float64, torch, errors."""

import math

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from helpers import assert_same_bits, misaligned
from optional import torch

F = np.float32
BF16 = ml_dtypes.bfloat16
DTYPES = [F, np.float64, np.float16, BF16]
CLASSES = [1, 2, 3, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 1023, 1024, 1025]


def maths(dtype):
    return np.float64 if dtype is np.float64 else F


def goals(rng, rows, classes, dtype):
    """Labels, some to be ignored, and probabilities; with and without weights and smoothing."""
    labels = rng.integers(0, classes, rows)
    labels[rng.random(rows) < 0.2] = -100
    targets = rng.dirichlet(np.ones(classes), rows).astype(dtype)
    weight = rng.uniform(0, 2, classes).astype(maths(dtype))
    for wanted in (labels, targets):
        for option in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.3}):
            yield wanted, option


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("classes", CLASSES)
def test_same_bits_as_the_reference(classes, dtype, native, threads, rng):
    for rows, offset in ((1, 0), (2, 1), (7, 5)):
        logits = misaligned((10 * rng.standard_normal((rows, classes))).astype(dtype), offset)
        for labels, options in goals(rng, rows, classes, dtype):
            for reduction in ("mean", "none"):
                with fs.runtime.use_isa("numpy"):
                    expected_loss, expected = fs.softmax_cross_entropy(logits, labels, reduction=reduction, **options)
                loss, dlogits = fs.softmax_cross_entropy(logits, labels, reduction=reduction, **options)
                assert_same_bits(np.asarray(loss), np.asarray(expected_loss))
                assert_same_bits(dlogits, expected)
        for function in (fs.softmax, fs.log_softmax):
            with fs.runtime.use_isa("numpy"):
                expected = function(logits)
            assert_same_bits(function(logits), expected)


@pytest.mark.parametrize(("rows", "classes"), [(3, 50_257), (2_100, 1000)])
def test_same_bits_of_large_ones(rows, classes, native, rng):
    """Past the size from which the gradient is streamed; and into the logits, where it is not."""
    logits = rng.standard_normal((rows, classes), F)
    labels = rng.integers(0, classes, rows)
    with fs.runtime.use_isa("numpy"):
        expected_loss, expected = fs.softmax_cross_entropy(logits, labels)
    loss, dlogits = fs.softmax_cross_entropy(logits, labels)
    assert loss == expected_loss
    assert_same_bits(dlogits, expected)
    assert fs.softmax_cross_entropy(logits, labels, out=logits)[1] is logits
    assert_same_bits(logits, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_out_may_be_the_logits(dtype, native, rng):
    for labels, options in goals(rng, 5, 70, dtype):
        logits = (3 * rng.standard_normal((5, 70))).astype(dtype)
        expected_loss, expected = fs.softmax_cross_entropy(logits, labels, **options)
        loss, dlogits = fs.softmax_cross_entropy(logits, labels, out=logits, **options)
        assert dlogits is logits
        assert loss == expected_loss
        assert_same_bits(logits, expected)


def test_non_finite_logits_are_computed_through(native):
    logits = np.array(
        [[0, np.nan, 1], [np.inf, 0, 0], [-np.inf, 0, 1], [-np.inf] * 3, [3e38, -3e38, 0], [1e-40, 0, -0.0]], F
    )
    labels = np.array([0, 1, 0, 1, 1, 2])
    for options in ({}, {"label_smoothing": 0.1}):
        with fs.runtime.use_isa("numpy"):
            losses, expected = fs.softmax_cross_entropy(logits, labels, reduction="none", **options)
        loss, dlogits = fs.softmax_cross_entropy(logits, labels, reduction="none", **options)
        assert_same_bits(loss, losses)
        assert_same_bits(dlogits, expected)
    assert np.isnan(losses[[0, 1, 3]]).all()
    assert np.isinf(losses[2])


def test_a_class_that_is_ruled_out(native):
    """−inf, where nothing of the class is wanted, costs nothing."""
    logits = np.array([[1.0, -np.inf, 2.0]], F)
    loss, dlogits = fs.softmax_cross_entropy(logits, np.array([[0.25, 0.0, 0.75]], F))
    rest, _ = fs.softmax_cross_entropy(np.array([[1.0, 2.0]], F), np.array([[0.25, 0.75]], F))
    assert loss == pytest.approx(rest, rel=1e-7)
    assert dlogits[0, 1] == 0


def exact(logits, labels):
    """Losses and gradients of rows in long double, a confident row without cancellation."""
    z = logits.astype(np.longdouble)
    rows = np.arange(len(z))
    top = z.argmax(axis=1)
    e = np.exp(z - z[rows, top][:, None])
    others = e.copy()
    others[rows, top] = 0
    rest = others.sum(axis=1)
    losses = np.log1p(rest) - (z[rows, labels] - z[rows, top])
    gradient = e / (1 + rest)[:, None]
    gradient[rows, labels] -= 1
    sure = labels == top
    gradient[rows[sure], labels[sure]] = -(rest / (1 + rest))[sure]
    return losses, gradient


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000, 10_000, 100_000])
def test_against_float64(classes, scale, rng):
    """The bounds of docs/numerics.md, for random labels and for those that the row is sure of."""
    rows = max(2, min(200, 200_000 // classes))
    logits = rng.uniform(-scale, scale, (rows, classes)).astype(F)
    for labels in (rng.integers(0, classes, rows), logits.argmax(axis=1)):
        losses, gradient = exact(logits, labels)
        loss, dlogits = fs.softmax_cross_entropy(logits, labels, reduction="none")
        ulps = 4 + np.abs(np.log(np.maximum(losses, 1e-37)))
        assert (np.abs(loss - losses) <= ulps * np.spacing(np.maximum(losses, 1e-37).astype(F))).all()
        assert np.abs(dlogits - gradient).max() <= 3 * 2.0**-24
        here = np.arange(rows), labels
        size = np.maximum(np.abs(gradient[here]), 1e-37).astype(F)
        assert (np.abs(dlogits[here] - gradient[here]) <= ulps * np.spacing(size)).all()


@pytest.mark.parametrize("dtype", [np.float16, BF16], ids=lambda d: d.__name__)
def test_narrow_logits_are_rounded_once(dtype, rng):
    logits = (4 * rng.standard_normal((20, 300))).astype(dtype)
    labels = rng.integers(0, 300, 20)
    _, expected = exact(logits.astype(F), labels)
    _, dlogits = fs.softmax_cross_entropy(logits, labels, reduction="sum")
    rounded = expected.astype(np.float64).astype(dtype).astype(np.float64)
    unit = np.abs(np.nextafter(dlogits, dtype(2)).astype(np.float64) - dlogits.astype(np.float64))
    assert (np.abs(dlogits.astype(np.float64) - rounded) <= unit).all()
    assert (dlogits.astype(np.float64) == rounded).mean() > 0.99


def test_float64_to_its_last_digits(native, rng):
    logits = 20 * rng.standard_normal((50, 130))
    labels = rng.integers(0, 130, 50)
    losses, gradient = exact(logits, labels)
    loss, dlogits = fs.softmax_cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(loss, losses.astype(np.float64), rtol=2e-14)
    assert np.abs(dlogits - gradient).max() <= 4 * 2.0**-53
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(fs.softmax(logits), softmax / softmax.sum(axis=1, keepdims=True), rtol=1e-14)
    assert fs.log_softmax(logits) == pytest.approx(torch.log_softmax(torch.from_numpy(logits), 1).numpy(), rel=1e-14)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
def test_against_torch(probabilities, weighted, smoothing, reduction, rng):
    """In float64. Of rows that are ignored torch's smoothing takes a share; here there are none where it does."""
    logits = 3 * rng.standard_normal((40, 7))
    labels = rng.integers(0, 7, 40)
    if smoothing == 0.0:
        labels[::5] = 3
    wanted = rng.dirichlet(np.ones(7), 40) if probabilities else labels
    weight = rng.uniform(0.1, 2, 7) if weighted else None
    ignore = 3 if smoothing == 0.0 else -100
    tensor = torch.from_numpy(logits).requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        tensor,
        torch.from_numpy(wanted),
        None if weight is None else torch.from_numpy(weight),
        ignore_index=-100 if probabilities else ignore,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    expected.sum().backward()
    loss, dlogits = fs.softmax_cross_entropy(
        logits, wanted, weight=weight, ignore_index=ignore, label_smoothing=smoothing, reduction=reduction
    )
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dlogits, tensor.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_ignored_rows_count_nowhere(rng):
    """With smoothing too: the same as without them."""
    logits = rng.standard_normal((6, 5), F)
    labels = np.array([0, -100, 2, 3, -100, 4])
    kept = labels >= 0
    for options in ({}, {"label_smoothing": 0.2}, {"weight": rng.uniform(0.5, 1, 5).astype(F), "label_smoothing": 0.2}):
        loss, dlogits = fs.softmax_cross_entropy(logits, labels, **options)
        expected_loss, expected = fs.softmax_cross_entropy(logits[kept], labels[kept], **options)
        assert loss == pytest.approx(expected_loss, rel=1e-15)
        assert_same_bits(dlogits[kept], expected)
        assert not dlogits[~kept].any()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": np.ones(3, F)}])
def test_nothing_counts(options, native):
    logits = np.ones((2, 3), F)
    for reduction in ("mean", "sum"):
        loss, dlogits = fs.softmax_cross_entropy(logits, np.full(2, -100), reduction=reduction, **options)
        assert loss == 0.0
        assert not dlogits.any()
    loss, dlogits = fs.softmax_cross_entropy(logits, np.zeros(2, int), weight=np.array([0, 1, 1], F))
    assert loss == 0.0
    assert not dlogits.any()


def test_nothing_counts_of_what_is_not_finite(native):
    """Where no row has weight, also of a row of NaN."""
    loss, dlogits = fs.softmax_cross_entropy(np.array([[np.nan, 0]], F), np.array([0]), weight=np.zeros(2, F))
    assert loss == 0.0
    assert not dlogits.any()


def test_words_of_bfloat16_are_probabilities(rng):
    """Marked as such: not labels of 16 bits."""
    logits = rng.uniform(0, 1, (3, 4)).astype(BF16)
    targets = np.array([[0.5, 0.25, 0.25, 0], [0, 0, 1, 0], [0.125, 0.5, 0.25, 0.125]]).astype(BF16)
    loss, expected = fs.softmax_cross_entropy(logits, targets)
    words, wanted = logits.view(np.uint16).view(fs.bfloat16), targets.view(np.uint16).view(fs.bfloat16)
    given, dlogits = fs.softmax_cross_entropy(words, wanted)
    assert given == loss
    assert (dlogits.view(np.uint16) == expected.view(np.uint16)).all()
    with pytest.raises(ValueError, match="labels: expected shape"):
        fs.softmax_cross_entropy(words, wanted[:, 0].copy())


def test_zeros_keep_their_sign(native):
    for logits in (np.array([-0.0, -1000], F), np.array([[-0.0], [0.0]], F), np.array([-0.0, -1000])):
        with fs.runtime.use_isa("numpy"):
            expected = fs.log_softmax(logits)
        assert_same_bits(fs.log_softmax(logits), expected)


def test_place_of_a_label_among_several_axes():
    with pytest.raises(ValueError, match=r"labels\[1, 0\]: expected a class in \[0, 4\)"):
        fs.softmax_cross_entropy(np.zeros((2, 2, 4), F), np.array([[0, 1], [4, 0]]))


def test_any_number_of_axes(rng):
    logits = rng.standard_normal((2, 3, 4, 5), F)
    labels = rng.integers(0, 5, (2, 3, 4))
    losses, dlogits = fs.softmax_cross_entropy(logits, labels, reduction="none")
    flat, expected = fs.softmax_cross_entropy(logits.reshape(-1, 5), labels.reshape(-1), reduction="none")
    assert_same_bits(losses, flat.reshape(2, 3, 4))
    assert_same_bits(dlogits, expected.reshape(logits.shape))
    assert_same_bits(fs.softmax(logits[0, 0, 0]), fs.softmax(logits)[0, 0, 0])


def test_the_notes_example():
    """The probabilities (0.1, 0.8, 0.1) and the second class: -ln 0.8."""
    loss, _ = fs.softmax_cross_entropy(np.log([[0.1, 0.8, 0.1]]).astype(F), np.array([1]))
    assert round(loss, 4) == 0.2231


def test_two_classes_are_a_sigmoid(rng):
    z = np.linspace(-20, 20, 101)
    pairs = np.stack([z, np.zeros_like(z)], axis=1)
    np.testing.assert_allclose(fs.softmax(pairs)[:, 0], 1 / (1 + np.exp(-z)), rtol=1e-15)


def test_far_from_the_goal_the_square_error_is_flat():
    """A logit that is wrong by 10: the gradient of the squared error of the sigmoid s is 2 (s − 1) s (1 − s)."""
    z = np.array([-10.0])
    s = 1 / (1 + np.exp(-z))
    _, by_probability = fs.mean_squared_error(s, np.ones(1))
    squared = float((by_probability * s * (1 - s))[0])
    _, (cross,) = fs.sigmoid_binary_cross_entropy(z, np.ones(1))
    assert squared == pytest.approx(-9.08e-5, rel=1e-3)
    assert cross == pytest.approx(-0.99995, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_labels_of_any_integer(dtype):
    loss, _ = fs.softmax_cross_entropy(np.zeros((2, 4), F), np.array([0, 3], dtype))
    assert loss == pytest.approx(math.log(4))


Z = np.zeros((2, 3), F)
Y = np.zeros(2, int)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "error", "message"),
    [
        (np.zeros((2, 3), int), Y, {}, TypeError, "logits: expected float32, .* got dtype int64"),
        ("z", Y, {}, TypeError, "logits: expected a NumPy array, got str"),
        ([["z"]], Y, {}, TypeError, "logits: expected a list of numbers"),
        ([[0.0, 1.0], [2.0]], Y, {}, ValueError, "logits: expected numbers, as many in every row"),
        ([[0.0, 10**400]], Y, {}, ValueError, "logits: expected numbers in the range of doubles"),
        (
            np.zeros(3, F),
            np.zeros(3, int),
            {},
            ValueError,
            r"logits: expected two axes .* got shape \(3,\)",
        ),
        (
            np.zeros((0, 3), F),
            np.zeros(0, int),
            {},
            ValueError,
            r"logits: .* at least one row .* got shape \(0, 3\)",
        ),
        (np.zeros((3, 0), F), np.zeros(3, int), {}, ValueError, r"logits: expected .* one class, got shape \(3, 0\)"),
        (Z, np.zeros(3, int), {}, ValueError, r"labels: expected shape \(2,\) .* got \(3,\)"),
        (Z, np.zeros(2), {}, TypeError, "labels: expected dtype float32 as logits has, got float64"),
        (Z, np.zeros(2, bool), {}, TypeError, "labels: expected an array of integers, .* got dtype bool"),
        (Z, np.zeros((2, 2), F), {}, ValueError, r"labels: expected shape \(2, 3\) as logits has, got \(2, 2\)"),
        (Z, "01", {}, TypeError, "labels: expected an array of integers, .* got str"),
        (Z, [True, False], {}, TypeError, "labels: expected an array of integers, .* got dtype bool"),
        (Z, [0, 3], {}, ValueError, r"labels\[1\]: expected a class in \[0, 3\)"),
        (Z, np.ma.array([0, 1]), {}, TypeError, "labels: expected an array of integers, .* MaskedArray"),
        (Z, np.array([0, 3]), {}, ValueError, r"labels\[1\]: expected a class in \[0, 3\) or ignore_index -100, got 3"),
        (Z, np.array([-1, 0]), {}, ValueError, r"labels\[0\]: expected a class in \[0, 3\) .* got -1"),
        (Z, np.array([0, 2**64 - 100], np.uint64), {}, ValueError, r"labels\[1\]: .* got 18446744073709551516"),
        (Z, Y, {"weight": np.ones(2, F)}, ValueError, r"weight: expected shape \(3,\) .* got \(2,\)"),
        (Z, Y, {"weight": np.ones(3)}, TypeError, "weight: expected float32 for these logits, got float64"),
        (Z, Y, {"weight": [1, 1]}, ValueError, r"weight: expected shape \(3,\) as logits has classes, got \(2,\)"),
        (Z, Y, {"weight": [1, 1, 1e39]}, ValueError, "weight: expected numbers in the range of float32"),
        (Z, Y, {"out": [0.0]}, TypeError, "out: expected a NumPy array, got list"),
        (Z, Y, {"weight": np.array([1, -1, 1], F)}, ValueError, r"weight\[1\]: expected a finite number >= 0"),
        (Z, Y, {"weight": np.array([1, 1, np.nan], F)}, ValueError, r"weight\[2\]: expected a finite number >= 0"),
        (Z, Y, {"ignore_index": 1.0}, TypeError, "ignore_index: expected an integer, got float"),
        (Z, Y, {"ignore_index": True}, TypeError, "ignore_index: expected an integer, got bool"),
        (Z, Y, {"ignore_index": 2**63}, ValueError, "ignore_index: expected an integer of 64 bits"),
        (Z, Y, {"label_smoothing": 1.1}, ValueError, r"label_smoothing: expected a number in \[0, 1\], got 1.1"),
        (Z, Y, {"label_smoothing": np.nan}, ValueError, "label_smoothing: expected a number"),
        (Z, Y, {"label_smoothing": "a"}, TypeError, "label_smoothing"),
        (Z, Y, {"reduction": "max"}, ValueError, "reduction: expected 'none', 'mean' or 'sum', got 'max'"),
        (Z, Y, {"reduction": None}, ValueError, "reduction: expected 'none', 'mean' or 'sum', got None"),
        (Z, Y, {"out": np.zeros((2, 3))}, TypeError, "out: expected dtype float32 as logits has, got float64"),
        (Z, Y, {"out": np.zeros((3, 2), F)}, ValueError, r"out: expected shape \(2, 3\) as logits has, got \(3, 2\)"),
        (Z, Y, {"out": np.zeros((3, 2), F).T}, ValueError, "out: expected a C-contiguous array"),
    ],
)
@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
def test_errors(logits, labels, options, error, message, isa):
    with fs.runtime.use_isa(isa), pytest.raises(error, match=message):
        fs.softmax_cross_entropy(logits, labels, **options)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (np.eye(5, dtype=np.int64)[[0, 1, 2, 3, 4, 0, 1, 2]], ValueError),  # one-hot
        (np.eye(5, dtype=np.uint8)[[0, 1, 2, 3, 4, 0, 1, 2]].tolist(), ValueError),
        (np.zeros(8), TypeError),
        (np.zeros(8, F), ValueError),
        (np.zeros((8, 5)), TypeError),
        (np.zeros((8, 4), F), ValueError),
        (np.zeros((8, 1), int), ValueError),
        (np.zeros(5, int), ValueError),
        (np.zeros((8, 5), bool), TypeError),
        (np.zeros((8, 5), complex), TypeError),
        (np.array(0), ValueError),
        (None, TypeError),
    ],
)
def test_what_labels_look_like(labels, error):
    """Whatever is wrong with them, one sentence says what would be right."""
    with pytest.raises(error, match=r"^labels: expected") as caught:
        fs.softmax_cross_entropy(np.zeros((8, 5), F), labels)
    right = "class numbers, integers of shape (8,), or probabilities, float32 of shape (8, 5)"
    assert str(caught.value).endswith(right)


def test_lists_of_numbers():
    """They take the dtype of the arrays beside them, float64 where there is none."""
    logits, labels = [[0.5, -1.0, 2.0], [0.0, 0.25, 1]], [2, 1]
    z, y = np.array(logits), np.array(labels)
    loss, dlogits = fs.softmax_cross_entropy(logits, labels, weight=[1, 2, 0.5])
    expected, gradient = fs.softmax_cross_entropy(z, y, weight=np.array([1, 2, 0.5]))
    assert loss == expected
    assert_same_bits(dlogits, gradient)
    targets = [[0.1, 0.2, 0.7], [0, 1, 0]]
    for dtype in (F, np.float64, np.float16):
        z = np.array(logits, dtype)
        loss, dlogits = fs.softmax_cross_entropy(z, targets)
        expected, gradient = fs.softmax_cross_entropy(z, np.array(targets, dtype))
        assert loss == expected
        assert_same_bits(dlogits, gradient)
    assert_same_bits(fs.softmax([[0, 0]]), np.full((1, 2), 0.5))
    assert_same_bits(fs.softmax((np.float32(1), np.float32(1))), np.full(2, 0.5))


@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
def test_arrays_that_overlap(isa):
    memory = np.zeros(20, F)
    logits, shifted = memory[:12].reshape(3, 4), memory[4:16].reshape(3, 4)
    with fs.runtime.use_isa(isa):
        with pytest.raises(ValueError, match="out: overlaps logits"):
            fs.softmax_cross_entropy(logits, np.zeros(3, int), out=shifted)
        targets = np.ones((3, 4), F)
        with pytest.raises(ValueError, match="out: overlaps labels"):
            fs.softmax_cross_entropy(logits, targets, out=targets)
        labels = np.zeros(12, np.int32)
        with pytest.raises(ValueError, match="out: overlaps labels"):
            fs.softmax_cross_entropy(logits, labels[:3], out=labels.view(F).reshape(3, 4))
        frozen = np.zeros((3, 4), F)
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match="out: expected a writable array"):
            fs.softmax(logits, out=frozen)
        with pytest.raises(ValueError, match="logits: expected at least one axis"):
            fs.softmax(np.array(1.0))
    assert not memory.any()
