"""State dicts of wrong kinds, counts at the end of their range, numbers and strings that nothing holds."""

import copy
import pickle
import re

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.averaging import EMA, SWA, SnapshotEnsemble
from fusedstep.schedules import ReduceOnPlateau
from helpers import ones

# That hyper-parameters are replaced is meant here.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced:UserWarning")
F = np.float32
LAST = 2**53 - 1
WRONG_KINDS = [5, None, "state", [1], 1.5, np.ones(2), b"x", {1: 2}, [], {}]


def trained(kind=fs.Adam):
    optimizer = kind({"w": ones(2)})
    optimizer.step({"w": ones(2)})
    return optimizer


def lbfgs():
    p = ones(2)
    optimizer = fs.LBFGS(p)
    optimizer.step(lambda: (float(p @ p), 2 * p))
    return optimizer


def holders():
    """One of everything that loads a state, after some use."""
    stopping = fs.EarlyStopping(2, params=ones(2))
    stopping.observe(1.0)
    swa = SWA([ones(2)])
    swa.update()
    ema = EMA(ones(2), 0.5)
    ema.update()
    snapshots = SnapshotEnsemble(ones(2))
    snapshots.take()
    plateau = ReduceOnPlateau(0.5)
    plateau.observe(1.0)
    norm = fs.BatchNorm(2)
    norm.forward(np.ones((3, 2), F), training=True)
    kinds = [trained(), trained(fs.Prodigy), trained(fs.ScheduleFreeAdamW), lbfgs()]
    return [*kinds, stopping, swa, ema, snapshots, plateau, norm]


NAMES = [type(holder).__name__ for holder in holders()]


def places(state, path=()):
    """Where something stands, in dicts and lists, the whole included."""
    yield path
    inner = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def replaced(state, path, value):
    if not path:
        return value
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return state


def bits(value):
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return (str(value.dtype), value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)


@pytest.mark.parametrize("k", range(len(NAMES)), ids=NAMES)
def test_every_part_of_another_kind(k):
    """Taken whole, or refused with an error of what it is, and then nothing has changed."""
    source = holders()[k].state_dict()
    refused = []
    for path in places(source):
        for wrong in WRONG_KINDS:
            holder = holders()[k]
            before = bits(holder.state_dict())
            try:
                holder.load_state_dict(replaced(source, path, wrong))
            except (KeyError, TypeError, ValueError) as error:
                refused.append((path, wrong, str(error.args[0])))
                assert bits(holder.state_dict()) == before, (path, wrong)
    assert [each for each in refused if not re.match(r"[\w\[\]']+: ", each[-1])] == []
    assert len(refused) > 5 * len(list(places(source)))


@pytest.mark.parametrize("kind", [fs.Adam, fs.LBFGS])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: 5, TypeError, "state_dict: expected a dict, got int"),
        (lambda s: {**s, "state": 5}, TypeError, r"state_dict\['state'\]: expected a dict, got int"),
        (lambda s: {**s, "param_groups": 5}, TypeError, r"state_dict\['param_groups'\]: expected a list, got int"),
        (
            lambda s: {**s, "param_groups": [5]},
            TypeError,
            r"state_dict\['param_groups'\]\[0\]: expected a dict, got int",
        ),
        (lambda s: {**s, "param_groups": [{}]}, ValueError, r"state_dict\['param_groups'\]\[0\]: no 'params'"),
        (lambda s: {**s, "state": {0: 5}}, TypeError, r"state_dict\['state'\]\[0\]: expected a dict, got int"),
        (lambda s: {**s, "state": {True: {}}}, TypeError, "expected positions of parameters, got True"),
        (lambda s: {**s, "state": {0.0: {}}}, TypeError, "expected positions of parameters, got 0.0"),
        (lambda s: {**s, "state": {"00": {}}}, ValueError, "expected positions of parameters, got '00'"),
        (lambda s: {**s, "state": {"\ud800": {}}}, ValueError, "expected positions of parameters, got "),
        (lambda s: {**s, "state": {0: s["state"][0], "0": s["state"][0]}}, ValueError, "position 0 is there twice"),
        (lambda s: {**s, "step": "3"}, ValueError, r"state_dict\['step'\]: expected a whole number >= 0, got '3'"),
        (lambda s: {**s, "step": True}, ValueError, r"state_dict\['step'\]: expected a whole number >= 0, got True"),
        (lambda s: {**s, "step": np.bool_(True)}, ValueError, r"state_dict\['step'\]: expected a whole number >= 0"),
        (
            lambda s: {**s, "step": 2**53},
            ValueError,
            r"state_dict\['step'\]: expected a whole number >= 0 and < 2\*\*53",
        ),
        (
            lambda s: {**s, "step": 10**400},
            ValueError,
            r"state_dict\['step'\]: expected a whole number >= 0 and < 2\*\*53",
        ),
        (lambda s: {**s, "step": np.ones(2)}, ValueError, r"state_dict\['step'\]: expected a whole number >= 0"),
    ],
)
def test_layout(kind, change, error, message):
    optimizer = lbfgs() if kind is fs.LBFGS else trained()
    before = bits(optimizer.state_dict())
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(change(optimizer.state_dict()))
    assert bits(optimizer.state_dict()) == before


