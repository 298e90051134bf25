"""What the ranks of MPI compute with, and the test that looks at it."""

import numpy as np

import fusedstep as fs


def grads_of(rank):
    """Gradients in a nested structure, of all dtypes and orders."""
    rng = np.random.default_rng(rank)

    def draw(*shape, dtype=np.float32):
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(dtype)

    words = draw(3, 5).view(np.uint32) >> np.uint32(16)
    return {
        "a": draw(7, 3),
        "list": [draw(2, 3, 4).transpose(2, 0, 1), draw(5, dtype=np.float64), draw(0, 3)],
        "number": np.array(1.25 + rank, np.float32),
        "none": None,
        "inner": {"wide": draw(4, 4, dtype=np.float64)[:, ::2], "narrow": words.astype(np.uint16).view(fs.bfloat16)},
    }


def leaves(grads):
    return [grads["a"], *grads["list"], grads["number"], grads["inner"]["wide"], grads["inner"]["narrow"]]


def cases():
    """Of batch norm: the parts of the ranks, and the options."""
    rng = np.random.default_rng(7)
    state = {"weight": rng.uniform(0.5, 1.5, 4), "bias": rng.normal(0, 1, 4), "running_mean": rng.normal(0, 1, 4),
             "running_var": rng.uniform(0.5, 1.5, 4), "num_batches_tracked": np.array(2)}  # fmt: skip

    def parts(*shape, channel_axis=1, lengths=(3, 0, 2)):
        def draw(n, scale, shift):
            return rng.normal(shift, scale, (n, *shape)).astype(np.float32).astype(np.float64)

        return [(draw(n, 2, 3), draw(n, 1, 0), draw(n, 1, 0)) for n in lengths]

    return state, {
        "rows": (parts(4), {}),
        "planes": (parts(4, 3, 2), {"activation": "relu", "residual": True}),
        "last": (parts(3, 2, 4, lengths=(1, 1, 1)), {"channel_axis": -1, "residual": True}),
        "options": (parts(4, 5), {"momentum": None, "unbiased": False, "eps": 0.1}),
        "float32": (parts(4, 3), {"dtype": np.float32, "activation": "relu"}),
    }
