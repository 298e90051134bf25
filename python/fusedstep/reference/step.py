"""A step, stage by stage."""

from collections.abc import Callable, Iterator
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.codec import (
    PARAM_STREAM,
    decode_8bit,
    encode_8bit,
    in_memory_order,
    narrowed,
    random_words,
    widened,
)
from fusedstep.reference.maths import norm_parts
from fusedstep.reference.ranged import Ranged, root_of
from fusedstep.reference.rules import RULES
from fusedstep.reference.sums import in_range, pair_sums, scaled_to_one, strip_sums
from fusedstep.reference.whole_step import ema_decay, gradient_factor

Array = NDArray[Any]
#: Arrays, and what they are to hold.
Writes = list[tuple[Array, Array]]
#: From the places of tensors in the step, and the sums of each.
Add = Callable[[list[int], list[list[Ranged]]], list[list[Ranged]]]


def gradient_sums(grads: list[tuple[Array, bool, float]]) -> list[tuple[Ranged, int]]:
    """Per gradient the sum of its squares, and how many elements are not finite.

    Beside a gradient stands whether it is row-sparse, and what its sum begins with.
    """
    sums = []
    with np.errstate(all="ignore"):
        for given, rows, before in grads:
            grad = widened(plain(given))
            squares = ranged(sum_of_products(grad, grad, rows, total=before), grad, grad, rows)
            sums.append((squares, int(np.count_nonzero(~np.isfinite(grad)))))
    return sums


def compute(
    rule: str, tensors: list[dict[str, Any]], shared: dict[str, float], telemetry: bool, add: Add | None = None
) -> tuple[Writes, list[Any]]:
    """One step of `rule` for every tensor; scalars move on in the dicts that hold them.

    `add` gives sums over all parts of the tensors, where those here are parts of larger ones.

    Writes to no array, because an error here must leave them all unchanged. Returns what each is to hold and, per
    tensor, the sums of telemetry, None without it.
    """
    equations: Any = RULES[rule]
    with np.errstate(all="ignore"):
        prepared = [prepare(equations, tensor, shared) for tensor in tensors]
        measure(equations, prepared, shared, add)
        sums = [update(equations, t, telemetry) for t in prepared]
        return [pair for t in prepared for pair in stored(t)], sums


def plain(array: Array) -> Array:
    """The array itself, of one axis where it has none: a subclass may redefine arithmetic, and NumPy makes scalars."""
    return np.atleast_1d(np.asarray(array))


def prepare(equations: Any, tensor: dict[str, Any], shared: dict[str, float]) -> SimpleNamespace:
    """The coefficients, in double; and copies of the parameter and its states in the dtype of the arithmetic."""
    t = SimpleNamespace(**tensor)
    t.h = SimpleNamespace(**t.hypers)
    arguments = [t.h, t.step, t.first]
    if shared or t.scalars:
        scalars = SimpleNamespace(**(shared or t.scalars))
        arguments.append(scalars)
    t.coefficients = equations.coefficients(*arguments)
    if t.scalars:
        tensor["scalars"].update(vars(scalars))
    t.stored = t.param
    t.stored_states = list(t.states.values())
    t.param, t.grad = widened(plain(t.stored)).copy(order="K"), widened(plain(t.grad))
    if t.master is not None:
        # If the parameter is no longer the rounded master, it was changed since: its value counts.
        master, words = plain(t.master), plain(t.stored).view(np.uint16)
        followed = narrowed(master, t.stored.dtype).view(np.uint16) == words
        t.param[...] = np.where(followed, master, t.param) if t.follows else master
    t.states = {
        name: decoded(state, t.param, name not in t.squares)
        if isinstance(state, tuple)
        else widened(plain(state)).copy(order="K")
        for name, state in t.states.items()
    }
    t.grad_factor = gradient_factor(t.maximize, t.grad_scale, t.clip_coefficient)
    t.ema_decay = ema_decay(t.ema_decay, t.ema_warmup, t.step)
    t.average = None if t.ema is None else plain(t.ema).copy(order="K")
    t.scale = 1.0
    return t


def decoded(state: tuple[Array, Array], param: Array, signed: bool) -> Array:
    """A state of 8 bits, in the layout of the parameter."""
    values = np.empty_like(param, np.float32)
    in_memory_order(values)[:] = decode_8bit(in_memory_order(plain(state[0])), plain(state[1]), signed)
    return values