@pytest.mark.parametrize("step", ["3", True, np.bool_(1), None, 1.5, -1, [3], np.ones(2), np.array("3"), 2**53, np.nan])
def test_steps_of_a_parameter(step):
    optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = step
    with pytest.raises(ValueError, match=r"state_dict\['state'\]\[0\]\['step'\]: expected a whole number"):
        optimizer.load_state_dict(state)
    # Written into the state by hand, the next step sees it.
    optimizer.state[0]["step"] = step
    with pytest.raises(ValueError, match=r"state\[0\]\['step'\]: expected a whole number"):
        optimizer.step({"w": ones(2)})


@pytest.mark.parametrize("step", [3, 3.0, np.int32(3), F(3), np.array(3), np.array([3.0]), np.array(3, np.float16)])
def test_steps_that_are_numbers(step):
    optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = state["step"] = step
    optimizer.load_state_dict(state)
    assert optimizer.state[0]["step"] == optimizer.state_dict()["step"] == 3


def test_positions_that_went_through_json():
    optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"] = {"0": state["state"][0]}
    optimizer.load_state_dict(state)
    assert list(optimizer.state) == [0]


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    optimizer = trained()
    for step in (torch.tensor(3.0), torch.tensor(3), torch.tensor([3.0]), torch.tensor(3.0, dtype=torch.bfloat16)):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0]["step"] = step
        state["param_groups"][0].update(lr=torch.tensor(0.5), betas=(torch.tensor(0.5), 0.75))
        optimizer.load_state_dict(state)
        assert optimizer.state[0]["step"] == 3
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)
    for name, value in (("lr", torch.ones(2)), ("betas", (torch.ones(2), 0.5)), ("lr", torch.tensor(True))):
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0][name] = value
        with pytest.raises(TypeError, match=rf"state_dict\['param_groups'\]\[0\]\['{name}'\].*: expected a number"):
            optimizer.load_state_dict(state)
    with pytest.raises(TypeError, match="lr: expected a number, got Tensor"):
        fs.Adam(ones(2), lr=torch.ones(2))


def copies(holder):
    fresh = [copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))]
    for other in fresh:
        other.load_state_dict(holder.state_dict())
    return fresh


def test_the_last_step_can_be_copied_and_is_the_last():
    for kind in (fs.Adam, fs.SGD, fs.ScheduleFreeAdamW):
        optimizer = trained(kind)
        state = copy.deepcopy(optimizer.state_dict())
        state["step"] = LAST - 1
        state["state"][0]["step"] = LAST - 1
        optimizer.load_state_dict(state)
        assert optimizer.step({"w": ones(2)}).step == LAST
        for each in (optimizer, *copies(optimizer)):
            before = bits([each.state_dict(), each.param_groups[0]["params"]])
            with pytest.raises(ValueError, match="step: expected fewer than"):
                each.step({"w": ones(2)})
            assert bits([each.state_dict(), each.param_groups[0]["params"]]) == before
        state["step"] = 1
        state["state"][0]["step"] = LAST
        optimizer.load_state_dict(state)
        with pytest.raises(ValueError, match=r"state\[0\]\['step'\]: expected a whole number >= 0 and <"):
            optimizer.step({"w": ones(2)})


