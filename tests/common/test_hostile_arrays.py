"""Arrays as nobody should give them: whatever is refused leaves all memory alone, whatever is taken gives the bits that
plain copies give."""

import copy
import functools
import itertools
import pickle
import types

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from fusedstep._common.arrays import bfloat16_dtype, dtype_name, is_bfloat16
from fusedstep.reference.codec import narrowed
from helpers import assert_same_bits

F = np.float32
ISAS = ["numpy", fs.runtime.available_isas()[-1]]
CASES = 150


class Liar(np.ndarray):
    """What it says of itself is wrong, and so is its arithmetic."""

    shape = property(lambda self: (1 << 20, 1 << 20))
    strides = property(lambda self: (8, 8))
    dtype = property(lambda self: np.dtype(np.float64))
    flags = property(lambda self: types.SimpleNamespace(writeable=True, c_contiguous=True, aligned=True))
    size = property(lambda self: 1 << 40)
    ndim = property(lambda self: 2)
    nbytes = property(lambda self: 1 << 40)
    itemsize = property(lambda self: 1)
    data = property(lambda self: 0)
    base = property(lambda self: None)

    def __len__(self):
        return 1 << 40

    def __array_finalize__(self, given):
        raise AssertionError("nobody makes views of this class")

    def lie(self, *arguments, **options):
        raise AssertionError("nobody computes with this class")

    reshape = ravel = astype = view = copy = transpose = fill = sum = max = lie
    __getitem__ = __setitem__ = __array_ufunc__ = __array_function__ = __iter__ = __array__ = lie
    __add__ = __mul__ = __sub__ = __neg__ = __lt__ = __gt__ = __eq__ = lie
    __hash__ = None


class Quiet(np.ndarray):
    """A subclass that means well."""


def liar(array):
    """The same memory as a Liar, made behind its back."""
    finalize = Liar.__array_finalize__
    del Liar.__array_finalize__
    try:
        return array.view(Liar)
    finally:
        Liar.__array_finalize__ = finalize


def dress(rng, values, kind):
    """An array with these values, and the buffer that it lies in."""
    if kind == "strided":
        buffer = np.full((*values.shape, 3), 77, values.dtype)
        view = buffer[..., 1]
    elif kind == "reversed":
        buffer = np.full(values.shape, 77, values.dtype)
        view = buffer[tuple(slice(None, None, -1) for _ in values.shape)]
    elif kind == "fortran":
        buffer = np.full(values.shape, 77, values.dtype, order="F")
        view = buffer
    elif kind == "misaligned":
        buffer = np.zeros(values.nbytes + 1, np.uint8)
        view = buffer[1:].view(values.dtype).reshape(values.shape)
    elif kind == "swapped":
        buffer = view = np.empty(values.shape, values.dtype.newbyteorder())
    elif kind == "double":
        buffer = view = np.empty(values.shape, np.float64)
    elif kind == "longer":
        buffer = view = np.zeros((values.shape[0] + 1, *values.shape[1:]), values.dtype)
        view[:-1] = values
        return view, buffer
    else:
        buffer = view = np.empty(values.shape, values.dtype)
    view[...] = values
    if kind == "readonly":
        view.flags.writeable = False
    if kind == "liar":
        view = liar(view)
    if kind == "subclass":
        view = view.view(Quiet)
    if kind == "matrix":
        view = view.view(np.matrix)
    return view, buffer


READ = ["plain", "strided", "reversed", "fortran", "readonly", "liar", "subclass"]
REFUSED = ["misaligned", "swapped", "longer", "double"]
WRITTEN = ["plain", "liar", "subclass"]
NOT_WRITTEN = [*REFUSED, "strided", "reversed", "readonly"]
DENSE = ["plain", "readonly", "liar", "subclass"]


