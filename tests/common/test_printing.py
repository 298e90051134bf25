"""What results look like when they are printed: what is known, in a line."""

import copy
import pickle
import re

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import curvature


def test_a_report_shows_what_is_known():
    p = np.ones(3, np.float32)
    report = fs.SGD(p, lr=0.5).step(p + 1)
    assert repr(report) == str(report) == report.__repr__() == "fusedstep.StepReport(step=1, lr=0.5, skipped=False)"
    # The tuple is as it was.
    assert tuple(report) == (1, 0.5, None, None, False, None, None, None, None, None, None)
    assert len(report) == 11
    assert isinstance(report, tuple)
    assert (report.step, report.grad_norm) == (1, None)
    assert pickle.loads(pickle.dumps(report)) == copy.deepcopy(report) == report


def test_a_report_with_telemetry():
    params = [np.ones((2, 2), np.float32), np.zeros(2, np.float32), np.ones(1, np.float32)]
    report = fs.SGD(params, lr=0.5, telemetry=True, max_grad_norm=1.0).step([params[0] * 2, None, params[2] * 2])
    text = repr(report)
    shown = re.findall(r"(\w+)=", text)
    assert shown == [name for name in re.findall(r"(\w+)=", text) if getattr(report, name) is not None]
    assert {"grad_norm", "clip_coefficient", "update_norm", "nonfinite"} <= set(shown)
    assert f"grad_norm={report.grad_norm!r}" in text
    assert "tensors=<3>" in text
    assert "None" not in text
    assert repr(report.tensors[0]).startswith("fusedstep.TensorReport(grad_norm=4.0, ")
    # Where a whole parameter is 0 there is no ratio.
    tensor = fs.SGD(np.zeros(2), telemetry=True).step(np.ones(2)).tensors[0]
    assert "update_ratio" not in repr(tensor)


def test_groups_have_a_rate_each():
    report = fs.SGD([{"params": [np.ones(1)], "lr": 0.5}, {"params": [np.ones(1)], "lr": 0.25}]).step([None, None])
    assert "lr=(0.5, 0.25)" in repr(report)


@pytest.mark.parametrize("optimizer_class", [fs.AdamW, fs.LBFGS])
@pytest.mark.parametrize(
    ("shapes", "text"), [([(1,)], "1 array of 1 parameter:"), ([(3,), (1000,)], "2 arrays of 1,003 parameters:")]
)
def test_one_of_a_thing_is_not_many(optimizer_class, shapes, text):
    assert text in repr(optimizer_class([np.zeros(shape, np.float32) for shape in shapes]))


def test_a_checkpoint_prints_no_arrays(tmp_path):
    params = {"w": np.ones((100, 100), np.float32), "b": np.ones(3, np.float32)}
    opt = fs.AdamW(params)
    opt.step({name: value.copy() for name, value in params.items()})
    path = tmp_path / "run.safetensors"
    fs.save_checkpoint(path, params, opt, rng=np.random.default_rng(0), buffers={"mean": np.ones(1000)}, epoch=3)
    text = repr(fs.load_checkpoint(path))
    assert "<2 arrays of 10,003 numbers>" in text
    assert "<adamw after 1 step>" in text
    assert "<2 entries: buffers, epoch>" in text
    assert "Generator(PCG64)" in text
    assert len(text) < 300
    fs.save_checkpoint(path, params)
    assert "optimizer=None" in repr(fs.load_checkpoint(path))


def test_results_of_curvature_print_no_vectors():
    params = {"w": np.zeros((12, 12)), "b": np.ones(3)}
    grad = lambda p: {name: 2 * value for name, value in p.items()}  # noqa: E731
    loss = lambda p: float(sum((value**2).sum() for value in p.values()))  # noqa: E731
    results = [
        curvature.classify(grad, params),
        curvature.hessian(grad, params),
        curvature.newton_step(grad, params),
        curvature.trace(grad, params),
        curvature.spectral_density(grad, params),
        curvature.spectrum(grad, params),
        curvature.measure_smoothness(loss, grad, params, np.geomspace(1e-3, 1, 50)),
        curvature.measure_shift(np.random.default_rng(0).random((5, 50)), np.ones((5, 50))),
        fs.lr_range_test(lambda lr: 1.0, (1e-3, 1.0, 50)),
        curvature.escape(lambda w: -float(w @ w), lambda w: -2 * w, np.zeros(300)),
    ]
    for result in results:
        text = repr(result)
        assert text.startswith(f"{type(result).__name__}(")
        assert len(text) < 900, text
        assert "array(" not in text
    assert "kind='not critical'" in repr(results[0])


def test_short_arrays_are_shown():
    point = curvature.classify(lambda w: np.array([2.0, -2.0]) * w, np.zeros(2))
    assert re.search(r"eigenvalues=\[-(2.0|1.99\d*), (2.0|1.99\d*)\]", repr(point))
