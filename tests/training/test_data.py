"""Batches: the rows that plain indexing gives, in an order that seed and epoch give."""

import itertools
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest

from fusedstep.apps.examples import digits
from fusedstep.data import batches
from helpers import misaligned

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.uint8, np.int64, np.bool_, np.complex128, "S3"]
Pair = namedtuple("Pair", "x y")


def filled(rng, shape, dtype):
    """Random bytes, as an array of any dtype."""
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def order_of(seed, epoch, rows):
    return np.random.default_rng((seed, epoch)).permutation(rows)


def copied(epoch):
    return [np.copy(batch) for batch in epoch]


class TestRows:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(1,), (7,), (100, 3), (33, 2, 5), (257, 1), (5, 0), (64, 1100)])
    def test_are_those_of_indexing(self, rng, threads, shape, dtype):
        x = filled(rng, shape, dtype)
        for size, shuffle in itertools.product((1, 3, 32, 1000), (True, False)):
            order = order_of(5, 2, shape[0]) if shuffle else np.arange(shape[0])
            got = copied(batches(x, size, seed=5, epoch=2, shuffle=shuffle))
            expected = [x[order[k : k + size]] for k in range(0, shape[0], size)]
            assert [batch.dtype for batch in got] == [x.dtype] * len(expected)
            assert [batch.shape for batch in got] == [batch.shape for batch in expected]
            assert [batch.tobytes() for batch in got] == [batch.tobytes() for batch in expected]

    def test_of_any_alignment(self, rng, threads):
        for offset in (1, 2, 3):
            x = misaligned(rng.standard_normal((50, 7), np.float32), offset)
            got = np.concatenate(copied(batches(x, 8, seed=0, epoch=0)))
            np.testing.assert_array_equal(got, x[order_of(0, 0, 50)])

    def test_of_a_mapped_file_and_of_torch(self, rng, tmp_path):
        torch = pytest.importorskip("torch")
        x = rng.standard_normal((20, 3), np.float32)
        np.save(tmp_path / "x.npy", x)
        for source in (np.load(tmp_path / "x.npy", mmap_mode="r"), torch.from_numpy(x)):
            first = next(iter(batches(source, 6, seed=1, epoch=0)))
            assert type(first) is np.ndarray
            np.testing.assert_array_equal(first, x[order_of(1, 0, 20)[:6]])

    def test_every_row_once(self):
        for rows, size in ((1, 1), (10, 3), (1000, 64)):
            got = np.concatenate(copied(batches(np.arange(rows), size, seed=9, epoch=4)))
            assert sorted(got.tolist()) == list(range(rows))

    def test_an_order_of_its_own_for_every_epoch_and_seed(self):
        orders = [
            tuple(np.concatenate(copied(batches(np.arange(100), 7, seed=seed, epoch=epoch))))
            for seed in range(4)
            for epoch in range(4)
        ]
        assert len(set(orders)) == 16

    def test_the_same_order_again(self):
        epoch = batches(np.arange(50), 8, seed=0, epoch=1)
        np.testing.assert_array_equal(np.concatenate(copied(epoch)), np.concatenate(copied(epoch)))

    def test_drop_last(self):
        for rows, size, left in ((10, 3, 9), (9, 3, 9), (3, 3, 3)):
            got = copied(batches(np.arange(rows), size, seed=0, epoch=0, drop_last=True))
            assert [len(batch) for batch in got] == [size] * (left // size)
            np.testing.assert_array_equal(np.concatenate(got), order_of(0, 0, rows)[:left])


class TestStructure:
    def test_is_that_of_the_arrays(self, rng):
        x, y = rng.standard_normal((10, 4)), np.arange(10)
        rows = order_of(0, 0, 10)[:4]
        for arrays in ((x, y), [x, y], Pair(x, y)):
            batch = next(iter(batches(arrays, 4, seed=0, epoch=0)))
            assert type(batch) is type(arrays)
            np.testing.assert_array_equal(batch[0], x[rows])
            np.testing.assert_array_equal(batch[1], y[rows])
        batch = next(iter(batches({"x": x, 3: y}, 4, seed=0, epoch=0)))
        assert list(batch) == ["x", 3]
        np.testing.assert_array_equal(batch["x"], x[rows])
        np.testing.assert_array_equal(batch[3], y[rows])

    def test_length_and_text(self):
        for rows, size, drop_last, start, left in ((10, 4, False, 0, 3), (10, 4, True, 1, 1), (8, 4, False, 2, 0)):
            epoch = batches(np.arange(rows), size, seed=0, epoch=7, drop_last=drop_last, start=start)
            assert len(epoch) == len(copied(epoch)) == left
        assert repr(epoch) == "<Batches none left of 2: 8 rows by 4, seed 0, epoch 7, shuffled>"
        text = repr(batches(np.arange(10), 4, seed=3, epoch=0, shuffle=False, start=1))
        assert text == "<Batches 1 to 2 of 3: 10 rows by 4, seed 3, epoch 0, in order>"


class TestResume:
    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("drop_last", [True, False])
    def test_goes_on_where_it_stopped(self, shuffle, drop_last):
        options = {"seed": 11, "epoch": 3, "shuffle": shuffle, "drop_last": drop_last}
        whole = copied(batches(np.arange(23), 5, **options))
        for start in range(len(whole) + 1):
            rest = copied(batches(np.arange(23), 5, **options, start=start))
            assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[start:]]