def functions(rng):
    """Calls with arrays by name and a result, the arrays, how they may lie, and how they may not."""
    dtype = [F, np.float16, bfloat16_dtype(), fs.bfloat16][rng.integers(4)]

    def values(*shape):
        return narrowed(rng.standard_normal(shape, F), np.dtype(dtype))

    n, c = int(rng.integers(2, 5)), int(rng.integers(2, 8))
    labels = rng.integers(0, c, n)
    reduction = ["mean", "sum", "none"][rng.integers(3)]
    channels = rng.standard_normal(c, F)

    def batch_norm(a, out):
        y, saved = fs.batch_norm(
            a["x"], a["weight"], None, None, None, training=True, residual=a["residual"], activation="relu", out=out
        )
        return y, saved.mean, saved.inv_std, saved.mask

    x = values(n, c)
    _, saved = fs.batch_norm(x, channels, None, None, None, training=True, activation="relu")
    like = {"x": values(n, c)}
    return [
        (lambda a, out: fs.softmax(a["x"], out=out), like, READ, REFUSED[:2]),
        (lambda a, out: fs.log_softmax(a["x"], out=out), like, READ, REFUSED[:2]),
        (
            lambda a, out: fs.softmax_cross_entropy(a["x"], labels, reduction=reduction, out=out),
            like,
            READ,
            REFUSED[:3],
        ),
        (
            lambda a, out: fs.softmax_cross_entropy(a["x"], a["y"], weight=a["weight"], reduction=reduction, out=out),
            {**like, "y": fs.softmax(values(n, c)), "weight": np.abs(channels)},
            READ,
            REFUSED,
        ),
        (
            lambda a, out: fs.sigmoid_binary_cross_entropy(a["x"], a["y"], reduction=reduction, out=out),
            {**like, "y": np.zeros((n, c), dtype)},
            READ,
            REFUSED,
        ),
        (
            lambda a, out: fs.mean_squared_error(a["x"], a["y"], reduction=reduction, out=out),
            {**like, "y": values(n, c)},
            READ,
            REFUSED,
        ),
        (
            lambda a, out: fs.dropout(a["x"], 0.5, seed=3, residual=a["residual"], out=out),
            {**like, "residual": values(n, c)},
            READ,
            REFUSED,
        ),
        (lambda a, out: fs.stochastic_depth(a["x"], 0.5, seed=3, out=out), like, READ, REFUSED[:2]),
        (lambda a, out: fs.dropout_backward(a["x"], 0.5, seed=3, out=out), like, READ, REFUSED[:2]),
        (batch_norm, {**like, "weight": channels, "residual": values(n, c)}, DENSE, REFUSED),
        (lambda a, out: fs.batch_norm_backward(a["x"], saved, out=out), like, DENSE, REFUSED),
    ]


def words(result):
    for part in result if isinstance(result, tuple) else (result,):
        yield np.asarray(part).tobytes()


