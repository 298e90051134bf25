"""torch.nn with these kernels: batch norm, cross-entropy, dropout; whatever else is asked for is torch's own.

So `from fusedstep.torch import nn` takes the place of `from torch import nn`.
"""

from typing import Any

import torch
from torch import Tensor

from fusedstep.torch import _sync_batch_norm
from fusedstep.torch import functional as F  # noqa: N812

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "CrossEntropyLoss", "Dropout", "SyncBatchNorm"]


def __getattr__(name: str) -> Any:
    return getattr(torch.nn, name)


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """What the three have in common: all of torch's, but the pass itself."""

    #: Here too, so that a module of torch's becomes one of these by its class alone.
    activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        if activation is not None and activation != "relu":
            raise ValueError(f"activation: expected 'relu' or None, got {activation!r}")
        options = {} if bias else {"bias": bias}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        if activation is not None:
            self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None) -> Tensor:
        """Normalizes; adds the residual, if there is one, and then goes through the activation.

        Args:
            input: As torch's module of this name takes it.
            residual: Like input.
            activation: "relu", for this call; None for the module's own.

        Returns:
            Like input.
        """
        if isinstance(input, torch.fx.Proxy):
            # To torch.fx a module of torch.nn is a step, not a function to look into; so is this one.
            tracer: Any = input.tracer
            given = {"residual": residual, "activation": activation}
            given = {name: value for name, value in given.items() if value is not None}
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        tracked = self.training and self.track_running_stats
        batches = self.num_batches_tracked if tracked else None
        kept = tracked or not self.training
        y = F.batch_norm(
            input,
            self.running_mean if kept else None,
            self.running_var if kept else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            activation=activation or getattr(self, "activation", None),  # none after `revert`
            residual=residual,
            num_batches_tracked=batches if self.momentum is None else None,
        )
        if batches is not None:
            batches.add_(1)
        return y

    def extra_repr(self) -> str:
        """As torch's, with the activation."""
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on (N, C) or (N, C, L): the same arguments, state dict, and running statistics.

    Args:
        num_features: C.
        eps: Added to the variance.
        momentum: What a batch gets in the running statistics; None for the average of all batches.
        affine: Whether there are a weight and a bias.
        track_running_stats: Whether running statistics are kept.
        device: The CPU.
        dtype: Of parameters and running statistics.
        bias: Whether there is a bias, if `affine`.
        activation: "relu", or None.

    Raises:
        ValueError: Another activation.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import nn
        >>> layer = nn.BatchNorm1d(2, activation="relu")
        >>> x = torch.tensor([[1.0, 5.0], [3.0, 9.0]])
        >>> layer(x, residual=torch.ones(2, 2)).detach().round(decimals=3)
        tensor([[0., 0.],
                [2., 2.]])
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on (N, C, H, W), channels-last or not; see `BatchNorm1d`."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on (N, C, D, H, W), channels-last or not; see `BatchNorm1d`."""


class SyncBatchNorm(_BatchNorm):
    """Batch norm with the statistics of all ranks of a process group, on the CPU: `torch.nn.SyncBatchNorm`'s arguments.

    In training, ranks exchange statistics in one collective forward, and sums in one collective backward. Batches may
    have any number of samples on each rank, also none. Output, gradient of input and running statistics are those of
    one process on the whole batch, the running statistics with the same bits on all ranks. The gradients of weight and
    bias are of this rank's values: DDP and FSDP average them, as those of every layer. In evaluation, in a group of one
    and without `torch.distributed` it is a `BatchNorm1d`, `2d` or `3d`.

    It is no subclass of `torch.nn.SyncBatchNorm`, for DDP refuses that one on the CPU.

    Args:
        num_features: C, the same on all ranks.
        eps: Added to the variance.
        momentum: What a batch gets in the running statistics; None for the average of all batches.
        affine: Whether there are a weight and a bias.
        track_running_stats: Whether running statistics are kept.
        process_group: Of the ranks; None for all.
        device: The CPU.
        dtype: Of parameters and running statistics.
        bias: Whether there is a bias, if `affine`.
        activation: "relu", or None.

    Raises:
        ValueError: Another activation.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import SyncBatchNorm
        >>> layer = SyncBatchNorm(1, activation="relu")
        >>> layer(torch.tensor([[1.0], [3.0]])).detach().round(decimals=3)
        tensor([[0.],
                [1.]])
    """

    #: Here too, so that a module of torch's becomes one of these by its class alone.
    process_group: Any = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, activation=activation
        )
        self.process_group = process_group

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.process_group is not None:
            state["process_group"] = _Kept(self.process_group)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if isinstance(self.process_group, _Kept):
            self.process_group = self.process_group.group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input: expected two axes or more, (N, C, …), got shape {tuple(input.shape)}")

    def forward(self, input: Tensor, residual: Tensor | None = None, *, activation: str | None = None) -> Tensor:
        """As of `BatchNorm2d`, with the statistics of all ranks in training.

        Args:
            input: (N, C, …); N may differ from rank to rank, and be 0.
            residual: Like input, also in dtype.
            activation: "relu", for this call; None for the module's own.

        Returns:
            Like input.

        Raises:
            TypeError: As of `BatchNorm2d`; a subclass of tensors.
            ValueError: As of `BatchNorm2d`; ranks that call for different things, or one of which refuses its input:
                on all ranks.
            RuntimeError: The call is traced; a rank has not called this layer within the time-out of the group.
        """
        if not self.training or isinstance(input, torch.fx.Proxy):
            return super().forward(input, residual, activation=activation)
        if torch.compiler.is_compiling():
            return _outside_graph(self, input, residual, activation)
        return self._synchronized(input, residual, activation)

    def _synchronized(self, input: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        group = _sync_batch_norm.group_of(self.process_group)
        if group is None or getattr(input, "is_meta", False):
            return super().forward(input, residual, activation=activation)
        batches = self.num_batches_tracked if self.track_running_stats else None
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        momentum = 1.0 / (int(batches or 0) + 1) if self.momentum is None else self.momentum
        given = activation or getattr(self, "activation", None)
        y = _sync_batch_norm.batch_norm(self, group, input, running, momentum, given, residual)
        if batches is not None:
            batches.add_(1)
        return y


class _Kept:
    """A process group, which a copy of a layer shares: it cannot be copied."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __deepcopy__(self, memo: Any) -> "_Kept":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("process_group: cannot be pickled; save the state dict")


# A collective is no part of a compiled graph: the pass breaks it. torch's own decorator imports the compiler at once.
@torch._compile._disable_dynamo
def _outside_graph(layer: SyncBatchNorm, input: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    return layer._synchronized(input, residual, activation)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, with its gradient in the same pass; see `functional.cross_entropy`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits, (C,), (N, C) or (N, C, d₁, …), against class numbers or probabilities."""
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout`, without a mask; see `functional.dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drops in training; else the input itself."""
        return F.dropout(input, self.p, self.training, self.inplace)
