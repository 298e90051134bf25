"""A run file is read piece by piece: the same as the whole of it at once, in little memory."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from fusedstep.apps.cli import main
from fusedstep.doctor import Doctor, stream
from fusedstep.doctor.run import Run

RECORD = {
    "version": "x",
    "options": {"optimizer": "adam", "batch_size": 8, "batch_norm": True, "hidden": [1, [2, {"a": "]"}]]},
    "note": 'brackets ] } [ { and "quotes" \\ in a string, µ',
    "chance_loss": 2.5,
    "steps": [2.0, 1, None, 0.5e-3, 0, 123456789012345678901234567890, 1e300] * 40,
    "mixed": [1, "a,]", [2, 3], {"b": [4]}, None, True, -5.5e-10, []] * 30,
    "empty": {"a": [], "b": {}, "c": [[], [[]]]},
    "telemetry": {"lr": [1e-3] * 280, "grad_cosine": [-0.5, None] * 140, "unknown": ["x", {}]},
    "epochs": [{"epoch": 1, "step": 100, "test_loss": 1.5, "extra": {"y": [1]}}, {"test_loss": None, "step": 280}],
    "numbers": list(range(1000)),
}


def texts():
    yield json.dumps(RECORD)
    yield json.dumps(RECORD, indent=3)
    yield json.dumps(RECORD, separators=(",", ":"), ensure_ascii=False)
    yield "\ufeff\n\t " + json.dumps(RECORD) + " \r\n"
    yield json.dumps(dict(reversed(RECORD.items())))


def same(a: Run, b: Run):
    for name in ("optimizer", "batch_size", "batch_norm", "chance_loss"):
        assert getattr(a, name) == getattr(b, name)
    np.testing.assert_array_equal(a.losses, b.losses)
    assert a.telemetry.keys() == b.telemetry.keys()
    for name, values in a.telemetry.items():
        np.testing.assert_array_equal(values, b.telemetry[name])
    assert repr(a.evaluations) == repr(b.evaluations)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("text", list(texts()), ids=["one line", "indented", "compact", "marked", "reversed"])
def test_the_run_of_any_pieces(tmp_path, monkeypatch, text, piece):
    monkeypatch.setattr(stream, "PIECE", piece)
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    same(Run.from_record(stream.read_record(path)), Run.from_record(json.loads(text.lstrip("\ufeff"))))


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "[", "nul", "{]", "[1,]", "{,}", '{"steps"', '{"steps":', '{"steps": [', '{"steps": [1', "1 2"),
        *('{"steps": [1,', '{"steps": [1,]}', '{"steps": [,1]}', '{"steps": [1 2]}', '{"steps": [1]', '{"steps": [1}]'),
        *(
            '{"steps": [1],}',
            '{"steps": [1]} x',
            '{"steps": [1]}{}',
            '{"x": [1, [2}, "steps": []}',
            "{'a': 1}",
            "{1: 2}",
        ),
        *('{"x": ["a" 1]}', '{"x": [1 "a"]}', '{"x": [1, "a]}', '{"x": [01]}', '{"x": [1.]}', '{"x": [+1]}', '{"x" 1}'),
        *('{"x": [1, {"a": 2]]}', '{"x": tru}', '{"x": "\\ud800', '{"x": "a\nb"}', '{"steps": [1' + "," * 300 + "2]}"),
    ],
)
def test_what_is_no_json(tmp_path, monkeypatch, capsys, text, piece):
    monkeypatch.setattr(stream, "PIECE", piece)
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    assert main(["doctor", str(path)]) == 2
    assert f"{path}: no JSON, or not all of it: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1", "null", "[]", '"x"', "{}", '{"steps": 1}', '{"steps": [], "epochs": 3}'])
def test_json_of_something_else_says_what_it_said(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((TypeError, ValueError)) as expected:
        Doctor.from_record(json.loads(text))
    with pytest.raises(type(expected.value)) as found:
        Doctor.from_record(stream.read_record(path))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("piece", [4, 1 << 20])
@pytest.mark.parametrize("wrong", ["x", True, [1], {"a": 1}, -1.0])
def test_wrong_numbers_are_named_by_their_place(tmp_path, monkeypatch, wrong, piece):
    monkeypatch.setattr(stream, "PIECE", piece)
    path = tmp_path / "run.json"
    content = {"steps": [*[1.0] * 777, wrong, 1.0], "epochs": []}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises((TypeError, ValueError), match=r"^record\['steps'\]\[777\]: expected a number") as found:
        stream.read_record(path)
    with pytest.raises(type(found.value)) as expected:
        Run.from_record(content)
    assert str(found.value) == str(expected.value)


def test_infinities_are_missing(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"steps": [1.0, NaN, Infinity, 1e400, ' + "9" * 400 + ', 2], "epochs": []}', encoding="utf-8")
    losses = Run.from_record(stream.read_record(path)).losses
    np.testing.assert_array_equal(losses, [1.0, math.nan, math.nan, math.nan, math.nan, 2.0])


def test_memory_is_that_of_the_numbers(tmp_path):
    """A file of 12 MB: less than half of it, and of what the doctor has no use for nothing."""
    count, path = 200_000, tmp_path / "run.json"
    random = np.random.default_rng(0)
    series = {name: random.random(count).tolist() for name in ("steps", "accuracies", "other")}
    path.write_text(json.dumps({**series, "epochs": [], "more": [[value] for value in range(count // 10)]}), "utf-8")
    assert path.stat().st_size > 11e6
    tracemalloc.start()
    try:
        record = stream.read_record(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(record) == ["steps", "epochs"]
    assert kept < 1.2 * 8 * count
    assert peak < 8 * count + 12 * stream.PIECE
