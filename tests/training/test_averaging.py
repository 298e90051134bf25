"""Averages of weights and ensembles, against PyTorch's and against sums that lose nothing."""

import copy
import math

import numpy as np
import pytest

import fusedstep as fs
from checkpoints import through
from fusedstep.averaging import EMA, SWA, SnapshotEnsemble, ensemble_predict, recompute_batch_norm
from helpers import assert_same_bits

F = np.float32
STRUCTURES = ["array", "list", "dict"]


def made(structure, rng, dtype=F):
    """Arrays in a structure, and the same arrays as a list; the second does not lie in C order."""
    arrays = [rng.standard_normal((5, 7)).astype(dtype), np.asfortranarray(rng.standard_normal((4, 3)).astype(dtype))]
    if structure == "array":
        return arrays[1], arrays[1:]
    return (arrays if structure == "list" else {"w": arrays[0], "b": arrays[1]}), arrays


def flat(params):
    if isinstance(params, np.ndarray):
        return [params]
    return list(params.values()) if isinstance(params, dict) else list(params)


def move(arrays, rng):
    for array in arrays:
        array += rng.standard_normal(array.shape).astype(array.dtype)


def specials(dtype=np.uint32):
    """Patterns that arithmetic would not give back: NaNs with a payload, signalling too, and negative zeros."""
    return np.array([0x7FA00001, 0xFFC12345, 0x80000000, 0x00000001], dtype).view(F)