def test_the_last_step_of_lbfgs():
    for change in (
        lambda s: s.update(step=LAST),
        lambda s: s["state"][0].update(func_evals=LAST),
        lambda s: s["state"][0].update(n_iter=LAST),
    ):
        optimizer = lbfgs()
        p = optimizer.param_groups[0]["params"][0]
        state = copy.deepcopy(optimizer.state_dict())
        change(state)
        optimizer.load_state_dict(state)
        copies(optimizer)
        before = bits(optimizer.state_dict())
        with pytest.raises(ValueError, match=r"expected a count that a step leaves below 2\*\*53"):
            optimizer.step(lambda p=p: (float(p @ p), 2 * p))
        assert bits(optimizer.state_dict()) == before


def test_the_last_count_of_the_others():
    w = ones(2)
    ema, swa, stopping, plateau, norm = EMA(w, 0.5), SWA(w), fs.EarlyStopping(9), ReduceOnPlateau(0.5), fs.BatchNorm(2)
    swa.update()
    x = np.ones((3, 2), F)
    for holder, key, use in (
        (ema, "updates", ema.update),
        (swa, "updates", swa.update),
        (stopping, "observations", lambda: stopping.observe(np.nan)),
        (stopping, "bad_observations", lambda: stopping.observe(np.nan)),
        (plateau, "bad_observations", lambda: plateau.observe(np.nan)),
        (norm, "num_batches_tracked", lambda: norm.forward(x, training=True)),
    ):
        start = holder.state_dict()
        holder.load_state_dict({**start, key: np.array(LAST) if holder is norm else LAST})
        before = bits(holder.state_dict())
        with pytest.raises(ValueError, match=f"{key}: expected a whole number"):
            use()
        assert bits(holder.state_dict()) == before
        for wrong in (2**53, True, "3", 2.5):
            with pytest.raises((TypeError, ValueError), match=key):
                holder.load_state_dict({**start, key: wrong})
        holder.load_state_dict(start)


LONE = "\ud800"


