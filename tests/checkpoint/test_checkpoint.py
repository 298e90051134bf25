"""Checkpoints: whole or not at all."""

import json
import os
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fusedstep as fs
from checkpoints import rewritten, through
from fusedstep.checkpoint import checkpoint as _checkpoint
from fusedstep.checkpoint import file
from helpers import assert_same_bits

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

F = np.float32
DATA = Path(__file__).parents[1] / "data"
BIT_GENERATORS = ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"]


class Stub:
    """An optimizer as far as a checkpoint asks."""

    def __init__(self, state=None, **group):
        self.state, self.group = state or {}, group

    def state_dict(self):
        groups = [{"params": list(range(len(self.state))), **self.group}]
        return {"state": self.state, "param_groups": groups, "rule": "stub", "step": 0}


def trained(rng, **options):
    params = {"w": np.asfortranarray(rng.standard_normal((3, 4)).astype(F)), "b": np.ones(4)}
    optimizer = fs.AdamW([{"params": params, "lr": 0.1}], **options)
    for _ in range(3):
        optimizer.step([{"w": rng.standard_normal((3, 4)).astype(F), "b": None}])
    return params, optimizer


def same(a, b):
    """Equal in kind, dtype, shape and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, steps(a), a.tobytes()) == (b.dtype, b.shape, steps(b), b.tobytes())
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


def steps(array):
    """The strides of the axes that have any."""
    return [stride for stride, length in zip(array.strides, array.shape, strict=True) if length > 1]


def contents(checkpoint):
    rng = checkpoint.rng and [checkpoint.rng.bit_generator.state, checkpoint.rng.bit_generator.seed_seq.state]
    return [checkpoint.params, checkpoint.optimizer, checkpoint.metadata, rng]


class TestRoundTrip:
    def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(self, tmp_path, rng):
        params, optimizer = trained(rng, ema_decay=0.9)
        loaded = through(tmp_path / "run", params, optimizer, rng=rng, epoch=3, note="π\ud800")
        assert loaded.metadata == {"epoch": 3, "note": "π\ud800"}
        assert list(loaded.params) == ["w", "b"]
        fresh = loaded.params
        resumed = fs.AdamW([{"params": fresh}], ema_decay=0.9)
        resumed.load_state_dict(loaded.optimizer)
        assert resumed.param_groups[0]["betas"] == (0.9, 0.999)
        for _ in range(2):
            grads = [{"w": rng.standard_normal((3, 4)).astype(F), "b": np.ones(4)}]
            again = [{"w": loaded.rng.standard_normal((3, 4)).astype(F), "b": np.ones(4)}]
            assert optimizer.step(grads) == resumed.step(again)
        for k, (name, value) in enumerate(params.items()):
            assert_same_bits(fresh[name], value)
            assert fresh[name].strides == value.strides
            assert_same_bits(resumed.ema[k], optimizer.ema[k])
        assert [resumed.state[k]["step"] for k in (0, 1)] == [5, 2]

    def test_lists_and_nothing_else(self, tmp_path):
        loaded = through(tmp_path / "a", [np.zeros(2, F), np.ones(3)])
        assert same(contents(loaded), [{"0": np.zeros(2, F), "1": np.ones(3)}, None, {}, None])
        assert same(contents(through(tmp_path / "a", {})), [{}, None, {}, None])

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((0, 3), F),
            np.array(-0.0),
            np.array([np.nan, -np.inf, 5e-324, -0.0]),
            np.asfortranarray(np.arange(6, dtype=F).reshape(2, 3)),
            np.asfortranarray(np.arange(6.0).reshape(1, 2, 3)),
            np.arange(24, dtype=F).reshape(2, 3, 4).transpose(1, 2, 0),
        ],
    )
    def test_layouts_in_memory(self, tmp_path, array):
        loaded = through(tmp_path / "a", {"p": array}).params["p"]
        assert same(loaded, array)
        assert loaded.flags.writeable
        # Every other reader sees the array as well.
        assert_same_bits(load_file(tmp_path / "a")["param/p"], array)

    def test_views_come_back_as_arrays(self, tmp_path):
        base = np.arange(60, dtype=F).reshape(3, 4, 5)
        packed = np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")]))
        packed["b"] = [1, 2, 3]
        for view in (base[:, ::-2, 1:3], base[::-1].T, np.broadcast_to(F(2), (3, 4)), packed["b"]):
            view.flags.writeable = False
            assert same(through(tmp_path / "a", [view]).params["0"], np.array(view, order="C"))

    def test_arrays_larger_than_the_buffer_they_go_through(self, tmp_path, rng):
        arrays = [
            rng.standard_normal((600, 500)),
            rng.standard_normal((600, 500)).T,
            rng.standard_normal(300_001)[::-1],
        ]
        for k, loaded in through(tmp_path / "a", arrays).params.items():
            assert_same_bits(loaded, arrays[int(k)])

    def test_dtypes(self, tmp_path, rng):
        names = ["bool", "float16", "float32", "float64"] + [f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)]
        params = {name: rng.integers(0, 2, 5).astype(name) for name in names}
        assert same(through(tmp_path / "a", params).params, params)
        # No tensor starts amid an item, whatever stands before it.
        raw = (tmp_path / "a").read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        for name in names:
            start = 8 + int.from_bytes(raw[:8], "little") + header[f"param/{name}"]["data_offsets"][0]
            assert start % np.dtype(name).itemsize == 0

    def test_state_of_any_shape(self, tmp_path):
        state = {
            0: {"step": 7, "mu_product": 0.1 + 0.2, "exp_avg": np.arange(3, dtype=F)},
            1: {
                "old_dirs": [np.array([1.5, 2.5]), np.array([3.5])],
                "old_stps": [],
                "ro": [1 / 3, 5e-324, -0.0],
                "nested": [[np.ones(2, F)], (None, True, ["x"])],
                "d": np.asfortranarray(np.ones((2, 3))),
                "t": 1.7976931348623157e308,
                "H_diag": float("inf"),
                "prev_flat_grad": None,
                "prev_loss": float("nan"),
                "func_evals": 2**70,
            },
        }
        loaded = through(tmp_path / "a", [], Stub(state)).optimizer
        assert same(loaded["state"], state)
        assert (loaded["rule"], loaded["step"]) == ("stub", 0)

    def test_hyper_parameters_and_metadata_of_any_kind(self, tmp_path):
        values = {
            "betas": (0.9, (0.99, 0.999)),
            "max_iter": None,
            "tolerance": float("inf"),
            "bounds": [-float("inf"), -0.0],
            "nesterov": True,
            "mode": "min",
            "nothing": (),
            "table": {"tensor": "x", "tuple": {}, "": [{"float": "y"}]},
        }
        loaded = through(tmp_path / "a", [], Stub(**values), values=values)
        assert same(loaded.optimizer["param_groups"], [{"params": [], **values}])
        assert same(loaded.metadata["values"], values)

    def test_the_header_is_json_to_every_reader(self, tmp_path):
        fs.save_checkpoint(tmp_path / "a", [], Stub(tolerance=float("inf")), nan=float("nan"))
        with safe_open(tmp_path / "a", "numpy") as file:
            text = file.metadata()["fusedstep"]
        json.loads(text, parse_constant=lambda name: pytest.fail(name))

    def test_numpy_scalars_come_back_as_what_they_hold(self, tmp_path):
        values = {"lr": F(0.1), "k": np.int64(3), "on": np.bool(True), "x": np.float64(0.1), "s": np.str_("s")}
        expected = {"lr": float(F(0.1)), "k": 3, "on": True, "x": 0.1, "s": "s"}
        loaded = through(tmp_path / "a", [], Stub(**values), **values)
        assert same(loaded.metadata, expected)
        assert same(loaded.optimizer["param_groups"], [{"params": [], **expected}])

    def test_arrays_in_metadata(self, tmp_path):
        values = {"a": {"b": np.ones(2, F)}, "a/b": np.zeros(3, np.int64), "a/b'": [np.ones(1)]}
        assert same(through(tmp_path / "a", **values).metadata, values)

    def test_torch_tensors(self, tmp_path):
        torch = pytest.importorskip("torch")
        values = torch.arange(6, dtype=torch.float32).reshape(2, 3).T
        state = {0: {"step": torch.tensor(3.0), "exp_avg": values}}
        loaded = through(tmp_path / "a", [torch.nn.Parameter(values)], Stub(state))
        assert same(loaded.params["0"], values.numpy())
        assert same(loaded.optimizer["state"][0], {"step": np.array(3, F), "exp_avg": values.numpy()})

    def test_a_schedule_is_left_to_the_caller(self, tmp_path):
        a, b = np.ones(1), np.ones(1)

        def groups():
            return [{"params": a, "lr": lambda taken: 0.5**taken}, {"params": b}]

        optimizer = fs.SGD(groups(), lr=0.25)
        for _ in range(3):
            optimizer.step([np.ones(1), np.ones(1)])
        loaded = through(tmp_path / "a", [a, b], optimizer).optimizer
        assert loaded["schedules"] == [["lr"], []]
        assert ["lr" in group for group in loaded["param_groups"]] == [False, True]
        resumed = fs.SGD(groups(), lr=0.5)
        resumed.load_state_dict(loaded)
        assert resumed.step([np.ones(1), np.ones(1)]).lr == (0.125, 0.25)
        assert resumed.param_groups[1]["lr"] == 0.25

    def test_safetensors_reads_all_of_it(self, tmp_path, rng):
        params, optimizer = trained(rng, ema_decay=0.9)
        fs.save_checkpoint(tmp_path / "a", params, optimizer)
        arrays = {f"param/{name}": value for name, value in params.items()}
        arrays |= {f"state/0/{name}": value for name, value in optimizer.state[0].items() if name != "step"}
        found = load_file(tmp_path / "a")
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            assert_same_bits(found[name], value)


class TestRandomState:
    @pytest.mark.parametrize("kind", BIT_GENERATORS)
    def test_it_goes_on_where_it_was(self, tmp_path, kind):
        rng = np.random.Generator(getattr(np.random, kind)([np.int64(5), 2**70]))
        rng.spawn(1)
        # An odd number of 32-bit draws leaves one in the buffer.
        rng.integers(0, 9, 7, dtype=np.uint32)
        loaded = through(tmp_path / "a", rng=rng).rng
        assert type(loaded.bit_generator).__name__ == kind
        for a, b in zip([rng, *rng.spawn(2)], [loaded, *loaded.spawn(2)], strict=True):
            assert_same_bits(a.random(700), b.random(700))
            assert (a.integers(0, 2**32, 9, np.uint32) == b.integers(0, 2**32, 9, np.uint32)).all()

    @pytest.mark.parametrize(
        ("kind", "state"),
        [
            ("PCG64", {"bit_generator": "RandomState"}),
            ("PCG64", {"state": 3}),
            ("PCG64", {"state": {"dict": {"state": 2**200, "inc": 1}}}),
            ("SFC64", {"bit_generator": "PCG64"}),
            ("SFC64", {"bit_generator": ["PCG64"]}),
            ("MT19937", {"state": {"dict": {"key": {"tensor": "rng/state/state/key"}, "pos": 625}}}),
            ("MT19937", {"state": {"dict": {"key": {"tensor": "rng/state/state/key"}, "pos": -1}}}),
            ("Philox", {"buffer_pos": 5}),
            ("Philox", {"buffer": [1]}),
            ("Philox", {"has_uint32": None}),
        ],
    )
    def test_no_random_state(self, tmp_path, kind, state):
        """Not even one that NumPy would take, and then read past its buffer."""

        def change(header, tensors):
            header["rng"]["state"]["dict"].update(state)

        fs.save_checkpoint(tmp_path / "a", [np.ones(1)], rng=np.random.Generator(getattr(np.random, kind)(1)))
        rewritten(tmp_path / "a", change)
        with pytest.raises(ValueError, match=f"{tmp_path}/a: damaged: "):
            fs.load_checkpoint(tmp_path / "a")

    def test_what_is_refused(self, tmp_path):
        class Own(np.random.PCG64):
            pass

        class Seeds(np.random.bit_generator.ISeedSequence):
            def generate_state(self, n_words, dtype=np.uint32):
                return np.ones(n_words, dtype)

        for rng, expected in (
            (np.random.RandomState(1), "rng: expected a numpy.random.Generator, got RandomState"),
            (np.random.Generator(Own(1)), "rng: expected one of MT19937, PCG64, .*, got .*Own"),
            (np.random.Generator(np.random.PCG64(Seeds())), "rng: expected a seed sequence of type .*, got .*Seeds"),
        ):
            with pytest.raises(TypeError, match=expected):
                fs.save_checkpoint(tmp_path / "a", [], rng=rng)
        assert os.listdir(tmp_path) == []


class TestWhatCannotBeSaved:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"metadata": object()}, "metadata/metadata: cannot save a value of type object"),
            ({"deep": {"a": [1, {2, 3}]}}, "metadata/deep/a/1: cannot save a value of type set"),
            ({"raw": b"x"}, "metadata/raw: .* bytes"),
            ({"z": np.complex128(1j)}, "metadata/z: .* complex"),
            ({"when": np.datetime64("2026-01-01")}, "metadata/when: .*datetime64"),
            ({"wide": np.longdouble(1)}, "metadata/wide: .*longdouble"),
            ({"by": {1: 2}}, "metadata/by: expected keys that are strings, got 1"),
            ({"fn": len}, "metadata/fn: .* builtin_function_or_method"),
            ({"optimizer": Stub(lr=[len])}, "param_groups/0/lr/0: .* builtin_function_or_method"),
            ({"optimizer": Stub(lr=np.complex64(1))}, "param_groups/0/lr: .* complex"),
            ({"optimizer": Stub({0: {"m": np.array([None])}})}, "state/0/m: cannot save dtype .*O"),
            ({"params": {3: np.ones(1)}}, "params: expected names that are strings, got 3"),
            ({"params": {"w": [1.0]}}, r"params\['w\.0'\]: expected an array, got float"),
            ({"params": [np.ones(1), None]}, r"params\[1\]: expected an array, got NoneType"),
            ({"params": "w"}, "params: expected arrays, got str"),
            ({"params": {"w": np.ones(2, ">f4")}}, r"params\['w'\]: cannot save dtype dtype\('>f4'\)"),
            ({"params": [np.ones(2, np.complex128)]}, r"params\[0\]: cannot save dtype dtype\('complex128'\)"),
            ({"params": [np.zeros(2, "f4,f4")]}, r"params\[0\]: cannot save dtype"),
        ],
    )
    def test_is_named_before_anything_is_written(self, tmp_path, monkeypatch, arguments, expected):
        path = tmp_path / "run"
        fs.save_checkpoint(path, [np.zeros(2)])
        before = path.stat().st_ino, path.read_bytes()
        monkeypatch.setattr(_checkpoint, "replacing", lambda path: pytest.fail("opened"))
        with pytest.raises(TypeError, match=expected):
            fs.save_checkpoint(path, **{"params": [np.ones(2)], **arguments})
        assert (path.stat().st_ino, path.read_bytes()) == before

    def test_a_name_that_is_no_unicode(self, tmp_path):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            fs.save_checkpoint(tmp_path / "a", {"\ud800": np.ones(1)})
        assert os.listdir(tmp_path) == []


class TestTheFile:
    def test_a_failed_save_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "run"
        old = through(path, [np.zeros(2)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            # A full disk, more or less.
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            with pytest.raises(OSError, match="File too large"):
                fs.save_checkpoint(path, [np.ones(10_000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for function, error in (("fsync", OSError), ("replace", PermissionError), ("fchmod", KeyboardInterrupt)):
            with monkeypatch.context() as patch:
                patch.setattr(os, function, lambda *_, error=error: (_ for _ in ()).throw(error("stop")))
                with pytest.raises(error, match="stop"):
                    fs.save_checkpoint(path, [np.ones(2)])
        assert os.listdir(tmp_path) == ["run"]
        assert same(contents(fs.load_checkpoint(path)), contents(old))

    def test_what_safetensors_would_not_read_replaces_nothing(self, tmp_path, monkeypatch):
        path = tmp_path / "run"
        old = through(path, [np.zeros(2)])
        monkeypatch.setattr(file, "DTYPES", {"float64": "F65"})
        with pytest.raises(ValueError, match="not a safetensors file"):
            fs.save_checkpoint(path, [np.ones(2)])
        monkeypatch.undo()
        assert os.listdir(tmp_path) == ["run"]
        assert same(contents(fs.load_checkpoint(path)), contents(old))

    def test_no_directory(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            fs.save_checkpoint(tmp_path / "none" / "run", [np.ones(1)])

    def test_it_is_on_the_disk_before_it_has_its_name(self, tmp_path, monkeypatch):
        path, calls = tmp_path / "run", []

        def sync(descriptor, real=os.fsync):
            calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
            real(descriptor)

        def replace(source, target, real=os.replace):
            calls.append((os.path.basename(source), os.path.basename(target), os.path.getsize(source)))
            real(source, target)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "replace", replace)
        fs.save_checkpoint(path, [np.ones(1)])
        temporary = calls[0]
        assert calls == [temporary, (temporary, "run", path.stat().st_size), tmp_path.name]

    def test_permissions(self, tmp_path):
        path = tmp_path / "run"
        before = os.umask(0o027)
        try:
            fs.save_checkpoint(path, [np.ones(1)])
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            for mode in (0o600, 0o664):
                path.chmod(mode)
                fs.save_checkpoint(path, [np.ones(1)])
                assert stat.S_IMODE(path.stat().st_mode) == mode
        finally:
            os.umask(before)

    def test_links_stay(self, tmp_path):
        (tmp_path / "far").mkdir()
        link, target = tmp_path / "link", tmp_path / "far" / "run"
        link.symlink_to("far/run")
        for value in (1.0, 2.0):
            fs.save_checkpoint(link, [np.array(value)])
            assert link.is_symlink()
            assert fs.load_checkpoint(target).params["0"] == value
        assert os.listdir(tmp_path / "far") == ["run"]

    def test_what_is_no_file_is_not_replaced(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "directory").mkdir()
        for name in ("pipe", "directory"):
            with pytest.raises(ValueError, match=f"{name}: is there, and no regular file"):
                fs.save_checkpoint(tmp_path / name, [np.ones(1)])

    def test_a_relative_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert through("run", [np.ones(1)]).params["0"] == 1

    def test_over_the_file_that_was_read(self, tmp_path):
        loaded = through(tmp_path / "run", [np.arange(1000.0)])
        assert same(through(tmp_path / "run", loaded.params).params, loaded.params)
        assert same(loaded.params["0"], np.arange(1000.0))

    def test_a_step_in_another_thread_does_not_spoil_the_file(self, tmp_path, monkeypatch):
        def pieces(array, real=file._pieces):
            array += 1
            yield from real(array)

        monkeypatch.setattr(file, "_pieces", pieces)
        assert through(tmp_path / "a", [np.ones(3)]).params["0"].tolist() == [2, 2, 2]

    def test_saving_takes_no_second_copy(self, tmp_path):
        arrays = [np.ones((1024, 2048)), np.ones((1024, 2048), order="F"), np.ones((2048, 2048))[:, ::2]]
        tracemalloc.start()
        try:
            fs.save_checkpoint(tmp_path / "a", arrays)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 << 20 < arrays[0].nbytes

    def test_missing_extra_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors", None)
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
        for call in (lambda: fs.save_checkpoint(tmp_path / "a", [np.zeros(1)]), lambda: fs.load_checkpoint("a")):
            with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedstep\[checkpoint\]'"):
                call()


class TestRefusedFiles:
    def test_damaged_and_foreign(self, tmp_path, rng):
        path = tmp_path / "run"
        fs.save_checkpoint(path, *trained(rng))
        whole = path.read_bytes()
        for content in (*(whole[:k] for k in range(0, len(whole), 7)), whole[:-1], whole + b"\0", b"\xff" * 100):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"{path}: not a safetensors file, or a damaged one"):
                fs.load_checkpoint(path)
        save_file({"a": np.zeros(1)}, path)
        with pytest.raises(ValueError, match=f"{path}: no checkpoint of fusedstep"):
            fs.load_checkpoint(path)

    def test_every_flipped_byte(self, tmp_path, rng):
        params = {"w": np.asfortranarray(rng.standard_normal((2, 2)).astype(F)), "b": np.zeros(0), "c": np.ones(1)}
        optimizer = fs.SGD(params, lr=lambda taken: 0.1)
        optimizer.step({name: np.ones_like(value) for name, value in params.items()})
        path = tmp_path / "run"
        expected = contents(through(path, params, optimizer, rng=rng, note="é" * 3))
        whole = path.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        padding = range(len(whole[:end].rstrip(b" ")), end)
        assert len(padding) > 0
        refusals = []
        for place in range(len(whole)):
            # 0x29 makes a tab of a space, which between the header and the data means nothing, and is let through.
            for mask in (0x01, 0x29, 0xFF):
                damaged = bytearray(whole)
                damaged[place] ^= mask
                path.write_bytes(damaged)
                try:
                    loaded = fs.load_checkpoint(path)
                except ValueError as error:
                    refusals.append(str(error))
                else:
                    assert place in padding
                    assert same(contents(loaded), expected)
        assert all(refusal.startswith(f"{path}: ") for refusal in refusals)
        assert len(refusals) == 3 * len(whole) - len(padding)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda h, t: t.pop("param/b"), r"missing: \['param/b'\]; too many: \[\]"),
            (lambda h, t: t.update(extra=np.ones(1)), r"missing: \[\]; too many: \['extra'\]"),
            (lambda h, t: t.update({"param/b": np.ones(5)}), r"'param/b' is F64 \[5\], not float64 \[4\]"),
            (lambda h, t: t.update({"param/b": np.ones((4, 1))}), r"'param/b' is F64 \[4, 1\], not float64 \[4\]"),
            (lambda h, t: t.update({"param/b": np.ones(4, np.int64)}), r"'param/b' is I64 \[4\], not float64 \[4\]"),
            (lambda h, t: t.update({"param/b": np.zeros(4)}), "'param/b' has another checksum"),
            (lambda h, t: h["tensors"]["param/b"].update(dtype="F64"), "'param/b' is F64"),
            (lambda h, t: h["tensors"]["param/b"].update(axes=[1]), r"axes of 'param/b': \[1\]"),
            (lambda h, t: h["tensors"]["param/w"].update(axes=[0, "1"]), "axes of 'param/w': "),
            (lambda h, t: h["tensors"]["param/b"].pop("crc32"), "no 'crc32'"),
            (lambda h, t: h["tensors"].update({"param/b": 3}), "a tensor is 3"),
            (lambda h, t: h["params"].append("c"), "no tensor 'param/c'"),
            (lambda h, t: h["params"].append("b"), "no tensor 'param/b'"),
            (lambda h, t: h["params"].append(3), "params: "),
            (lambda h, t: h["params"].pop(), r"too many: \['param/b'\]"),
            (lambda h, t: h["metadata"].update(a={"tensor": "param/x"}), "no tensor 'param/x'"),
            (lambda h, t: h["metadata"].update(a={"code": "x"}), "is no value"),
            (lambda h, t: h["metadata"].update(a={"float": "1"}), "is no value"),
            (lambda h, t: h["metadata"].update(a={}), "is no value"),
            (lambda h, t: h["optimizer"]["state"].update({"0": None}), "a state is None"),
            (lambda h, t: h["optimizer"]["state"].update({"x": {}}), "a state of parameter 'x'"),
            (lambda h, t: h["optimizer"]["param_groups"].append(3), "a group is 3"),
            (lambda h, t: h["optimizer"]["param_groups"][0].pop("params"), "no 'params'"),
            (lambda h, t: h["optimizer"]["schedules"].append([]), "1 groups, schedules of 2"),
            (lambda h, t: h["optimizer"].update(schedules=["lr"]), "schedules: 'lr'"),
            (lambda h, t: h["optimizer"].update(step=True), "'step' is True"),
            (lambda h, t: h["optimizer"].pop("rule"), "no 'rule'"),
            (lambda h, t: h.update(format=99), "format 99 is newer than this version of fusedstep reads"),
            (lambda h, t: h.update(format=0), "format 0"),
            (lambda h, t: h.update(format=True), "'format' is True"),
            *((lambda h, t, key=key: h.pop(key), f"no '{key}'") for key in ("format", "version", "params", "tensors")),
            *((lambda h, t, key=key: h.pop(key), f"no '{key}'") for key in ("optimizer", "metadata", "rng")),
            *((lambda h, t, key=key: h.update({key: "x"}), f"'{key}' is 'x'") for key in ("format", "tensors", "rng")),
            *((lambda h, t, key=key: h.update({key: 3}), f"'{key}' is 3") for key in ("version", "params", "metadata")),
        ],
    )
    def test_mismatched(self, tmp_path, rng, change, expected):
        path = tmp_path / "run"
        fs.save_checkpoint(path, *trained(rng))
        fs.load_checkpoint(path)
        rewritten(path, change)
        with pytest.raises(ValueError, match=f"{path}: .*{expected}"):
            fs.load_checkpoint(path)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{", "Expecting"),
            ("[]", "the header is"),
            ("[" * 100_000, "decoding"),
            ('{"format": 2}', "without a checksum"),
            ('{"format": 99}', "format 99 is newer"),
            ('{"format": 1}', "no 'optimizer'"),
        ],
    )
    def test_no_header(self, tmp_path, text, expected):
        save_file({"a": np.ones(1)}, tmp_path / "a", metadata={"fusedstep": text})
        with pytest.raises(ValueError, match=expected):
            fs.load_checkpoint(tmp_path / "a")

    def test_what_cannot_be_opened(self, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(FileNotFoundError, match="none"):
            fs.load_checkpoint(tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            fs.load_checkpoint(tmp_path)
        with pytest.raises(OSError, match="symbolic links"):
            fs.load_checkpoint(tmp_path / "loop")


class TestOlderFiles:
    def check(self, loaded):
        """AdamW with the default betas, lr 0.1 and weight decay 0.01, after three gradients of 2 for w and none for b.

        The moments are 2(1−β₁³) and 4(1−β₂³), so a step takes 0.1 from 0.999 p; the average weighs the parameter before
        the first step and after each with ⅛, ⅛, ¼ and ½.
        """
        assert loaded.metadata == {"epoch": 3}
        w = loaded.params["w"]
        assert_same_bits(loaded.params["b"], np.ones(2))
        assert loaded.optimizer["state"].keys() == {0}
        state = loaded.optimizer["state"][0]
        assert state["step"] == loaded.optimizer["step"] == 3
        path = [w.astype(np.float64)]
        for _ in range(3):
            path.append((path[-1] + 0.1) / 0.999)
        expected = {
            "exp_avg": np.full((2, 3), 2 * (1 - 0.9**3)),
            "exp_avg_sq": np.full((2, 3), 4 * (1 - 0.999**3)),
            "ema": np.average(path, axis=0, weights=[4, 2, 1, 1]),
        }
        for name, value in expected.items():
            assert state[name].dtype == w.dtype == F
            np.testing.assert_allclose(state[name], value, rtol=1e-6, err_msg=name)
        assert loaded.optimizer["rule"] == "adamw"
        (group,) = loaded.optimizer["param_groups"]
        assert same(group["betas"], (0.9, 0.999))
        assert group["params"] == [0, 1]
        assert group["param_names"] == ["w", "b"]
        optimizer = fs.AdamW({name: loaded.params[name] for name in ("w", "b")}, lr=0.1)
        optimizer.load_state_dict(loaded.optimizer)
        assert optimizer.step({"w": np.full((2, 3), 2, F), "b": None}).step == 4
        np.testing.assert_allclose(w, 0.999 * path[0] - 0.1, rtol=1e-6)

    def test_format_1(self):
        self.check(fs.load_checkpoint(DATA / "format1.safetensors"))

    def test_format_2(self):
        loaded = fs.load_checkpoint(DATA / "format2.safetensors")
        assert list(loaded.params) == ["w", "b"]
        assert loaded.params["w"].flags.f_contiguous
        assert loaded.optimizer["schedules"] == [["lr"]]
        assert_same_bits(loaded.rng.random(3), np.random.default_rng(7).random(3))
        self.check(loaded)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda h, t: t.pop("state/0/ema"), "no tensor 'state/0/ema'"),
            (lambda h, t: t.update(extra=np.ones(1)), "'extra'"),
            (lambda h, t: h["optimizer"].pop("state"), "no 'state'"),
            (lambda h, t: h["optimizer"]["state"].update({"0": 3}), "a state is 3"),
            (lambda h, t: h["optimizer"].update(param_groups=[3]), "a group is 3"),
            (lambda h, t: h.pop("metadata"), "no 'metadata'"),
        ],
    )
    def test_format_1_that_does_not_fit(self, tmp_path, change, expected):
        path = tmp_path / "run"
        path.write_bytes((DATA / "format1.safetensors").read_bytes())
        rewritten(path, change)
        with pytest.raises(ValueError, match=f"{path}: .*{expected}"):
            fs.load_checkpoint(path)


def save_state(path, k):
    """State number `k`, all of which follows from `k`."""
    params = {"w": np.full((256, 1024), k, F), "b": np.full((300, 400), k, order="F")}
    state = {0: {"step": k, "exp_avg": -params["w"]}, 1: {"step": k, "exp_avg": -params["b"]}}
    fs.save_checkpoint(path, params, Stub(state, lr=k), rng=np.random.default_rng(k), k=k)


def assert_a_state(path):
    loaded = fs.load_checkpoint(path)
    k = loaded.metadata["k"]
    state = loaded.optimizer["state"]
    assert [state[0]["step"], state[1]["step"], loaded.optimizer["param_groups"][0]["lr"]] == [k, k, k]
    for position, (name, shape) in enumerate((("w", (256, 1024)), ("b", (300, 400)))):
        assert loaded.params[name].shape == state[position]["exp_avg"].shape == shape
        assert (loaded.params[name] == k).all()
        assert (state[position]["exp_avg"] == -k).all()
    assert loaded.rng.bit_generator.state == np.random.default_rng(k).bit_generator.state
    return k


def kill_savers(path, count):
    """Kills `count` processes that save one state after the other, each at a random moment, and reads what they left.

    Run in a process of its own, whose children are copies of it: they need not import anything.
    """
    save_state(path, 0)
    whole, mid_save = [], 0
    for k in range(count):
        child = os.fork()
        if child == 0:
            # Nothing outlives a parent that failed.
            signal.alarm(60)
            while True:
                save_state(path, k := k + 1)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        whole.append(assert_a_state(path))
        for left in Path(path).parent.glob(".fusedstep-*.tmp"):
            left.unlink()
            mid_save += 1
    print(f"{count} killed, {mid_save} while they wrote; {len(whole)} loads whole, of {len(set(whole))} states")


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    command = [sys.executable, __file__, str(tmp_path / "run"), "15"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "15 killed" in done.stdout


if __name__ == "__main__":
    kill_savers(sys.argv[1], int(sys.argv[2]))
