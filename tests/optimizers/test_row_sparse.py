"""Gradients that have few rows: against torch, dense and sparse; what the other rows keep; what is refused."""

import copy
import math

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from cases import CASES
from fusedstep import _core
from fusedstep.optimizers import REGISTRY
from fusedstep.reference import codec
from helpers import assert_same_bits, ones
from optional import torch
from runs import bits, snapshot

F, D = np.float32, np.float64
BF16 = ml_dtypes.bfloat16
DTYPES = [F, D]
SPARSE = sorted(rule for rule, case in CASES.items() if case.sparse)


@pytest.fixture(params=["numpy", fs.runtime.available_isas()[-1]], autouse=True)
def isa(request):
    with fs.runtime.use_isa(request.param):
        yield request.param


def random_rows(shape, count, rng, dtype=D):
    """So many rows, drawn with repetition."""
    indices = rng.integers(0, shape[0], count) if shape[0] else np.empty(0, np.int64)
    return fs.RowSparse(indices, rng.standard_normal((len(indices), *shape[1:])).astype(dtype), shape)


def sparse_tensor(grad):
    """Torch's, with the repetitions; it sums them itself."""
    return torch.sparse_coo_tensor(
        torch.from_numpy(grad.indices[None].astype(np.int64)),
        torch.from_numpy(grad.values.copy()),
        grad.shape,
        check_invariants=True,
    )


def dense(grad):
    whole = np.zeros(grad.shape, grad.values.dtype)
    np.add.at(whole, grad.indices, grad.values)
    return whole


