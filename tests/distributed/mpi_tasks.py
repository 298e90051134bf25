"""What three ranks of MPI do for test_mpi.py: `mpiexec -n 3 python -m mpi4py mpi_tasks.py FILE`."""

import importlib.util
import pickle
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI
from mpi_data import cases, grads_of, leaves

import fusedstep as fs

ROOT = Path(__file__).parents[2]


class Counted(MPI.Intracomm):
    """A communicator that counts its collectives."""

    calls = ()

    def __getattribute__(self, name):
        if name in ("Allgather", "Alltoall", "Allreduce", "Bcast", "allgather", "allreduce", "bcast", "Barrier"):
            self.calls = (*self.calls, name)
        return super().__getattribute__(name)


COMM = Counted(MPI.COMM_WORLD)
RANK, SIZE = COMM.rank, COMM.size


def tried(function, *arguments, **named):
    """The error of a call, as text; None if there was none."""
    try:
        function(*arguments, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def reduced(average, bucket_bytes):
    """The gradients afterwards."""
    grads = grads_of(RANK)
    held = leaves(grads)
    fs.mpi.reduce_gradients(grads, COMM, average=average, bucket_bytes=bucket_bytes)
    assert all(after is before for after, before in zip(leaves(grads), held, strict=True))
    return [np.array(array, order="C") for array in held]


def reduced_forms():
    """An array alone, a tuple, pairs of names and arrays, an iterator."""
    alone, first, second, third, fourth = (np.full(3, RANK + 1.0 + k) for k in range(5))
    fs.mpi.reduce_gradients(alone, COMM)
    fs.mpi.reduce_gradients((first, second), COMM)
    fs.mpi.reduce_gradients([("w", third)], COMM)
    fs.mpi.reduce_gradients(iter([fourth]), COMM)
    return [alone, first, second, third, fourth]


def refusals():
    """What every rank hears where one has something else, and whether its gradients are as before."""
    heard = {}

    def look(name, grads, *arrays, **options):
        before = [array.copy() for array in arrays]
        text = tried(fs.mpi.reduce_gradients, grads, COMM, **options)
        kept = all(np.array_equal(array, old) for array, old in zip(arrays, before, strict=True))
        heard[name] = (text, kept)

    w, b = np.full((3, 2), float(RANK)), np.full(4, float(RANK), np.float32)
    other = RANK == 1
    look("shape", {"w": w, "b": b[:3] if other else b}, w, b)
    look("dtype", {"w": w, "b": b.astype(np.float64) if other else b}, w, b)
    look("structure", {"w": w} if other else {"w": w, "b": b}, w, b)
    look("none", {"w": w, "b": None if other else b}, w, b)
    look("order", {"b": b, "w": w} if other else {"w": w, "b": b}, w, b)
    look("average", {"w": w}, w, average=not other)
    look("bucket", {"w": w}, w, bucket_bytes=64 if other else 32)
    look("an_integer", {"w": w.astype(int) if other else w}, w)
    locked = w.copy()
    locked.flags.writeable = not other
    look("a_lock", [b, locked], b)
    look("an_overlap", [b, b[1:] if other else np.full(3, 1.0, np.float32)], b)
    look("no_array", "text" if other else w, w)
    look("small_bucket", w, w, bucket_bytes=7)
    heard["comm"] = (tried(fs.mpi.reduce_gradients, w, None), True)
    return heard


def passes(parts, state, *, residual=False, dtype=np.float64, batches=2, **options):
    """Some passes of batch norm over this rank's part, and the collectives of each."""
    layer = fs.mpi.BatchNorm(4, COMM, dtype=dtype, **options)
    layer.load_state_dict(state)
    x, r, dy = (array.astype(dtype) for array in parts[RANK])
    found = []
    for _ in range(batches):
        COMM.calls = ()
        y = layer.forward(x, training=True, residual=r if residual else None)
        forward, COMM.calls = COMM.calls, ()
        given = layer.backward(dy)
        dx, dresidual = given if residual else (given, None)
        found.append({"y": y, "dx": dx, "dresidual": dresidual, "dweight": layer.dweight, "dbias": layer.dbias,
                      "calls": (forward, COMM.calls)})  # fmt: skip
    COMM.calls = ()
    evaluated = layer.forward(x, training=False) if len(x) else None
    return {"passes": found, "state": layer.state_dict(), "evaluated": evaluated, "in_evaluation": COMM.calls}


def norm_refusals():
    """What every rank hears of layers and inputs that are not alike."""
    other, x = RANK == 1, np.full((2, 3), float(RANK))
    heard = {
        "features": tried(fs.mpi.BatchNorm, 4 if other else 3, COMM),
        "bad_eps": tried(fs.mpi.BatchNorm, 3, COMM, -1.0 if other else 1e-5),
        "momentum": tried(fs.mpi.BatchNorm, 3, COMM, momentum=None if other else 0.1),
        "comm": tried(fs.mpi.BatchNorm, 3, None),
    }
    layer = fs.mpi.BatchNorm(3, COMM)
    before = layer.state_dict()
    y = np.empty((3, 2))

    def look(name, call, *arguments, **named):
        heard[name] = tried(call, *arguments, **named)
        assert all(np.array_equal(value, before[key]) for key, value in layer.state_dict().items())

    look("dtype", layer.forward, x.astype(np.float32) if other else x, training=True)
    look("channels", layer.forward, x[:, :2] if other else x, training=True)
    look("residual", layer.forward, x, training=True, residual=x[:1] if other else x)
    look("out", layer.forward, x, training=True, out=y if other else np.empty_like(x))
    look("one_value", layer.forward, x[: 1 if other else 0], training=True)
    look("no_values", layer.forward, x[:0], training=True)
    look("no_forward", layer.backward, x)
    layer.activation = "relu" if other else None
    look("activation", layer.forward, x, training=True)
    layer.activation = None
    layer.forward(x, training=True)
    heard["dy"] = tried(layer.backward, x[:1] if other else x)
    return heard


def curves():
    """The losses of the example, on all ranks and on one."""
    spec = importlib.util.spec_from_file_location("mpi_digits", ROOT / "examples" / "mpi_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    together = module.train(12, np.float64)
    module.COMM = MPI.COMM_SELF
    return together, module.train(12, np.float64)


def main():
    """All of it; rank 0 writes what all have found."""
    state, given = cases()
    found = {
        "reduced": {(average, size): reduced(average, size) for average in (True, False) for size in (8, 100, 2**24)},
        "forms": reduced_forms(),
        "refusals": refusals(),
        "norm_refusals": norm_refusals(),
        "curves": curves(),
        "passes": {},
    }
    for name, (parts, options) in given.items():
        dtype = options.get("dtype", np.float64)
        cast = {key: value if key == "num_batches_tracked" else value.astype(dtype) for key, value in state.items()}
        found["passes"][name] = passes(parts, cast, **options)
    everyone = COMM.gather(found)
    if RANK == 0:
        Path(sys.argv[1]).write_bytes(pickle.dumps(everyone))


if __name__ == "__main__":
    main()
