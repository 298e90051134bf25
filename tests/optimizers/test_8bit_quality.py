"""What training loses with states of 8 bits: a network of digits, and a character model of a text."""

from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.reference import codec

F = np.float32
SEEDS = range(5)
#: Ecclesiastes in the King James Version of 1611, which is in the public domain; from Debian's bible-kjv-text 4.38.
TEXT = Path(__file__).parents[1] / "data/text.txt"


def softmax_gradient(logits, labels):
    loss, grad = fs.softmax_cross_entropy(logits, labels)
    return float(loss), grad


class Digits:
    """64 – 128 – 10 with relu, batches of 64."""

    steps = 600

    def __init__(self):
        datasets = pytest.importorskip("sklearn.datasets")
        data = datasets.load_digits()
        self.x, self.y = (data.data / 16).astype(F), data.target.astype(np.int64)

    def params(self, rng):
        return {
            "w1": (rng.standard_normal((64, 128)) * np.sqrt(2 / 64)).astype(F),
            "b1": np.zeros(128, F),
            "w2": (rng.standard_normal((128, 10)) * 0.1).astype(F),
            "b2": np.zeros(10, F),
        }

    def batch(self, rng):
        return rng.integers(0, len(self.x), 64)

    def loss(self, p, ids=slice(None)):
        x = self.x[ids]
        h = np.maximum(x @ p["w1"] + p["b1"], 0)
        loss, dz = softmax_gradient(h @ p["w2"] + p["b2"], self.y[ids])
        dh = (dz @ p["w2"].T) * (h > 0)
        return loss, {"w1": x.T @ dh, "b1": dh.sum(0), "w2": h.T @ dz, "b2": dz.sum(0)}


class Characters:
    """The next of 8 characters: an embedding of 16, 256 hidden units, batches of 128."""

    steps = 500
    context = 8

    def __init__(self):
        text = TEXT.read_text(encoding="utf-8")
        letters = sorted(set(text))
        self.size = len(letters)
        self.codes = np.array([letters.index(c) for c in text])

    def params(self, rng):
        width = 16 * self.context
        return {
            "e": (rng.standard_normal((self.size, 16)) * 0.3).astype(F),
            "w1": (rng.standard_normal((width, 256)) * np.sqrt(2 / width)).astype(F),
            "b1": np.zeros(256, F),
            "w2": (rng.standard_normal((256, self.size)) * 0.06).astype(F),
            "b2": np.zeros(self.size, F),
        }

    def batch(self, rng):
        return rng.integers(0, len(self.codes) - self.context, 128)

    def loss(self, p, ids=None):
        ids = np.random.default_rng(5).integers(0, len(self.codes) - self.context, 4000) if ids is None else ids
        index = self.codes[ids[:, None] + np.arange(self.context)]
        x = p["e"][index].reshape(len(ids), -1)
        h = np.maximum(x @ p["w1"] + p["b1"], 0)
        loss, dz = softmax_gradient(h @ p["w2"] + p["b2"], self.codes[ids + self.context])
        dh = (dz @ p["w2"].T) * (h > 0)
        de = np.zeros_like(p["e"])
        np.add.at(de, index.reshape(-1), (dh @ p["w1"].T).reshape(-1, 16))
        return loss, {"e": de, "w1": x.T @ dh, "b1": dh.sum(0), "w2": h.T @ dz, "b2": dz.sum(0)}


TASKS = {"digits": Digits, "characters": Characters}


def train(task, seed, state_dtype, observe=lambda optimizer, step: None):
    rng = np.random.default_rng(seed)
    params = task.params(rng)
    optimizer = fs.AdamW(params, weight_decay=0.0, state_dtype=state_dtype, min_8bit_size=1000, seed=seed)
    for step in range(1, task.steps + 1):
        optimizer.step(task.loss(params, task.batch(rng))[1])
        observe(optimizer, step)
    return task.loss(params)[0]


@pytest.mark.parametrize("name", TASKS)
def test_end_loss(name):
    """Within 1 % of that with float32 states, in the mean of five seeds."""
    task = TASKS[name]()
    full = np.array([train(task, seed, "float32") for seed in SEEDS])
    for state_dtype in ("8bit", "bfloat16"):
        ratios = np.array([train(task, seed, state_dtype) for seed in SEEDS]) / full
        print(f"\n{name}, {state_dtype}: end loss / that of float32 {ratios.mean():.4f}, seeds {np.round(ratios, 4)}")
        assert abs(ratios.mean() - 1) < 0.01


