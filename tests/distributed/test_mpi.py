"""Gradients and batch norm over three processes of MPI, started by mpiexec."""

import importlib.util
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mpi_data
import numpy as np
import pytest

import fusedstep as fs

if shutil.which("mpiexec") is None or importlib.util.find_spec("mpi4py") is None:
    pytest.skip("needs mpi4py and mpiexec", allow_module_level=True)

HERE = Path(__file__).parent
TIMEOUT = 60
#: Of Open MPI: more ranks than processors, that do not spin, also by root and in a container.
SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def mpiexec(size, *arguments):
    """The exit code, output and errors of so many processes; they are ended after some time."""
    # mpi_tasks imports what its ranks need: this package, wherever it comes from.
    path = os.pathsep.join([str(Path(fs.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = ["mpiexec", "-n", str(size), sys.executable, *map(str, arguments)]
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                          start_new_session=True) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank has found."""
    place = tmp_path_factory.mktemp("mpi") / "found"
    code, _, errors = mpiexec(3, "-m", "mpi4py", HERE / "mpi_tasks.py", place)
    assert code == 0, errors
    return pickle.loads(place.read_bytes())


def wide(array):
    """Numbers of any dtype in float64."""
    if array.dtype.itemsize == 2:
        return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


class TestReduceGradients:
    @pytest.mark.parametrize("average", [True, False])
    def test_sums(self, found, average):
        given = [mpi_data.leaves(mpi_data.grads_of(rank)) for rank in range(3)]
        for size in (8, 100, 2**24):
            for k, arrays in enumerate(zip(*given, strict=True)):
                result = found[0]["reduced"][average, size][k]
                assert result.dtype == arrays[0].dtype
                assert result.shape == arrays[0].shape
                terms = np.array([wide(array).ravel() for array in arrays])
                exact = np.array([math.fsum(column) for column in terms.T]) / (3 if average else 1)
                bits = {2: 8, 4: 24, 8: 53}[result.dtype.itemsize]
                # One rounding; in float64 also that of the sums, of the size of the terms.
                bound = 1.01 * 2.0**-bits * np.abs(exact)
                bound += 2.0**-52 * np.abs(terms).sum(axis=0)
                assert (np.abs(wide(result).ravel() - exact) <= bound).all()

    def test_same_bits_on_all_ranks_and_of_all_buckets(self, found):
        for average in (True, False):
            first = found[0]["reduced"][average, 8]
            for answer in found:
                for size in (8, 100, 2**24):
                    for a, b in zip(first, answer["reduced"][average, size], strict=True):
                        assert a.tobytes() == b.tobytes()

    def test_forms(self, found):
        for answer in found:
            for k, array in enumerate(answer["forms"]):
                assert np.array_equal(array, [2.0 + k] * 3)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("shape", "DisagreementError: grads['b']: rank 1 has float32 (3,), rank 0 has float32 (4,)"),
            ("dtype", "DisagreementError: grads['b']: rank 1 has float64 (4,), rank 0 has float32 (4,)"),
            ("structure", "DisagreementError: grads['b']: rank 1 has none, rank 0 has float32 (4,)"),
            ("none", "DisagreementError: grads['b']: rank 1 has none, rank 0 has float32 (4,)"),
            ("order", "DisagreementError: grads: expected the same order on all ranks"),
            ("average", "DisagreementError: average: rank 1 has False, rank 0 has True"),
            ("bucket", "DisagreementError: bucket_bytes: rank 1 has 64, rank 0 has 32"),
            ("an_integer", "TypeError: grads['w']: expected float32, float64 or bfloat16, got int64"),
            ("a_lock", "ValueError: grads[1]: expected a writable array, got a read-only one"),
            ("an_overlap", "ValueError: grads[1]: overlaps grads[0] in memory"),
            ("no_array", "TypeError: grads: "),
            ("small_bucket", "ValueError: bucket_bytes: expected a whole number >= 8"),
            ("comm", "TypeError: comm: expected a communicator of mpi4py, got NoneType"),
        ],
    )
    def test_errors_on_all_ranks(self, found, name, words):
        for rank, answer in enumerate(found):
            text, kept = answer["refusals"][name]
            assert kept, rank
            if rank == 1 or name in ("comm", "small_bucket") or words.startswith("Disagreement"):
                assert text.startswith(words), rank
            else:
                assert text.startswith(f"DisagreementError: rank 1 refused: {words}"), rank


def in_one_process(parts, state, *, channel_axis=1, activation=None, residual=False, momentum=0.1, unbiased=True,
                   eps=1e-5, dtype=None, batches=2):  # fmt: skip
    """Batch norm and its gradients by their equations, in float64."""
    x, r, dy = (np.moveaxis(np.concatenate(arrays), channel_axis, -1) for arrays in zip(*parts, strict=True))
    axes, count = tuple(range(x.ndim - 1)), x[..., 0].size
    mean, var = x.mean(axes), x.var(axes)
    xhat = (x - mean) / np.sqrt(var + eps)
    y = xhat * state["weight"] + state["bias"] + (r if residual else 0.0)
    g = np.where(y > 0, dy, 0.0) if activation else dy
    dweight, dbias = (g * xhat).sum(axes), g.sum(axes)
    dx = state["weight"] / np.sqrt(var + eps) * (g - dbias / count - xhat * dweight / count)
    running_mean, running_var = state["running_mean"], state["running_var"]
    tracked = int(state["num_batches_tracked"])
    for _ in range(batches):
        share = 1 / (tracked + 1) if momentum is None else momentum
        running_mean = (1 - share) * running_mean + share * mean
        running_var = (1 - share) * running_var + share * var * (count / (count - 1) if unbiased else 1)
        tracked += 1
    y = np.maximum(y, 0) if activation else y
    back = [np.moveaxis(array, -1, channel_axis) for array in (y, dx, g)]
    return back, dweight, dbias, running_mean, running_var, tracked


class TestBatchNorm:
    @pytest.mark.parametrize("name", ["rows", "planes", "last", "options", "float32"])
    def test_against_the_equations(self, found, name):
        state, given = mpi_data.cases()
        parts, options = given[name]
        answers = [answer["passes"][name] for answer in found]
        large, dweight, dbias, running_mean, running_var, tracked = in_one_process(parts, state, **options)
        tolerance = 2e-6 if name == "float32" else 1e-12
        for k in range(2):
            passes = [answer["passes"][k] for answer in answers]
            for key, expected in zip(("y", "dx", "dresidual"), large, strict=True):
                if key != "dresidual" or options.get("residual"):
                    actual = np.concatenate([each[key] for each in passes])
                    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
            for key, expected in (("dweight", dweight), ("dbias", dbias)):
                actual = sum(each[key].astype(np.float64) for each in passes)
                np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=20 * tolerance)
            assert all(each["calls"] == (("Allgather",), ("Allgather",)) for each in passes)
        for answer in answers:
            assert answer["in_evaluation"] == ()
            for key, expected in (("running_mean", running_mean), ("running_var", running_var)):
                np.testing.assert_allclose(answer["state"][key], expected, rtol=tolerance, atol=tolerance)
                assert answer["state"][key].tobytes() == answers[0]["state"][key].tobytes()
            assert answer["state"]["num_batches_tracked"] == tracked

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("features", "DisagreementError: num_features: rank 1 has 4, rank 0 has 3"),
            ("bad_eps", "ValueError: eps: expected a finite number > 0, got -1.0"),
            ("momentum", "DisagreementError: momentum: rank 1 has None, rank 0 has 0.1"),
            ("comm", "TypeError: comm: expected a communicator of mpi4py, got NoneType"),
            ("dtype", "DisagreementError: dtype: rank 1 has float32, rank 0 has float64"),
            ("channels", "ValueError: x: expected 3 channels in axis 1, got shape (2, 2)"),
            ("residual", "ValueError: residual: expected shape (2, 3) as x has, got (1, 3)"),
            ("out", "ValueError: out: expected shape (2, 3) as x has, got (3, 2)"),
            ("one_value", "ValueError: x: expected more than one value per channel of all ranks in training, got 1"),
            ("no_values", "ValueError: x: expected more than one value per channel of all ranks in training, got 0"),
            ("no_forward", "RuntimeError: backward: no forward since the last backward"),
            ("activation", "DisagreementError: activation: rank 1 has relu, rank 0 has None"),
            ("dy", "ValueError: dy: "),
        ],
    )
    def test_errors_on_all_ranks(self, found, name, words):
        for rank, answer in enumerate(found):
            text = answer["norm_refusals"][name]
            if text.startswith("DisagreementError: rank 1 refused: ") and rank != 1:
                text = text.removeprefix("DisagreementError: rank 1 refused: ")
            assert text.startswith(words), rank


class TestExample:
    def test_as_in_one_process(self, found):
        for answer in found:
            together, alone = answer["curves"]
            assert together[-1] < together[0]
            np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)

    def test_from_the_command_line(self):
        code, output, errors = mpiexec(3, HERE.parents[1] / "examples" / "mpi_digits.py", "--steps", 20)
        assert code == 0, errors
        assert output.splitlines()[-1].startswith("  20  ")

    def test_short(self):
        lines = (HERE.parents[1] / "examples" / "mpi_digits.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 80


def test_an_exception_of_one_rank_ends_all(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from mpi4py import MPI\n"
        "if MPI.COMM_WORLD.rank == 1:\n"
        "    raise KeyError('here')\n"
        "MPI.COMM_WORLD.Barrier()\n"
    )  # fmt: skip
    code, _, errors = mpiexec(2, "-m", "mpi4py", program)
    assert code != 0
    assert "KeyError: 'here'" in errors
