"""Checkpoints that somebody changed, with checksums that are right: one kind of error, soon, in little memory."""

import copy
import json
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import schedules

F = np.float32
MEGABYTES = 300


def deep(levels, kind=list):
    value = 0
    for _ in range(levels):
        value = [value] if kind is list else {"dict": {"a": value}}
    return value


#: What is put in the place of something else.
VALUES = [
    *(None, True, False, 0, -1, 1, 3, 1.5, -0.0, 1e308, 2**31, 2**40, 2**62, 2**63, 2**64, -(2**63), 10**400),
    *("", "x", "0", "\ud800", "param/w", "float32", "bfloat16", "PCG64", "join", "a" * 10_000),
    *([], {}, [1], [-1], [[]], ["x"], [2**62, 2**62], [2**40, 0], {"a": 1}, {"": None}),
    *({"tensor": "param/w"}, {"tensor": 3}, {"tuple": [1]}, {"dict": {"a": 1}}, {"dict": 3}, {"float": "nan"}),
    *(deep(60), deep(90), deep(400), deep(60, dict), [0] * 50_000),
]


def sources(folder):
    """Files with everything in them that a file can have."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 4)).astype(F)
    norm = fs.BatchNorm(3)
    plateau = schedules.ReduceOnPlateau(0.5, patience=2)
    rate = schedules.join([schedules.warmup(schedules.cosine(0.1, 50), 5), schedules.scale(plateau, 0.5)], [20])
    params = {"w": w, "v": np.asfortranarray(w), "tied": w.T, "norm": norm}
    big = np.ones(5000, F)
    optimizer = fs.AdamW(
        [{"params": {"w": w, "b": big}, "lr": rate}, {"params": [np.ones(2)], "lr": lambda taken: 0.1}],
        state_dtype="8bit",
        ema_decay=0.5,
    )
    optimizer.step([{"w": w.copy(), "b": big.copy()}, [np.ones(2)]])
    metadata = {"epoch": 3, "nan": float("nan"), "deep": {"a": (1, [None, "x"]), "b": {"c": np.ones(2)}}}
    kinds = ["PCG64", "MT19937", "Philox", "SFC64"]
    for k, kind in enumerate(kinds):
        generator = np.random.Generator(getattr(np.random, kind)([5, 2**70]))
        generator.spawn(1)
        fs.save_checkpoint(
            f"{folder}/{k}", params if k == 0 else [w], optimizer if k == 0 else None, rng=generator, **metadata
        )
    lbfgs = fs.LBFGS(p := np.ones(3))
    lbfgs.step(lambda: (float(p @ p), 2 * p))
    fs.save_checkpoint(f"{folder}/lbfgs", [p], lbfgs)
    opened = {"lbfgs": fs.LBFGS(np.ones(3)), "0": copy.deepcopy(optimizer)}
    return {name: (Parts.of(f"{folder}/{name}"), opened.get(name)) for name in ["0", "1", "2", "3", "lbfgs"]}


class Parts:
    """A file, taken apart."""

    def __init__(self, entries, header, data):
        self.entries, self.header, self.data = entries, header, data

    @classmethod
    def of(cls, path):
        raw = Path(path).read_bytes()
        end = 8 + struct.unpack("<Q", raw[:8])[0]
        entries = json.loads(raw[8:end])
        return cls(entries, json.loads(entries.pop("__metadata__")["fusedstep"]), raw[end:])

    def write(self, path, header):
        text = header if isinstance(header, str) else json.dumps(header)
        metadata = {"fusedstep": text, "fusedstep.crc32": f"{zlib.crc32(text.encode()):08x}"}
        content = json.dumps({"__metadata__": metadata, **self.entries}).encode()
        Path(path).unlink(missing_ok=True)  # a file that is cut to nothing and written anew, some file systems flush
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(content)) + content + self.data)


def places(value, path=()):
    """Where something stands; of a long list that was put there, in its first items."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:50]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(header, path, change):
    """A copy in which `change(holder, key)` was made."""
    header = holder = copy.copy(header)
    for key in path[:-1]:
        holder[key] = copy.copy(holder[key])
        holder = holder[key]
    change(holder, path[-1])
    return header


def put(value):
    return lambda holder, key: holder.__setitem__(key, value)


def drop(holder, key):
    del holder[key]


def double(holder, key):
    if isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[f"{key}'"] = holder[key]


