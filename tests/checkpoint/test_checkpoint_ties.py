"""Parameters that share memory, and layers of batch norm, in checkpoints."""

import json
import threading

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import fusedstep as fs
from fusedstep.checkpoint import checkpoint as _checkpoint
from helpers import assert_same_bits

F = np.float32


def through(path, params):
    fs.save_checkpoint(path, params)
    return fs.load_checkpoint(path).params


def format_of(path):
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["fusedstep"])["format"]


def moves_together(loaded, original):
    """Writing into one shows in the others as in the arrays that were saved."""
    for name, array in loaded.items():
        assert_same_bits(array, original[name])
        assert array.flags.writeable
    for name in original:
        original[name][...] += 1
        loaded[name][...] += 1
        for other in original:
            assert_same_bits(loaded[other], original[other])


class TestTies:
    def test_one_array_twice(self, tmp_path):
        w = np.arange(6, dtype=F).reshape(2, 3)
        loaded = through(tmp_path / "a", {"embed": w, "head": w, "b": np.ones(2)})
        assert loaded["embed"] is loaded["head"]
        assert list(loaded) == ["embed", "head", "b"]
        assert load_file(tmp_path / "a").keys() == {"param/embed", "param/b"}
        moves_together(loaded, {"embed": w, "head": w, "b": np.ones(2)})

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize(
        "view",
        [
            lambda w: w[...],
            lambda w: w.T,
            lambda w: w.transpose(2, 0, 1),
            lambda w: w.reshape(-1) if w.flags.c_contiguous else w.T.reshape(-1),
            lambda w: w[1],
            lambda w: w[:, 1:, ::2],
            lambda w: w[::-1, ::-2],
            lambda w: w[0, 0, 0, ...],
            lambda w: w[:1, :, None],
            lambda w: w.view(np.uint32),
            lambda w: w.view(np.uint16) if w.flags.c_contiguous else w.T.view(np.uint16),
        ],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_views(self, tmp_path, order, view, first):
        w = np.array(np.arange(24).reshape(2, 3, 4), F, order=order)
        params = {"w": w, "v": view(w)} if first else {"v": view(w), "w": w}
        loaded = through(tmp_path / "a", params)
        assert list(loaded) == list(params)
        for name, array in loaded.items():
            assert array.dtype == params[name].dtype
            assert_same_bits(array, params[name])
        assert np.shares_memory(loaded["w"], loaded["v"])
        moves_together(loaded, params)
        assert format_of(tmp_path / "a") == 4

    def test_many_views_of_one_buffer(self, tmp_path, rng):
        flat = rng.standard_normal(1000)
        params = {f"p{k}": flat[k * 10 : k * 10 + 10].reshape(2, 5) for k in range(100)} | {"flat": flat}
        loaded = through(tmp_path / "a", params)
        assert list(loaded) == list(params)
        assert load_file(tmp_path / "a").keys() == {"param/flat"}
        moves_together(loaded, params)

    def test_lists(self, tmp_path):
        w = np.ones((2, 3))
        loaded = through(tmp_path / "a", [w, np.zeros(1), w.T])
        assert np.shares_memory(loaded["0"], loaded["2"])

    def test_the_same_view_with_gaps_twice(self, tmp_path):
        part = np.arange(10.0)[::2]
        loaded = through(tmp_path / "a", {"a": part, "b": part[...]})
        assert loaded["a"] is loaded["b"]
        assert_same_bits(loaded["a"], part)

    def test_bfloat16_words(self, tmp_path):
        words = np.arange(6, dtype=np.uint16)
        loaded = through(tmp_path / "a", {"w": words.view(fs.bfloat16), "words": words})
        assert np.shares_memory(loaded["w"].view(np.uint16), loaded["words"])
        assert_same_bits(loaded["words"], words)

    def test_torch_modules(self, tmp_path):
        torch = pytest.importorskip("torch")
        embed, head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
        head.weight = embed.weight
        loaded = through(tmp_path / "a", {"embed": embed.weight, "head": head.weight})
        assert loaded["embed"] is loaded["head"]

    def test_what_only_lies_near(self, tmp_path):
        base = np.arange(20.0)
        params = {"even": base[::2], "odd": base[1::2], "a": np.zeros(0), "b": np.zeros(0)}
        loaded = through(tmp_path / "a", params)
        assert not np.shares_memory(loaded["even"], loaded["odd"])
        assert format_of(tmp_path / "a") == 2
        halves = through(tmp_path / "a", [base[:10], base[10:]])
        assert not np.shares_memory(halves["0"], halves["1"])
        assert format_of(tmp_path / "a") == 2

    @pytest.mark.parametrize(
        "pair",
        [
            lambda base: (base[:10], base[5:15]),
            lambda base: (base[::2], base[::2][::-1]),
            lambda base: (base[::2], base[2:6]),
            lambda base: (base, np.broadcast_to(base[:1], (40,))),
            lambda base: (base.view(F), base.view(F)[1:-1].view(np.float64)),
        ],
    )
    def test_what_cannot_be_tied(self, tmp_path, pair):
        first, second = pair(np.arange(20.0))
        for params in ({"a": first, "b": second}, {"a": second, "b": first}):
            with pytest.raises(ValueError, match=r"params\['.'\]: shares memory with params\['.'\], which does not"):
                fs.save_checkpoint(tmp_path / "a", params)
        assert list(tmp_path.iterdir()) == []

    def test_metadata_are_copies(self, tmp_path):
        w = np.ones(3)
        fs.save_checkpoint(tmp_path / "a", {"w": w}, history=[w, w])
        loaded = fs.load_checkpoint(tmp_path / "a")
        assert not np.shares_memory(loaded.params["w"], loaded.metadata["history"][0])

    def test_resumed_training_moves_both(self, tmp_path):
        w = np.ones((2, 3), F)
        optimizer = fs.SGD({"embed": w}, lr=0.5)
        optimizer.step({"embed": w.copy()})
        fs.save_checkpoint(tmp_path / "a", {"embed": w, "head": w.T}, optimizer)
        loaded = fs.load_checkpoint(tmp_path / "a")
        resumed = fs.SGD({"embed": loaded.params["embed"]}, lr=0.5)
        resumed.load_state_dict(loaded.optimizer)
        resumed.step({"embed": np.ones((2, 3), F)})
        assert loaded.params["head"].tolist() == [[0, 0]] * 3


class TestLayers:
    @pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"dtype": np.float64}])
    def test_state(self, tmp_path, rng, options):
        norm, other = fs.BatchNorm(3, **options), fs.BatchNorm(3, **options)
        for _ in range(2):
            norm.forward(rng.standard_normal((5, 3)).astype(options.get("dtype", F)), training=True)
        w = np.ones(2)
        loaded = through(tmp_path / "a", {"w": w, "norm": norm, "last": w})
        assert list(loaded) == ["w", "norm", "last"]
        other.load_state_dict(loaded["norm"])
        expected, found = norm.state_dict(), other.state_dict()
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert_same_bits(found[name], value)
        if options.get("track_running_stats", True):
            assert other.num_batches_tracked == 2
            assert not (other.running_mean == 0).all()

    def test_beside_its_own_parameters(self, tmp_path):
        norm = fs.BatchNorm(2)
        loaded = through(tmp_path / "a", {"norm/weight": norm.weight, "norm": norm, "norm/weight'": np.zeros(1)})
        assert loaded["norm"]["weight"] is loaded["norm/weight"]
        assert loaded["norm/weight'"].tolist() == [0]

    def test_lists_and_other_readers(self, tmp_path):
        norm = fs.BatchNorm(2)
        norm.running_mean[...] = 5
        loaded = through(tmp_path / "a", [norm, norm])
        assert loaded["0"]["running_mean"].tolist() == loaded["1"]["running_mean"].tolist() == [5, 5]
        assert load_file(tmp_path / "a")["param/0/running_mean"].tolist() == [5, 5]

    def test_what_cannot_be_saved(self, tmp_path):
        norm = fs.BatchNorm(2)
        norm.num_batches_tracked = -1
        with pytest.raises(ValueError, match=r"params\['n'\].num_batches_tracked: expected a whole number >= 0"):
            fs.save_checkpoint(tmp_path / "a", {"n": norm})
        norm = fs.BatchNorm(2)
        norm.running_var = np.ma.masked_array(np.ones(2, F), [0, 1])
        with pytest.raises(TypeError, match=r"params\['n'\].running_var: expected an array, got a masked one"):
            fs.save_checkpoint(tmp_path / "a", {"n": norm})