def dynamic_map(signed):
    """The values of bitsandbytes' dynamic data type (Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit Optimizers via
    Block-wise Quantization", 2022; `create_dynamic_map` with 7 exponent bits)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = np.linspace(0.1, 1, 2 ** (exponent + (0 if signed else 1)) + 1)
        means = 10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2
        values += [*means, *(-means if signed else [])]
    return np.sort(np.array(values, F))


def rounded_to(values, table):
    """The nearest of a table times the largest of each 256."""
    flat = np.zeros(-(-values.size // 256) * 256, F)
    flat[: values.size] = values.reshape(-1)
    blocks = flat.reshape(-1, 256)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    ratios = blocks / np.where(largest == 0, 1, largest)
    right = np.clip(np.searchsorted(table, ratios), 1, len(table) - 1)
    nearest = np.where(ratios - table[right - 1] <= table[right] - ratios, right - 1, right)
    return (table[nearest] * largest).reshape(-1)[: values.size].reshape(values.shape)


def coded(values, signed, words=None):
    codes, scales = codec.encode_8bit(values.reshape(-1), signed, words)
    return codec.decode_8bit(codes, scales, signed).reshape(values.shape)


def largest_errors(values, octaves):
    """Half the distance of the codes around each number, relative to it. docs/memory.md describes them: with an offset
    added, which the octaves give, a number lies between two floats of 4 bits of mantissa."""
    offset = 2.0 ** (1 - octaves)
    padded = np.zeros(-(-values.size // 256) * 256)
    padded[: values.size] = np.abs(values.reshape(-1))
    blocks = padded.reshape(-1, 256)
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = 2 ** np.ceil(np.log2(blocks.max(axis=1, keepdims=True) / (1.9375 - offset)))
        scaled = (blocks / scales).reshape(-1)[: values.size]
        return (2 ** (np.floor(np.log2(scaled + offset)) - 5) / scaled).reshape(values.shape)


def expected_errors(m, v, moved):
    """Of m / √v where it is not 0, relative to it, and which of them are small. The distances to the nearest codes are
    taken to be spread evenly up to the largest; a first moment of less than half a distance becomes 0."""
    first, second = largest_errors(m, 8)[moved], largest_errors(v, 16)[moved] / 2
    more, less = np.maximum(first, second), np.minimum(first, second)
    return np.where(first > 1, 1, more / 2 + less**2 / (6 * more)), more < 0.25


@pytest.mark.parametrize("name", TASKS)
def test_errors_of_the_update(name):
    """Of states recorded from a run with float32: the update m / (√v + ε) from rounded states against that from exact
    ones. Both codes take a byte a number and a float for 256, and round to the nearest."""
    recorded = []

    def record(optimizer, step):
        if step % 100 == 0:
            states = [entry for entry in optimizer.state.values() if entry["exp_avg"].size >= 1000]
            recorded.extend((entry["exp_avg"].copy(), entry["exp_avg_sq"].copy()) for entry in states)

    train(TASKS[name](), 0, "float32", record)
    errors = {"ours": [], "at random": [], "dynamic map": []}
    ours_of_expected = []
    for k, (m, v) in enumerate(recorded):
        words = [codec.random_words(k, stream, m.size) for stream in range(2)]
        rounded = {
            "ours": (coded(m, True), coded(v, False)),
            "at random": (coded(m, True, words[0]), coded(v, False, words[1])),
            "dynamic map": (rounded_to(m, dynamic_map(True)), rounded_to(v, dynamic_map(False))),
        }
        exact = m / (np.sqrt(v) + F(1e-8))
        moved = exact != 0
        for code, (m_rounded, v_rounded) in rounded.items():
            error = np.abs(m_rounded / (np.sqrt(v_rounded) + F(1e-8)) - exact)[moved]
            relative = error / np.abs(exact[moved])
            errors[code].append((relative.mean(), error.mean() / np.abs(exact[moved]).mean()))
            if code == "ours":
                expected, resolved = expected_errors(m, v, moved)
                means = [relative.mean(), expected.mean(), relative[resolved].mean(), expected[resolved].mean()]
                ours_of_expected.append((*means, resolved.mean()))
    means = {code: np.mean(values, axis=0) for code, values in errors.items()}
    for code, (relative, of_mean) in means.items():
        print(f"\n{name}, {code}: mean relative error {relative:.4f}, mean error / mean update {of_mean:.4f}")
    assert means["ours"][1] <= means["dynamic map"][1]
    # Relative to each number the smallest ones decide: of characters that are rare the dynamic map keeps more.
    if name == "digits":
        assert means["ours"][0] <= means["dynamic map"][0]
    whole, expected_whole, resolved, expected_resolved, share = np.mean(ours_of_expected, axis=0)
    assert share > 0.9
    np.testing.assert_allclose(resolved, expected_resolved, rtol=0.03)
    np.testing.assert_allclose(whole, expected_whole, rtol=0.1)