def taken(path, optimizer):
    """Whether the file is taken; nothing but the one error, and those that are documented of a state dict."""
    try:
        loaded = fs.load_checkpoint(path)
    except fs.CheckpointError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(f"{path}: ")
        assert len(message) < len(path) + 1100
        return False
    if optimizer is not None and loaded.optimizer is not None:
        with suppress(TypeError, ValueError, UserWarning):
            optimizer.load_state_dict(loaded.optimizer)
    repr(loaded.optimizer)
    copy.deepcopy(loaded.metadata)
    return True


def fuzz(folder):
    """Every place of every header with every value, left out, and twice; then several at once."""
    choose = random.Random(0)
    count, refused = 0, 0
    for name, (parts, optimizer) in sources(folder).items():
        path = f"{folder}/changed"
        paths = [place for place in places(parts.header) if place and (optimizer is not None or place[0] == "rng")]
        for place in paths:
            # Where one value stands for all, some.
            for change in [drop, double, *map(put, VALUES if len(place) < 3 else choose.sample(VALUES, 5))]:
                parts.write(path, changed(parts.header, place, change))
                refused += not taken(path, optimizer)
                count += 1
        for _ in range(100):
            header = parts.header
            for _ in range(choose.randint(2, 4)):
                place = choose.choice([place for place in places(header) if place])
                header = changed(header, place, choose.choice([drop, double, *map(put, VALUES)]))
                if not isinstance(header, dict) or not header:
                    break
            parts.write(path, header)
            refused += not taken(path, optimizer)
            count += 1
        print(name, count, refused, flush=True)


def test_fuzz(tmp_path):
    """In a process of its own, with little memory and time of the processor."""
    command = [sys.executable, "-W", "error", __file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    count, refused = map(int, done.stdout.split()[-2:])
    assert count > 3000
    assert refused > count // 2


class TestOneByOne:
    @pytest.fixture
    def parts(self, tmp_path):
        return sources(tmp_path)["0"][0]

    def refused(self, tmp_path, parts, header, message):
        parts.write(tmp_path / "bad", header)
        with pytest.raises(fs.CheckpointError, match=message):
            fs.load_checkpoint(tmp_path / "bad")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (100_000, "pool_size: expected a whole number from 0 to 256, got 100000"),
            (2**40, "pool_size: expected a whole number from 0 to 256"),
            (10**400, "pool_size: expected a whole number from 0 to 256"),
            (-1, "pool_size"),
            (2.0, "pool_size"),
            (True, "pool_size"),
            ([4], "pool_size"),
        ],
    )
    def test_pool_size(self, tmp_path, parts, value, message):
        path = ("rng", "seeds", "dict", "pool_size")
        path = path if "dict" in parts.header["rng"]["seeds"] else ("rng", "seeds", "pool_size")
        self.refused(tmp_path, parts, changed(parts.header, path, put(value)), message)

    def rows(self, parts, rows):
        header = copy.deepcopy(parts.header)
        header["optimizer"]["schedule_table"] = rows
        header["optimizer"]["schedule_rows"] = [{"lr": len(rows) - 1}, {}]
        return header

    @staticmethod
    def row(name, arguments, within):
        return {"dict": {"name": name, "arguments": {"dict": arguments}, "schedules": {"dict": within}, "state": None}}

    def test_schedules_twice_in_each_other(self, tmp_path, parts):
        rows = [self.row("constant", {"lr": 0.1}, {})]
        rows += [self.row("join", {"milestones": {"tuple": [1]}}, {"schedules": [k, k]}) for k in range(25)]
        self.refused(tmp_path, parts, self.rows(parts, rows), "schedule 13: .*at most 10000 schedules in one")

    def test_schedules_deep_in_each_other(self, tmp_path, parts):
        rows = [self.row("constant", {"lr": 0.1}, {})]
        rows += [self.row("scale", {"factor": 1.0}, {"schedule": [k]}) for k in range(900)]
        self.refused(tmp_path, parts, self.rows(parts, rows), "schedule 50: .*at most 50 deep in each other")

    def test_many_large_schedules(self, tmp_path, parts):
        rows = [self.row("constant", {"lr": 0.1}, {})]
        rows += [self.row("join", {"milestones": {"tuple": list(range(1, 5000))}}, {"schedules": [0] * 5000})]
        rows += [self.row("scale", {"factor": 1.0}, {"schedule": [1]}) for _ in range(1000)]
        self.refused(
            tmp_path, parts, self.rows(parts, rows), "schedules: expected at most 1000000 that stand in each other"
        )

    def test_views(self, tmp_path, parts):
        good = parts.header["views"]["param/tied"]
        for change in (
            {"offset": 4},
            {"offset": -4},
            {"offset": 1},
            {"offset": 2**62},
            {"shape": [4, 4]},
            {"shape": [4]},
            {"shape": [-4, 3]},
            {"shape": [0, 3]},
            {"shape": [2**59, 3], "strides": [0, 0]},
            {"shape": [2] * 65, "strides": [0] * 65},
            {"strides": [4, 2**59]},
            {"strides": [-4, 16]},
            {"strides": [2, 2]},
            {"dtype": "float64"},
            {"dtype": "O"},
            {"of": "param/tied"},
            {"of": "param/none"},
        ):
            header = copy.deepcopy(parts.header)
            header["views"]["param/tied"] = {**good, **change}
            self.refused(tmp_path, parts, header, "damaged: ")
        header = copy.deepcopy(parts.header)
        header["views"]["param/v"] = good
        self.refused(tmp_path, parts, header, "damaged: 'param/v' is a view")

    @pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "9" * 5000, "[" * 3000, '{"a":' * 3000])
    def test_what_is_no_json(self, tmp_path, parts, text):
        whole = json.dumps(parts.header)
        self.refused(tmp_path, parts, whole.replace('"epoch": 3', f'"epoch": {text}'), "bad: ")

    def test_no_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "socket"))
            for path in (tmp_path / "pipe", "/dev/zero", "/dev/null", "/dev/full"):
                with pytest.raises(fs.CheckpointError, match="no regular file"):
                    fs.load_checkpoint(path)
            with pytest.raises(OSError, match="No such device"):
                fs.load_checkpoint(tmp_path / "socket")
        with pytest.raises(TypeError):
            fs.load_checkpoint(0)