class TestMasks:
    def test_nothing_masked_is_saved(self, tmp_path):
        masked = np.ma.masked_array(np.ones(3), [0, 1, 0])

        class Holder:
            def state_dict(self, copy=True):
                return {"state": {0: {"m": masked}}, "param_groups": [{"params": [0]}], "rule": "x", "step": 0}

        for arguments, name in (
            (({"w": masked},), r"params\['w'\]"),
            (([masked],), r"params\[0\]"),
            (([], Holder()), "state/0/m"),
        ):
            with pytest.raises(TypeError, match=f"^{name}: expected an array, got a masked one"):
                fs.save_checkpoint(tmp_path / "a", *arguments)
        with pytest.raises(TypeError, match=r"^metadata/deep/1: expected an array, got a masked one"):
            fs.save_checkpoint(tmp_path / "a", [], deep=[1, masked])
        assert list(tmp_path.iterdir()) == []

    def test_nothing_masked_is_read(self):
        optimizer = fs.Adam(np.ones(3))
        optimizer.step(np.ones(3))
        state = optimizer.state_dict()
        state = {**state, "state": {0: {**state["state"][0], "exp_avg": np.ma.masked_array(np.ones(3), [0, 1, 0])}}}
        with pytest.raises(TypeError, match=r"exp_avg'\]: expected an array, got a masked one"):
            optimizer.load_state_dict(state)
        masked = np.ma.masked_array(np.ones((4, 3)), True)
        ensemble = fs.averaging.SnapshotEnsemble(np.ones(2))
        ensemble.take()
        for call in (
            lambda: fs.doctor.dead_part(masked),
            lambda: fs.curvature.measure_shift(masked, masked),
            lambda: fs.lr_range_test(lambda lr: 1.0, params=masked),
            lambda: fs.averaging.ensemble_predict(lambda: masked, ensemble),
        ):
            with pytest.raises(TypeError, match="expected an array, got a masked one"):
                call()


