"""Results in a line or a few: large values are named, not printed."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

#: The longest array or list that is shown.
_SHOWN = 8


def brief_repr(self: Any) -> str:
    """The `__repr__` of a dataclass, with what `brief` makes of its fields."""
    shown = ", ".join(f"{field.name}={brief(getattr(self, field.name))}" for field in fields(self))
    return f"{type(self).__name__}({shown})"


def brief(value: Any) -> str:
    """Numbers and short arrays as they are; of anything longer its kind and size."""
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, np.ndarray):
        if value.size <= _SHOWN and value.dtype.kind in "biuf":
            return repr(value.tolist())
        return f"<{value.dtype.name} of shape {value.shape}>"
    if isinstance(value, Mapping):
        names = ", ".join(map(str, list(value)[:_SHOWN])) + (", …" if len(value) > _SHOWN else "")
        return f"<{plural(len(value), 'entry', 'entries')}: {names}>" if value else "{}"
    if isinstance(value, (list, tuple)):
        if len(value) <= _SHOWN and all(isinstance(entry, (bool, int, float, str)) for entry in value):
            return repr(value)
        return f"<{plural(len(value), 'entry', 'entries')}>"
    text = repr(value)
    return text if len(text) <= 500 else f"<{type(value).__name__}>"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count and its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