class TestWhatIsNotSaved:
    def test_metadata_that_hold_themselves(self, tmp_path):
        cycle = []
        cycle.append(cycle)
        ring = {"a": {}}
        ring["a"]["b"] = ring
        pair = ([],)
        pair[0].append(pair)
        for value in (cycle, ring, pair, deep(101), deep(5000)):
            with pytest.raises(ValueError, match=r"^metadata/m/.*: expected lists and dicts at most 100 deep"):
                fs.save_checkpoint(tmp_path / "a", [], m=value)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        "value",
        [10**400, -(10**400), 2**63, 2**64, -(2**63), 10**4299, "\ud800", {"\ud800": ["\udfff"]}, deep(50), [[]]],
        ids=range(10),
    )
    def test_what_is_saved_is_read(self, tmp_path, value):
        fs.save_checkpoint(tmp_path / "a", [], m=value)
        assert fs.load_checkpoint(tmp_path / "a").metadata == {"m": value}

    @pytest.mark.parametrize("value", [10**4300, -(10**4300), [10**9000]], ids=["one", "negative", "inner"])
    def test_numbers_of_too_many_digits(self, tmp_path, value):
        with pytest.raises(ValueError, match=r"^metadata/m.*: expected a number of at most 4300 digits"):
            fs.save_checkpoint(tmp_path / "a", [], m=value)
        assert os.listdir(tmp_path) == []

    def test_names(self, tmp_path):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            fs.save_checkpoint(tmp_path / "a", [], **{"\ud800": np.ones(1)})
        with pytest.raises(TypeError, match="expected names that are strings, got 0"):
            fs.save_checkpoint(tmp_path / "a", {0: np.ones(1), "0": np.ones(1)})

    def test_seeds(self, tmp_path):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(1, pool_size=257)))
        with pytest.raises(ValueError, match="rng: pool_size: expected a whole number from 0 to 256, got 257"):
            fs.save_checkpoint(tmp_path / "a", [], rng=rng)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, [2, 3]], pool_size=256)))
        fs.save_checkpoint(tmp_path / "a", [], rng=rng)
        assert fs.load_checkpoint(tmp_path / "a").rng.spawn(1)[0].random() == rng.spawn(1)[0].random()


def test_schedules_that_could_not_be_followed():
    twice = deep_one = schedules.constant(1.0)
    with pytest.raises(ValueError, match="expected at most 10000 schedules in one"):
        for _ in range(30):
            twice = schedules.join([twice, twice], [5])
    with pytest.raises(ValueError, match="expected schedules at most 50 deep"):
        for _ in range(900):
            deep_one = schedules.scale(deep_one, 1.0)
    assert (twice(7), deep_one(7)) == (1.0, 1.0)
    assert repr(twice)
    assert copy.deepcopy(deep_one) == deep_one


if __name__ == "__main__":
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    fuzz(sys.argv[1])
