"""AdamW that needs no schedule: it averages its iterates."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep._common.arguments import flag
from fusedstep._core import StepReport
from fusedstep.optimizers.base import LearningRate, Optimizer
from fusedstep.optimizers.base.groups import Array, arrays_of
from fusedstep.optimizers.base.reading import parts_of
from fusedstep.reference.codec import narrowed, widened
from fusedstep.reference.maths import blend
from fusedstep.reference.step import Writes, plain


def _moved(param: Array, entry: Mapping[str, Any], group: Mapping[str, Any], training: bool) -> Writes:
    """A parameter as y or as x, beside what it is for; its master stays y, where the parameter has followed it."""
    here, z = widened(plain(param)), plain(entry["z"])
    beta1 = group["betas"][0]
    to_x, to_y = (here.dtype.type(weight) for weight in (1.0 - 1.0 / beta1, 1.0 - beta1))
    if not (group["master_weights"] and "master" in entry):
        values = blend(here, z, to_y if training else to_x)
        return [(param, narrowed(values, param.dtype).reshape(param.shape))]
    y = plain(entry["master"])
    expected = narrowed(blend(y, z, to_x) if training else y, param.dtype)
    followed = expected.view(np.uint16) == plain(param).view(np.uint16)
    y = np.where(followed, y, blend(here, z, to_y) if training else here)
    values = narrowed(y if training else blend(y, z, to_x), param.dtype)
    return [(param, values.reshape(param.shape)), (entry["master"], y.reshape(param.shape))]


class ScheduleFreeAdamW(Optimizer):
    r"""AdamW that needs no schedule: it averages its iterates.

    .. code-block:: text

        η = lr · min(1, t / warmup_steps),    w = tʳ · (largest η so far)^weight_lr_power,    c = w / Σw
        v ← β2 · v + (1 − β2) · g²
        u = g / (√(v / (1 − β2ᵗ)) + eps) + weight_decay · y
        y ← y + c · (z − y) − η · (1 − β1 · (1 − c)) · u
        z ← z − η · u

    The parameters are y in training and x = y + (1 − 1/β1) · (z − y), the average, in evaluation: `train()`, `eval()`.

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        betas: (β1, β2): how far y is from z towards the average x, in (0, 1); the decay rate of v, in [0, 1).
        eps: Added to the root, outside the bias correction; finite, >= 0.
        weight_decay: Decoupled weight decay, taken at y; finite, >= 0.
        warmup_steps: Steps over which η rises; a whole number >= 0.
        r: Power of the step in the weights of the average; finite, >= 0.
        weight_lr_power: Power of η in them; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.ScheduleFreeAdamW(p, lr=0.1)
        >>> for _ in range(100):
        ...     report = opt.step(p.copy())
        >>> opt.eval()  # p is now the average x, to evaluate or to keep
        >>> print((abs(p) < 0.2).all())
        True
        >>> opt.train()  # and y again

    Reference:
        Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The Road Less Scheduled", NeurIPS 2024, with the weights
        and the form of y of the authors' code.
    """

    rule = "schedule_free_adamw"
    lr: LearningRate = 2.5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    r: float = 0.0
    weight_lr_power: float = 2.0

    _training = True

    def step(self, grads: Any, grad_scale: float = 1.0) -> StepReport:
        """Updates all parameters once; see `Optimizer.step`.

        Raises:
            RuntimeError: The parameters are those of evaluation: call `train()` first.
        """
        if not self._training:
            raise RuntimeError("step: the parameters are those of evaluation; call train() first")
        return super().step(grads, grad_scale)

    def eval(self) -> None:
        """Makes the parameters the average x, in place: for evaluation, and at the end of training."""
        self._move(training=False)

    def train(self) -> None:
        """Makes the parameters y again, in place: up to rounding, and to the last bit with `master_weights`."""
        self._move(training=True)

    def _move(self, *, training: bool) -> None:
        """Moves all parameters and sets the mode; after any error neither."""
        if training is self._training:
            return
        writes, owners = [], []
        arrays = iter(arrays_of(self.param_groups))
        with np.errstate(all="ignore"):
            for position, (group, owner) in enumerate((g, p) for g in self.param_groups for p in g["params"]):
                _, param = next(arrays)
                if position in self.state:
                    writes += _moved(param, self.state[position], group, training)
                    owners.append(owner)
        _core.commit(writes, [(self.__dict__, "_training", training)])
        _core.wrote(owners)

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """See `Optimizer.state_dict`; `train_mode` says whether the parameters are y."""
        return {**super().state_dict(copy=copy), "train_mode": self._training}

    def load_state_dict(self, state_dict: Mapping[str, Any], *, hypers: bool = True) -> None:
        """See `Optimizer.load_state_dict`. The parameters must be in the mode (y or x) in which the state was saved."""
        parts_of(state_dict, self.rule)
        training = flag(state_dict.get("train_mode", True), "state_dict['train_mode']")
        super().load_state_dict(state_dict, hypers=hypers)
        self._training = training
