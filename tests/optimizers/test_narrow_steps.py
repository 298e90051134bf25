"""Steps of narrow parameters, gradients and states: bits, master weights, random rounding, state dicts, errors."""

import copy
import math
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from cases import CASES
from fusedstep import _core
from fusedstep._common.arrays import dtype_name
from fusedstep.optimizers import REGISTRY
from fusedstep.reference import codec
from helpers import every_native_setting, misaligned, reshaped_for
from runs import bits

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

F, F16 = np.float32, np.float16
BF16 = np.dtype(ml_dtypes.bfloat16)
CYCLE = [np.dtype(F), np.dtype(F16), BF16]
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@pytest.fixture(params=["numpy", fs.runtime.available_isas()[-1]])
def isa(request):
    """The reference and the widest set."""
    with fs.runtime.use_isa(request.param):
        yield request.param


def refuses(rule, state_dtype, hypers=None):
    """Whether an optimizer says that it cannot have such states."""
    try:
        REGISTRY[rule](np.ones((4, 2), F), **(hypers or {}), state_dtype=state_dtype)
    except ValueError as error:
        if "cannot have states" not in str(error):
            raise
        return True
    return False


def narrow(values, dtype):
    return codec.narrowed(np.asarray(values, F), np.dtype(dtype))


def gradient(rule, param, dtype, rng):
    if _core.rules()[rule]["dense"]:
        return narrow(rng.standard_normal(param.shape), dtype)
    rows = rng.integers(0, param.shape[0], param.shape[0] // 2 + 1)
    return fs.RowSparse(rows, narrow(rng.standard_normal((len(rows), *param.shape[1:])), dtype), param.shape)


def step_all(rule, options, params, grads):
    """Steps on copies; gives all arrays, and the reports."""
    params = copy.deepcopy(params)
    optimizer = REGISTRY[rule](params, **options)
    reports = [optimizer.step(step_grads) for step_grads in grads]
    arrays = list(params)
    for _, entry in sorted(optimizer.state.items()):
        arrays += [entry[name] for name in sorted(entry) if isinstance(entry[name], np.ndarray)]
    return arrays, repr(reports)


def same_bits(a, b):
    assert a.dtype == b.dtype
    words = WORDS[a.itemsize]
    same = a.view(words) == b.view(words)
    return bool((same | np.isnan(codec.widened(a))).all()) if a.dtype.kind != "u" else bool(same.all())


def compare(rule, options, params, grads, settings):
    with fs.runtime.use_isa("numpy"):
        expected, expected_reports = step_all(rule, options, params, grads)
    for setting in settings:
        actual, reports = step_all(rule, options, params, grads)
        what = f"{rule} {options} {setting}"
        assert reports == expected_reports, what
        assert len(actual) == len(expected), what
        for mine, theirs in zip(actual, expected, strict=True):
            assert same_bits(mine, theirs), what


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("rule", sorted(CASES))
def test_every_length(rule, state_dtype, rng):
    """Lengths 1 to 600; parameters and gradients of float32, float16 and bfloat16 in every mix."""
    hypers = CASES[rule].valid[1]
    if refuses(rule, state_dtype, hypers):
        pytest.skip("refused, as tested below")
    params = [reshaped_for(rule, narrow(rng.standard_normal(n), CYCLE[n % 3])) for n in range(1, 601)]
    if not _core.rules()[rule]["dense"]:
        params = [p.reshape(-1, 1) for p in params]
    params = [p if p.ndim > 1 else misaligned(p, k % 3) for k, p in enumerate(params)]
    grads = [[gradient(rule, p, CYCLE[(k + t) // 3 % 3], rng) for k, p in enumerate(params)] for t in range(2)]
    options = {**hypers, "state_dtype": state_dtype, "min_8bit_size": 0, "stochastic_rounding": True, "seed": 5}
    compare(rule, options, params, grads, list_settings())


def list_settings():
    """Each set of the machine, on 2 threads: lengths cut at the same places."""
    for setting in every_native_setting():
        if setting.endswith("2 threads"):
            yield setting


@pytest.mark.parametrize(
    "extra", [{}, {"master_weights": True}, {"telemetry": True, "max_grad_norm": 0.5, "ema_decay": 0.9}]
)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("rule", ["adamw", "sgd", "adan", "lamb", "prodigy", "ademamix", "schedule_free_adamw"])
def test_large_tensors(rule, state_dtype, extra, rng):
    """Several chunks, threads that meet within a tensor, other orders of the axes, three steps."""
    hypers = {"momentum": 0.9} if rule == "sgd" else {}
    params = [narrow(rng.standard_normal(n), CYCLE[k]) for k, n in enumerate((20_000, 8193, 4095))]
    params.append(np.asfortranarray(narrow(rng.standard_normal((90, 130)), BF16)))
    grads = [[gradient(rule, p, p.dtype, rng) for p in params] for _ in range(3)]
    grads[2][0][:4] = 0
    options = {**hypers, **extra, "state_dtype": state_dtype, "min_8bit_size": 0}
    if extra:
        params, grads = params[:2], [g[:2] for g in grads]
    compare(rule, options, params, grads, every_native_setting())


@pytest.mark.parametrize("rule", ["sparse_adam", "sgd", "adagrad"])
def test_row_sparse(rule, rng):
    """Rows begin anywhere in the pattern of random words."""
    params = [narrow(rng.standard_normal((300, width)), dtype) for width, dtype in ((7, F16), (100, BF16), (3000, F))]
    grads = []
    for _ in range(3):
        grads.append([])
        for p in params:
            rows = rng.integers(0, 300, 90)
            grads[-1].append(fs.RowSparse(rows, narrow(rng.standard_normal((90, p.shape[1])), BF16), p.shape))
    compare(rule, {"state_dtype": "bfloat16", "stochastic_rounding": True}, params, grads, every_native_setting())


def test_non_finite_states(rng):
    """An infinity makes NaN of the states of its 256, and of no others, on every set."""
    p, g = np.ones(1000, F), np.ones(1000, F)
    g[300] = np.inf
    compare(
        "adamw",
        {"state_dtype": "8bit", "min_8bit_size": 0},
        [p],
        [[g], [g], [np.ones(1000, F)]],
        every_native_setting(),
    )
    optimizer = fs.AdamW(p, state_dtype="8bit", min_8bit_size=0)
    optimizer.step(g)
    optimizer.step(np.ones(1000, F))
    assert np.isnan(p[256:512]).all()
    assert np.isfinite(p[:256]).all()
    assert np.isfinite(p[512:]).all()


class TestNarrowParameters:
    def test_epsilon_and_squares_are_of_float32(self, isa):
        """In float16 the square of 1e-4 and an epsilon of 1e-8 are 0, and a step would be infinite."""
        p, g = np.ones(64, F16), np.full(64, 1e-4, F16)
        fs.AdamW(p, lr=0.125, weight_decay=0).step(g)
        np.testing.assert_array_equal(p, np.full(64, 0.875, F16))

    def test_large_gradients_do_not_overflow(self, isa):
        p, g = np.ones(64, F16), np.full(64, 60_000, F16)
        report = fs.AdamW(p, lr=0.125, weight_decay=0, max_grad_norm=1.0).step(g)
        assert math.isclose(report.grad_norm, 480_000, rel_tol=1e-6)
        np.testing.assert_allclose(p.astype(F), 0.875, rtol=1e-3)

    def test_a_scaled_loss(self, isa):
        p, g = np.ones(64, F16), np.full(64, 2.0**-10 * 1024, F16)
        fs.SGD(p, lr=0.5).step(g, grad_scale=1024.0)
        np.testing.assert_array_equal(p, np.full(64, 1 - 2.0**-11, F16))

    def test_small_steps_are_lost_to_the_nearest(self, isa):
        """The trap that the options are for."""
        p = np.ones(64, BF16)
        for _ in range(100):
            fs.SGD(p, lr=2.0**-10).step(np.ones(64, BF16))
        np.testing.assert_array_equal(p.astype(F), 1)

    def test_stochastic_rounding_adds_them_up(self, isa):
        """100 steps of 2⁻¹⁰ from 1, in units of 2⁻⁸ below 1: the mean of 4,096 within six standard deviations."""
        p = np.ones(4096, BF16)
        optimizer = fs.SGD(p, lr=2.0**-10, stochastic_rounding=True, seed=1)
        for _ in range(100):
            optimizer.step(np.ones(4096, BF16))
        # Each step goes down by 2^-8 with probability 1/4.
        deviation = 2.0**-8 * math.sqrt(100 * 0.25 * 0.75 / 4096)
        assert abs(p.astype(float).mean() - (1 - 100 * 2.0**-10)) < 6 * deviation

    def test_seeds(self, rng):
        start, g = narrow(rng.standard_normal(5000), BF16), narrow(rng.standard_normal(5000), BF16)
        runs = []
        for seed in (0, 0, 1):
            p = start.copy()
            fs.SGD(p, lr=0.001, stochastic_rounding=True, seed=seed).step(g)
            runs.append(p.view(np.uint16))
        assert (runs[0] == runs[1]).all()
        assert (runs[0] != runs[2]).any()

    @pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
    def test_master_weights(self, dtype, isa, rng):
        """The steps of float32, rounded once, however many there are; what somebody else writes holds."""
        start = narrow(rng.standard_normal(3000), dtype)
        p, master = start.copy(), codec.widened(start)
        optimizer, plain = fs.AdamW(p, master_weights=True), fs.AdamW(master)
        for _ in range(20):
            g = narrow(rng.standard_normal(3000), dtype)
            optimizer.step(g)
            plain.step(codec.widened(g))
            np.testing.assert_array_equal(optimizer.state[0]["master"], master)
            assert same_bits(p, narrow(master, p.dtype))
        p[7] = 100
        master[7] = 100
        g = narrow(rng.standard_normal(3000), dtype)
        optimizer.step(g)
        plain.step(codec.widened(g))
        assert same_bits(p, narrow(master, p.dtype))

    @pytest.mark.parametrize("mark", [False, True])
    def test_words_and_tensors(self, mark, rng):
        """Words of 16 bits that say so are bfloat16; without, they are refused."""
        values, g = narrow(rng.standard_normal(300), BF16), rng.standard_normal(300).astype(F)
        words = values.view(np.uint16).copy()
        if not mark:
            with pytest.raises(
                TypeError, match=r"uint16 \(words of bfloat16 say so: words.view\(fusedstep.bfloat16\)\)"
            ):
                fs.AdamW(words)
            return
        fs.AdamW(words.view(fs.bfloat16)).step(g)
        fs.AdamW(values).step(g)
        np.testing.assert_array_equal(words, values.view(np.uint16))


def test_torch_tensors_of_bfloat16(rng):
    torch = pytest.importorskip("torch")
    values = rng.standard_normal(5000).astype(F)
    p = torch.nn.Parameter(torch.tensor(values).to(torch.bfloat16))
    mine = narrow(values, BF16)
    optimizers = [fs.AdamW([p], state_dtype="bfloat16"), fs.AdamW([mine], state_dtype="bfloat16")]
    g = narrow(rng.standard_normal(5000), BF16)
    for optimizer, grad in zip(optimizers, (torch.tensor(codec.widened(g)).to(torch.bfloat16), g), strict=True):
        optimizer.step([grad])
    np.testing.assert_array_equal(p.detach().view(torch.uint16).numpy(), mine.view(np.uint16))
    state = optimizers[0].state_dict()["state"][0]
    assert state["exp_avg"].dtype == torch.bfloat16
    torch.testing.assert_close(state["exp_avg"].float(), torch.tensor(0.1 * codec.widened(g)), rtol=2**-7, atol=0)


def begun(state_dtype, rng, steps=3, **options):
    p = rng.standard_normal((80, 70)).astype(F)
    optimizer = fs.AdamW(p, state_dtype=state_dtype, **options)
    for _ in range(steps):
        optimizer.step(rng.standard_normal(p.shape).astype(F))
    return p, optimizer


class TestStates:
    @pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
    def test_averages_do_not_stand_still(self, state_dtype):
        """The trap of rounding to the nearest: β₂ = 0.999 moves a second moment by less than half a unit.

        Constant gradients, then ones of a quarter: after 3,000 steps each the moment is what float32 says, in the mean
        of 4,096 within 2 %.
        """
        p = np.ones(4096, F)
        optimizer = fs.AdamW(p, lr=0, state_dtype=state_dtype)
        rng = np.random.default_rng(0)
        scale = np.exp2(rng.uniform(-3, 0, 4096)).astype(F)
        expected = np.zeros(4096)
        for size in (1.0, 0.25):
            for _ in range(3000):
                optimizer.step(size * scale)
                expected += 0.001 * (np.square(size * scale.astype(float)) - expected)
        optimizer.convert_states("float32")
        ratio = optimizer.state[0]["exp_avg_sq"] / expected
        assert abs(ratio.mean() - 1) < 0.02

    @pytest.mark.parametrize("there", ["float32", "bfloat16", "8bit"])
    @pytest.mark.parametrize("here", ["float32", "bfloat16", "8bit"])
    def test_conversion(self, here, there, rng):
        """To more bits they are the same numbers; to fewer, within half a unit; there and back nothing is lost."""
        _, optimizer = begun(here, rng)
        before = decoded_states(optimizer)
        optimizer.convert_states(there)
        after = decoded_states(optimizer)
        error = {"float32": 0, "bfloat16": 2.0**-8, "8bit": 2.0**-5}[there if there != here else "float32"]
        for name, values in before.items():
            least = 0 if error < 0.01 else 2.0**-10 * np.abs(values).max()
            np.testing.assert_allclose(after[name], values, rtol=error, atol=least)
        optimizer.step(np.ones((80, 70), F))
        kinds = {"float32": "float32", "bfloat16": "bfloat16", "8bit": "uint8"}
        assert dtype_name(optimizer.state[0]["exp_avg"].dtype) == kinds[there]

    @pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
    @pytest.mark.parametrize("how", ["state_dict", "deepcopy", "checkpoint"])
    def test_goes_on_bit_for_bit(self, how, state_dtype, rng, tmp_path):
        p, optimizer = begun(state_dtype, rng)
        params = {"w": p}
        if how == "deepcopy":
            twin = copy.deepcopy(optimizer)
            other = twin.param_groups[0]["params"][0]
        else:
            other = p.copy()
            twin = fs.AdamW(other, state_dtype=state_dtype)
            state = optimizer.state_dict()
            if how == "checkpoint":
                fs.save_checkpoint(tmp_path / "run.safetensors", params, optimizer)
                state = fs.load_checkpoint(tmp_path / "run.safetensors").optimizer
            twin.load_state_dict(state)
        for _ in range(3):
            g = rng.standard_normal(p.shape).astype(F)
            optimizer.step(g)
            twin.step(g)
        np.testing.assert_array_equal(p, other)
        for name, value in optimizer.state[0].items():
            if isinstance(value, np.ndarray):
                assert same_bits(value, twin.state[0][name]), name

    def test_checkpoint_of_narrow_parameters(self, rng, tmp_path):
        params = {"a": narrow(rng.standard_normal((5, 7)), BF16), "b": narrow(rng.standard_normal(9), F16)}
        params["c"] = params["a"].view(np.uint16).view(fs.bfloat16)
        fs.save_checkpoint(tmp_path / "run.safetensors", params)
        loaded = fs.load_checkpoint(tmp_path / "run.safetensors").params
        for name, array in params.items():
            np.testing.assert_array_equal(loaded[name].view(np.uint16), array.view(np.uint16))

    def test_another_layout(self, rng):
        """Other numbers share a scale there."""
        p, optimizer = begun("8bit", rng)
        other = np.asfortranarray(p)
        twin = fs.AdamW(other, state_dtype="8bit")
        twin.load_state_dict(optimizer.state_dict())
        for name, values in decoded_states(optimizer).items():
            np.testing.assert_allclose(
                decoded_states(twin)[name], values, rtol=2**-5, atol=2**-10 * np.abs(values).max()
            )

    def test_bytes(self, rng):
        sizes = {name: begun(name, rng)[1].nbytes / 5600 for name in ("float32", "bfloat16", "8bit")}
        assert sizes["float32"] == 8
        assert sizes["bfloat16"] == 4
        assert sizes["8bit"] == 2 + 2 * 4 * math.ceil(5600 / 256) / 5600

    def test_small_parameters_stay_float32(self, rng):
        optimizer = fs.AdamW([np.ones(4095, F), np.ones(4096, F)], state_dtype="8bit")
        optimizer.step([np.ones(4095, F), np.ones(4096, F)])
        assert [optimizer.state[k]["exp_avg"].dtype.name for k in range(2)] == ["float32", "uint8"]


def decoded_states(optimizer):
    twin = copy.deepcopy(optimizer)
    twin.convert_states("float32")
    return {name: v.copy() for name, v in twin.state[0].items() if isinstance(v, np.ndarray)}


class TestFunctions:
    def test_same_bits_as_the_optimizer(self, rng):
        p, g = rng.standard_normal(1000).astype(F), rng.standard_normal(1000).astype(F)
        other = p.copy()
        optimizer = fs.AdamW(other, state_dtype="8bit", min_8bit_size=0, seed=9)
        m, v = ((np.zeros(1000, np.uint8), np.zeros(4, F)) for _ in range(2))
        for step in range(1, 4):
            fs.functional.adamw(p, g, m, v, step=step, seed=9)
            optimizer.step(g)
        np.testing.assert_array_equal(p, other)
        np.testing.assert_array_equal(m[0], optimizer.state[0]["exp_avg"])
        np.testing.assert_array_equal(v[1], optimizer.state[0]["exp_avg_sq_scale"])

    def test_float16_states(self, rng):
        p = rng.standard_normal(1000).astype(F)
        g, m, v = p.copy(), np.zeros(1000, F16), np.zeros(1000, F16)
        fs.functional.adamw(p, g, m, v, step=1)
        np.testing.assert_allclose(m.astype(F), 0.1 * g, rtol=2**-9, atol=1e-7)


class TestErrors:
    @pytest.mark.parametrize(
        ("rule", "hypers", "state_dtype", "message"),
        [
            ("adafactor", {}, "8bit", "rows and columns"),
            ("adafactor", {}, "bfloat16", "rows and columns"),
            ("asgd", {}, "8bit", "average of the parameters"),
            ("asgd", {}, "bfloat16", "average of the parameters"),
            ("rprop", {}, "8bit", "signs"),
            ("sparse_adam", {}, "8bit", "rows"),
            ("rmsprop", {"centered": True}, "8bit", "difference"),
            ("rmsprop", {"centered": True}, "bfloat16", "difference"),
        ],
    )
    def test_optimizers_that_cannot(self, rule, hypers, state_dtype, message):
        bits = {"8bit": 8, "bfloat16": 16}[state_dtype]
        with pytest.raises(ValueError, match=f"state_dtype: {rule} cannot have states of {bits} bits: .*{message}"):
            REGISTRY[rule](np.ones((4, 2), F), **hypers, state_dtype=state_dtype)

    def test_all_others_can(self):
        able = {rule for rule in CASES if not refuses(rule, "8bit")}
        assert able == {rule for rule, case in CASES.items() if case.coded}

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"state_dtype": "int8"}, ValueError, "state_dtype: expected 'float32', 'bfloat16' or '8bit', got 'int8'"),
            ({"state_dtype": 8}, ValueError, "state_dtype: expected"),
            ({"min_8bit_size": -1}, ValueError, "min_8bit_size: expected a whole number >= 0, got -1"),
            ({"min_8bit_size": 1.5}, ValueError, "min_8bit_size"),
            ({"seed": -1}, ValueError, "seed: expected a whole number >= 0"),
            ({"stochastic_rounding": 1}, TypeError, "stochastic_rounding: expected True or False"),
            ({"master_weights": "yes"}, TypeError, "master_weights: expected True or False"),
            ({"master_weights": True, "stochastic_rounding": True}, ValueError, "stochastic_rounding: expected False"),
        ],
    )
    def test_options(self, options, error, message):
        with pytest.raises(error, match=message):
            fs.AdamW(np.ones(4, BF16), **options)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"exp_avg_scale": np.full(22, np.nan, F)}, ValueError, r"\['exp_avg_scale'\]: expected .* got nan at 0"),
            ({"exp_avg_sq_scale": np.full(22, np.inf, F)}, ValueError, "expected .* got inf at 0"),
            ({"exp_avg_scale": np.full(22, 0.3, F)}, ValueError, "expected .* got 0.3"),
            ({"exp_avg_scale": np.full(22, -1, F)}, ValueError, "expected .* got -1"),
            ({"exp_avg_scale": np.ones(21, F)}, ValueError, r"expected shape \(22,\), got \(21,\)"),
            ({"exp_avg_scale": np.ones(22)}, TypeError, "expected dtype float32, got float64"),
            ({"exp_avg_scale": None}, ValueError, "missing, and exp_avg is of 8 bits"),
            ({"exp_avg": np.zeros((80, 70), np.uint16)}, TypeError, "expected dtype float32, got uint16"),
            ({"exp_avg": np.zeros((80, 70), np.int8)}, TypeError, "expected dtype float32, got int8"),
        ],
    )
    def test_damaged_states(self, change, error, message, rng):
        _p, optimizer = begun("8bit", rng)
        state = optimizer.state_dict()
        state["state"] = {0: {**state["state"][0], **change}}
        before = copy.deepcopy(optimizer.state)
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(state)
        np.testing.assert_array_equal(optimizer.state[0]["exp_avg"], before[0]["exp_avg"])

    @pytest.mark.parametrize(
        ("grad", "message"),
        [
            (np.ones(4), r"expected dtype bfloat16 as params has, got float64|expected dtype"),
            (np.ones(4, np.uint16), "words of bfloat16 say so"),
            (np.ones(4, np.int8), "got dtype int8"),
        ],
    )
    def test_gradients(self, grad, message, isa):
        p = np.ones(4, BF16)
        with pytest.raises(TypeError, match=message):
            fs.AdamW(p).step(grad)
        assert (p == 1).all()

    def test_mixes_of_float64(self, isa):
        with pytest.raises(TypeError, match="grads"):
            fs.AdamW(np.ones(4)).step(np.ones(4, F))
        m = np.zeros(4)
        with pytest.raises(
            TypeError, match=r"exp_avg: expected dtype float32, float16, bfloat16 or uint8 .* got float64"
        ):
            fs.functional.adamw(np.ones(4, F), np.ones(4, F), m, m.copy(), step=1)

    def test_row_sparse_with_8_bits(self, isa):
        p = np.ones((100, 50), F)
        optimizer = fs.Adagrad(p, state_dtype="8bit")
        with pytest.raises(ValueError, match=r"grads\[0\]: a row-sparse gradient does not go with states of 8 bits"):
            optimizer.step(fs.RowSparse([1], np.ones((1, 50), F), p.shape))
        assert (p == 1).all()

    def test_scales_that_overlap(self, isa):
        memory = np.zeros(2, F)
        codes = [np.zeros(300, np.uint8) for _ in range(2)]
        with pytest.raises(ValueError, match="exp_avg_sq_scale: overlaps exp_avg_scale"):
            fs.functional.adamw(np.ones(300, F), np.ones(300, F), (codes[0], memory), (codes[1], memory), step=1)


