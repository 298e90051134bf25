"""Arrays of no axes, which NumPy's arithmetic makes numbers of: the same as arrays of one element."""

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from runs import HYPERS

BF16 = ml_dtypes.bfloat16
STORAGE = [
    {},
    {"state_dtype": "bfloat16"},
    {"state_dtype": "8bit", "min_8bit_size": 1},
    {"master_weights": True},
    {"stochastic_rounding": True},
]


def train(optimizer_class, shape, dtype, options):
    p, g = np.array(0.75, np.float32).astype(dtype).reshape(shape), np.array(0.5).astype(dtype).reshape(shape)
    other = np.ones((3, 2), dtype)
    known = optimizer_class.options()
    wanted = {"ema_decay": 0.5, "max_grad_norm": 0.4, "telemetry": True, "cautious": True, "skip_nonfinite": True}
    wanted = {name: value for name, value in wanted.items() if name in known}
    optimizer = optimizer_class([p, other], **HYPERS[optimizer_class.rule], **options, **wanted)
    for _ in range(3):
        optimizer.step([g, other.copy()])
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    optimizer.load_state_dict(optimizer.state_dict())
    state = {name: value for name, value in optimizer.state[0].items() if isinstance(value, np.ndarray)}
    assert p.shape == shape
    assert all(value.shape == shape for name, value in state.items() if not name.endswith("_scale"))
    return [p.tobytes(), *(value.tobytes() for value in state.values())]


@pytest.mark.parametrize("options", STORAGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16], ids=lambda d: np.dtype(d).name)
def test_steps(vector_optimizer, dtype, options):
    try:
        vector_optimizer(np.ones(1, dtype), **HYPERS[vector_optimizer.rule], **options)
    except ValueError as error:
        pytest.skip(str(error))  # states that cannot be narrow
    expected = None
    for isa in fs.runtime.available_isas():
        with fs.runtime.use_isa(isa):
            for shape in ((1,), ()):
                mine = train(vector_optimizer, shape, dtype, options)
                expected = mine if expected is None else expected
                assert mine == expected, (isa, shape)


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=lambda d: np.dtype(d).name)
def test_layers(isa, dtype):
    x, t = np.array(0.5).astype(dtype), np.array(1.0).astype(dtype)
    with fs.runtime.use_isa(isa):
        for loss in (fs.mean_squared_error, fs.sigmoid_binary_cross_entropy):
            for reduction in ("mean", "sum", "none"):
                value, gradient = loss(x, t, reduction=reduction)
                whole, of_one = loss(x.reshape(1), t.reshape(1), reduction=reduction)
                assert np.asarray(value).tobytes() == np.asarray(whole).tobytes()
                assert gradient.shape == ()
                assert gradient.tobytes() == of_one.tobytes()
        assert fs.dropout(x, 0.5, seed=3).tobytes() == fs.dropout(x.reshape(1), 0.5, seed=3).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, BF16], ids=lambda d: np.dtype(d).name)
def test_averages(dtype):
    p = np.array(1.0).astype(dtype)
    ema, swa = fs.averaging.EMA(p, 0.5), fs.averaging.SWA(p)
    p[...] = 3
    ema.update()
    swa.update()
    assert ema.params.shape == swa.params.shape == ()
    assert (float(ema.params), float(swa.params)) == (2.0, 3.0)
    with ema.swap():
        assert float(p) == 2.0
    assert float(p) == 3.0


def test_pairs_of_no_axes():
    target = np.zeros(())
    _core.commit([(target, np.array(5.0))])
    assert target == 5.0