class TestWhileAnotherThreadSteps:
    def test_every_file_can_be_read(self, tmp_path):
        """Live memory, read twice, would give another checksum than the bytes in the file."""
        params = {"w": np.zeros((512, 1024), F), "v": np.zeros((300, 400), F).T, "s": np.zeros(100_000)[::2]}
        optimizer = fs.AdamW([params["w"]], lr=1e-3)
        done = threading.Event()

        def train():
            while not done.is_set():
                optimizer.step([np.ones((512, 1024), F)])
                for name in ("v", "s"):
                    params[name] += 1

        thread = threading.Thread(target=train)
        thread.start()
        try:
            for k in range(20):
                fs.save_checkpoint(tmp_path / "run", params, optimizer, k=k)
                loaded = fs.load_checkpoint(tmp_path / "run")
                assert loaded.metadata == {"k": k}
                fs.AdamW([loaded.params["w"]]).load_state_dict(loaded.optimizer)
        finally:
            done.set()
            thread.join()
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_another_shape_meanwhile(self, tmp_path, monkeypatch):
        array = np.arange(6.0)

        def write(file, header, tensors, real=_checkpoint.write):
            array.shape = (2, 3)
            return real(file, header, tensors)

        monkeypatch.setattr(_checkpoint, "write", write)
        assert_same_bits(through(tmp_path / "a", [array])["0"], np.arange(6.0))

    @pytest.mark.parametrize("where", [0, 9, -1, -9, "cut", "longer"])
    def test_what_is_not_read_as_it_was_written_replaces_nothing(self, tmp_path, monkeypatch, where):
        through(tmp_path / "a", [np.zeros(3)])

        def write(file, header, tensors, real=_checkpoint.write):
            written = real(file, header, tensors)
            file.flush()
            size = file.seek(0, 2)
            if where == "cut":
                file.truncate(size - 1)
            elif where == "longer":
                file.write(b"\0")
            else:
                file.seek(where % size)
                byte = file.read(1)
                file.seek(where % size)
                file.write(bytes([byte[0] ^ 1]))
            return written

        monkeypatch.setattr(_checkpoint, "write", write)
        with pytest.raises((OSError, ValueError), match=r"not what was written|not a safetensors file"):
            fs.save_checkpoint(tmp_path / "a", [np.ones(3)])
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert fs.load_checkpoint(tmp_path / "a").params["0"].tolist() == [0, 0, 0]
