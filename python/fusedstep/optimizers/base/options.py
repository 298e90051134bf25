"""What every optimizer takes beside its own hyper-parameters."""

from dataclasses import InitVar
from typing import Any, TypedDict, dataclass_transform


class Options(TypedDict, total=False):
    """What every optimizer takes beside its own hyper-parameters.

    A group may set its own, unless an option is "for the whole step".

    Attributes:
        maximize: Climbs instead of descending. False by default.
        ema_decay: Keeps `ema ← ema_decay · ema + (1 − ema_decay) · p` of every parameter, starting from the parameter
            before its first step; in [0, 1). The average moves in the steps in which the parameter has a gradient.
            None, for no average, by default. Not for row-sparse gradients.
        ema_warmup: Gives the first steps more weight in the average, so that the start is soon forgotten: with
            `min(ema_decay, (1 + t) / (10 + t))` in a parameter's t-th step, as `averaging.EMA`. False by default.
        max_grad_norm: Multiplies all gradients by `min(1, max_grad_norm / (norm + 1e-6))`, with the norm of all of them
            together; > 0, infinity to have the norm reported only. None, for no clipping, by default. For the whole
            step: the same in all groups.
        skip_nonfinite: Leaves out a step whose gradients hold an infinity or a NaN: no parameter, state or step count
            changes. False by default. For the whole step.
        telemetry: Measures gradients, parameters and their change while they are in the cache, see `StepReport`. False
            by default. For the whole step.
        cautious: Leaves out the components of a step that go against the gradient, and scales the others of the tensor
            by `elements / (kept + 1)` (Liang, Chen, Liu and Liu, "Cautious Optimizers", 2024). False by default. Only
            for `Adam`, `AdamW`, `Adamax`, `NAdam`, `RAdam`, `Lion`, `AdEMAMix` and `ADOPT`.
        state_dtype: How the states of float32, float16 and bfloat16 parameters are stored from their first step on:
            "float32"; "bfloat16", in 2 bytes; or "8bit", in 1 byte and a float32 scale, `<state>_scale`, for every 256.
            Narrow states are rounded at random, so that the expected stored value is the computed one: rounded to the
            nearest, a moving average would not change. `ema`, `master`, `step_size` of `Rprop`, `z` of
            `ScheduleFreeAdamW` and `s` and `p0` of `Prodigy` stay float32. "float32" by default; see `convert_states`.
            A float64 parameter has float64 states.
        min_8bit_size: Parameters with fewer elements, such as norms and biases, keep float32 states with "8bit". 4096
            by default.
        master_weights: Keeps a float32 copy, `master`, of every float16 and bfloat16 parameter, takes the steps there,
            and rounds it into the parameter in the same pass. If a parameter was changed since the last step, the new
            value is taken. False by default: a step of less than half a unit in the last place of the parameter is then
            lost, unless it has `stochastic_rounding`.
        stochastic_rounding: Rounds float16 and bfloat16 parameters up or down at random. The part of a unit that is cut
            off is the probability of rounding up, so small steps add up. Not with `master_weights`. False, to the
            nearest, by default.
        seed: Seed of the random rounding, which also depends on a parameter's position, its step and the place of the
            element: it is the same on every processor and for any number of threads. 0 by default.
    """

    maximize: bool
    ema_decay: float | None
    ema_warmup: bool
    max_grad_norm: float | None
    skip_nonfinite: bool
    telemetry: bool
    cautious: bool
    state_dtype: str
    min_8bit_size: int
    master_weights: bool
    stochastic_rounding: bool
    seed: int


def option(*, default: Any, kw_only: bool) -> Any:
    """The default of an option that is given by name."""
    return default


@dataclass_transform(eq_default=False, field_specifiers=(option,))
class Fields:
    """Declarations in a subclass are arguments of its constructor, like the fields of a dataclass."""


class Arguments(Fields):
    """What every constructor takes beside its own fields: the parameters, and by name the options with their defaults.

    Type checkers read it; at run time the options are `**options`.
    """

    params: InitVar[Any]
    maximize: bool = option(default=False, kw_only=True)
    ema_decay: float | None = option(default=None, kw_only=True)
    ema_warmup: bool = option(default=False, kw_only=True)
    max_grad_norm: float | None = option(default=None, kw_only=True)
    skip_nonfinite: bool = option(default=False, kw_only=True)
    telemetry: bool = option(default=False, kw_only=True)
    cautious: bool = option(default=False, kw_only=True)
    state_dtype: str = option(default="float32", kw_only=True)
    min_8bit_size: int = option(default=4096, kw_only=True)
    master_weights: bool = option(default=False, kw_only=True)
    stochastic_rounding: bool = option(default=False, kw_only=True)
    seed: int = option(default=0, kw_only=True)


#: Their defaults.
OPTIONS: dict[str, Any] = {name: vars(Arguments)[name] for name in Options.__annotations__}

# An optimizer has the options that apply to it, as attributes that its groups answer.
for _name in OPTIONS:
    delattr(Arguments, _name)
