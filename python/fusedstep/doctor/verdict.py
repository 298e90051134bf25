"""What the doctor says."""

from collections.abc import Mapping
from dataclasses import dataclass

#: Every verdict, the most important first, with what to do.
REMEDIES: dict[str, str] = {
    "nonfinite": "Find where the first infinity or NaN comes from (inputs, a logarithm of 0, an overflow); "
    "skip_nonfinite=True leaves such steps out.",
    "adagrad_blow_up": "Let the learning rate decay, forget old gradients more slowly or raise eps, clip with "
    "max_grad_norm, and shuffle the data so that no long stretch is without gradient.",
    "exploding": "Divide the learning rate by 10 until the loss falls; warm up, or clip with max_grad_norm.",
    "at_critical_point": "Ask which kind it is with fusedstep.curvature.classify; leave a saddle along its most "
    "negative curvature, and start from random weights, not equal ones.",
    "dead_units": "Start with smaller biases and a smaller learning rate; put batch norm before the activation, or "
    "take one that leaks.",
    "batch_too_small_for_batch_norm": "Take batches of 16 rows or more, normalize several workers as one "
    "(merge_stats), or do without batch norm.",
    "bouncing": "Divide the learning rate by 3 or more, let it decay, or use momentum or a rate per parameter.",
    "decayed_too_early": "Keep the learning rate up for longer, until the loss is flat, and decay it less.",
    "crawling": "Multiply the learning rate by 10 until updates are about 1e-3 of the parameters; loosen the clipping.",
    "bad_initialization": "Draw weights with variance 2 / inputs for ReLU (1 / inputs for tanh), or put batch norm "
    "between the layers.",
    "overfitting": "Stop at the lowest validation loss; more data or augmentation, dropout, weight decay, or a "
    "smaller network.",
    "underfitting": "A larger network, less regularization, a longer run.",
    "healthy": "Nothing to mend.",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that the doctor sees.

    Args:
        name: Which: a key of `REMEDIES`.
        evidence: What was measured, and against what, as a sentence.
        numbers: The figures of the evidence, by name.

    Examples:
        >>> import fusedstep as fs
        >>> fs.doctor.Verdict("crawling", "The updates are tiny.", {"update_ratio": 1e-9}).page
        'docs/doctor.md#crawling'
    """

    name: str
    evidence: str
    numbers: Mapping[str, float | str]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.name]

    @property
    def page(self) -> str:
        """Where it is explained, from the root of the repository."""
        return f"docs/doctor.md#{self.name}"

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}\n  remedy: {self.remedy}\n  more:   {self.page}"
