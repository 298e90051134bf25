"""Where BN → (add) → ReLU in a module's forward may become one call, and the forward that makes it.

A module is traced by `torch.fx` with its children as steps, in training and in evaluation. The forward that is written
from the graph belongs to the module alone; the class keeps its own, which runs again wherever what the trace has seen
no longer holds.
"""

import dis
import gc
import inspect
import operator
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from fusedstep.torch import nn

_any_global_hook: Callable[[], bool] = torch.nn.modules.module._has_any_global_hook
_TORCH = str(Path(torch.__file__).parent)
_PYTHON = str(Path(inspect.__file__).parent)
_RELU_FUNCTIONS = (torch.relu, torch.relu_, torch.nn.functional.relu, torch.nn.functional.relu_)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_INPLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul")
# Names in whose company a trace may have seen what another call does not do.
_OPAQUE = {
    "isinstance",
    "issubclass",
    "type",
    "hasattr",
    "callable",
    "id",
    "print",
    "open",
    "random",
    "time",
    "checkpoint",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "is_autocast_enabled",
    "is_compiling",
}
_WRITES = {"STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_SUBSCR", "DELETE_SUBSCR"}
# What every module has, and what this library puts there.
_MODULES = {*vars(torch.nn.Module()), "forward"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CannotFuse(Exception):  # noqa: N818
    """Why a module keeps its forward."""


class _Proxy(torch.fx.Proxy):
    """Writes `y += x` down as what it is: torch's own proxy makes y + x of it."""


def _inplace(name: str) -> Callable[[_Proxy, Any], Any]:
    function = getattr(operator, name)

    def write(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in _INPLACE:
    setattr(_Proxy, f"__{_name}__", _inplace(_name))


class _Tracer(torch.fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: Node) -> _Proxy:
        return _Proxy(node, self)


class _OwnTensors(TorchFunctionMode):
    """Stops a trace that computes with tensors of its own: they would be constants ever after."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        nodes = torch.fx.node.map_aggregate((args, kwargs or {}), lambda value: value)
        found: list[bool] = []
        torch.fx.node.map_aggregate(nodes, lambda value: found.append(isinstance(value, torch.fx.Proxy)))
        if not any(found):
            raise CannotFuse(f"its forward calls {getattr(func, '__name__', func)} on tensors of its own")
        return func(*args, **(kwargs or {}))


@contextmanager
def _watching(codes: dict[types.CodeType, dict[str, Any]]) -> Iterator[None]:
    """Collects the code of others than torch and Python that runs, and its globals.

    The garbage collector stays out: what it calls (`gc.callbacks`, `__del__`) is not the forward's.
    """

    def profile(frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call" and not frame.f_code.co_filename.startswith(_TORCH):
            codes[frame.f_code] = frame.f_globals

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()


def _check_code(codes: dict[types.CodeType, dict[str, Any]]) -> None:
    for code, scope in codes.items():
        own = code.co_filename == __file__
        if own or (code.co_filename.startswith(_PYTHON) and "-packages" not in code.co_filename):
            continue
        for name in code.co_names:
            if name in _OPAQUE:
                raise CannotFuse(f"its forward uses {name!r}")
        for instruction in dis.get_instructions(code):
            if instruction.opname in _WRITES:
                raise CannotFuse(f"its forward assigns to {instruction.argval or 'an item'!r}")
            if instruction.opname == "LOAD_GLOBAL":
                value = scope.get(instruction.argval, object)
                if not (callable(value) or isinstance(value, types.ModuleType)):
                    raise CannotFuse(f"its forward reads the global {instruction.argval!r}")
            if instruction.opname in ("BEFORE_WITH", "LOAD_SPECIAL"):
                raise CannotFuse("its forward has a with statement")


def _check_signature(module: torch.nn.Module) -> None:
    for name, parameter in inspect.signature(type(module).forward).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            raise CannotFuse(f"its forward has an optional argument, {name!r}")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise CannotFuse(f"its forward takes *{name}")


def _trace(module: torch.nn.Module, training: bool) -> Graph:
    """The graph of a module's forward."""
    modes = {part: part.training for part in module.modules()}
    codes: dict[types.CodeType, dict[str, Any]] = {}
    containers = [value for value in vars(module).values() if isinstance(value, list | dict | set)]
    lengths = [len(value) for value in containers]
    # Set without train(), which is a method of theirs. A forward may look at the mode of a part.
    for part in modes:
        part.training = training
    before = set(module.__dict__)
    try:
        with _watching(codes), _OwnTensors():
            graph = _Tracer().trace(module)
    except CannotFuse:
        raise
    except Exception as error:
        raise CannotFuse(
            f"torch.fx cannot trace it ({type(error).__name__}: {str(error).splitlines()[0]:.120})"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
        for name in set(module.__dict__) - before:
            delattr(module, name)
    _check_code(codes)
    if [len(value) for value in containers] != lengths:
        raise CannotFuse("its forward changes a container of its own")
    return graph


def _is_relu(node: Node, module: torch.nn.Module) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) is torch.nn.ReLU
    if node.op == "call_method":
        return node.target in ("relu", "relu_") and not node.kwargs
    return node.op == "call_function" and node.target in _RELU_FUNCTIONS


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: Node, to: Node) -> Node | None:
    """What an addition adds to a node; None where it is another thing, or writes into what it adds."""
    is_method = node.op == "call_method" and node.target in ("add", "add_")
    is_function = node.op == "call_function" and node.target in _ADDITIONS
    if not (is_method or is_function) or len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if left is to and right is not to and isinstance(right, Node):
        return right
    written = node.target in (operator.iadd, "add_")
    return left if right is to and left is not to and isinstance(left, Node) and not written else None


def _writes(node: Node, module: torch.nn.Module) -> bool:
    """Whether a step writes into what it is given."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    return name in _INPLACE or (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True


def _find(graph: Graph, module: torch.nn.Module) -> list[tuple[Node, Node | None, Node | None, Node]]:
    """(batch norm, addition, what it adds, ReLU) wherever they follow each other and nobody else looks between."""
    order = {node: k for k, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(module.get_submodule(node.target), nn._BatchNorm):
            continue
        if len(node.args) != 1 or node.kwargs:
            continue
        addition, residual, relu = None, None, _only_user(node)
        if relu is not None and not _is_relu(relu, module):
            addition = relu
            residual = _added(addition, node)
            relu = _only_user(addition) if residual is not None else None
        if relu is None or not _is_relu(relu, module):
            continue
        source = node.args[0]
        # Batch norm comes later than before: nobody may have written to its input by then.
        others = source.users if isinstance(source, Node) else {}
        if any(order[node] < order[other] < order[relu] and other is not addition for other in others):
            continue
        if residual is not None and any(order[addition] < order[other] < order[relu] for other in residual.users):
            continue
        # Under another name: a view.
        between = [other for other in graph.nodes if order[node] < order[other] < order[relu] and other is not addition]
        if any(_writes(other, module) for other in between):
            continue
        found.append((node, addition, residual, relu))
    return found


def _hooked(module: torch.nn.Module) -> bool:
    """Whether hooks, or a forward of its own beside its class's, come between."""
    return "forward" in vars(module) or any(getattr(module, name, None) for name in _HOOKS)


def _plain(module: torch.nn.Module) -> dict[str, Any]:
    """What of a module its forward may branch on, other than `training`."""
    return {name: _mark(value) for name, value in vars(module).items() if name not in _MODULES}


def _mark(value: Any, depth: int = 3) -> Any:
    """What tells a value from another one, and is the same for a copy of it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    inner = depth - 1
    if depth and isinstance(value, list | tuple):
        return type(value), [_mark(item, inner) for item in value]
    if depth and isinstance(value, dict):
        return type(value), [(_mark(key, inner), _mark(item, inner)) for key, item in value.items()]
    if (callable(value) and not hasattr(value, "__dict__")) or isinstance(value, type | types.FunctionType):
        return value
    if depth and hasattr(value, "__dict__") and not isinstance(value, torch.Tensor | torch.nn.Module):
        return type(value), _mark(vars(value), inner)
    return type(value)


def _children(module: torch.nn.Module) -> list[tuple[str, bool]]:
    return [(name, child is None) for name, child in module._modules.items()]


def fused_forward(module: torch.nn.Module) -> tuple[types.MethodType | None, dict[str, str], list[str]]:
    """A forward with fewer calls, None where it would be the same.

    With it: the names of the batch norms that do more, and what; and of those that hooks keep from it.

    Raises:
        CannotFuse: The trace does not show that it may be.
    """
    graph = _trace(module, True)
    found = _find(graph, module)
    places = [place for place in found if not _looked_at(place, module)]
    hooked = [str(place[0].target) for place in found if place not in places]
    if not places:
        return None, {}, hooked
    if "forward" in vars(module):
        raise CannotFuse("it has a forward of its own beside its class's")
    _check_signature(module)
    if str(_trace(module, False)) != str(graph):
        raise CannotFuse("its forward in training is another one than in evaluation")
    names, used = {}, []
    for norm, addition, residual, relu in places:
        used += [str(node.target) for node in (norm, relu) if node.op == "call_module"]
        with graph.inserting_before(relu):
            given: dict[str, Any] = {"activation": "relu"}
            if residual is not None:
                given["residual"] = residual
            call = graph.call_module(str(norm.target), norm.args, given)
        relu.replace_all_uses_with(call)
        for node in (relu, addition, norm):
            if node is not None:
                graph.erase_node(node)
        names[str(norm.target)] = "relu" if addition is None else "add, relu"
    graph.lint()
    return types.MethodType(_written(graph, module, used), module), names, hooked


def _looked_at(place: tuple[Node, Node | None, Node | None, Node], module: torch.nn.Module) -> bool:
    """Whether hooks wait for what would no longer be there."""
    nodes = (place[0], place[3])
    return any(_hooked(module.get_submodule(str(node.target))) for node in nodes if node.op == "call_module")


def _same(plain: dict[str, Any], module: torch.nn.Module) -> bool:
    attributes = vars(module)
    return all(name in attributes and _mark(attributes[name]) == value for name, value in plain.items())


def _written(graph: Graph, module: torch.nn.Module, used: list[str]) -> Callable[..., Any]:
    """The function of a graph; the class's own where the module is not what it was."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<fusedstep.torch: fused forward>", "exec"), scope)
    fused, plain, children = scope["forward"], _plain(module), _children(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            _same(plain, self)
            and not _any_global_hook()
            and _children(self) == children
            and all(_as_traced(self.get_submodule(name)) for name in used)
            and all(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values()))
        ):
            return fused(self, *args, **kwargs)
        return type(self).forward(self, *args, **kwargs)

    forward.fused = True  # type: ignore[attr-defined]
    return forward


def _as_traced(part: torch.nn.Module) -> bool:
    return (type(part) is torch.nn.ReLU or isinstance(part, nn._BatchNorm)) and not _hooked(part)
