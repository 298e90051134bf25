"""The doctor: watches a run and says what is wrong with it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fusedstep._core import StepReport
from fusedstep.doctor import rules
from fusedstep.doctor.measure import Gradients, dead_part, flattened, grad_cosine, measured
from fusedstep.doctor.run import Run, batch_norm, batch_size, chance_loss, number
from fusedstep.doctor.thresholds import Thresholds
from fusedstep.doctor.torch_steps import TorchSteps, is_torch_optimizer, rule_of
from fusedstep.doctor.verdict import REMEDIES, Verdict
from fusedstep.doctor.windows import Windows
from fusedstep.optimizers import Optimizer

#: The most important first.
RULES: tuple[rules.Rule, ...] = (
    rules.adagrad_blow_up,
    rules.exploding,
    rules.at_critical_point,
    rules.dead_units,
    rules.batch_too_small_for_batch_norm,
    rules.bouncing,
    rules.decayed_too_early,
    rules.crawling,
    rules.bad_initialization,
    rules.overfitting,
)
#: The telemetry that each verdict needs.
_STEPS = {
    "grad_norm": "at_critical_point",
    "update_norm": "adagrad_blow_up",
    "grad_cosine": "bouncing",
    "update_ratio": "crawling",
    "lr": "decayed_too_early",
}
#: The evaluations that each verdict needs.
_EVALUATED = {"test_loss": "overfitting", "dead_units": "dead_units"}
#: Verdicts that are left out if one of these, which explains them, is there.
_EXPLAINED = {
    "bad_initialization": {
        "exploding",
        "adagrad_blow_up",
        "dead_units",
        "at_critical_point",
        "bouncing",
        "decayed_too_early",
        "crawling",
    },
    "crawling": {"at_critical_point"},
    "overfitting": {"exploding", "adagrad_blow_up", "batch_too_small_for_batch_norm"},
}


class Doctor:
    """Names what is wrong with a run, with the evidence and the remedy.

    Every rule is an inequality between medians over windows of the run, see `fusedstep.doctor.rules`.

    Args:
        optimizer: The one that trains; pass its reports to `observe`. Or a `torch.optim.Optimizer`: hooks around its
            steps measure them, with a copy of the parameters during each.
        thresholds: What the rules compare with; the defaults of `Thresholds`.
        curvature: Called without arguments when the run seems to be at a critical point; returns an object with a
            `kind`, as `fusedstep.curvature.classify` does.
        batch_size: Rows of a batch, for the rule on batch norm.
        batch_norm: Whether the network has batch norm, for the same rule.
        chance_loss: The loss of the best constant prediction (ln C for C classes, equally likely): a low loss is low
            relative to it. By default, the first loss.

    Raises:
        TypeError: An argument of another kind.
        ValueError: batch_size < 1; chance_loss <= 0; an optimizer without `telemetry=True`.

    Examples:
        Beside the saddle of (1 − w₁w₂)² at the origin:

        >>> import numpy as np, fusedstep as fs
        >>> w = np.full(2, 1e-4)
        >>> opt = fs.SGD(w, lr=0.01, telemetry=True)
        >>> doctor = fs.doctor.Doctor(opt)
        >>> for _ in range(30):
        ...     loss, grad = (1 - w[0] * w[1]) ** 2, -2 * (1 - w[0] * w[1]) * w[::-1]
        ...     doctor.observe(loss, report=opt.step(grad))
        >>> [verdict.name for verdict in doctor.diagnose()]
        ['at_critical_point']

        A torch model:

        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = torch.optim.SGD(model.parameters(), lr=1e-9)
        >>> doctor = fs.doctor.Doctor(opt)
        >>> for _ in range(30):
        ...     opt.zero_grad()
        ...     loss = (model(torch.ones(4, 2)) - 3.0).square().mean()
        ...     loss.backward()
        ...     opt.step()
        ...     doctor.observe(loss.item())
        >>> [verdict.name for verdict in doctor.diagnose()]
        ['crawling']
    """

    def __init__(
        self,
        optimizer: Optimizer | Any | None = None,
        *,
        thresholds: Thresholds | None = None,
        curvature: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        batch_norm: bool | None = None,
        chance_loss: float | None = None,
    ) -> None:
        of_torch = is_torch_optimizer(optimizer)
        if optimizer is not None and not of_torch and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer or None, got {type(optimizer).__name__}")
        if optimizer is not None and not of_torch and not optimizer.defaults["telemetry"]:
            raise ValueError("optimizer: expected one with telemetry=True")
        if thresholds is not None and not isinstance(thresholds, Thresholds):
            raise TypeError(f"thresholds: expected Thresholds or None, got {type(thresholds).__name__}")
        if curvature is not None and not callable(curvature):
            raise TypeError(f"curvature: expected a function or None, got {type(curvature).__name__}")
        self.optimizer = optimizer
        self.thresholds = thresholds or Thresholds()
        self.curvature = curvature
        self.run = _run(optimizer, batch_size, batch_norm, chance_loss)
        self._before: Gradients | None = None
        self._steps = TorchSteps(optimizer) if of_torch else None

    def observe(
        self,
        train_loss: float,
        val_loss: float | None = None,
        *,
        report: StepReport | None = None,
        grads: Any = None,
        activations: Any = None,
        train_accuracy: float | None = None,
        val_accuracy: float | None = None,
    ) -> None:
        """Takes note of one step of training, and of an evaluation after it.

        Args:
            train_loss: The loss whose gradient the step took; it need not be finite.
            val_loss: The loss on held-out data, where it was evaluated after this step.
            report: What `optimizer.step` returned; most rules need its telemetry. None for a torch optimizer: its step
                is measured.
            grads: The gradients, as the step took them; they are copied. Their cosine with those of the step before
                shows bouncing.
            activations: The outputs of each layer, (rows, units, …), for many rows, as a list, a dict or one array.
            train_accuracy: In [0, 1], for the record.
            val_accuracy: In [0, 1], for the record.

        Raises:
            TypeError: An argument of another kind.
            ValueError: No report though there is an optimizer, or no step; activations without rows or units.
        """
        if report is None and self.optimizer is not None and self._steps is None:
            raise ValueError("report: expected what optimizer.step gave, got None")
        numbers = {
            "test_loss": val_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": val_accuracy,
            "dead_units": None if activations is None else dead_part(activations),
        }
        names = {"test_loss": "val_loss", "test_accuracy": "val_accuracy"}
        evaluation = {key: number(value, names.get(key, key)) for key, value in numbers.items() if value is not None}
        loss = number(train_loss, "train_loss")
        values = measured(report) if self._steps is None else self._steps.take()
        for name, value in (("train_loss", loss), ("val_loss", evaluation.get("test_loss", 0.0))):
            if value < 0:
                raise ValueError(f"{name}: expected a loss >= 0, got {value:g} (add what it cannot go below)")
        if grads is not None:
            now = flattened(grads)
            values["grad_cosine"] = grad_cosine(self._before or [], now)
            self._before = now
        self.run.add_step(loss, values)
        if evaluation:
            self.run.add_evaluation(evaluation)

    def diagnose(self) -> list[Verdict]:
        """What is wrong, the most important first; `healthy` alone if nothing is.

        Before `thresholds.min_steps` steps the only possible verdict is `nonfinite`; without it the list is empty.

        Returns:
            The verdicts; those that another one explains are left out.
        """
        if len(self.run.losses) == 0:
            return []
        with np.errstate(all="ignore"):
            return [_plain(verdict) for verdict in self._verdicts(Windows(self.run, self.thresholds))]

    def _verdicts(self, windows: Windows) -> list[Verdict]:
        sick = rules.nonfinite(windows)
        first = [] if sick is None else [sick]
        if windows.count < self.thresholds.min_steps:
            return first
        found = [verdict for rule in RULES if (verdict := rule(windows)) is not None]
        names = [verdict.name for verdict in found]
        # An infinity or a NaN after an explosion is its consequence.
        at = names.index("exploding") + 1 if "exploding" in names else 0
        found[at:at] = first
        found = [verdict for verdict in found if not _EXPLAINED.get(verdict.name, set()).intersection(names)]
        if not found and (poor := rules.underfitting(windows)) is not None:
            found = [poor]
        return [self._with_kind(verdict) for verdict in found] or [self._healthy(windows)]

    def _with_kind(self, verdict: Verdict) -> Verdict:
        if verdict.name != "at_critical_point" or self.curvature is None:
            return verdict
        kind = str(self.curvature().kind)
        return Verdict(verdict.name, f"{verdict.evidence} It is a {kind}.", {**verdict.numbers, "kind": kind})

    def _healthy(self, windows: Windows) -> Verdict:
        unseen = self.unseen()
        aside = f" Nothing was measured that would show {', '.join(unseen)}." if unseen else ""
        return Verdict(
            "healthy",
            f"No rule applies; the loss went from {windows.initial:.3g} to {windows.last:.3g} in {windows.count} "
            f"steps.{aside}",
            {"first": windows.initial, "loss": windows.last, "steps": windows.count},
        )

    def unseen(self) -> list[str]:
        """The verdicts that the observations cannot show."""
        steps = {verdict for name, verdict in _STEPS.items() if self.run.steps(name) is None}
        evaluated = {verdict for name, verdict in _EVALUATED.items() if not self.run.evaluated(name).size}
        return [name for name in REMEDIES if name in steps | evaluated]

    def to_record(self) -> dict[str, Any]:
        """What was observed, in the form that `fusedstep doctor RUN.json` reads (docs/doctor.md)."""
        return self.run.to_record()

    @classmethod
    def from_record(
        cls, record: Any, *, thresholds: Thresholds | None = None, curvature: Callable[[], Any] | None = None
    ) -> "Doctor":
        """The doctor of a run that was written down, as `fusedstep train --json` does.

        Args:
            record: The form in docs/doctor.md; numbers that are not finite may be None.
            thresholds: See `Doctor`.
            curvature: See `Doctor`.

        Raises:
            TypeError: A field of another kind.
            ValueError: A field is missing or does not fit the others; it is named.

        Examples:
            >>> import fusedstep as fs
            >>> record = {"steps": [2.3] * 100, "epochs": []}
            >>> [verdict.name for verdict in fs.doctor.Doctor.from_record(record).diagnose()]
            ['bad_initialization']
        """
        doctor = cls(thresholds=thresholds, curvature=curvature)
        doctor.run = Run.from_record(record)
        return doctor


def _run(optimizer: Optimizer | Any | None, size: Any, norm: Any, chance: Any) -> Run:
    return Run(
        optimizer=optimizer.rule if isinstance(optimizer, Optimizer) else rule_of(optimizer),
        batch_size=batch_size(size, "batch_size"),
        batch_norm=batch_norm(norm, "batch_norm"),
        chance_loss=chance_loss(chance, "chance_loss"),
    )


def _plain(verdict: Verdict) -> Verdict:
    numbers = {
        name: value.item() if isinstance(value, np.generic) else value for name, value in verdict.numbers.items()
    }
    return Verdict(verdict.name, verdict.evidence, numbers)