class TestAgainstTorch:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(40, 4), (30,), (6, 5, 7), (3, 9000), (9, 1), (0, 4)])
    @pytest.mark.parametrize(
        ("rule", "name", "hypers"),
        [
            ("sgd", "SGD", {"lr": 0.3}),
            ("adagrad", "Adagrad", {"lr": 0.3}),
            ("adagrad", "Adagrad", {"lr": 0.3, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3}),
            ("sparse_adam", "SparseAdam", {"lr": 0.3}),
            ("sparse_adam", "SparseAdam", {"lr": 0.3, "betas": (0.5, 0.7), "eps": 1e-2, "maximize": True}),
        ],
    )
    def test_ten_steps(self, rule, name, hypers, shape, dtype, rng):
        """SGD's peer gets the dense gradient. Some steps have no rows, but count."""
        p = rng.standard_normal(shape).astype(dtype)
        peer = torch.nn.Parameter(torch.from_numpy(p.copy()))
        optimizer, theirs = REGISTRY[rule](p, **hypers), getattr(torch.optim, name)([peer], **hypers)
        for step in range(10):
            grad = random_rows(shape, 0 if step in (1, 5) else 2 * shape[0] // 3 + 2, rng, dtype)
            peer.grad = torch.from_numpy(dense(grad)) if rule == "sgd" else sparse_tensor(grad)
            optimizer.step(grad)
            with torch.sparse.check_sparse_tensor_invariants():
                theirs.step()
        tolerance = {F: 2e-5, D: 1e-12}[dtype]
        np.testing.assert_allclose(p, peer.detach().numpy(), rtol=tolerance, atol=tolerance)
        assert optimizer.state[0]["step"] == 10
        for state, value in optimizer.state[0].items():
            if state != "step":
                theirs_too = theirs.state[peer][state].numpy()
                np.testing.assert_allclose(value, theirs_too, rtol=tolerance, atol=tolerance)

    def test_many_rows_on_many_threads(self, native, threads, rng):
        """Rows shorter and longer than a chunk, more of them than chunks."""
        for shape, count in (((5000, 3), 20_000), ((40, 9000), 25)):
            p = rng.standard_normal(shape)
            grad = random_rows(shape, count, rng)
            expected = p - 0.5 * dense(grad)
            fs.SGD(p, lr=0.5).step(grad)
            np.testing.assert_allclose(p, expected, rtol=1e-13, atol=1e-13)


class TestRows:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rule", SPARSE)
    def test_other_rows_keep_their_bits(self, rule, dtype, rng):
        """Whatever they hold, in the parameter and in its state: they are not even read."""
        p = rng.standard_normal((50, 33)).astype(dtype)
        optimizer = REGISTRY[rule](p, max_grad_norm=1.0, telemetry=True)
        used = np.array([3, 17, 18, 49])
        for _ in range(2):
            report = optimizer.step(fs.RowSparse(used, rng.standard_normal((4, 33)).astype(dtype), p.shape))
        others = np.setdiff1d(np.arange(50), used)
        arrays = [p, *(value for value in optimizer.state[0].values() if isinstance(value, np.ndarray))]
        specials = np.array([math.nan, -math.nan, math.inf, -0.0, np.finfo(dtype).smallest_subnormal, 1e30], dtype)
        for array in arrays:
            array[others] = np.resize(specials, (len(others), 33))
        before = copy.deepcopy(arrays)
        report = optimizer.step(fs.RowSparse(used[::-1], np.ones((4, 33), dtype), p.shape))
        for array, old in zip(arrays, before, strict=True):
            assert array[others].tobytes() == old[others].tobytes()
            assert not np.array_equal(array[used], old[used])
            assert np.isfinite(array[used]).all()
        assert all(math.isfinite(value) for value in (report.update_norm, report.param_norm, report.update_ratio))

    @pytest.mark.parametrize("rule", SPARSE)
    def test_their_order_does_not_matter(self, rule, rng):
        p, indices, values = rng.standard_normal((20, 6)), rng.permutation(20)[:9], rng.standard_normal((9, 6))
        results = []
        for order in (np.arange(9), rng.permutation(9), np.argsort(indices)):
            param = p.copy()
            optimizer = REGISTRY[rule](param, lr=0.1)
            optimizer.step(fs.RowSparse(indices[order], values[order], p.shape))
            results.append(bits([param, optimizer.state]))
        assert results[0] == results[1] == results[2]

    def test_repeated_rows_are_summed_in_the_order_given(self):
        """In double, whatever their dtype: there 10⁸ + 1 − 10⁸ is 1; 10¹⁷ + 1 − 10¹⁷ is 0, and 10¹⁷ − 10¹⁷ + 1 is 1."""
        for values, expected in (([1e8, 1.0, -1e8], 1.0), ([1e17, 1.0, -1e17], 0.0), ([1e17, -1e17, 1.0], 1.0)):
            p = np.zeros((3, 2), F)
            fs.SGD(p, lr=1.0).step(fs.RowSparse([1, 1, 1], np.repeat(np.array(values, F)[:, None], 2, 1), p.shape))
            assert p.tolist() == [[0.0, 0.0], [-expected, -expected], [0.0, 0.0]]

    @pytest.mark.parametrize(
        "indices",
        [
            [3, 1],
            (3, 1),
            np.array([3, 1], np.uint8),
            np.array([3, 1], np.int16),
            np.array([3, 1], ">i4"),
            np.array([3, 1], np.uint64),
            np.array([3, 9, 1, 9])[::2],
            np.array([1, 3])[::-1],
            torch.tensor([3, 1]),
        ],
    )
    def test_indices_of_any_kind(self, indices):
        p = np.zeros((5, 2))
        fs.SGD(p, lr=1.0).step(fs.RowSparse(indices, np.array([[1.0, 2.0], [3.0, 4.0]]), p.shape))
        assert p.tolist() == [[0.0, 0.0], [-3.0, -4.0], [0.0, 0.0], [-1.0, -2.0], [0.0, 0.0]]

    @pytest.mark.parametrize(
        "values",
        [
            np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]),
            np.array([[4.0, 3.0], [2.0, 1.0]])[::-1, ::-1],
            torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True),
        ],
    )
    def test_values_of_any_strides(self, values):
        for indices, expected in (([3, 1], [[3.0, 4.0], [1.0, 2.0]]), ([1, 1], [[4.0, 6.0], [0.0, 0.0]])):
            p = np.zeros((5, 2))
            fs.SGD(p, lr=1.0, maximize=True).step(fs.RowSparse(indices, values, p.shape))
            assert p[[1, 3]].tolist() == expected

    def test_values_that_are_the_parameter_itself(self):
        """They are gathered before anything is written."""
        p = np.arange(6.0).reshape(3, 2)
        fs.SGD(p, lr=1.0).step(fs.RowSparse([2, 1, 0], p, p.shape))
        assert p.tolist() == [[-4.0, -4.0], [0.0, 0.0], [4.0, 4.0]]

    def test_arrays_that_are_read_only(self):
        values = ones(1, 2)
        values.flags.writeable = False
        p = np.zeros((3, 2), F)
        fs.SGD(p, lr=1.0).step(fs.RowSparse(np.broadcast_to(np.int64(2), 1), values, p.shape))
        assert p.tolist() == [[0.0, 0.0], [0.0, 0.0], [-1.0, -1.0]]

    @pytest.mark.parametrize("rule", SPARSE)
    @pytest.mark.parametrize("shape", [(4, 3), (4,), (0, 3), (4, 0)])
    def test_no_rows_still_count_a_step(self, rule, shape):
        p = np.ones(shape)
        optimizer = REGISTRY[rule](p, max_grad_norm=1.0, telemetry=True, skip_nonfinite=True)
        report = optimizer.step(fs.RowSparse([], np.empty((0, *shape[1:])), shape))
        assert (report.step, report.grad_norm, report.nonfinite, report.skipped) == (1, 0.0, 0, False)
        assert tuple(report.tensors[0]) == (0.0, 0.0, 0.0, None, None, 0)
        assert optimizer.state[0]["step"] == 1
        assert (p == 1.0).all()

    @pytest.mark.parametrize("rule", SPARSE)
    def test_rows_of_no_length(self, rule):
        report = REGISTRY[rule](np.ones((4, 0)), telemetry=True).step(fs.RowSparse([1, 1], np.ones((2, 0)), (4, 0)))
        assert (report.step, report.grad_norm, report.param_norm) == (1, 0.0, 0.0)

    @pytest.mark.parametrize("rule", ["sgd", "adagrad"])
    def test_dense_and_sparse_by_turns_and_side_by_side(self, rule, rng):
        """A dense gradient of zeros elsewhere is the same step, for rules without averages."""
        p, bias = rng.standard_normal((12, 5)), np.ones(5)
        q, other_bias = p.copy(), bias.copy()
        mixed, plain = (
            REGISTRY[rule]({"p": p, "bias": bias}, lr=0.1),
            REGISTRY[rule]({"p": q, "bias": other_bias}, lr=0.1),
        )
        for step in range(6):
            grad, of_bias = random_rows((12, 5), 7, rng), rng.standard_normal(5)
            mixed.step({"p": dense(grad) if step % 3 == 1 else grad, "bias": of_bias})
            plain.step({"p": dense(grad), "bias": of_bias})
        np.testing.assert_allclose(p, q, rtol=1e-13, atol=1e-14)
        assert_same_bits(bias, other_bias)

    def test_the_function(self, rng):
        """fusedstep.functional takes them too, alone or in lists."""
        p, q, grad = np.ones((5, 2)), np.ones((5, 2)), random_rows((5, 2), 6, rng)
        fs.functional.sgd([p, q], [grad, dense(grad)], step=1, lr=0.5)
        np.testing.assert_allclose(p, q, rtol=1e-15)
        with pytest.raises(TypeError, match="grad: adam takes no row-sparse gradient"):
            fs.functional.adam(p, grad, np.zeros((5, 2)), np.zeros((5, 2)), step=1)

    def test_repr(self):
        assert repr(fs.RowSparse([1, 1], ones(2, 3), (4, 3))) == "RowSparse(2 rows of shape (4, 3), float32)"


