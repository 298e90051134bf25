"""How the layers call their kernels: at once, or as operators that a tracer sees."""

from collections.abc import Callable
from typing import Any

import torch

Call = Callable[..., Any]
#: What the kernels compute with.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def needs_operator(*tensors: torch.Tensor | None) -> bool:
    """Whether a compiler, a mode or a transformation looks on, so that the call must be a registered operator.

    An operator of Python costs some hundred microseconds with its gradient, a call at once a quarter of that.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return True
    for tensor in tensors:  # noqa: SIM110 - a generator takes three times as long
        if tensor is not None and (type(tensor) not in _PLAIN or not tensor.is_cpu):
            return True
    return False


def is_traced() -> bool:
    """Whether somebody records the calls of tensors, or they have no numbers."""
    if torch._C._is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None or not is_plain(torch.empty(0))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is no subclass, and lies on the CPU."""
    return type(tensor) in _PLAIN and tensor.is_cpu


class Operator:
    """A function of tensors as an operator of torch, with what it gives without memory and its gradient.

    `torch.func` takes no operator of `torch.library.custom_op`, but functions of autograd: there it is one.

    Args:
        name: After "fusedstep::".
        function: Gives tensors of their own, a tensor of no elements for what there is not.
        fake: The same of tensors without memory.
        keep: `setup_context`.
        backward: The gradient.
    """

    def __init__(self, name: str, function: Call, fake: Call, keep: Call, backward: Call) -> None:
        self.op: Any = torch.library.custom_op(f"fusedstep::{name}", mutates_args=())(function)
        self.op.register_fake(fake)
        self.op.register_autograd(backward, setup_context=keep)
        methods = {"forward": function, "setup_context": keep, "backward": backward}
        methods |= {"vmap": _refused(name, "torch.func.vmap"), "jvp": _refused(name, "forward-mode derivatives")}
        methods = {key: staticmethod(method) for key, method in methods.items()}
        self._function: Any = type(name, (torch.autograd.Function,), methods)

    def __call__(self, *arguments: Any) -> Any:
        """The function, seen by whoever looks on."""
        if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
            return self._function.apply(*arguments)
        return self.op(*arguments)


def _refused(name: str, what: str) -> Call:
    """A transformation that the operator has no rule for."""

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{name} of fusedstep.torch takes no {what}: it is a kernel. Take torch.nn's there.")

    return refuse


def keep_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    """`setup_context` of an operator whose gradient is refused."""


def refusal(what: str) -> Call:
    """The gradient of a backward pass: the reason why there is none."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{what} of fusedstep.torch has no second derivative: its backward pass is a kernel. "
            f"Take torch.nn's where you need it (create_graph=True, gradient penalties, Hessians)."
        )

    return backward


def check_input(tensor: Any, name: str) -> None:
    """TypeError for what is no dense tensor of floats on the CPU; a meta tensor has shapes to compute with."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__qualname__}")
    if not (tensor.is_cpu or tensor.is_meta):
        raise TypeError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")


def check_beside(input: torch.Tensor, **others: Any) -> None:
    """TypeError for what lies elsewhere than the input: a fake kernel would answer with numbers nobody computed."""
    for name, tensor in others.items():
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__qualname__}")
        if tensor is not None and input.is_cpu and not tensor.is_cpu:
            raise TypeError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")


def fits(residual: torch.Tensor, input: torch.Tensor) -> bool:
    """Whether a residual is like the input, so that the kernel can add it."""
    return isinstance(residual, torch.Tensor) and residual.shape == input.shape and residual.dtype == input.dtype


def check_added(residual: Any, input: torch.Tensor) -> None:
    """TypeError or ValueError for what cannot be added to the output."""
    if isinstance(residual, int | float):
        return
    check_beside(input, residual=residual)
    lengths = zip(reversed(input.shape), reversed(residual.shape), strict=False)
    if any(length not in (1, added) and added != 1 for length, added in lengths):
        raise ValueError(f"residual: expected a shape like {tuple(input.shape)}, got {tuple(residual.shape)}")


def renamed(error: Exception, names: dict[str, str]) -> Exception:
    """The error of a kernel, with the name that the argument has here."""
    text = str(error)
    for kernel, here in names.items():
        if text.startswith(kernel) and not text[len(kernel) :][:1].isidentifier():
            return type(error)(here + text[len(kernel) :])
    return error


def wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A number a channel or class in float32, which holds the narrow ones exactly."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of a shape lie in memory alike."""
    if a.stride() == b.stride():
        return True
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))


def without_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, dense in memory in whatever order of axes; copied where it is not."""
    tensor = tensor.resolve_neg()
    if tensor.is_contiguous() or same_order(tensor, torch.empty_like(tensor)):
        return tensor
    return tensor.clone()


def ordered_as(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor in the memory order of another one of its shape; copied where it lies otherwise."""
    tensor = tensor.resolve_neg()
    return tensor if same_order(tensor, like) else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
