"""Torch modules: gradient and Hessian-vector products as functions of NumPy arrays."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fusedstep._common.arguments import function
from fusedstep._common.extras import require
from fusedstep.curvature.space import Array, Gradient, Product


def from_torch(module_or_params: Any, loss_closure: Callable[[], Any]) -> tuple[Gradient, Any, Product]:
    r"""Gradient, parameters and exact Hessian-vector products of a torch loss, for the functions of `fs.curvature`.

    Both returned functions copy their argument into the tensors and call the closure. Then they restore the tensors and
    the buffers of a module (running statistics), bit for bit. The product is the derivative of gᵀv, from a second
    backward pass. If the loss does not depend on a tensor, its gradient is zero.

    Args:
        module_or_params: A `torch.nn.Module`, of which the parameters that require a gradient are used, by name; or a
            dict by name, a list, or a single tensor. Tensors on the CPU, float32 or float64.
        loss_closure: Computes the loss, a tensor of one number, from these tensors; it does not call `backward`. It
            must be deterministic: the same batch each time, and no dropout.

    Returns:
        `grad(params) -> grads`; the parameters as new NumPy arrays; `hvp(params, v) -> H·v`.

    Raises:
        ModuleNotFoundError: torch is not installed.
        TypeError: An argument that is no tensor or module; another dtype or device; a loss that is no tensor.
        ValueError: No parameters; a tensor that does not require a gradient; a loss of more than one number.

    Examples:
        >>> import numpy as np, torch, fusedstep as fs
        >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> grad, params, hvp = fs.curvature.from_torch(w, lambda: (1 - w[0] * w[1]) ** 2)
        >>> print(fs.curvature.classify(grad, params, hvp=hvp).eigenvalues)
        [-2.  2.]
    """
    torch = require("torch", "torch")
    function(loss_closure, "loss_closure")
    tensors = _Tensors(torch, module_or_params)

    def grad(params: Any) -> Any:
        with tensors.holding(params):
            return tensors.pack(_derivatives(torch, _loss(torch, loss_closure), tensors.list, graph=False))

    def hvp(params: Any, v: Any) -> Any:
        with tensors.holding(params):
            first = _derivatives(torch, _loss(torch, loss_closure), tensors.list, graph=True)
            along = sum((g * u).sum() for g, u in zip(first, tensors.tensors(v), strict=True))
            return tensors.pack(_derivatives(torch, along, tensors.list, graph=False))

    return grad, tensors.pack([tensor.detach() for tensor in tensors.list]), hvp


def loss_from_torch(module_or_params: Any, loss_closure: Callable[[], Any]) -> Callable[[Any], float]:
    """The loss as a function of the parameters in NumPy, for `escape`; see `from_torch`.

    Args:
        module_or_params: As for `from_torch`.
        loss_closure: As for `from_torch`.

    Returns:
        `loss(params) -> float`.

    Raises:
        ModuleNotFoundError: torch is not installed.
        TypeError: As `from_torch`.
        ValueError: As `from_torch`.

    Examples:
        >>> import numpy as np, torch, fusedstep as fs
        >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> loss = fs.curvature.loss_from_torch(w, lambda: (1 - w[0] * w[1]) ** 2)
        >>> print(loss(np.array([1.0, 0.5])), w.tolist())
        0.25 [0.0, 0.0]
    """
    torch = require("torch", "torch")
    function(loss_closure, "loss_closure")
    tensors = _Tensors(torch, module_or_params)

    def loss(params: Any) -> float:
        with tensors.holding(params), torch.no_grad():
            return float(_loss(torch, loss_closure))

    return loss


class _Tensors:
    """The tensors, their names, and the buffers that a forward pass may change."""

    def __init__(self, torch: Any, source: Any) -> None:
        self._torch = torch
        self._buffers: list[Any] = []
        self._keys: list[str] | None = None
        self._single = False
        if isinstance(source, torch.nn.Module):
            named = {name: tensor for name, tensor in source.named_parameters() if tensor.requires_grad}
            self._keys, self.list = list(named), list(named.values())
            self._buffers = list(source.buffers())
        elif isinstance(source, Mapping):
            self._keys, self.list = list(source), list(source.values())
        elif isinstance(source, torch.Tensor):
            self._single, self.list = True, [source]
        elif isinstance(source, (list, tuple)):
            self.list = list(source)
        else:
            raise TypeError(f"module_or_params: expected a module or tensors, got {type(source).__qualname__}")
        if not self.list:
            raise ValueError("module_or_params: expected at least one parameter that requires a gradient, got none")
        for k, tensor in enumerate(self.list):
            label = f"module_or_params[{k if self._keys is None else self._keys[k]!r}]"
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{label}: expected a tensor, got {type(tensor).__qualname__}")
            if tensor.dtype not in (torch.float32, torch.float64) or tensor.device.type != "cpu":
                raise TypeError(
                    f"{label}: expected float32 or float64 on the CPU, got {tensor.dtype} on {tensor.device}"
                )
            if not (tensor.requires_grad and tensor.is_leaf):
                raise ValueError(f"{label}: expected a leaf that requires a gradient")

    def pack(self, values: list[Any]) -> Any:
        arrays: list[Array] = [np.array(value.numpy()) for value in values]
        if self._keys is not None:
            return dict(zip(self._keys, arrays, strict=True))
        return arrays[0] if self._single else arrays

    def tensors(self, params: Any) -> list[Any]:
        """Tensors of NumPy arrays."""
        if self._keys is not None:
            arrays = [params[key] for key in self._keys]
        else:
            arrays = [params] if self._single else list(params)
        for array, tensor in zip(arrays, self.list, strict=True):
            if array.shape != tuple(tensor.shape):
                raise ValueError(f"params: expected shape {tuple(tensor.shape)}, got {array.shape}")
        return [self._torch.from_numpy(np.array(array)) for array in arrays]

    @contextmanager
    def holding(self, params: Any) -> Iterator[None]:
        """Copies `params` into the tensors for the block, then restores tensors and buffers."""
        torch = self._torch
        changed = [*self.list, *self._buffers]
        before = [tensor.detach().clone() for tensor in changed]
        try:
            with torch.no_grad():
                for tensor, value in zip(self.list, self.tensors(params), strict=True):
                    tensor.copy_(value)
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)


def _loss(torch: Any, closure: Callable[[], Any]) -> Any:
    loss = closure()
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"loss_closure: expected a tensor, got {type(loss).__qualname__}")
    if loss.numel() != 1:
        raise ValueError(f"loss_closure: expected a tensor of one number, got shape {tuple(loss.shape)}")
    return loss.reshape(())


def _derivatives(torch: Any, of: Any, tensors: list[Any], *, graph: bool) -> list[Any]:
    if not of.requires_grad:
        # The gradient of a linear loss has no graph.
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = torch.autograd.grad(of, tensors, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]
