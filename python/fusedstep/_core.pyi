from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

version: str

class StepReport(NamedTuple):
    step: int
    lr: float | tuple[float, ...]

class Structure(Enum):
    array = ...
    list = ...
    dict = ...
    groups = ...

class Optimizer:
    taken: int
    def __init__(
        self,
        rule: str,
        groups: list[dict[str, Any]],
        state: dict[int, dict[str, Any]],
        structure: Structure,
        taken: int,
    ) -> None: ...
    def step(self, grads: object, grad_scale: float) -> StepReport: ...
    def check(self) -> None: ...

def apply(
    rule: str,
    params: object,
    grads: object,
    states: tuple[object, ...],
    step: int | list[int],
    hypers: dict[str, Any],
    grad_scale: float,
) -> None: ...
def batch_norm(
    x: NDArray[np.float32],
    weight: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
    running_mean: NDArray[np.float32] | None,
    running_var: NDArray[np.float32] | None,
    training: bool,
    momentum: float,
    eps: float,
    unbiased: bool,
    out: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]: ...
def batch_norm_backward(
    dy: NDArray[np.float32],
    x: NDArray[np.float32],
    weight: NDArray[np.float32] | None,
    mean: NDArray[np.float64],
    inv_std: NDArray[np.float64],
    training: bool,
    out: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...
def softmax_cross_entropy(
    logits: NDArray[np.float32], labels: NDArray[np.integer[Any]]
) -> tuple[float, NDArray[np.float32]]: ...
def roof_step(read: NDArray[np.float32], read_write: list[NDArray[np.float32]]) -> None: ...
def roof_map(a: NDArray[np.float32], b: NDArray[np.float32] | None, out: NDArray[np.float32]) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def force_parallel(forced: bool) -> None: ...
def rules() -> dict[str, dict[str, Any]]: ...
def compiler() -> str: ...