def test_the_table_of_bytes():
    """docs/memory.md, from the optimizers themselves."""
    text = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    assert set(rows) == {kind.__name__ for kind in REGISTRY.values()}
    for rule, kind in REGISTRY.items():
        found = []
        for state_dtype in ("float32", "bfloat16", "8bit"):
            if refuses(rule, state_dtype):
                found.append("–")
                continue
            p = np.ones((256, 256), F)
            optimizer = kind(p, state_dtype=state_dtype, **({"momentum": 0.9} if rule == "sgd" else {}))
            optimizer.step(gradient(rule, p, F, np.random.default_rng(0)))
            found.append(f"{optimizer.nbytes / p.size:.2f}")
        assert " | ".join(found) == rows[kind.__name__], rule


class TestLostBlocks:
    """A number that is none takes the 256 with it that share its scale, and is a state like others."""

    @staticmethod
    def optimizer(order="C"):
        p = np.ones((300, 20), F, order=order)
        g = np.full_like(p, 0.5)
        g.ravel(order="K")[[700, 3000]] = np.nan, np.inf
        optimizer = fs.Adam(p, state_dtype="8bit", min_8bit_size=1)
        optimizer.step(g)
        return optimizer

    @pytest.mark.parametrize("isa", fs.runtime.available_isas())
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_they_are_loaded(self, isa, order):
        with fs.runtime.use_isa(isa):
            optimizer = self.optimizer(order)
            lost = np.isnan(optimizer.state[0]["exp_avg_scale"])
            assert np.flatnonzero(lost).tolist() == [2, 11]
            other = fs.Adam(np.ones((300, 20), F, order=order), state_dtype="8bit", min_8bit_size=1)
            other.load_state_dict(optimizer.state_dict())
            assert bits(other.state) == bits(optimizer.state)
            grads = [np.full((300, 20), 0.25, F) for _ in range(2)]
            optimizer.step(grads[0])
            other.step(grads[1])
            assert bits(other.state) == bits(optimizer.state)

    def test_they_are_converted(self):
        optimizer = self.optimizer()
        optimizer.convert_states("float32")
        lost = np.isnan(optimizer.state[0]["exp_avg"].ravel())
        assert np.flatnonzero(lost).tolist() == [*range(512, 768), *range(2816, 3072)]
        np.testing.assert_allclose(optimizer.state[0]["exp_avg"].ravel()[~lost], 0.05, rtol=0.05)
        optimizer.convert_states("8bit")
        assert np.flatnonzero(np.isnan(optimizer.state[0]["exp_avg_scale"])).tolist() == [2, 11]
        other = fs.Adam(np.ones((300, 20), F, order="F"), state_dtype="8bit", min_8bit_size=1)
        other.load_state_dict(optimizer.state_dict())  # in an order in which other numbers share a scale
        assert np.isnan(other.state[0]["exp_avg_scale"]).any()

    def test_they_are_resumed(self, tmp_path):
        optimizer = self.optimizer()
        fs.save_checkpoint(tmp_path / "a.safetensors", {"w": np.ones(2, F)}, optimizer)
        other = fs.Adam(np.ones((300, 20), F), state_dtype="8bit", min_8bit_size=1)
        other.load_state_dict(fs.load_checkpoint(tmp_path / "a.safetensors").optimizer)
        assert bits(other.state) == bits(optimizer.state)
