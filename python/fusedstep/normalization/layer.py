"""Batch norm with its parameters and running statistics."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep._common.arguments import flag, shown
from fusedstep._common.arrays import as_array, viewed, wrote
from fusedstep._core import BatchNormSaved
from fusedstep.normalization.arguments import Activation, Array, Channels
from fusedstep.normalization.functions import batch_norm_backward
from fusedstep.reference.batch_norm import cumulative_momentum


class BatchNorm:
    """Batch normalization with its parameters and running statistics.

    Args:
        num_features: Number of channels C.
        eps: Added to the variance, > 0; at least 3.5e-77 where the arithmetic is float32, 9e-308 in float64.
        momentum: The weight of the batch in the running statistics, in [0, 1]. (Some texts give the weight p of the
            old statistics: p = 1 − momentum.) None for the average of all batches so far.
        affine: Whether there are a weight and a bias.
        track_running_stats: Whether running statistics are kept. Without them evaluation takes the batch's, as in
            PyTorch.
        channel_axis: Which axis of x the channels are; -1 for channels-last arrays.
        activation: "relu", or None.
        unbiased: Whether the running variance gets the unbiased variance, as in PyTorch.
        skip_nonfinite: Whether a batch with NaN or infinity leaves the running statistics as they are.
        dtype: The dtype of parameters and running statistics: float32, or float64 for float64 arrays.

    Attributes:
        weight: γ, (C,), ones at the start; give it to an optimizer. None without `affine`.
        bias: β, (C,), zeros at the start; likewise.
        running_mean: (C,); None without `track_running_stats`.
        running_var: (C,); likewise.
        num_batches_tracked: The number of batches in the running statistics.
        dweight: Gradient of weight, from the last `backward`.
        dbias: Gradient of bias, likewise.

    Raises:
        TypeError: A dtype that is neither float32 nor float64.
        ValueError: `num_features` is less than 1; eps or momentum out of range; another activation.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> bn = fs.BatchNorm(2)
        >>> y = bn.forward(np.array([[1, 5], [3, 9]], np.float32), training=True)
        >>> dx = bn.backward(np.ones((2, 2), np.float32))
        >>> print(y.round(3).tolist(), bn.dbias)
        [[-1.0, -1.0], [1.0, 1.0]] [2. 2.]
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        channel_axis: int = 1,
        activation: Activation = None,
        unbiased: bool = True,
        skip_nonfinite: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        _check_features(num_features)
        if not _is_number(eps) or not 0 < eps <= sys.float_info.max:
            raise ValueError(f"eps: expected a finite number > 0, got {shown(eps)}")
        if momentum is not None and not (_is_number(momentum) and 0 <= momentum <= 1):
            raise ValueError(f"momentum: expected a number in [0, 1] or None, got {shown(momentum)}")
        if not _is_integer(channel_axis):
            raise TypeError(f"channel_axis: expected an integer, got {type(channel_axis).__name__}")
        if activation is not None and not (isinstance(activation, str) and activation == "relu"):
            raise ValueError(f"activation: expected 'relu' or None, got {shown(activation)}")
        flag(affine, "affine")
        flag(track_running_stats, "track_running_stats")
        flag(unbiased, "unbiased")
        flag(skip_nonfinite, "skip_nonfinite")
        if _dtype_name(dtype) not in ("float32", "float64"):
            raise TypeError(f"dtype: expected float32 or float64, got {_dtype_name(dtype)}")
        self.eps = eps
        self.momentum = momentum
        self.channel_axis = channel_axis
        self.activation = activation
        self.unbiased = unbiased
        self.skip_nonfinite = skip_nonfinite
        self._features = num_features
        self.weight: Channels | None = np.ones(num_features, dtype) if affine else None
        self.bias: Channels | None = np.zeros(num_features, dtype) if affine else None
        self.running_mean: Channels | None = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var: Channels | None = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked = 0
        self.dweight: Channels | None = None
        self.dbias: Channels | None = None
        self._saved: BatchNormSaved | None = None

    def forward(self, x: Array, *, training: bool, residual: Array | None = None, out: Array | None = None) -> Array:
        """`batch_norm` of x; keeps what `backward` needs.

        Raises:
            TypeError: See `batch_norm`.
            ValueError: See `batch_norm`; x has another number of channels.
        """
        flag(training, "training")
        momentum = self._checked(x)
        y, self._saved, taken = _core.batch_norm(
            x,
            viewed(self.weight, "weight"),
            viewed(self.bias, "bias"),
            viewed(self.running_mean, "running_mean"),
            viewed(self.running_var, "running_var"),
            training if self.running_mean is not None else True,
            momentum,
            self.eps,
            self.channel_axis,
            self.activation,
            viewed(residual, "residual"),
            self.unbiased,
            self.skip_nonfinite,
            viewed(out, "out"),
        )
        wrote(out)
        if taken and self.running_mean is not None:
            wrote(self.running_mean, self.running_var)
            self.num_batches_tracked += 1
        return y

    def _checked(self, x: Array) -> float:
        """The momentum of this pass, after a look at the channels of x and the number of batches."""
        shape, axis = _shape(x), self.channel_axis
        if _is_integer(axis) and -len(shape) <= axis < len(shape) and shape[axis] != self._features:
            raise ValueError(f"x: expected {self._features} channels in axis {axis}, got shape {shape}")
        if not _is_integer(self.num_batches_tracked) or not 0 <= self.num_batches_tracked < 2**53 - 1:
            tracked = shown(self.num_batches_tracked)
            raise ValueError(f"num_batches_tracked: expected a whole number >= 0 and < 2**53 - 1, got {tracked}")
        return cumulative_momentum(self.num_batches_tracked) if self.momentum is None else self.momentum

    def backward(
        self, dy: Array, *, out: Array | None = None, residual_out: Array | None = None
    ) -> Array | tuple[Array, Array]:
        """The gradient dx of the last `forward`, and dresidual if it had a residual.

        The parameters' gradients are left in `dweight` and `dbias`.

        Raises:
            RuntimeError: There was no `forward` since the last `backward`.
        """
        if self._saved is None:
            raise RuntimeError("backward: no forward since the last backward")
        dx, dweight, dbias, *dresidual = batch_norm_backward(dy, self._saved, out=out, residual_out=residual_out)
        if self.weight is not None:
            self.dweight, self.dbias = dweight, dbias
        self._saved = None
        return (dx, dresidual[0]) if dresidual else dx

    def state_dict(self) -> dict[str, Any]:
        """Copies of the parameters and running statistics, under PyTorch's names."""
        state = {name: array.copy() for name, array in self._arrays().items()}
        if self.running_mean is not None:
            state["num_batches_tracked"] = np.array(self.num_batches_tracked)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copies a state into the layer's own arrays; PyTorch's tensors are taken too.

        Raises:
            KeyError: A name that is missing, or not the layer's.
            TypeError: Another dtype.
            ValueError: Another shape; a negative variance; no whole number of batches. Nothing has been written.
        """
        mine = self._arrays()
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a dict, got {type(state).__name__}")
        names = {*mine, *(["num_batches_tracked"] if self.running_mean is not None else [])}
        if set(state) != names:
            raise KeyError(f"state: expected {sorted(names)}, got {list(state)}")
        given = {name: as_array(state[name], f"state[{name!r}]").copy() for name in mine}
        for name, array in given.items():
            if array.dtype != mine[name].dtype or isinstance(array, np.ma.MaskedArray):
                kind = "a masked array" if isinstance(array, np.ma.MaskedArray) else f"dtype {array.dtype}"
                raise TypeError(f"state[{name!r}]: expected {mine[name].dtype}, got {kind}")
            if array.shape != mine[name].shape:
                raise ValueError(f"state[{name!r}]: expected shape {mine[name].shape}, got {array.shape}")
        if "running_var" in given and (given["running_var"] < 0).any():
            raise ValueError(f"state['running_var']: expected numbers >= 0, got {given['running_var'].min()}")
        tracked = _tracked(state.get("num_batches_tracked", 0))
        for name, array in given.items():
            mine[name][...] = array
        self.num_batches_tracked = tracked

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own arrays, and no forward pass to differentiate.
        return {**self.__dict__, "_saved": None}

    def _arrays(self) -> dict[str, Channels]:
        arrays = {
            "weight": self.weight,
            "bias": self.bias,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
        }
        return {name: array for name, array in arrays.items() if array is not None}


def _check_features(num_features: Any) -> None:
    if not _is_integer(num_features) or num_features < 1:
        raise ValueError(f"num_features: expected a whole number >= 1, got {shown(num_features)}")
    if num_features >= 2**53:
        raise ValueError(f"num_features: expected less than 2**53, got {shown(num_features)}")


def _tracked(value: Any) -> int:
    """A number of batches, which PyTorch keeps in a tensor."""
    name = "state['num_batches_tracked']"
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        array = as_array(value, name)
        if array.shape != () or array.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected a whole number >= 0, got {shown(value)}")
        value = array.item()
    if not _is_integer(value) or not 0 <= value < 2**53:
        raise ValueError(f"{name}: expected a whole number >= 0 and < 2**53, got {shown(value)}")
    return int(value)


def _shape(x: Any) -> tuple[int, ...]:
    """The shape of an array; () for anything else."""
    seen = viewed(x, "x")
    return np.asarray(seen).shape if isinstance(seen, np.ndarray) else ()


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _dtype_name(dtype: Any) -> str:
    """NumPy's name of a dtype; what errors show of anything else."""
    try:
        return str(dtype) if dtype is None else np.dtype(dtype).name
    except (TypeError, ValueError):
        return shown(dtype)