class TestOptions:
    @pytest.mark.parametrize("rule", SPARSE)
    def test_the_norm_is_that_of_the_summed_rows(self, rule):
        """(3, 0) + (0, 4) of one row, and (0, 12) of another: 13, not √(9 + 16 + 144) of what was given twice."""
        p = np.zeros((4, 2))
        values = np.array([[3.0, 1.0], [0.0, 12.0], [0.0, 3.0]])
        report = REGISTRY[rule](p, max_grad_norm=26.0, telemetry=True).step(
            fs.RowSparse([2, 0, 2], values, p.shape), 0.5
        )
        assert report.grad_norm == report.tensors[0].grad_norm == 26.0
        assert report.clip_coefficient == pytest.approx(26.0 / (26.0 + 1e-6), rel=1e-15)

    def test_clipping_scaling_and_climbing(self):
        p = np.ones((4, 2))
        grad = fs.RowSparse([2, 2], np.array([[3.0, 0.0], [0.0, 4.0]]), p.shape)
        fs.SGD(p, lr=1.0, max_grad_norm=1.0, maximize=True).step(grad, grad_scale=0.5)
        np.testing.assert_allclose(p, [[1, 1], [1, 1], [1.6, 1.8], [1, 1]], rtol=1e-6)

    @pytest.mark.parametrize("repeated", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("rule", SPARSE)
    def test_skip_nonfinite(self, rule, bad, dtype, repeated, rng):
        p = rng.standard_normal((9, 4)).astype(dtype)
        optimizer = REGISTRY[rule](p, skip_nonfinite=True)
        for step in range(2):
            before, values = snapshot(optimizer), rng.standard_normal((3, 4)).astype(dtype)
            values[1, -1] = bad
            grad = fs.RowSparse([7, 2, 7 if repeated else 5], values, p.shape)
            report = optimizer.step(grad)
            assert (report.skipped, report.step, report.nonfinite) == (True, step, 1)
            assert snapshot(optimizer) == before
            assert not optimizer.step(fs.RowSparse([7], ones(1, 4, dtype=dtype), p.shape)).skipped

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("too_large", [False, True])
    def test_sums_of_repeated_rows_that_are_not_finite(self, dtype, too_large):
        """inf − inf, and what is too large only together: no warning, and no step."""
        first, second = [np.finfo(dtype).max] * 2 if too_large else (math.inf, -math.inf)
        p = np.ones((4, 2), dtype)
        optimizer = fs.SGD(p, lr=1.0, skip_nonfinite=True)
        report = optimizer.step(fs.RowSparse([1, 1], np.array([[first, 1.0], [second, 1.0]], dtype), p.shape))
        assert (report.skipped, report.nonfinite, optimizer.state) == (True, 1, {})
        assert (p == 1.0).all()

    @pytest.mark.parametrize("rule", SPARSE)
    def test_without_it_they_stay_in_their_row(self, rule):
        p = np.ones((4, 2))
        REGISTRY[rule](p).step(fs.RowSparse([1], np.array([[math.nan, 1.0]]), p.shape))
        assert np.isnan(p).tolist() == [[False, False], [True, False], [False, False], [False, False]]


def changed(change):
    """A good gradient of shape (4, 2) that its user changed since."""
    grad = fs.RowSparse(np.array([1, 3]), ones(2, 2), (4, 2))
    change(grad)
    return grad


def with_attribute(**attributes):
    return changed(lambda grad: vars(grad).update(attributes))


class TestErrors:
    """Typed, named, and nothing written."""

    @pytest.mark.parametrize(
        ("indices", "values", "shape", "error", "message"),
        [
            ([0, 4], ones(2, 2), (4, 2), ValueError, "indices: expected rows from 0 to 3, got 4"),
            ([0, -1], ones(2, 2), (4, 2), ValueError, "indices: expected rows from 0 to 3, got -1"),
            ([-5, 9], ones(2, 2), (4, 2), ValueError, "indices: expected rows from 0 to 3, got -5"),
            ([0], ones(1, 2), (0, 2), ValueError, "indices: expected rows from 0 to -1, got 0"),
            (np.array([2**64 - 1], np.uint64), ones(1, 2), (4, 2), ValueError, "expected rows from 0 to 3, got 18446"),
            ([0.0], ones(1, 2), (4, 2), TypeError, "indices: expected integers, got dtype float64"),
            ([True], ones(1, 2), (4, 2), TypeError, "indices: expected integers, got dtype bool"),
            (["1"], ones(1, 2), (4, 2), TypeError, "indices: expected integers, got dtype <U1"),
            ([2**70], ones(1, 2), (4, 2), TypeError, "indices: expected integers, got dtype object"),
            (np.array([], F), ones(0, 2), (4, 2), TypeError, "indices: expected integers, got dtype float32"),
            (1, ones(1, 2), (4, 2), TypeError, "indices: expected an array, got int"),
            ([[0, 1]], ones(2, 2), (4, 2), ValueError, r"indices: expected one axis, got shape \(1, 2\)"),
            (np.array(1), ones(1, 2), (4, 2), ValueError, r"indices: expected one axis, got shape \(\)"),
            ([0, 1], ones(1, 2), (4, 2), ValueError, r"values: expected shape \(2, 2\), got \(1, 2\)"),
            ([0, 1], ones(2, 3), (4, 2), ValueError, r"values: expected shape \(2, 2\), got \(2, 3\)"),
            ([0, 1], ones(2, 1), (4, 2), ValueError, r"values: expected shape \(2, 2\), got \(2, 1\)"),
            ([0, 1], ones(2), (4, 2), ValueError, r"values: expected shape \(2, 2\), got \(2,\)"),
            ([0, 1], ones(2, 1), (4,), ValueError, r"values: expected shape \(2,\), got \(2, 1\)"),
            ([0, 1], [[1.0, 2.0]] * 2, (4, 2), TypeError, "values: expected an array, got list"),
            ([], ones(0, 2), (), ValueError, r"shape: expected at least one axis, got \(\)"),
        ],
    )
    def test_at_construction(self, indices, values, shape, error, message):
        with pytest.raises(error, match=message):
            fs.RowSparse(indices, values, shape)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (
                lambda: fs.RowSparse([1], ones(1, 2), (5, 2)),
                ValueError,
                r"grads\[1\]: expected shape \(4, 2\) as params\[1\] has, got \(5, 2\)",
            ),
            (lambda: fs.RowSparse([1], ones(1), (4,)), ValueError, r"grads\[1\]: expected shape \(4, 2\)"),
            (
                lambda: fs.RowSparse([1], ones(1, 2, dtype=D), (4, 2)),
                TypeError,
                r"grads\[1\]: expected dtype float32 as params\[1\] has, got float64",
            ),
            (
                lambda: fs.RowSparse([1], ones(1, 2, dtype=np.int32), (4, 2)),
                TypeError,
                r"grads\[1\]: .* got dtype int32",
            ),
            (
                lambda: fs.RowSparse([1], ones(1, 2, dtype=np.int64), (4, 2)),
                TypeError,
                r"grads\[1\]: .* got dtype int64",
            ),
            (lambda: fs.RowSparse([1], ones(1, 2, dtype=">f4"), (4, 2)), TypeError, r"grads\[1\]: .* got dtype >f4"),
            (
                lambda: fs.RowSparse([1], np.ma.masked_array(ones(1, 2), True), (4, 2)),
                TypeError,
                "expected a plain NumPy array, got MaskedArray",
            ),
            (
                lambda: fs.RowSparse(np.ma.masked_array([1], True), ones(1, 2), (4, 2)),
                TypeError,
                "expected a plain NumPy array, got MaskedArray",
            ),
            # Changed since.
            (
                lambda: changed(lambda grad: grad.indices.__setitem__(0, 4)),
                ValueError,
                r"grads\[1\]\.indices: expected rows from 0 to 3, got 4",
            ),
            (
                lambda: changed(lambda grad: grad.indices.__setitem__(0, -1)),
                ValueError,
                r"grads\[1\]\.indices: expected rows from 0 to 3, got -1",
            ),
            (
                lambda: with_attribute(indices=np.array([1])),
                ValueError,
                r"grads\[1\]\.values: expected shape \(1, 2\), got \(2, 2\)",
            ),
            (
                lambda: with_attribute(indices=np.array([1.0, 3.0])),
                TypeError,
                r"grads\[1\]\.indices: expected integers, got dtype float64",
            ),
            (
                lambda: with_attribute(values=ones(2, 3)),
                ValueError,
                r"grads\[1\]\.values: expected shape \(2, 2\), got \(2, 3\)",
            ),
            (lambda: with_attribute(shape=(5, 2)), ValueError, r"grads\[1\]: expected shape \(4, 2\)"),
            (lambda: with_attribute(shape=[4, 2]), ValueError, r"grads\[1\]: expected shape \(4, 2\)"),
            (
                lambda: with_attribute(values=[[1.0, 1.0], [1.0, 1.0]]),
                TypeError,
                r"grads\[1\]\.values: expected an array, got list",
            ),
            (lambda: with_attribute(indices=None), TypeError, r"grads\[1\]\.indices: expected an array, got NoneType"),
        ],
    )
    @pytest.mark.parametrize("rule", SPARSE)
    def test_at_a_step(self, rule, make, error, message, rng):
        """In the second parameter: the first must not have moved."""
        params = [ones(4, 2), ones(4, 2)]
        optimizer = REGISTRY[rule](params)
        good = fs.RowSparse([1], ones(1, 2), (4, 2))
        for _ in range(2):  # before there is state, and with it
            before = snapshot(optimizer)
            with pytest.raises(error, match=message):
                optimizer.step([good, make()])
            assert snapshot(optimizer) == before
            optimizer.step([good, good])

    def test_values_changed_since_are_those_of_the_step(self):
        """The arrays are looked at, not copied."""
        grad = changed(lambda grad: grad.values.__setitem__(0, 5.0))
        grad.indices[1] = 0
        p = np.zeros((4, 2), F)
        fs.SGD(p, lr=1.0).step(grad)
        assert p[:, 0].tolist() == [-1.0, -5.0, 0.0, 0.0]

    @pytest.mark.parametrize("rule", sorted(set(REGISTRY) - set(SPARSE)))
    def test_rules_that_take_none(self, rule):
        assert not _core.rules()[rule]["sparse"]
        optimizer = REGISTRY[rule]([ones(4, 2)])
        before = snapshot(optimizer)
        with pytest.raises(TypeError, match=rf"grads\[0\]: {rule} takes no row-sparse gradient"):
            optimizer.step([fs.RowSparse([1], ones(1, 2), (4, 2))])
        assert snapshot(optimizer) == before

    @pytest.mark.parametrize("grad", [np.ones((4, 2), F), np.asfortranarray(ones(4, 2))])
    def test_sparse_adam_takes_nothing_else(self, grad):
        optimizer = fs.SparseAdam([ones(4, 2)])
        before = snapshot(optimizer)
        with pytest.raises(TypeError, match=r"grads\[0\]: expected a fusedstep.RowSparse gradient, got numpy.ndarray"):
            optimizer.step([grad])
        assert snapshot(optimizer) == before

    @pytest.mark.parametrize(
        ("rule", "hypers", "message"),
        [
            ("sgd", {"momentum": 0.9}, "momentum must be 0: it would move rows that have no gradient"),
            ("sgd", {"weight_decay": 0.1}, "weight_decay must be 0: it would move rows that have no gradient"),
            ("adagrad", {"weight_decay": 0.1}, "weight_decay must be 0: it would move rows that have no gradient"),
            *(
                (rule, {"ema_decay": 0.0}, "ema_decay does not apply to a row-sparse gradient")
                for rule in ("sgd", "adagrad")
            ),
        ],
    )
    def test_hyper_parameters_that_would_move_other_rows(self, rule, hypers, message):
        """Of its group alone: another may have them."""
        params = [ones(4, 2), ones(4, 2)]
        grad = fs.RowSparse([1], ones(1, 2), (4, 2))
        optimizer = REGISTRY[rule]([{"params": params[0]}, {"params": params[1], **hypers}])
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=rf"grads\[1\]: .*{message}"):
            optimizer.step([grad, grad])
        assert snapshot(optimizer) == before
        optimizer.step([grad, None if rule == "sparse_adam" else ones(4, 2)])
        assert params[0][1, 0] != 1.0

    @pytest.mark.parametrize("rule", SPARSE)
    def test_rows_must_be_in_one_piece(self, rule):
        p = np.asfortranarray(ones(4, 2))
        optimizer = REGISTRY[rule](p)
        with pytest.raises(ValueError, match=r"params\[0\]: expected rows in one piece: a C-contiguous array"):
            optimizer.step(fs.RowSparse([1], ones(1, 2), (4, 2)))
        assert optimizer.state == {}
        assert (p == 1.0).all()
        thin = np.asfortranarray(ones(4, 1))  # in both orders
        REGISTRY[rule](thin).step(fs.RowSparse([1], ones(1, 1), (4, 1)))
        assert (thin != 1.0).sum() == 1

    def test_state_replaced_by_one_in_another_order(self):
        p = ones(4, 2)
        optimizer = fs.Adagrad([p])
        grad = fs.RowSparse([1], ones(1, 2), (4, 2))
        optimizer.step([grad])
        optimizer.state[0]["sum"] = np.asfortranarray(optimizer.state[0]["sum"])
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=r"state\[0\]\['sum'\]: expected the memory layout of params\[0\]"):
            optimizer.step([grad])
        assert snapshot(optimizer) == before


