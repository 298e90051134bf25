"""torch.nn with these kernels: batch norm, cross-entropy, dropout; whatever else is asked for is torch's own.

So `from fusedstep.torch import nn` takes the place of `from torch import nn`.
"""

from typing import Any

import torch
from torch import Tensor

from fusedstep.torch import functional as F  # noqa: N812

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "CrossEntropyLoss", "Dropout"]


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
