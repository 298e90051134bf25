"""Python itself on older processors, by emulation: the right set is chosen, and the bits are this machine's."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import fusedstep as fs
from cases import VALID
from fusedstep import _core

# The others multiply matrices by OpenBLAS.
NATIVE = [(rule, hypers) for rule, hypers in VALID if _core.rules()[rule]["native"]]
QEMU = shutil.which("qemu-x86_64-static")
pytestmark = pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64-static")

STEPS = f"""
import hashlib, json, ml_dtypes, numpy as np, fusedstep as fs
from fusedstep.apps.cli.info import collect
from fusedstep.optimizers import REGISTRY
hashes = []
for rule, hypers in {NATIVE!r}:
    for dtype in (np.float32, np.float64):
        values = (np.arange(300) % 37 - 18) / 16
        p, g = values.astype(dtype), (values[::-1] * 1.7).astype(dtype)
        grad = fs.RowSparse(np.arange(300) % 200, g, p.shape) if rule == "sparse_adam" else g
        optimizer = REGISTRY[rule](p, **hypers, telemetry=True, max_grad_norm=1.0)
        for _ in range(2):
            report = optimizer.step(grad)
        hashes.append(repr((report, optimizer.state[0]["step"])))
        p[np.isnan(p)] = np.nan  # 0/0 has the sign that the processor gives it
        hashes.append(hashlib.sha256(p.tobytes()).hexdigest())
for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
    for state_dtype in ("bfloat16", "8bit"):
        values = ((np.arange(600) % 37 - 18) / 16).astype(dtype)
        for rule in ("adamw", "adan", "lion"):
            p, narrow = values.copy(), dtype != np.float32
            optimizer = REGISTRY[rule](p, state_dtype=state_dtype, min_8bit_size=0, stochastic_rounding=narrow)
            for _ in range(3):
                optimizer.step(values[::-1])
            for array in (p, *(v for v in optimizer.state[0].values() if isinstance(v, np.ndarray))):
                hashes.append(hashlib.sha256(array.tobytes()).hexdigest())
values = ((np.arange(4 * 3 * 35) % 41) / 7 - 2).astype(np.float32)
for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
    for shape in ((4, 3, 5, 7), (140, 3)):
        x = values.astype(dtype).reshape(shape)
        y, saved = fs.batch_norm(x, None, None, None, None, training=True, activation="relu", residual=x)
        stats = fs.batch_norm_stats(x)
        for array in (y, *fs.batch_norm_backward(x, saved), saved.mask[:-1], stats.mean, stats.m2, stats.m2_low):
            hashes.append(hashlib.sha256(array.tobytes()).hexdigest())
for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
    x, t = values.astype(dtype).reshape(4, -1), (np.abs(values) / 2).astype(dtype).reshape(4, -1)
    for labels in (np.arange(4), t):
        for smoothing in (0.0, 0.1):
            loss, gradient = fs.softmax_cross_entropy(x, labels, label_smoothing=smoothing, check_targets=False)
            hashes += [loss, hashlib.sha256(gradient.tobytes()).hexdigest()]
    for loss, gradient in (fs.sigmoid_binary_cross_entropy(x, t, check_targets=False), fs.mean_squared_error(x, t)):
        hashes += [loss, hashlib.sha256(gradient.tobytes()).hexdigest()]
    for array in (fs.softmax(x), fs.log_softmax(x), fs.dropout(x, 0.3, seed=5, offset=77, residual=t)):
        hashes.append(hashlib.sha256(array.tobytes()).hexdigest())
print(json.dumps([collect(), hashes]))
"""


@pytest.fixture(scope="module")
def here():
    """The bits of this processor."""
    process = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    return json.loads(process.stdout)[1]


def emulated(cpu, *arguments):
    # OpenBLAS takes the emulated Nehalem for a processor with AVX.
    # The widest set is what is asked for here, whatever the tests around it are held to.
    environment = {name: value for name, value in os.environ.items() if name != "FUSEDSTEP_ISA"}
    environment["OPENBLAS_CORETYPE"] = "Nehalem" if cpu == "Nehalem" else "Haswell"
    process = subprocess.run(
        [QEMU, "-cpu", cpu, sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize(("cpu", "isa"), [("Nehalem", "baseline"), ("Haswell", "avx2")])
def test_older_processors(cpu, isa, here):
    facts, hashes = emulated(cpu, "-c", STEPS)
    assert facts["isa"] == isa
    assert facts["available_isas"] == fs.runtime.available_isas()[: fs.runtime.available_isas().index(isa) + 1]
    assert hashes == here