def outcome(call):
    """What a call gives, or which error."""
    try:
        return list(words(call()))
    except (TypeError, ValueError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("number", range(11))
@pytest.mark.parametrize("isa", ISAS)
def test_taken_with_the_same_bits_or_refused_untouched(number, isa):
    taken = 0
    for case in range(CASES):
        rng = np.random.default_rng([number, case])
        function, values, reads, refused = functions(rng)[number]
        kinds = {name: str(rng.choice(reads)) for name in values}
        if rng.random() < 0.4:
            kinds[str(rng.choice(list(values)))] = str(rng.choice(refused))
        out_kind = ["none", str(rng.choice(WRITTEN)), str(rng.choice(NOT_WRITTEN))][rng.choice(3, p=[0.4, 0.4, 0.2])]
        dressed = {name: dress(rng, values[name], kind) for name, kind in kinds.items()}
        out, buffer = (None, None) if out_kind == "none" else dress(rng, np.zeros_like(values["x"]), out_kind)
        buffers = [pair[1] for pair in dressed.values()] + ([] if buffer is None else [buffer])
        before = [b.tobytes() for b in buffers]
        with fs.runtime.use_isa(isa):
            plain = outcome(lambda f=function, v=values: f(v, None))
            given = {name: pair[0] for name, pair in dressed.items()}
            got = outcome(lambda f=function, g=given, o=out: f(g, o))
        what = f"case {case}: {kinds}, out {out_kind}"
        assert isinstance(plain, list), what
        if set(kinds.values()) <= set(reads) and out_kind in ("none", *WRITTEN):
            assert got == plain, what
            assert [b.tobytes() for b in buffers][: len(dressed)] == before[: len(dressed)], what
            taken += 1
        else:
            assert isinstance(got, tuple), what
            bad = [name for name, kind in kinds.items() if kind in REFUSED]
            bad += ["out"] if out_kind in NOT_WRITTEN else []
            assert any(name in got[1] for name in [*bad, "logits", "labels", "targets", "predictions", "dy"]), got[1]
            assert [b.tobytes() for b in buffers] == before, what
    assert taken > 10


@pytest.mark.parametrize("isa", ISAS)
def test_results_that_overlap_what_is_read(isa):
    """Only the place of x itself will do, and only where x lies as the result does."""
    with fs.runtime.use_isa(isa):
        for shift, step in itertools.product(range(6), (1, 2)):
            memory = np.arange(40, dtype=F)
            x, out = memory[: 6 * step : step].reshape(2, 3), memory[shift : shift + 6].reshape(2, 3)
            same, apart = shift == 0 and step == 1, shift >= 6 * step
            before = memory.copy()
            for call in (
                lambda x, out: fs.softmax(x, out=out),
                lambda x, out: fs.dropout(x, 0.5, seed=1, out=out),
                lambda x, out: fs.mean_squared_error(x, np.zeros((2, 3), F), out=out)[1],
                lambda x, out: fs.softmax_cross_entropy(x, np.array([0, 1]), out=out)[1],
            ):
                memory[...] = before
                expected = call(x.copy(), None)
                if same or apart:
                    assert call(x, out) is out
                    assert_same_bits(out, expected)
                else:
                    with pytest.raises(ValueError, match="out: overlaps"):
                        call(x, out)
                    assert_same_bits(memory, before)
        square = np.arange(9, dtype=F).reshape(3, 3)
        with pytest.raises(ValueError, match="out: overlaps logits"):
            fs.softmax(square.T, out=square)
        assert_same_bits(square, np.arange(9, dtype=F).reshape(3, 3))
        # Side by side in one block, they do not meet.
        memory = np.zeros((3, 40), F)
        fs.softmax(memory[:, :2], out=memory[0, 10:16].reshape(3, 2))
        assert (memory[0, 10:16] == 0.5).all()
        assert memory.sum() == 3


class Resizer:
    """A number that resizes an array when it is asked for its value."""

    def __init__(self, array, value):
        self.array, self.value = array, value

    def _resize(self):
        self.array.resize(1, refcheck=False)
        return self.value

    __float__ = __index__ = _resize


@pytest.mark.parametrize("isa", ISAS)
def test_numbers_that_resize_an_array(isa):
    def big():
        return np.ones((400, 300), F)

    zero, labels = np.zeros(1, F), np.zeros(400, int)
    with fs.runtime.use_isa(isa):
        for call in (
            lambda x: fs.dropout(x, Resizer(x, 0.5), seed=0),
            lambda x: fs.dropout(x, 0.5, seed=Resizer(x, 3)),
            lambda x: fs.dropout(x, 0.5, seed=1, offset=Resizer(x, 3)),
        ):
            assert call(big()).shape == (1,)
        for call in (
            lambda x: fs.softmax_cross_entropy(x, labels, label_smoothing=Resizer(x, 0.5)),
            lambda x: fs.softmax_cross_entropy(x, labels, ignore_index=Resizer(x, 3)),
            lambda x: fs.sigmoid_binary_cross_entropy(np.ones_like(x), x, pos_weight=Resizer(x, 1.0)),
            lambda x: fs.batch_norm(x, None, None, None, None, training=True, eps=Resizer(x, 1.0)),
            lambda x: fs.batch_norm(x, None, None, None, None, training=True, momentum=Resizer(x, 1.0)),
            lambda x: fs.batch_norm(x, None, None, None, None, training=True, channel_axis=Resizer(x, 1)),
        ):
            with pytest.raises(ValueError, match="expected"):
                call(big())
    assert zero[0] == 0


@pytest.mark.parametrize("isa", ISAS)
def test_a_mask_property_is_not_run(isa):
    class Trap(np.ndarray):
        @property
        def mask(self):
            victim.resize(1, refcheck=False)
            raise AttributeError

    victim = np.ones((200, 300), F)
    trap = np.ones((200, 300), F).view(Trap)
    with fs.runtime.use_isa(isa):
        for call in (
            lambda: fs.mean_squared_error(victim, trap),
            lambda: fs.dropout(victim, 0.5, seed=0, residual=trap),
            lambda: fs.batch_norm(victim, None, None, None, None, training=True, residual=trap),
            lambda: fs.SGD([victim], lr=1.0).step([trap]),
            lambda: fs.functional.sgd(victim, trap, None, step=1, lr=1.0),
            lambda: _core.axpy(1.0, trap.reshape(-1), victim.reshape(-1)),
        ):
            with pytest.raises(TypeError, match="expected a plain NumPy array, got Trap"):
                call()
    assert victim.shape == (200, 300)
    assert (victim == 1).all()


@pytest.mark.parametrize("isa", ISAS)
def test_optimizers_read_geometry_from_numpy(isa):
    start, grad = np.linspace(1, 2, 12, dtype=F).reshape(3, 4), np.linspace(-1, 1, 12, dtype=F).reshape(3, 4)
    with fs.runtime.use_isa(isa):
        expected = start.copy()
        fs.Adam([expected], lr=0.1).step([grad])
        for wrap in (liar, lambda a: a.view(Quiet)):
            for g in (grad, wrap(grad.copy()), wrap(np.asfortranarray(grad)), wrap(np.repeat(grad, 2, axis=1)[:, ::2])):
                given, memory = start.copy(), [np.zeros_like(start), np.zeros_like(start)]
                fs.functional.adam(wrap(given), g, wrap(memory[0]), wrap(memory[1]), step=1, lr=0.1)
                assert_same_bits(given, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_vectors_of_a_subclass(isa):
    x, y = np.arange(5, dtype=F), np.ones(5, F)
    with fs.runtime.use_isa(isa):
        assert _core.dot(liar(x), liar(y)) == 10
        _core.axpy(2.0, liar(x), liar(y))
        assert y.tolist() == [1, 3, 5, 7, 9]
        words = np.zeros(5, np.float16)
        _core.testing.narrow(liar(y), liar(words))
        assert words.tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("isa", ISAS)
def test_matrices_have_arithmetic_of_their_own(isa, rng):
    z, t = rng.standard_normal((3, 3), F), fs.softmax(rng.standard_normal((3, 3), F))
    m, n = z.view(np.matrix), t.view(np.matrix)
    with fs.runtime.use_isa(isa):
        for call in (
            fs.softmax,
            lambda z: fs.softmax_cross_entropy(z, n),
            lambda z: fs.softmax_cross_entropy(z, np.array([0, 1, 2]), label_smoothing=0.1),
            lambda z: fs.sigmoid_binary_cross_entropy(z, n, reduction="none"),
            lambda z: fs.mean_squared_error(z, n),
            lambda z: fs.dropout(z, 0.5, seed=1, residual=n),
            lambda z: fs.batch_norm(z, None, None, None, None, training=True, residual=n)[0],
            lambda z: fs.batch_norm_backward(
                n, fs.batch_norm(z, None, None, None, None, training=True, activation="relu")[1]
            ),
            lambda z: fs.batch_norm_stats(z).m2,
        ):
            assert list(words(call(m))) == list(words(call(z)))


@pytest.mark.parametrize("kind", [_core.BatchNormSaved, _core.Optimizer, _core.Structure])
def test_native_classes_have_no_half_made_objects(kind):
    with pytest.raises((TypeError, ValueError)):
        kind.__new__(kind)
    with pytest.raises((TypeError, ValueError)):
        kind()
    if kind is _core.Structure:  # Python's own
        return
    for base in kind.__mro__[1:]:
        with pytest.raises(TypeError):
            base.__new__(kind)
    with pytest.raises(TypeError):
        type("Heir", (kind,), {})


def test_native_objects_that_are_made():
    made = _core.Optimizer("adam", _core.Structure.list, 3)
    assert made.taken == 3
    _, saved = fs.batch_norm(np.ones((2, 3), F), None, None, None, None, training=True)
    for thing in (made, saved):
        with pytest.raises(TypeError):
            copy.copy(thing)
    for member in _core.Structure:
        assert pickle.loads(pickle.dumps(member)) is member


# bfloat16

MARK = {"fusedstep": "bfloat16"}
NOT_BFLOAT16 = [
    np.dtype("i1", metadata={"fusedstep": "x"}),
    np.dtype("u1", metadata=MARK),
    np.dtype("i2", metadata=MARK),
    np.dtype("u4", metadata=MARK),
    np.dtype("u8", metadata=MARK),
    np.dtype("S2", metadata=MARK),
    np.dtype("V2", metadata=MARK),
    np.dtype("?", metadata=MARK),
    np.dtype("u2", metadata={"fusedstep": "bfloat"}),
    np.dtype("u2", metadata={"fusedstep": b"bfloat16"}),
    np.dtype("u2", metadata={"fusedstep": None}),
    np.dtype("u2", metadata={"fusedstep": "bfloat16", "more": 1}),
    np.dtype("u2", metadata={"other": "bfloat16"}),
    np.dtype("u2"),
    fs.bfloat16.newbyteorder(">") if np.little_endian else fs.bfloat16.newbyteorder("<"),
    np.dtype([("a", fs.bfloat16)]),
    np.dtype((np.void, 2)),
]


def _others():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return [np.dtype(ml_dtypes.bfloat16).newbyteorder(), np.dtype(ml_dtypes.float8_e5m2)]


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_no_bfloat16(isa):
    with fs.runtime.use_isa(isa):
        for dtype in [*NOT_BFLOAT16, *_others()]:
            assert not is_bfloat16(dtype), dtype
            assert dtype_name(dtype) != "bfloat16"
            memory = np.zeros(8 * 64, np.uint8)
            x = memory[: 64 * dtype.itemsize].view(dtype)
            for call in (
                lambda x=x: fs.softmax(x),
                lambda x=x: fs.mean_squared_error(np.zeros(64, F), np.zeros(64, F), out=x),
                lambda x=x: fs.dropout(x, 0.5, seed=0),
                lambda x=x: fs.batch_norm(x.reshape(8, 8), None, None, None, None, training=True),
                lambda x=x: fs.SGD([x], lr=0.1),
                lambda x=x: fs.functional.sgd(np.zeros(64, F), x, None, step=1, lr=0.1),
                lambda x=x: _core.testing.narrow(np.ones(64, F), x),
            ):
                with pytest.raises(TypeError):
                    call()
            assert (memory == 0).all()


def test_what_is_bfloat16():
    for dtype in (fs.bfloat16, np.dtype("u2", metadata=dict(MARK)), bfloat16_dtype()):
        assert is_bfloat16(dtype)
        x = np.full(3, 0x3F80, np.uint16).view(dtype)
        assert fs.dropout(x, 0.0, seed=0).view(np.uint16).tolist() == [0x3F80] * 3
    # The mark of another dtype has no meaning.
    x = np.ones(3, np.dtype(F, metadata=MARK))
    assert fs.mean_squared_error(x, x)[0] == 0
    assert np.asarray(fs.softmax(x)).itemsize == 4


def test_a_half_imported_ml_dtypes(monkeypatch):
    """As another thread sees it that has come first."""
    import sys

    for stub in (types.ModuleType("ml_dtypes"), None, types.SimpleNamespace()):
        monkeypatch.setitem(sys.modules, "ml_dtypes", stub)
        assert bfloat16_dtype() is fs.bfloat16
        assert not is_bfloat16(np.dtype(np.uint16))
        loss, _ = fs.softmax_cross_entropy(np.zeros((2, 2), F), np.zeros(2, int))
        assert loss == pytest.approx(np.log(2))
        with pytest.raises(TypeError, match="logits: expected float32"):
            fs.softmax(np.zeros(3, np.uint16))
        x = np.full(3, 0x3F80, np.uint16).view(fs.bfloat16)
        assert fs.dropout(x, 0.0, seed=0).view(np.uint16).tolist() == [0x3F80] * 3


# Numbers

HUGE = [10**400, -(10**400), 10**5000]


NUMBERS = [*HUGE, 2**63, -(2**63) - 1, "\ud800", "0.5", b"1", 1j, None, np.ones(2), np.ones(1)]


@pytest.mark.parametrize("value", NUMBERS, ids=range(len(NUMBERS)))
def test_numbers_that_are_none(value):
    x, labels = np.ones((4, 3), F), np.zeros(4, int)
    norm = functools.partial(fs.batch_norm, x, None, None, None, None)
    calls = {
        "p": lambda: fs.dropout(x, value, seed=0),
        "label_smoothing": lambda: fs.softmax_cross_entropy(x, labels, label_smoothing=value),
        "ignore_index": lambda: fs.softmax_cross_entropy(x, labels, ignore_index=value),
        "reduction": lambda: fs.softmax_cross_entropy(x, labels, reduction=value),
        "pos_weight": lambda: fs.sigmoid_binary_cross_entropy(x, x, pos_weight=value),
        "channel_axis": lambda: norm(training=True, channel_axis=value),
        "activation": lambda: norm(training=True, activation=value),
        "momentum": lambda: norm(training=True, momentum=value),
        "training": lambda: norm(training=value),
        "unbiased": lambda: norm(training=True, unbiased=value),
        "lr": lambda: fs.SGD([x], lr=value),
        "max_grad_norm": lambda: fs.SGD([x], lr=0.1, max_grad_norm=value),
        "grad_scale": lambda: fs.SGD([x], lr=0.1).step([x.copy()], grad_scale=value),
    }
    fine_number = isinstance(value, int) and value == 2**63
    if not fine_number:  # a huge epsilon is a number
        calls["eps"] = lambda: norm(training=True, eps=value)
    if not isinstance(value, int) or value < 0 or value >= 2**64:
        calls["seed"] = lambda: fs.dropout(x, 0.5, seed=value)
        calls["offset"] = lambda: fs.dropout(x, 0.5, seed=0, offset=value)
    for name, call in calls.items():
        fine = {"activation": value is None, "max_grad_norm": value is None or fine_number}
        fine |= {"pos_weight": fine_number, "lr": fine_number, "grad_scale": fine_number}
        if fine.get(name):
            call()
            continue
        with pytest.raises((TypeError, ValueError), match=name):
            call()
    assert x.shape == (4, 3)


def test_tensors_that_are_no_numbers():
    torch = pytest.importorskip("torch")
    x = np.ones(3, F)
    for value in (torch.ones(2), torch.ones(0), torch.ones(2, dtype=torch.int64), torch.tensor(1j)):
        for name, call in (
            ("p", lambda v: fs.dropout(x, v, seed=0)),
            ("seed", lambda v: fs.dropout(x, 0.5, seed=v)),
            ("offset", lambda v: fs.dropout(x, 0.5, seed=0, offset=v)),
            ("pos_weight", lambda v: fs.sigmoid_binary_cross_entropy(x, x, pos_weight=v)),
            ("lr", lambda v: fs.SGD([x], lr=v)),
            ("betas", lambda v: fs.Adam([x], betas=(0.9, v))),
            ("grad_scale", lambda v: fs.SGD([x], lr=0.1).step([x.copy()], grad_scale=v)),
            ("lr", lambda v: fs.functional.sgd(x, x.copy(), None, step=1, lr=v)),
        ):
            with pytest.raises((TypeError, ValueError), match=name):
                call(value)
    assert (x == 1).all()
    fs.dropout(x, torch.tensor(0.5), seed=torch.tensor(3))


def test_numbers_that_numpy_would_convert():
    x = np.ones(3, F)
    for value in (np.array("0.5"), np.str_("0.5"), np.complex64(0.5), np.array(True), np.bool_(True), np.ones((1, 1))):
        with pytest.raises(TypeError, match="p: expected a number"):
            fs.dropout(x, value, seed=0)
    for value in (np.float32(0.5), np.array(0.5), np.float16(0.5), np.array(0.5, np.float16), np.int8(0)):
        fs.dropout(x, value, seed=0)


@pytest.mark.parametrize("isa", ISAS)
def test_row_sparse_gradients_of_a_subclass(isa):
    class Odd(np.ndarray):
        def __array_ufunc__(self, *given, **options):
            raise AssertionError("nobody computes with this class")

    indices, values = np.array([2, 0, 2]), np.arange(6, dtype=F).reshape(3, 2)
    tables = []
    for rows, held in ((indices, values), (indices.view(Odd), values.view(Odd))):
        tables.append(np.ones((4, 2), F))
        with fs.runtime.use_isa(isa):
            fs.SGD([tables[-1]], lr=0.5).step([fs.RowSparse(rows, held, (4, 2))])
    assert_same_bits(*tables)
    assert tables[0].tolist() == [[0, -0.5], [1, 1], [-1, -2], [1, 1]]
