"""A model of torch's, on these kernels."""

from dataclasses import dataclass, field
from typing import Any

import torch

from fusedstep.torch import nn
from fusedstep.torch._fusion import CannotFuse, fused_forward

__all__ = ["Conversion", "convert_batch_norm", "convert_sync_batch_norm", "revert"]

_CLASSES: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.BatchNorm1d: nn.BatchNorm1d,
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.BatchNorm3d: nn.BatchNorm3d,
}
_BACK = {ours: theirs for theirs, ours in _CLASSES.items()}
_MARK = "_was_torchs"


@dataclass(slots=True)
class Conversion:
    """What `convert_batch_norm` did, by the names of the modules.

    Attributes:
        converted: Batch norms that run on these kernels now.
        fused: Of these, those with what follows them in the same pass: "relu" or "add, relu".
        left: Normalizations that were left alone, and why.
        unfused: Modules whose forward, or batch norms whose call was left as it is, and why.
    """

    converted: list[str] = field(default_factory=list)
    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unfused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} batch norms converted, {len(self.fused)} of them fused with what follows"]
        lines += [f"  {name}: {what}" for name, what in self.fused.items()]
        lines += [f"left alone: {name or 'the model'}: {why}" for name, why in self.left.items()]
        lines += [f"not fused: {name or 'the model'}: {why}" for name, why in self.unfused.items()]
        return "\n".join(lines)


def convert_batch_norm(model: torch.nn.Module, *, fuse: bool = True) -> Conversion:
    """Gives the batch norms of a model these kernels, in place, and fuses them with the addition and ReLU after them.

    A module stays the same object, with its parameters, buffers, hooks and mode: only its class is another one, a
    subclass. Of a module whose forward calls batch norm → (addition) → ReLU, where `torch.fx` shows that nothing else
    looks between, the forward is replaced by one with a single call. That one holds as long as what was traced does: a
    child that is replaced, a hook on one of the parts, another value of an attribute bring the class's forward back.
    A copy of the model keeps all of it; of a pickled module the fusion is lost: convert it again.

    Args:
        model: The module itself may be a batch norm.
        fuse: Whether to look for what can be fused.

    Returns:
        What was done and what was not.

    Raises:
        TypeError: It is no module.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import convert_batch_norm, revert
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> print(convert_batch_norm(model))
        1 batch norms converted, 1 of them fused with what follows
          1: relu
        >>> revert(model)
        >>> type(model[1])
        <class 'torch.nn.modules.batchnorm.BatchNorm2d'>
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__qualname__}")
    report = Conversion()
    for name, module in model.named_modules():
        if type(module) in _CLASSES:
            tensors = [*module.parameters(), *module.buffers()]
            elsewhere = next((tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")), None)
            if elsewhere is not None:
                report.left[name] = f"it is on {elsewhere}"
                continue
            module.__class__ = _CLASSES[type(module)]
            setattr(module, _MARK, True)
            report.converted.append(name)
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn._BatchNorm):
            report.left[name] = f"it is a {type(module).__name__}"
    if fuse:
        for name, module in model.named_modules():
            _fuse(name, module, report)
    return report


def _fuse(name: str, module: torch.nn.Module, report: Conversion) -> None:
    if not _has_norms(module) or getattr(vars(module).get("forward"), "fused", False):
        return
    own = vars(module).get("forward")
    if getattr(own, "__func__", None) is type(module).forward:
        del module.__dict__["forward"]  # what pickle has left of a fused one
    inside = f"{name}." if name else ""
    try:
        forward, norms, hooked = fused_forward(module)
    except CannotFuse as error:
        report.unfused[name] = str(error)
        return
    report.unfused.update({inside + norm: "a hook looks at it or at its ReLU" for norm in hooked})
    if forward is not None:
        module.__dict__["forward"] = forward
        report.fused.update({inside + norm: what for norm, what in norms.items()})


def _has_norms(module: torch.nn.Module) -> bool:
    """Whether a batch norm is one of its children, or in a list of theirs."""
    lists = (torch.nn.ModuleList, torch.nn.ModuleDict)
    if isinstance(module, lists):
        return False
    return any(
        isinstance(child, nn._BatchNorm)
        or (isinstance(child, lists) and any(isinstance(part, nn._BatchNorm) for part in child.modules()))
        for child in module.children()
    )


def convert_sync_batch_norm(model: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
    """Makes every batch norm of a model use the statistics of all ranks of a process group, in place.

    This applies to the classes of PyTorch and of this library. A module stays the same object, with its parameters,
    buffers, hooks, mode and activation: only its class changes. Convert before DDP or `fully_shard` wraps the model.

    Args:
        model: A module, which may itself be a batch norm.
        process_group: The process group; None for all ranks.

    Returns:
        The model.

    Raises:
        TypeError: `model` is no module; another subclass of a batch norm, whose forward would be lost. Nothing is
            changed.
        ValueError: A batch norm on another device. Nothing is changed.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import convert_sync_batch_norm
        >>> convert_sync_batch_norm(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8)))[1]
        SyncBatchNorm(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__qualname__}")
    known = {*_CLASSES, *_BACK, torch.nn.SyncBatchNorm, nn.SyncBatchNorm}
    found = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    for name, module in found.items():
        if type(module) not in known:
            raise TypeError(
                f"model: {name!r} is a {type(module).__name__}; expected BatchNorm1d, 2d, 3d or SyncBatchNorm itself"
            )
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type not in ("cpu", "meta"):
                raise ValueError(f"model: {name!r} is on {tensor.device}; expected the CPU")
    for module in found.values():
        module.__class__ = nn.SyncBatchNorm
        vars(module).pop(_MARK, None)
        module.process_group = process_group
    return model


def revert(model: torch.nn.Module) -> None:
    """Gives back what `convert_batch_norm` has converted: torch's classes, and the forwards of the classes.

    Args:
        model: The converted model; what was made of these layers from the start stays as it is.

    Raises:
        TypeError: It is no module.
        ValueError: A converted layer has got an activation since, which torch's class has not, or another class, as of
            a parametrization. Nothing is changed.

    Examples:
        See `convert_batch_norm`.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__qualname__}")
    converted = [(name, module) for name, module in model.named_modules() if _MARK in vars(module)]
    for name, module in converted:
        if module.activation is not None:
            raise ValueError(f"model: {name!r} has got activation={module.activation!r} since it was converted")
        if type(module) not in _BACK:
            raise ValueError(f"model: {name!r} has become a {type(module).__name__} since it was converted")
    for _, module in converted:
        module.__class__ = _BACK[type(module)]
        delattr(module, _MARK)
        vars(module).pop("activation", None)
    for module in model.modules():
        if getattr(vars(module).get("forward"), "fused", False):
            del module.__dict__["forward"]