def stored(t: SimpleNamespace) -> Writes:
    """What was computed as it is stored, beside the array that it is for."""
    writes: Writes = []

    def write(array: Array, values: Array) -> None:
        writes.append((array, values.reshape(array.shape)))

    def write_in_order(array: Array, numbers: Array) -> None:
        values = np.empty_like(array, subok=False)
        in_memory_order(values)[:] = numbers
        writes.append((array, values))

    for k, ((name, values), state) in enumerate(zip(t.states.items(), t.stored_states, strict=True)):
        if isinstance(state, tuple):
            words = random_words(t.key, k, values.size, t.offset)
            codes, scales = encode_8bit(in_memory_order(values), name not in t.squares, words)
            write_in_order(state[0], codes)
            write(state[1], scales)
        elif state.dtype != values.dtype:
            words = random_words(t.key, k, values.size, t.offset)
            write_in_order(state, narrowed(in_memory_order(values), state.dtype, words))
        else:
            write(state, values)
    if t.stored.dtype == t.param.dtype:
        write(t.stored, t.param)
    else:
        param_words = random_words(t.key, PARAM_STREAM, t.param.size, t.offset) if t.random_param else None
        write_in_order(t.stored, narrowed(in_memory_order(t.param), t.stored.dtype, param_words))
    if t.master is not None:
        write(t.master, t.param)
    if t.average is not None:
        write(t.ema, t.average)
    return writes


def coefficients_of(t: SimpleNamespace) -> SimpleNamespace:
    """The coefficients, rounded once to the dtype of the parameter."""
    return SimpleNamespace(**{name: t.param.dtype.type(value) for name, value in t.coefficients.items()})


def pieces(t: SimpleNamespace) -> tuple[Array, Array, dict[str, Array]]:
    """The arrays that a rule works on: the gradient as it takes it, the parameter and the states.

    For a row-sparse gradient, copies of its rows.
    """
    p, states = t.param, t.states
    if t.rows is not None:
        p, states = p[t.rows], {name: state[t.rows] for name, state in states.items()}
    return gradient_stage(t.grad, p, t.grad_factor, t.decay), p, states


def measure(equations: Any, tensors: list[SimpleNamespace], shared: dict[str, float], add: Add | None) -> None:
    """The sums over whole tensors that a rule, or a cautious mask, needs before the update, and what follows."""
    totals = [0.0, 0.0]
    norms = getattr(equations, "norms", False)
    for t in tensors:
        t.kept, sums = kept_count(equations, t), measures(equations, t)
        t.sums = [norm_of(total, a) if norms else total for total, a, _ in sums]
        t.pairs = [ranged(*one, t.rows is not None) for one in sums]
    if add is not None and any(t.cautious or t.pairs for t in tensors):
        add_up(tensors, norms, add)
    for t in tensors:
        if t.cautious:
            t.scale = t.whole_size / (t.kept + 1.0)
        if shared:
            equations.weigh(t.h, t.step, shared, t.sums)
            totals = [total + value for total, value in zip(totals, t.sums, strict=True)]
    if shared and tensors:
        equations.share(tensors[0].h, totals, shared)
    if hasattr(equations, "settle"):
        for t in tensors:
            t.coefficients |= equations.settle(t.h, t.sums, shared)


def add_up(tensors: list[SimpleNamespace], norms: bool, add: Add) -> None:
    """The sums over all parts of tensors whose parts are elsewhere."""
    parts: list[list[Ranged]] = [[(t.kept, 0)] if t.cautious else t.pairs for t in tensors]
    for t, added in zip(tensors, add([t.place for t in tensors], parts), strict=True):
        sums = [root_of(pair) if norms else float(np.ldexp(*pair)) for pair in added]
        if t.cautious:
            t.kept = sums[0]
        else:
            t.sums = sums


def kept_count(equations: Any, t: SimpleNamespace) -> float:
    """How many elements a cautious mask keeps; 0 where there is none."""
    if not t.cautious:
        return 0.0
    g, p, states = pieces(t)
    states = {name: state.copy(order="K") for name, state in states.items()}
    return float(np.count_nonzero(equations.direction(t.h, coefficients_of(t), g, p, **states) * g > 0))


def measures(equations: Any, t: SimpleNamespace) -> list[tuple[float, Array, Array]]:
    """The sums that a rule needs before its update, each with its two factors."""
    if not hasattr(equations, "measure"):
        return []
    g, p, states = pieces(t)
    states = {name: state.copy(order="K") for name, state in states.items()}
    terms = equations.measure(t.h, coefficients_of(t), g, p, **states)
    return [(sum_of_products(a, b, t.rows is not None), a, b) for a, b in terms]