class TestWhatIsCheckedNatively:
    """The rows become addresses: whatever a subclass makes of them is looked at again."""

    @pytest.mark.parametrize(
        ("rows", "values"),
        [
            (np.array([1.5]), ones(1, 2)),
            (np.array([1], np.int32), ones(1, 2)),
            (np.array([4]), ones(1, 2)),
            (np.array([-1]), ones(1, 2)),
            (np.array([2, 1]), ones(2, 2)),
            (np.array([1, 1]), ones(2, 2)),
            (np.array([[1]]), ones(1, 2)),
            (np.array([1]), ones(2, 2)),
            (np.array([1]), ones(1, 3)),
            (np.array([1]), ones(2)),
        ],
    )
    def test_coalesced_rows(self, rows, values, rng):
        class Sly(fs.RowSparse):
            def coalesced(self, name=""):
                return rows, values

        p = ones(4, 2)
        with pytest.raises(ValueError, match=r"grads\[0\]: its coalesced form: expected"):
            fs.SGD(p).step(Sly([1], ones(1, 2), (4, 2)))
        assert (p == 1.0).all()


class TestSums:
    """Of repeated rows: in double, rounded once, to float32 where the values are narrower."""

    @pytest.mark.parametrize("isa", fs.runtime.available_isas())
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "words", "float32"])
    def test_many_of_a_row(self, isa, dtype):
        values = np.full((5000, 2), 1.5, np.float32)
        if dtype in ("bfloat16", "words"):
            values = codec.narrowed(values, np.dtype(np.uint16)).view(fs.bfloat16 if dtype == "words" else BF16)
        else:
            values = values.astype(dtype)
        p = np.zeros((4, 2), np.float32)
        with fs.runtime.use_isa(isa):
            fs.SGD(p, lr=1.0).step(fs.RowSparse([1] * 5000, values, (4, 2)))
        np.testing.assert_array_equal(p, -7500.0 * (np.arange(4) == 1)[:, None] * np.ones(2))

    def test_float32_beyond_its_digits(self):
        values = np.ones((3, 1), np.float32)
        values[0] = 2.0**24
        rows, summed = fs.RowSparse([2, 2, 2], values, (4, 1)).coalesced()
        assert (rows.tolist(), summed.tolist(), summed.dtype) == ([2], [[2.0**24 + 2]], np.float32)

    def test_float64_stays(self):
        _, summed = fs.RowSparse([0, 0], np.full((2, 1), 0.1), (1, 1)).coalesced()
        assert (summed.dtype, summed[0, 0]) == (np.float64, 0.2)
