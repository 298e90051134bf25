"""The rules, one after another: each gives its verdict, or None.

Names of thresholds stand for their values; first, before, last, highest, lowest, reference, w and warming are those of
`Windows`; med is the median over the last window of w steps. A loss that is not finite is above any limit.
"""

from collections.abc import Callable

import numpy as np

from fusedstep.doctor.run import Doubles
from fusedstep.doctor.verdict import Verdict
from fusedstep.doctor.windows import Windows, median

#: Rules without a σ: their steps follow the gradient, or ignore how large it is.
ONE_RATE = frozenset({"asgd", "lars", "lion", "momentum", "muon", "rprop", "sgd"})

#: Windows that are looked at together.
_PART = 1 << 14

Rule = Callable[[Windows], Verdict | None]


def exploding(s: Windows) -> Verdict | None:
    """The loss has risen far above its start, or steps are as long as the parameters.

    .. code-block:: text

        highest >= explode_loss · max(first loss, reference)   or   last >= explode_loss · lowest
        or   med ‖Δθ‖/‖θ‖ >= explode_ratio,   and in all cases   last > solved · reference
    """
    t = s.thresholds
    start = max(s.initial, s.reference)
    rise, ratio = s.highest / start, s.last_of("update_ratio")
    numbers = {"loss": s.last, "highest": s.highest, "lowest": s.lowest, "start": start, "update_ratio": ratio}
    if rise >= t.explode_loss and s.stuck:
        return Verdict(
            "exploding",
            f"The loss was {s.highest:.3g} over {s.width} steps, {rise:.3g} times the {start:.3g} of the start (limit "
            f"{t.explode_loss:g} times), and is {s.last:.3g}.",
            numbers,
        )
    if s.last >= t.explode_loss * s.lowest and s.stuck:
        return Verdict(
            "exploding",
            f"The loss was down to {s.lowest:.3g} over {s.width} steps and has risen to {s.last:.3g}, "
            f"{s.last / s.lowest:.3g} times that (limit {t.explode_loss:g} times).",
            numbers,
        )
    if ratio >= t.explode_ratio and s.stuck:
        return Verdict(
            "exploding",
            f"Updates are {ratio:.3g} of the parameters (limit {t.explode_ratio:g}; about 1e-3 is healthy), and the "
            f"loss is {s.last:.3g} (reference {s.reference:.3g}).",
            numbers,
        )
    return None


def nonfinite(s: Windows) -> Verdict | None:
    """An infinity or a NaN, in a loss or in a gradient.

    .. code-block:: text

        some loss is not finite, or some step's count of non-finite elements of the gradients > 0
    """
    lost = ~np.isfinite(s.losses)
    counts = s.run.steps("nonfinite")
    bad = np.zeros_like(lost) if counts is None else np.nan_to_num(counts) > 0
    either = lost | bad
    if not either.any():
        return None
    step = int(either.argmax()) + 1
    elements = 0.0 if counts is None else float(np.nansum(counts))
    return Verdict(
        "nonfinite",
        f"Since step {step} of {s.count}, {int(lost.sum())} losses and {int(bad.sum())} gradients (limit 0) "
        f"hold an infinity or NaN.",
        {"step": step, "losses": int(lost.sum()), "gradients": int(bad.sum()), "elements": elements},
    )


