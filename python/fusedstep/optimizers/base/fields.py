"""Optimizers as classes of fields: their constructors, attributes and documentation follow from them."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, Unpack, get_origin

from fusedstep.optimizers.base.hypers import same_hyper
from fusedstep.optimizers.base.options import Options

_RAISES = """\
Raises:
    TypeError: A parameter that is no float32, float64, float16 or bfloat16 array; a hyper-parameter of a wrong kind.
    ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense.

"""


class Field(NamedTuple):
    """A hyper-parameter: its type and its default."""

    kind: Any
    default: Any


def fields_of(cls: type, hypers: Iterable[str]) -> dict[str, Field]:
    """The hyper-parameters that a class declares, in its order.

    Raises:
        TypeError: It declares its rule, and other hyper-parameters than the rule has.
    """
    kinds = inspect.get_annotations(cls)
    own = {name: Field(kinds[name], vars(cls)[name]) for name in kinds if name in hypers and name in vars(cls)}
    if "rule" in vars(cls):
        origins: dict[str, Any] = {name: get_origin(kind) for name, kind in kinds.items()}
        declared = [name for name, origin in origins.items() if origin is not ClassVar]
        if sorted(declared) != sorted(hypers) or len(own) != len(declared):
            raise TypeError(f"{cls.__name__}: expected fields with defaults, {list(hypers)}, got {declared}")
    return own


def constructor(cls: type, fields: dict[str, Field], start: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that takes the parameters, these fields and the options, and hands them to `start`."""
    arguments = ", ".join(f"{name}: _fields[{name!r}].kind = _fields[{name!r}].default" for name in fields)
    hypers = ", ".join(f"{name!r}: {name}" for name in fields)
    source = (
        f"def __init__(self, params: Any, {arguments}, **options: Unpack[Options]) -> None:\n"
        f"    _start(self, params, {{{hypers}}}, options)\n"
    )
    scope: dict[str, Any] = {
        "__name__": cls.__module__,
        "Any": Any,
        "Unpack": Unpack,
        "Options": Options,
        "_fields": fields,
        "_start": start,
    }
    # Made as dataclasses make theirs, so that the signature and the errors of a wrong call are those of a plain
    # function.
    exec(compile(source, f"<constructor of {cls.__qualname__}>", "exec"), scope)
    made: Callable[..., None] = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


def attribute(name: str) -> property:
    """A hyper-parameter as the groups have it."""

    def read(self: Any) -> Any:
        values = [group[name] for group in self.param_groups]
        return values[0] if all(same_hyper(value, values[0]) for value in values) else tuple(values)

    return property(read, doc=f"`{name}` of the groups, a tuple where they differ.")


def documented(doc: str | None) -> str | None:
    """The docstring of an optimizer, with the errors that all of them raise before its examples."""
    if doc is None or "Raises:" in doc:
        return doc
    return re.sub(
        r"^( *)(?=Examples:)",
        lambda found: re.sub(r"^(?=.)", found[1], _RAISES, flags=re.MULTILINE) + found[1],
        doc,
        count=1,
        flags=re.MULTILINE,
    )