def update(equations: Any, t: SimpleNamespace, telemetry: bool) -> list[Ranged] | None:
    """The rule and what comes after it; with telemetry, its sums."""
    g, p, states = pieces(t)
    before = p.copy(order="K")
    c = coefficients_of(t)
    if hasattr(equations, "direction"):
        move = equations.direction(t.h, c, g, p, **states)
        if t.cautious:
            move = np.where(move * g > 0, p.dtype.type(t.scale) * move, p.dtype.type(0))
        if hasattr(c, "keep"):
            p[...] = c.keep * p
        p[...] = p - move
    else:
        equations.update(t.h, c, g, p, **states)
    if t.rows is not None:
        t.param[t.rows] = p
        for name, state in states.items():
            t.states[name][t.rows] = state
    if t.average is not None:
        t.average += p.dtype.type(1.0 - t.ema_decay) * (p - t.average)
    if not telemetry:
        return None
    moment = None if t.first_moment is None else states[t.first_moment]
    moved = p - before

    def products(a: Array, b: Array) -> float:
        return sum_of_products(a, b, t.rows is not None, strip_sums)

    sums = [
        sum_of_products(t.grad, t.grad, t.rows is not None),
        float(np.count_nonzero(~np.isfinite(t.grad))),
        products(moved, moved),
        products(before, before),
        0.0 if moment is None else products(t.grad, moment),
        0.0 if moment is None else products(moment, moment),
    ]
    return ranged_telemetry(sums, t.grad, before, moved, moment, t.rows is not None)


def ranged_telemetry(
    sums: list[float], grad: Array, before: Array, moved: Array, moment: Array | None, rows: bool
) -> list[Ranged]:
    """The sums of a tensor's telemetry; those that went out of range are taken again."""
    pairs: list[tuple[Array, Array] | None] = [(grad, grad), None, (moved, moved), (before, before), None, None]
    if moment is not None:
        pairs[4:] = [(grad, moment), (moment, moment)]
    return [(total, 0) if pair is None else ranged(total, *pair, rows) for total, pair in zip(sums, pairs, strict=True)]


def measured_again(
    sums: list[float], grad: Array, before: Array, param: Array, moment: Array | None, rows: Array | None
) -> list[Ranged]:
    """The same after a step of the native sets, which have the parameter's values before it beside it."""
    with np.errstate(all="ignore"):
        before, param = plain(before), plain(param)
        moment = None if moment is None else widened(plain(moment))
        if rows is not None:
            before, param = before[rows], param[rows]
            moment = None if moment is None else moment[rows]
        return ranged_telemetry(sums, widened(plain(grad)), before, param - before, moment, rows is not None)


def norms_again(rule: str, tensor: dict[str, Any], shared: dict[str, float]) -> list[float]:
    """The norms that a rule settles from."""
    equations: Any = RULES[rule]
    with np.errstate(all="ignore"):
        return [norm_of(total, a) for total, a, _ in measures(equations, prepare(equations, tensor, shared))]


def measures_again(rule: str, tensor: dict[str, Any], shared: dict[str, float]) -> list[Ranged]:
    """The sums of a rule's measure, of a tensor that is a part of a larger one."""
    equations: Any = RULES[rule]
    with np.errstate(all="ignore"):
        t = prepare(equations, tensor, shared)
        return [ranged(*one, t.rows is not None) for one in measures(equations, t)]


def squares_again(grad: Array, rows: bool, total: float) -> Ranged:
    """The sum of a gradient's squares."""
    with np.errstate(all="ignore"):
        values = plain(grad)
        return ranged(total, values, values, rows)


def ranged(total: float, a: Array, b: Array, rows: bool) -> Ranged:
    """Σ a b as s · 2^k, k = 0 where it was in range: of doubles beyond 10^±154 the squares are not."""
    if a.dtype != np.float64 or in_range(total):
        return total, 0
    scaled_a, scaled_b = scaled_to_one(a), scaled_to_one(b)
    if scaled_a is None or scaled_b is None:
        return total, 0
    return sum_of_products(scaled_a[0], scaled_b[0], rows), scaled_a[1] + scaled_b[1]


def norm_of(total: float, x: Array) -> float:
    """The root of the sum of squares of x, of which `total` is the plain one."""
    if x.dtype != np.float64 or in_range(total):
        return sqrt(total)
    root, exponent = norm_parts(x)
    return float(np.ldexp(root, exponent))


def gradient_stage(g: Array, p: Array, factor: float, decay: float) -> Array:
    """Unscaling, clipping and the sign of maximize in one factor, then coupled L2; what is off leaves no trace."""
    dtype = p.dtype.type
    if factor != 1.0:
        g = dtype(factor) * g
    if decay != 0.0:
        g = g + dtype(decay) * p
    return g


def sum_of_products(
    a: Array, b: Array, rows: bool = False, sums: Callable[..., Iterator[float]] = pair_sums, total: float = 0.0
) -> float:
    """total + Σ a b in the order of the memory, chunk after chunk, and row after row of a row-sparse gradient."""
    pairs = zip(a, b, strict=True) if rows else [(a, b)]
    for x, y in pairs:
        for part in sums(x.ravel(order="K"), y.ravel(order="K")):
            total += part
    return total
