"""The state of a random generator."""

from typing import Any

import numpy as np

from fusedstep._common.arguments import is_whole, shown
from fusedstep.checkpoint.fields import field
from fusedstep.checkpoint.values import Array, decode, encode_dict

#: The bit generators that are saved. A file names one of these; it cannot name anything else.
_BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
}
#: The field with a position in a buffer, and the buffer's length: NumPy accepts any position, and then reads past it.
_POSITIONS = {"MT19937": (("state", "pos"), 624), "Philox": (("buffer_pos",), 4)}
#: NumPy's own is of 4 words.
_LARGEST_POOL = 256


def encode_rng(rng: np.random.Generator, tensors: dict[str, Array]) -> dict[str, Any]:
    """The state of a generator as JSON; its arrays go into `tensors`."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__qualname__}")
    bits = rng.bit_generator
    if type(bits) not in _BIT_GENERATORS.values():
        raise TypeError(f"rng: expected one of {', '.join(_BIT_GENERATORS)}, got {type(bits).__qualname__}")
    seeds = bits.seed_seq
    if type(seeds) is not np.random.SeedSequence:
        raise TypeError(f"rng: expected a seed sequence of type SeedSequence, got {type(seeds).__qualname__}")
    _check_seeds(seeds.state, "rng: ")
    # The seeds too: `Generator.spawn` draws from them.
    return encode_dict({"state": bits.state, "seeds": seeds.state}, "rng", tensors)


def decode_rng(saved: dict[str, Any], tensors: dict[str, Array]) -> np.random.Generator:
    """A generator in the state that was saved."""
    state = decode(field(saved, "state", dict), tensors)
    seeds = decode(field(saved, "seeds", dict), tensors)
    try:
        _check_seeds(seeds, "")
        kind = state["bit_generator"]
        bits = _BIT_GENERATORS[kind](np.random.SeedSequence(**seeds))
        bits.state = state
        if kind in _POSITIONS:
            keys, length = _POSITIONS[kind]
            position = state
            for key in keys:
                position = position[key]
            if not 0 <= position <= length:
                raise ValueError(f"{'.'.join(keys)} is {shown(position)}")
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"damaged: no random state ({error!r})") from error
    return np.random.Generator(bits)


def _check_seeds(seeds: Any, place: str) -> None:
    """What a `numpy.random.SeedSequence` is made of: it mixes every word of its pool with every other."""
    if not isinstance(seeds, dict) or set(seeds) != {"entropy", "spawn_key", "pool_size", "n_children_spawned"}:
        raise ValueError(f"{place}seeds are {shown(seeds)}")
    for name, most in (("pool_size", _LARGEST_POOL), ("n_children_spawned", 2**63 - 1)):
        count = seeds[name]
        if not (is_whole(count) and 0 <= count <= most):
            raise ValueError(f"{place}{name}: expected a whole number from 0 to {most}, got {shown(count)}")