class TestWhatNothingHolds:
    @pytest.mark.parametrize(
        "value", [10**400, -(10**400), 10**5000, -(10**5000)], ids=["big", "-big", "vast", "-vast"]
    )
    @pytest.mark.parametrize(
        ("name", "call"),
        [
            ("lr", lambda v: fs.Adam(ones(2), lr=v)),
            ("betas", lambda v: fs.Adam(ones(2), betas=(0.5, v))),
            ("max_grad_norm", lambda v: fs.Adam(ones(2), max_grad_norm=v)),
            ("ema_decay", lambda v: fs.Adam(ones(2), ema_decay=v)),
            ("min_8bit_size", lambda v: fs.Adam(ones(2), min_8bit_size=v)),
            ("seed", lambda v: fs.Adam(ones(2), seed=v)),
            ("grad_scale", lambda v: fs.SGD(ones(2)).step(ones(2), grad_scale=v)),
            ("decay", lambda v: EMA(ones(2), v)),
            ("patience", lambda v: fs.EarlyStopping(v)),
            ("lr", lambda v: fs.LBFGS(ones(2), lr=v)),
            (
                "momentum",
                lambda v: fs.batch_norm(np.ones((2, 2), F), None, None, None, None, training=True, momentum=v),
            ),
            ("p", lambda v: fs.dropout(ones(2), v, seed=0)),
            ("seed", lambda v: fs.dropout(ones(2), 0.5, seed=v)),
            ("ignore_index", lambda v: fs.softmax_cross_entropy(np.ones((1, 2), F), np.zeros(1, int), ignore_index=v)),
            ("lr", lambda v: fs.schedules.constant(v)),
            ("max_iter", lambda v: fs.LBFGS(ones(2), max_iter=v)),
            ("history_size", lambda v: fs.LBFGS(ones(2), history_size=v)),
            ("num_features", lambda v: fs.BatchNorm(v)),
            ("eps", lambda v: fs.BatchNorm(2, eps=v)),
            ("momentum", lambda v: fs.BatchNorm(2, momentum=v)),
            ("channel_axis", lambda v: fs.batch_norm(np.ones((2, 2), F), *[None] * 4, training=True, channel_axis=v)),
            ("shape", lambda v: fs.RowSparse([0], ones(1, 2), (v, 2))),
            ("label_smoothing", lambda v: fs.softmax_cross_entropy(ones(1, 2), np.zeros(1, int), label_smoothing=v)),
            ("pos_weight", lambda v: fs.sigmoid_binary_cross_entropy(ones(2), ones(2), pos_weight=v)),
            ("batch_size", lambda v: fs.data.batches(ones(2), v, seed=0, epoch=0)),
            ("steps", lambda v: fs.schedules.warmup(fs.schedules.constant(1.0), v)),
            ("num_threads", lambda v: fs.runtime.set_num_threads(v)),
        ],
    )
    def test_numbers(self, name, call, value):
        with pytest.raises(ValueError, match=f"^{name}"):
            call(value)

    def test_etas_of_rprop(self):
        with pytest.raises(ValueError, match=r"^etas: "):
            fs.Rprop(ones(2), etas=(0.5, 10**400))

    @pytest.mark.parametrize("value", [2**63, 2**64, -(2**63) - 1])
    def test_numbers_of_64_bits(self, value):
        for name in ("min_8bit_size", "seed"):
            with pytest.raises(
                ValueError, match=rf"^{name}: expected a whole number >= 0( and < 2\*\*63)?, got {value}"
            ):
                fs.Adam(ones(2), **{name: value})
        optimizer = trained()
        optimizer.state[0]["step"] = value
        with pytest.raises(ValueError, match=r"^state\[0\]\['step'\]: expected a whole number"):
            optimizer.step({"w": ones(2)})

    @pytest.mark.parametrize(
        ("name", "call"),
        [
            ("state_dtype", lambda v: fs.Adam(ones(2), state_dtype=v)),
            ("state_dtype", lambda v: trained().convert_states(v)),
            ("accumulator", lambda v: fs.Adagrad(ones(2), accumulator=v)),
            ("adjust_lr_fn", lambda v: fs.Muon(ones(2, 2), adjust_lr_fn=v)),
            ("line_search_fn", lambda v: fs.LBFGS(ones(2), line_search_fn=v)),
            ("reduction", lambda v: fs.mean_squared_error(ones(2), ones(2), reduction=v)),
            ("reduction", lambda v: fs.softmax_cross_entropy(np.ones((1, 2), F), np.zeros(1, int), reduction=v)),
            (
                "activation",
                lambda v: fs.batch_norm(np.ones((2, 2), F), None, None, None, None, training=True, activation=v),
            ),
            ("activation", lambda v: fs.BatchNorm(2, activation=v)),
            ("mode", lambda v: fs.EarlyStopping(2, mode=v)),
            ("mode", lambda v: fs.schedules.cyclic(0.0, 1.0, 2, mode=v)),
            ("isa", fs.runtime.set_isa),
        ],
    )
    def test_strings(self, name, call):
        for value in (LONE, f"float32{LONE}", "", "float32\0"):
            with pytest.raises(ValueError, match=f"^{name}: "):
                call(value)

    def test_names_of_parameters(self):
        optimizer = fs.Adam({LONE: ones(2)})
        optimizer.step({LONE: ones(2)})
        assert list(optimizer.state_dict()["param_groups"][0]["param_names"]) == [LONE]
        with pytest.raises(ValueError, match=r"no gradient for '\\ud800'"):
            optimizer.step({"w": ones(2)})