class TestMemory:
    def test_buffers_are_shared(self, rng):
        x = (rng.standard_normal((10, 4)), np.arange(10))
        got = list(batches(x, 4, seed=0, epoch=0, reuse=True))
        for k in range(2):
            assert len({batch[k].ctypes.data for batch in got}) == 1
        # The last batch, of two rows, has replaced what the first one held.
        np.testing.assert_array_equal(got[0][1][:2], got[2][1])

    def test_buffers_of_two_iterations_are_not(self):
        epoch = batches(np.arange(10), 4, seed=0, epoch=0, reuse=True)
        for one, other in zip(epoch, epoch, strict=True):
            assert not np.may_share_memory(one, other)
            np.testing.assert_array_equal(one, other)

    def test_batches_can_be_kept(self):
        got = list(batches(np.arange(10), 4, seed=0, epoch=0))
        np.testing.assert_array_equal(np.concatenate(got), order_of(0, 0, 10))
        assert not any(np.may_share_memory(a, b) for a, b in itertools.combinations(got, 2))

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_the_data_are_never_written(self, shuffle):
        x = np.arange(10)
        for batch in batches(x, 4, seed=0, epoch=0, shuffle=shuffle):
            batch[:] = -1
        np.testing.assert_array_equal(x, np.arange(10))


class TestErrors:
    @pytest.mark.parametrize(
        ("arrays", "error", "message"),
        [
            ((), ValueError, "arrays: expected at least one array, got none"),
            ({}, ValueError, "arrays: expected at least one array, got none"),
            ([1, 2, 3], TypeError, r"arrays\[0\]: expected an array, got int"),
            ("text", TypeError, "arrays: expected an array, got str"),
            (np.array(1.0), ValueError, "arrays: expected at least one axis, got a number"),
            (np.empty((0, 3)), ValueError, r"arrays: expected at least one row, got shape \(0, 3\)"),
            ((np.ones(3), np.ones(4)), ValueError, r"arrays\[1\]: expected 3 rows as arrays\[0\] has, got 4"),
            ({"x": np.ones(3), "y": np.ones(2)}, ValueError, r"arrays\['y'\]: expected 3 rows as arrays\['x'\] has"),
            ({"x": np.array([None, 1])}, TypeError, r"arrays\['x'\]: expected numbers, got dtype object"),
            (np.ma.ones(3), TypeError, "arrays: expected an array without a mask, got a masked array"),
            ((np.ones(4), np.ones((8, 2))[::2]), ValueError, r"arrays\[1\]: expected C order"),
            (np.asfortranarray(np.ones((4, 2))), ValueError, "arrays: expected C order"),
        ],
    )
    def test_arrays(self, arrays, error, message):
        with pytest.raises(error, match=message):
            batches(arrays, 2, seed=0, epoch=0)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"batch_size": 0}, ValueError, "batch_size: expected a whole number >= 1"),
            ({"batch_size": -2}, ValueError, "batch_size: expected a whole number >= 1"),
            ({"batch_size": True}, TypeError, "batch_size: expected a whole number, got bool"),
            ({"batch_size": 2.0}, TypeError, "batch_size: expected a whole number, got float"),
            (
                {"batch_size": 6, "drop_last": True},
                ValueError,
                "batch_size: expected at most the 5 rows with drop_last",
            ),
            ({"seed": -1}, ValueError, "seed: expected a whole number >= 0"),
            ({"seed": None}, TypeError, "seed: expected a whole number, got NoneType"),
            ({"epoch": -1}, ValueError, "epoch: expected a whole number >= 0"),
            ({"epoch": False}, TypeError, "epoch: expected a whole number, got bool"),
            ({"start": -1}, ValueError, "start: expected a whole number >= 0"),
            ({"start": 4}, ValueError, "start: expected at most the 3 batches of an epoch, got 4"),
            ({"start": True}, TypeError, "start: expected a whole number, got bool"),
            ({"shuffle": 1}, TypeError, "shuffle: expected True or False, got 1"),
            ({"drop_last": None}, TypeError, "drop_last: expected True or False, got None"),
            ({"reuse": 0}, TypeError, "reuse: expected True or False, got 0"),
        ],
    )
    def test_options(self, options, error, message):
        options = {"batch_size": 2, "seed": 0, "epoch": 0, **options}
        with pytest.raises(error, match=message):
            batches(np.arange(5), **options)

    def test_numpy_integers_will_do(self):
        got = copied(batches(np.arange(5), np.int32(2), seed=np.uint8(1), epoch=np.int64(0), start=np.int64(2)))
        np.testing.assert_array_equal(got, [order_of(1, 0, 5)[4:]])


class TestExample:
    def test_digits_keep_their_order_and_leave_out_a_single_row(self):
        for count, size in ((1437, 64), (9, 4), (8, 1), (10, 20)):
            order = order_of(3, 2, count)
            parts = [order[k : k + size] for k in range(0, count, size)]
            expected = [part.tolist() for part in parts if len(part) > 1]
            assert [rows.tolist() for rows in list(digits.batches(count, size, 3, 2))] == expected


def test_seeds_that_numpy_would_take_apart():
    for name, given in (("seed", {"seed": 2**32, "epoch": 0}), ("epoch", {"seed": 0, "epoch": 2**32})):
        with pytest.raises(ValueError, match=rf"{name}: expected a whole number >= 0 and < 2\*\*32"):
            batches(np.zeros(3), 2, **given)


def test_a_dict_that_grows_meanwhile():
    arrays = {"x": np.arange(4)}
    epoch = batches(arrays, 2, seed=0, epoch=0)
    arrays["y"] = np.arange(4)
    assert [sorted(batch) for batch in epoch] == [["x"], ["x"]]