class TestEMA:
    @pytest.mark.parametrize("structure", STRUCTURES)
    @pytest.mark.parametrize("dtype", [F, np.float64])
    @pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
    @pytest.mark.parametrize("isa", ["numpy", None])
    def test_the_bits_of_the_optimizers_option(self, rng, structure, dtype, decay, isa):
        params, arrays = made(structure, rng, dtype)
        ema = EMA(params, decay)
        with fs.runtime.use_isa(isa or fs.runtime.isa()):
            optimizer = fs.AdamW(params, lr=0.1, ema_decay=decay)
            for _ in range(20):
                grads = [rng.standard_normal(array.shape).astype(dtype) for array in arrays]
                given = {"array": grads[0], "list": grads, "dict": dict(zip("wb", grads, strict=False))}[structure]
                optimizer.step(given)
                ema.update()
        assert type(ema.params) is type(optimizer.ema)
        for ours, theirs, array in zip(flat(ema.params), flat(optimizer.ema), arrays, strict=True):
            assert_same_bits(ours, theirs)
            assert ours.strides == array.strides
            assert decay == 0 or (ours != array).any()

    def test_torch(self, rng):
        torch = pytest.importorskip("torch")
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        model = torch.nn.Linear(5, 3, dtype=torch.float64)
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        params = [p.detach().numpy() for p in model.parameters()]
        ema = EMA(params, 0.9)
        averaged.update_parameters(model)  # a copy, the first time
        for _ in range(30):
            move(params, rng)
            ema.update()
            averaged.update_parameters(model)
        for ours, theirs in zip(ema.params, averaged.module.parameters(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-13)

    def test_torch_parameters_are_read_where_they_are(self):
        torch = pytest.importorskip("torch")
        parameter = torch.nn.Parameter(torch.zeros(3))
        ema = EMA([parameter], 0.5)
        with torch.no_grad():
            parameter += 1
        ema.update()
        with ema.swap():
            assert parameter.tolist() == [0.5] * 3
        assert parameter.tolist() == [1.0] * 3

    def test_warmup(self):
        """p = 1 after a start at 0: what is left of the start is the product of the decays."""
        p = np.zeros(1)
        ema = EMA(p, 0.5, warmup=True)
        p[...] = 1
        left = 1.0
        for n in range(1, 30):
            ema.update()
            left *= min(0.5, (1 + n) / (10 + n))
            assert ema.params[0] == pytest.approx(1 - left, rel=1e-14)
        assert left < 1e-7

    def test_narrow_weights_have_an_average_of_float32(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        for dtype in (np.float16, ml_dtypes.bfloat16):
            p = np.array([1.0, -2.0], dtype)
            ema = EMA(p, 0.75)
            p[...] = [2.0, 0.5]
            ema.update()
            assert_same_bits(ema.params, np.array([1.25, -1.375], F))
            with ema.swap():
                assert p.dtype == dtype
                assert p.astype(F).tolist() == [1.25, -1.375]
            p[...] = 1.0
            ema.load_state_dict({**ema.state_dict(), "params": np.array([1 + 2.0**-12, -1e30], F)})
            large = -math.inf if dtype == np.float16 else float(np.array(-1e30).astype(dtype))
            with ema.swap():  # to the nearest
                assert p.astype(F).tolist() == [1.0, large]

    def test_words_that_are_bfloat16(self):
        words = np.array([0x3F80, 0x4000], np.uint16).view(fs.bfloat16)
        ema = EMA(words, 0.5)
        words.view(np.uint16)[...] = 0x4040
        ema.update()
        assert ema.params.tolist() == [2.0, 2.5]
        with ema.swap():
            assert words.view(np.uint16).tolist() == [0x4000, 0x4020]
        assert words.view(np.uint16).tolist() == [0x4040] * 2

    def test_infinities_go_through(self):
        p = np.array([1.0, math.inf, math.nan], F)
        ema = EMA(p, 0.5)
        p[...] = [3.0, 1.0, 1.0]
        ema.update()
        # ∞ + ½ (1 − ∞) has no value.
        np.testing.assert_array_equal(ema.params, [2.0, math.nan, math.nan])


class TestSWA:
    def test_torch(self, rng):
        torch = pytest.importorskip("torch")
        from torch.optim.swa_utils import AveragedModel

        model = torch.nn.Linear(5, 3, dtype=torch.float64)
        averaged = AveragedModel(model)
        params = [p.detach().numpy() for p in model.parameters()]
        swa = SWA(params)
        for _ in range(30):
            move(params, rng)
            swa.update()
            averaged.update_parameters(model)
        for ours, theirs in zip(swa.params, averaged.module.parameters(), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-13)
            assert ours.dtype == np.float64

    def test_half_a_unit_of_the_weights(self, rng):
        """A mean of a thousand float32 numbers is the nearest to theirs, which float32 arithmetic would miss."""
        values = (1e4 + rng.standard_normal((1000, 64))).astype(F)
        p = np.empty(64, F)
        swa = SWA(p)
        recursive = values[0].copy()
        for n, row in enumerate(values):
            p[...] = row
            swa.update()
            recursive += (row - recursive) / F(n + 1)
        expected = np.array([math.fsum(column) / 1000 for column in values.T.astype(np.float64)])
        half = np.spacing(expected.astype(F)) / 2
        assert (np.abs(swa.params - expected) <= half * (1 + 1e-6)).all()
        assert (np.abs(recursive - expected) > half).any()

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_structures_and_dtypes(self, rng, structure):
        for dtype in (np.float16, F, np.float64):
            params, arrays = made(structure, rng, dtype)
            swa = SWA(params)
            sums = [np.zeros(array.shape) for array in arrays]
            for _ in range(4):
                move(arrays, rng)
                swa.update()
                sums = [total + array for total, array in zip(sums, arrays, strict=True)]
            assert type(swa.params) is type(params)
            for ours, total, array in zip(flat(swa.params), sums, arrays, strict=True):
                assert (ours.dtype, ours.strides) == (array.dtype, array.strides)
                np.testing.assert_allclose(ours, total / 4, rtol=np.finfo(dtype).eps, atol=np.finfo(dtype).eps)

    def test_nothing_yet(self):
        swa = SWA(np.zeros(1))
        for look in (lambda: swa.params, swa.swap):
            with pytest.raises(RuntimeError, match="no update yet"):
                look()


def ensembles(params):
    """One of each that swaps, ready to."""
    ema, swa, snapshots = EMA(params, 0.5), SWA(params), SnapshotEnsemble(params)
    swa.update()
    snapshots.take()
    return [
        (ema, ema.swap, ema.update),
        (swa, swa.swap, swa.update),
        (snapshots, lambda: snapshots.use(0), snapshots.take),
    ]


class TestSwapping:
    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_the_exact_bits_come_back(self, rng, structure):
        params, arrays = made(structure, rng)
        averages = ensembles(params)
        expected = [array.copy() for array in arrays]
        for array in arrays:
            array.flat[:4] = specials()
            array[-1, -1] = 5
        before = [array.tobytes() for array in arrays]
        assert arrays[-1].ravel()[:4].tobytes() == specials().tobytes()
        for _, swap, _ in averages:
            with swap():
                for array, value in zip(arrays, expected, strict=True):
                    assert_same_bits(array, value)
            assert [array.tobytes() for array in arrays] == before
            for error in (ValueError, KeyboardInterrupt):
                with pytest.raises(error), swap():
                    arrays[0][...] = 7
                    raise error
                assert [array.tobytes() for array in arrays] == before

    def test_averages_are_not_what_the_block_leaves(self):
        p = np.zeros(2, F)
        for average, swap, _ in ensembles(p):
            with swap():
                p[...] = 9
            with swap():
                assert p.tolist() == [0, 0], average

    def test_strided_views(self):
        base = np.arange(6, dtype=F).reshape(2, 3)
        ema = EMA(base[:, ::2], 0.5)
        base += 2
        ema.update()
        with ema.swap():
            assert base.tolist() == [[1, 3, 3], [4, 6, 6]]
        assert base.tolist() == [[2, 3, 4], [5, 6, 7]]

    def test_nothing_is_taken_meanwhile(self):
        for average, swap, update in ensembles(np.zeros(2, F)):
            with swap():
                with pytest.raises(RuntimeError, match=r"(update|take): the weights hold other values"):
                    update()
                with pytest.raises(RuntimeError, match="the weights hold other values"), swap():
                    pass
                with pytest.raises(RuntimeError, match="the weights hold other values"):
                    update()
            update()
            assert average is not None


class Net:
    """Two layers of batch norm, as in PyTorch's Sequential beside it."""

    def __init__(self, rng):
        self.w = rng.standard_normal((4, 6)).astype(F)
        self.norms = [fs.BatchNorm(6, momentum=0.3, activation="relu"), fs.BatchNorm(2)]
        self.v = rng.standard_normal((6, 2)).astype(F)

    def __call__(self, x, training=True):
        return self.norms[1].forward(self.norms[0].forward(x @ self.w, training=training) @ self.v, training=training)

    def torch(self, torch):
        first, last = torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2, bias=False)
        first.weight.data, last.weight.data = torch.from_numpy(self.w.T.copy()), torch.from_numpy(self.v.T.copy())
        norms = [torch.nn.BatchNorm1d(6, momentum=0.3), torch.nn.BatchNorm1d(2)]
        return torch.nn.Sequential(first, norms[0], torch.nn.ReLU(), last, norms[1]), norms


def statistics(norms):
    return [(n.running_mean.tobytes(), n.running_var.tobytes(), n.num_batches_tracked, n.momentum) for n in norms]


class TestRecomputeBatchNorm:
    def test_torch(self, rng):
        torch = pytest.importorskip("torch")
        net = Net(rng)
        model, norms = net.torch(torch)
        batches = [(2 + rng.standard_normal((rows, 4))).astype(F) for rows in (8, 32, 5, 17)]
        net(batches[0])
        torch.optim.swa_utils.update_bn([torch.from_numpy(x) for x in batches], model)
        assert recompute_batch_norm(net.norms, iter(batches), net) == 4
        for ours, theirs in zip(net.norms, norms, strict=True):
            assert ours.num_batches_tracked == int(theirs.num_batches_tracked) == 4
            assert ours.momentum == theirs.momentum
            np.testing.assert_allclose(ours.running_mean, theirs.running_mean.numpy(), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(ours.running_var, theirs.running_var.numpy(), rtol=1e-5, atol=1e-6)

    def test_each_batch_counts_the_same(self, rng):
        norm = fs.BatchNorm(3, dtype=np.float64)
        norm.running_mean[...] = norm.running_var[...] = math.nan  # as a run that went astray leaves them
        batches = [rng.standard_normal((rows, 3)) for rows in (4, 400)]
        recompute_batch_norm([norm], batches, lambda x: norm.forward(x, training=True))
        np.testing.assert_allclose(norm.running_mean, sum(x.mean(axis=0) for x in batches) / 2, rtol=1e-13)
        np.testing.assert_allclose(norm.running_var, sum(x.var(axis=0, ddof=1) for x in batches) / 2, rtol=1e-13)

    def test_after_an_error_the_layers_are_as_they_were(self, rng):
        net = Net(rng)
        x = rng.standard_normal((8, 4)).astype(F)
        net(x)
        before = statistics(net.norms)

        def stop(batch):
            net(batch)
            raise KeyboardInterrupt

        stray = fs.BatchNorm(2)
        for norms, batches, forward, error, message in (
            (net.norms, [x], stop, KeyboardInterrupt, "^$"),
            (net.norms, [], net, ValueError, "batches: expected at least one, got none"),
            (net.norms, [x], lambda x: net(x, training=False), ValueError, r"norms\[0\]: no batch went through it"),
            ([*net.norms, stray], [x], net, ValueError, r"norms\[2\]: no batch went through it"),
            ([*net.norms, 3], [x], net, TypeError, r"norms\[2\]: expected a BatchNorm, got int"),
            (net.norms[0], [x], net, TypeError, "norms: expected a list of BatchNorm, got BatchNorm"),
            (
                [fs.BatchNorm(2, track_running_stats=False)],
                [x],
                net,
                ValueError,
                r"norms\[0\]: has no running statistics",
            ),
        ):
            with pytest.raises(error, match=message):
                recompute_batch_norm(norms, batches, forward)
            assert statistics(net.norms) == before
        assert statistics([stray]) == statistics([fs.BatchNorm(2)])

    def test_within_a_swap(self, rng):
        """The statistics are those of the averaged weights, and stay when the weights have gone."""
        net = Net(rng)
        batches = [rng.standard_normal((8, 4)).astype(F) for _ in range(3)]
        swa = SWA([net.w])
        swa.update()
        net.w *= 3
        swa.update()
        with swa.swap():
            recompute_batch_norm(net.norms, batches, net)
        expected = np.mean(
            [(x.astype(np.float64) @ (net.w.astype(np.float64) * 2 / 3)).mean(axis=0) for x in batches], 0
        )
        np.testing.assert_allclose(net.norms[0].running_mean, expected, rtol=1e-4, atol=1e-5)


class TestSnapshots:
    @pytest.mark.parametrize(
        ("schedule", "ends"),
        [
            (fs.schedules.cosine_warm_restarts(0.5, 4), [4, 8, 12, 16, 20, 24, 28]),
            (fs.schedules.cosine_warm_restarts(0.5, 4, 2), [4, 12, 28]),
            (fs.schedules.cyclic(0.0, 0.5, 3, 7), [10, 20, 30]),
            (fs.schedules.scale(fs.schedules.cyclic(0.0, 0.5, 5), 2.0), [10, 20, 30]),
            (fs.schedules.warmup(fs.schedules.cosine_warm_restarts(0.5, 10), 5), [10, 20, 30]),
            (
                fs.schedules.join(
                    [
                        fs.schedules.linear(0.0, 5, 0.5),
                        fs.schedules.cosine_warm_restarts(0.5, 10),
                        fs.schedules.constant(0.1),
                    ],
                    [5, 25],
                ),
                [15, 25],
            ),
        ],
    )
    def test_at_the_end_of_each_cycle(self, schedule, ends):
        p = np.zeros(1, F)
        optimizer = fs.SGD(p, lr=schedule)
        ensemble = SnapshotEnsemble(p, schedule, max_snapshots=100)
        taken, at = [], []
        for _ in range(31):
            step = optimizer.step(np.ones(1, F)).step
            if ensemble.observe(step):
                taken.append(step)
                at.append(p[0])
        assert taken == ends
        assert [member[0] for member in ensemble.members()] == at

    def test_a_step_that_was_left_out_ends_no_cycle(self):
        p = np.zeros(1, F)
        schedule = fs.schedules.cyclic(0.0, 0.5, 1)
        optimizer = fs.SGD(p, lr=schedule, skip_nonfinite=True)
        ensemble = SnapshotEnsemble(p, schedule)
        reports = [optimizer.step(np.full(1, g, F)) for g in (1, 1, math.nan, math.inf, 1, 1)]
        assert [report.skipped for report in reports] == [False, False, True, True, False, False]
        assert [ensemble.observe(report.step) for report in reports] == [False, True, False, False, False, True]
        again = SnapshotEnsemble(p, schedule)
        again.load_state_dict(ensemble.state_dict())
        assert not again.observe(4)
        assert again.observe(6)

    def test_the_latest_are_kept(self):
        p = np.zeros(1, F)
        ensemble = SnapshotEnsemble({"p": p}, max_snapshots=3)
        for value in range(5):
            p[...] = value
            ensemble.take()
        assert [member["p"].tolist() for member in ensemble.members()] == [[2], [3], [4]]
        assert len(ensemble) == 3
        with ensemble.use(1):
            assert p[0] == 3
        assert p[0] == 4

    def test_buffers_belong_to_a_snapshot(self, rng):
        net = Net(rng)
        buffers = {"mean": net.norms[0].running_mean, "var": net.norms[0].running_var, "count": np.zeros(1, np.int64)}
        ensemble = SnapshotEnsemble({"w": net.w, **buffers})
        x = rng.standard_normal((8, 4)).astype(F)
        net(x)
        ensemble.take()
        expected = net.norms[0].forward(x @ net.w, training=False)
        net.w += 1
        net(x)
        assert (net.norms[0].forward(x @ net.w, training=False) != expected).any()
        with ensemble.use(0):
            assert_same_bits(net.norms[0].forward(x @ net.w, training=False), expected)

    def test_the_mean_of_probabilities(self, rng):
        torch = pytest.importorskip("torch")
        w = rng.standard_normal((4, 3)).astype(F)
        x = rng.standard_normal((6, 4)).astype(F)
        ensemble = SnapshotEnsemble([w])
        expected = np.zeros((6, 3))
        for _ in range(3):
            move([w], rng)
            ensemble.take()
            expected += torch.softmax(torch.from_numpy(x.astype(np.float64) @ w), dim=1).numpy() / 3

        def predict():
            return torch.softmax(torch.from_numpy(x @ w), dim=1).numpy()

        now = w.copy()
        found = ensemble_predict(predict, ensemble)
        assert found.dtype == F
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert_same_bits(w, now)

    def test_what_is_no_prediction(self):
        p = np.zeros(2)
        ensemble = SnapshotEnsemble(p)
        with pytest.raises(ValueError, match="ensemble: expected at least one snapshot"):
            ensemble_predict(lambda: p, ensemble)
        ensemble.take()
        p += 1
        ensemble.take()
        for predict, error, message in (
            (
                lambda: np.array([3.0, -1.0]),
                ValueError,
                r"predict: expected probabilities in \[0, 1\], got -1.0 to 3.0",
            ),
            (lambda: np.array([math.nan]), ValueError, "predict: expected probabilities"),
            (lambda: np.array([1, 0]), TypeError, "predict: expected an array of floats, got int64"),
            (lambda: [0.5], TypeError, "predict: expected an array of floats, got list"),
            (lambda: np.zeros(1 + int(p[0])), ValueError, r"predict: expected shape \(1,\), got \(2,\)"),
        ):
            with pytest.raises(error, match=message):
                ensemble_predict(predict, ensemble)
            assert p.tolist() == [1, 1]
        with pytest.raises(TypeError, match="ensemble: expected a SnapshotEnsemble, got list"):
            ensemble_predict(lambda: p, [])


class TestStates:
    @pytest.mark.parametrize("structure", STRUCTURES)
    @pytest.mark.parametrize("kind", ["ema", "swa", "snapshots"])
    def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(self, tmp_path, structure, kind):
        def start():
            params, arrays = made(structure, np.random.default_rng(1))
            average = {
                "ema": lambda: EMA(params, 0.9, warmup=True),
                "swa": lambda: SWA(params),
                "snapshots": lambda: SnapshotEnsemble(params, fs.schedules.cyclic(0.0, 1.0, 2), max_snapshots=2),
            }[kind]()
            return arrays, average

        def go_on(arrays, average, steps):
            for step in steps:
                move(arrays, np.random.default_rng(step))
                average.observe(step) if kind == "snapshots" else average.update()

        arrays, whole = start()
        go_on(arrays, whole, range(1, 20))
        arrays, first = start()
        go_on(arrays, first, range(1, 9))
        loaded = through(tmp_path / "run", arrays, average=first.state_dict())
        fresh, resumed = start()
        for array, saved in zip(fresh, loaded.params.values(), strict=True):
            array[...] = saved
        resumed.load_state_dict(loaded.metadata["average"])
        go_on(fresh, resumed, range(9, 20))
        results = [x.members() if kind == "snapshots" else [x.params] for x in (whole, resumed)]
        assert len(results[0]) == len(results[1]) == (2 if kind == "snapshots" else 1)
        for one, other in zip(*results, strict=True):
            for a, b in zip(flat(one), flat(other), strict=True):
                assert_same_bits(a, b)
                assert a.strides == b.strides

    def test_a_loaded_state_is_a_copy(self):
        p = np.zeros(2, F)
        ema, other = EMA(p, 0.5), EMA(p, 0.25, warmup=True)
        other.load_state_dict(ema.state_dict())
        p += 1
        other.update()
        assert (ema.params.tolist(), other.params.tolist()) == ([0, 0], [0.5, 0.5])
        assert (other.decay, other.warmup, other.updates) == (0.5, False, 1)

    def test_what_is_refused(self):
        params = {"w": np.zeros(2, F), "b": np.zeros((2, 2), F)}
        ema, swa, snapshots = EMA(params, 0.5), SWA(params), SnapshotEnsemble(params, max_snapshots=1)
        swa.update()
        snapshots.take()
        copies = [copy.deepcopy(average.state_dict()) for average in (ema, swa, snapshots)]
        good = {"w": np.ones(2, F), "b": np.ones((2, 2), F)}
        wrong = [
            (good["w"], TypeError, "expected a dict, got ndarray"),
            ([good["w"], good["b"]], TypeError, "expected a dict, got list"),
            ({"w": good["w"]}, ValueError, r"expected a dict with the names \['w', 'b'\], got \['w'\]"),
            ({**good, "b": np.ones(4, F)}, ValueError, r"\['b'\]: expected shape \(2, 2\), got \(4,\)"),
            ({**good, "b": np.ones((2, 2), np.int64)}, TypeError, r"\['b'\]: expected dtype float.., got int64"),
            ({**good, "b": "x"}, TypeError, r"\['b'\]: expected an array, got str"),
        ]
        for value, error, message in wrong:
            with pytest.raises(error, match=message):
                ema.load_state_dict({**ema.state_dict(), "params": value})
            with pytest.raises(error, match=message):
                snapshots.load_state_dict({"members": [value], "last_end": 0})
            if not isinstance(value, dict):
                with pytest.raises(error, match=message):
                    swa.load_state_dict({**swa.state_dict(), "means": value})
        for change, error, message in (
            ({"decay": 1.0}, ValueError, "decay"),
            ({"updates": -1}, ValueError, "updates"),
            ({"warmup": 1}, TypeError, "warmup"),
            ({"more": 1}, KeyError, "more"),
        ):
            with pytest.raises(error, match=message):
                ema.load_state_dict({**ema.state_dict(), "params": good, **change})
        with pytest.raises(ValueError, match="expected at most 1, got 2"):
            snapshots.load_state_dict({"members": [good, good], "last_end": 0})
        with pytest.raises(TypeError, match="expected a list, got dict"):
            snapshots.load_state_dict({"members": good, "last_end": 0})
        with pytest.raises(ValueError, match="last_end"):
            snapshots.load_state_dict({"members": [], "last_end": -1})
        for average in (ema, swa, snapshots):
            with pytest.raises(TypeError, match="state: expected a dict, got NoneType"):
                average.load_state_dict(None)
        for average, before in zip((ema, swa, snapshots), copies, strict=True):
            np.testing.assert_equal(average.state_dict(), before)


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: EMA(np.zeros(1), 1.0), ValueError, "decay: expected a finite number >= 0 and < 1, got 1.0"),
            (lambda: EMA(np.zeros(1), -0.1), ValueError, "decay: "),
            (lambda: EMA(np.zeros(1), "0.9"), TypeError, "decay: expected a number, got str"),
            (lambda: EMA(np.zeros(1), 0.9, warmup=1), TypeError, "warmup: expected True or False, got 1"),
            (lambda: EMA([], 0.9), ValueError, "params: expected at least one array, got none"),
            (lambda: EMA({"n": np.zeros(1, int)}, 0.9), TypeError, r"params\['n'\]: expected float16, .*, got int64"),
            (lambda: SWA([np.zeros(1), 3.0]), TypeError, r"params\[1\]: expected an array, got float"),
            (lambda: SWA(np.broadcast_to(1.0, 3)), ValueError, "params: expected an array that can be written"),
            (lambda: SWA(np.ma.zeros(3)), TypeError, "params: expected an array, got a masked one"),
            (lambda: SWA([{"weights": np.zeros(1)}]), ValueError, r"params\[0\]: a group has no 'params'"),
            (lambda: SnapshotEnsemble(np.array([None])), TypeError, "params: expected numbers, got object"),
            (lambda: SnapshotEnsemble(np.zeros(1), max_snapshots=0), ValueError, "max_snapshots: "),
            (lambda: SnapshotEnsemble(np.zeros(1), fs.schedules.cosine(1.0, 5)), TypeError, "schedule: .* got cosine"),
            (lambda: SnapshotEnsemble(np.zeros(1), lambda step: 0.1), TypeError, "schedule: expected one with cycles"),
            (lambda: SnapshotEnsemble(np.zeros(1)).observe(3), RuntimeError, "observe: there is no schedule"),
            (lambda: SnapshotEnsemble(np.zeros(1)).use(0), ValueError, "k: expected one of 0 snapshots, got 0"),
            (lambda: SnapshotEnsemble(np.zeros(1)).use(-1), ValueError, "k: "),
            (
                lambda: SnapshotEnsemble(np.zeros(1), fs.schedules.cyclic(0.0, 1.0, 5)).observe(1.0),
                TypeError,
                "step: expected a whole number, got float",
            ),
        ],
    )
    def test_of_arguments(self, make, error, message):
        with pytest.raises(error, match=message):
            make()