def adagrad_blow_up(s: Windows) -> Verdict | None:
    """A tiny σ, then a gradient that it does not fit, then a jump.

    .. code-block:: text

        σₜ = lrₜ · ‖gₜ‖ / ‖Δθₜ‖,   x̃ₜ = median of x over the k = min_window steps before t.  For some t >= 2k:
        ‖gₜ‖ >= blow_up_gradient · σ̃ₜ   and   ‖Δθₜ‖ >= blow_up_update · (median of ‖Δθ‖ before)
        and  median loss of the ⌈k/2⌉ steps from t on >= blow_up_loss · (median loss before)
        and  median σ of the ⌈k/2⌉ steps from t on >= 2 σ̃ₜ,   where the optimizer is not known to be of `ONE_RATE`
    """
    t, k = s.thresholds, s.thresholds.min_window
    lr, grad, update = (s.run.steps(name) for name in ("lr", "grad_norm", "update_norm"))
    if lr is None or grad is None or update is None or s.run.optimizer in ONE_RATE:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = lr * grad / update
    after, sigma_after = (_rolling(x, -(-k // 2))[2 * k :] for x in (s.losses, sigma))
    count = len(after)
    sigma_before, update_before, before = (_rolling(x, k)[k : k + count] for x in (sigma, update, s.losses))
    grad, update = (x[2 * k : 2 * k + count] for x in (grad, update))
    with np.errstate(invalid="ignore"):
        hit = (
            (grad >= t.blow_up_gradient * sigma_before)
            & (update >= t.blow_up_update * update_before)
            & (after >= t.blow_up_loss * before)
            & (sigma_after >= 2 * sigma_before)
        )
    if not hit.any():
        return None
    at = int(np.where(hit, update, -np.inf).argmax())
    jump, excess = update[at] / update_before[at], grad[at] / sigma_before[at]
    step = at + 2 * k + 1
    return Verdict(
        "adagrad_blow_up",
        f"At step {step} a gradient of norm {grad[at]:.3g} met a σ of {sigma_before[at]:.3g} ({excess:.3g} times, "
        f"limit {t.blow_up_gradient:g}): a step {jump:.3g} times as long as those before (limit {t.blow_up_update:g}), "
        f"and the loss went from {before[at]:.3g} to {after[at]:.3g} (limit {t.blow_up_loss:g} times).",
        {
            "step": step,
            "grad_norm": float(grad[at]),
            "sigma": float(sigma_before[at]),
            "jump": float(jump),
            "loss_before": float(before[at]),
            "loss_after": float(after[at]),
        },
    )


def _rolling(values: Doubles, k: int) -> Doubles:
    """For every place, the median of the k values from it on, as long as there are k."""
    if len(values) < k:
        return np.empty(0)
    windows = np.lib.stride_tricks.sliding_window_view(values, k)
    # A median copies what it is of: k times the run, were it of all at once.
    parts = (windows[start : start + _PART] for start in range(0, len(windows), _PART))
    return np.concatenate([np.median(part, axis=1) for part in parts], dtype=np.float64)


def dead_units(s: Windows) -> Verdict | None:
    """Units that give 0 for every input.

    .. code-block:: text

        median over the last 3 evaluations of the largest part of a layer's units that are 0 for every row >= dead
        and  last > solved · reference
    """
    parts = s.run.evaluated("dead_units")[-3:]
    part = median(parts)
    if not (part >= s.thresholds.dead and s.stuck):
        return None
    return Verdict(
        "dead_units",
        f"{part:.0%} of the units of a layer give 0 for every row (limit {s.thresholds.dead:.0%}), and the loss is "
        f"{s.last:.3g} (reference {s.reference:.3g}).",
        {"dead_units": part, "loss": s.last},
    )


def batch_too_small_for_batch_norm(s: Windows) -> Verdict | None:
    """Statistics of a few rows say little about the data.

    .. code-block:: text

        batch norm,  batch_size < small_batch  and
        |train − val| >= batch_gap · min(train, val), medians over the last half of the evaluations
        (train: mean loss of the steps since the evaluation before)
    """
    t = s.thresholds
    size = s.run.batch_size
    train, val = _losses(s)
    if not s.run.batch_norm or size is None or size >= t.small_batch or not len(val):
        return None
    late = len(val) // 2
    a, b = median(train[late:]), median(val[late:])
    gap = abs(a - b) / min(a, b)
    if not gap >= t.batch_gap:
        return None
    return Verdict(
        "batch_too_small_for_batch_norm",
        f"Batches of {size} rows (limit {t.small_batch}) are normalized with their own statistics: the loss is "
        f"{a:.3g} with these and {b:.3g} with the running ones, {gap:.0%} apart (limit {t.batch_gap:.0%}).",
        {"batch_size": size, "train_loss": a, "val_loss": b, "gap": gap},
    )


def at_critical_point(s: Windows) -> Verdict | None:
    """The gradient has vanished, and the loss is not low.

    .. code-block:: text

        med ‖g‖ · max(‖θ‖, 1) / |loss| <= critical,   |before − last| <= flat · before,   last > solved · reference
    """
    t = s.thresholds
    grad, param = s.last_of("grad_norm"), s.last_of("param_norm")
    promise = grad * float(np.fmax(param, 1.0)) / abs(s.last)
    if not (promise <= t.critical and s.flat and s.stuck):
        return None
    return Verdict(
        "at_critical_point",
        f"The gradient's norm is {grad:.3g}: to first order a step as long as the parameters would change the loss of "
        f"{s.last:.3g} by {promise:.2g} of itself (limit {t.critical:g}), and it is flat.",
        {"grad_norm": grad, "promise": promise, "loss": s.last},
    )


def bouncing(s: Windows) -> Verdict | None:
    """The run jumps from wall to wall of a ravine: gradients stay large and turn around, the loss does not fall.

    .. code-block:: text

        turnₜ = min(cos(gₜ, gₜ₋₁), cos(gₜ₋₁, gₜ₋₂)): momentum turns around at every other step
        med turn <= bounce_cosine,   med ‖g‖ >= bounce_gradient · (its median over the first window)
        before − last <= flat · before,   last > solved · reference
    """
    t = s.thresholds
    cosines, grad, first = s.run.steps("grad_cosine"), s.last_of("grad_norm"), s.first_of("grad_norm")
    if cosines is None or not s.stuck or s.before - s.last > t.flat * abs(s.before):
        return None
    turn = median(np.minimum(cosines[1:], cosines[:-1])[-s.width :])
    if not (turn <= t.bounce_cosine and grad >= t.bounce_gradient * first):
        return None
    return Verdict(
        "bouncing",
        f"Gradients turn around: of two successive cosines between them the lower is {turn:.2f} (limit "
        f"{t.bounce_cosine:g}). They stay large, {grad:.3g} of {first:.3g} at the start (limit {t.bounce_gradient:g} "
        f"times), and the loss stays at {s.last:.3g} ({s.before:.3g} a window before).",
        {"turn": turn, "grad_norm": grad, "first_grad_norm": first, "loss": s.last, "loss_before": s.before},
    )


def decayed_too_early(s: Windows) -> Verdict | None:
    """The loss was falling until the learning rate was taken away.

    .. code-block:: text

        d = first step after the last one with lr >= decay · max lr;  at least min_window steps on either side
        fall(a, b) = (median loss of the first half of steps [a, b) − that of the second) / that of the first
        f = fall(max(0, d − 2w), d) >= decay_fall
        fall(d, n) / (n − d) <= decay_slow · f / (its steps),   last > solved · reference
    """
    t = s.thresholds
    lr = s.run.steps("lr")
    if lr is None or not s.stuck:
        return None
    decayed = 1 + int(np.flatnonzero(lr >= t.decay * np.nanmax(lr))[-1])
    start = max(0, decayed - 2 * s.width)
    if decayed - start < t.min_window or s.count - decayed < t.min_window:
        return None
    before, after = _fall(s.losses[start:decayed]), _fall(s.losses[decayed:])
    slowed = after / (s.count - decayed) / (before / (decayed - start))
    if not (before >= t.decay_fall and slowed <= t.decay_slow):
        return None
    return Verdict(
        "decayed_too_early",
        f"Until step {decayed} the loss fell by {before:.0%} in {decayed - start} steps (limit {t.decay_fall:.0%}); "
        f"then the learning rate went below {t.decay:g} of its peak, and it fell at {max(slowed, 0):.2g} of that pace "
        f"(limit {t.decay_slow:g}), to {s.last:.3g} (reference {s.reference:.3g}).",
        {"step": decayed, "fall_before": before, "fall_after": after, "slowed": slowed, "loss": s.last},
    )


def _fall(losses: Doubles) -> float:
    half = len(losses) // 2
    start = median(losses[:half])
    return (start - median(losses[half:])) / abs(start)


def crawling(s: Windows) -> Verdict | None:
    """Steps far too small.

    .. code-block:: text

        med ‖Δθ‖/‖θ‖ < crawl_ratio,   last > solved · reference,   last lr >= decay · max lr,   not warming
    """
    t = s.thresholds
    ratio, lr = s.last_of("update_ratio"), s.run.steps("lr")
    if not (ratio < t.crawl_ratio and s.stuck) or s.warming or (lr is not None and lr[-1] < t.decay * np.nanmax(lr)):
        return None
    return Verdict(
        "crawling",
        f"Updates are {ratio:.2g} of the parameters (limit {t.crawl_ratio:g}; about 1e-3 is healthy), and the loss is "
        f"{s.last:.3g} (reference {s.reference:.3g}).",
        {"update_ratio": ratio, "loss": s.last, "reference": s.reference},
    )


def bad_initialization(s: Windows) -> Verdict | None:
    """Flat from the start, or a start far above chance.

    .. code-block:: text

        at least 5 · min_window steps, not warming,   last > solved · reference
        and  every window's median loss within flat · first of the first one's,   start <= (1 + 4 flat) · first
        or  first loss >= start · chance_loss,   last > solved · reference   (only where chance_loss is given)
    """
    t = s.thresholds
    if s.stuck and s.long and s.never_moved:
        return Verdict(
            "bad_initialization",
            f"From the first of {s.count} steps to the last no window's median loss was further than {t.flat:.0%} from "
            f"{s.first:.3g}; it is {s.last:.3g}.",
            {"first": s.first, "loss": s.last},
        )
    chance = s.run.chance_loss
    if chance is not None and s.initial >= t.start * chance and s.stuck:
        return Verdict(
            "bad_initialization",
            f"The first loss, {s.initial:.3g}, is {s.initial / chance:.3g} times the {chance:.3g} of the best constant "
            f"prediction (limit {t.start:g} times), and it is still {s.last:.3g}.",
            {"first": s.initial, "chance_loss": chance, "loss": s.last},
        )
    return None


def overfitting(s: Windows) -> Verdict | None:
    """The validation loss rises, or is far above the training loss, while the training loss falls.

    .. code-block:: text

        at least min_evaluations;  val, train: medians over the last 3;  low = lowest median of 3 in a row
        val − train >= overfit_gap · reference,   and
        val − low >= overfit_rise · reference  or  train <= poor · reference
    """
    t = s.thresholds
    train, val = _losses(s)
    if len(val) < t.min_evaluations:
        return None
    a, b = median(train[-3:]), median(val[-3:])
    low = min(median(val[k : k + 3]) for k in range(max(1, len(val) - 2)))
    gap, rise = (b - a) / s.reference, (b - low) / s.reference
    if not (gap >= t.overfit_gap and (rise >= t.overfit_rise or a <= t.poor * s.reference)):
        return None
    return Verdict(
        "overfitting",
        f"The validation loss is {b:.3g}, the training loss {a:.3g}: {gap:.0%} of the reference {s.reference:.3g} "
        f"apart (limit {t.overfit_gap:.0%}). The lowest validation loss was {low:.3g}, {rise:.0%} of the reference "
        f"below (limit {t.overfit_rise:.0%}).",
        {"val_loss": b, "train_loss": a, "lowest": low, "gap": gap, "rise": rise},
    )


def underfitting(s: Windows) -> Verdict | None:
    """No gap, and both poor: the loss has fallen and then stays above what a larger model would reach.

    .. code-block:: text

        at least 5 · min_window steps, not warming,   last > poor · reference
        fall of the second half of the steps <= plateau (see `decayed_too_early`)
        val − train < overfit_gap · reference where there are evaluations,   and no other verdict
    """
    t = s.thresholds
    train, val = _losses(s)
    gap = (median(val[-3:]) - median(train[-3:])) / s.reference if len(val) else np.nan
    fall = _fall(s.losses[s.count // 2 :])
    if not (s.long and s.last > t.poor * s.reference and fall <= t.plateau) or gap >= t.overfit_gap:
        return None
    return Verdict(
        "underfitting",
        f"The loss stays at {s.last:.3g}, above {t.poor:g} of the reference {s.reference:.3g}: over the second half of "
        f"the run it fell by {max(fall, 0):.1%} (limit {t.plateau:.0%}).",
        {"loss": s.last, "reference": s.reference, "fall": fall, "gap": gap},
    )


def _losses(s: Windows) -> tuple[Doubles, Doubles]:
    """Training loss (mean since the evaluation before) and validation loss of every evaluation that has both."""
    pairs, start = [], 0
    for entry in s.run.evaluations:
        end = int(entry["step"])
        steps = s.losses[start:end]
        known = steps[np.isfinite(steps)]
        if known.size and np.isfinite(entry["test_loss"]):
            pairs.append((float(known.mean()), entry["test_loss"]))
        start = end
    train, val = np.array(pairs, np.float64).reshape(-1, 2).T
    return train, val
