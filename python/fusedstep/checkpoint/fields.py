"""What a field of the header must be."""

from typing import Any

from fusedstep._common.arguments import shown


def field(holder: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """The field of that name; it must be there, and of that kind."""
    if key not in holder:
        raise ValueError(f"damaged: the header has no {key!r}")
    value = holder[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"damaged: {key!r} is {shown(value)}")
    return value


def optional(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """A field that is a dict, or is not there."""
    found: dict[str, Any] = field({key: {}, **holder}, key, dict)
    return found


def as_dict(value: Any, label: str) -> dict[str, Any]:
    """A dict."""
    if not isinstance(value, dict):
        raise ValueError(f"damaged: {label} is {shown(value)}")
    return value


def as_list(values: Any, kind: type, label: str) -> list[Any]:
    """A list whose entries are all of one kind."""
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"damaged: {label}: {shown(values)}")
    return values


def position(text: str) -> int:
    """The position of a parameter, from a name in the optimizer's state."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"damaged: a state of parameter {shown(text)}")
    return int(text)


def same_names(expected: set[str], found: set[str]) -> None:
    """Refuses tensors that are missing, and those that nothing names."""
    if expected != found:
        raise ValueError(f"damaged: tensors missing: {sorted(expected - found)}; too many: {sorted(found - expected)}")
