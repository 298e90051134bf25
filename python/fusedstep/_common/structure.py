"""Parameters as they are given: an array, a list, a dict, or dicts and lists within each other."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

#: Dicts within dicts: deeper ones hold themselves.
_DEEPEST = 100


class Given(NamedTuple):
    """Parameters in order, their names where they have some, and where they were given.

    `container` is what must go on holding them: a list, a dict or a `Nested`; None where there is nothing to look at.
    """

    objects: list[Any]
    names: list[Any] | None
    container: Any

    def copied(self) -> "Given":
        """With a list of its own, for a group's may be changed."""
        return self._replace(objects=list(self.objects))


class Nested:
    """A tree of dicts, lists and tuples whose leaves are arrays; a leaf is named by its path, joined by points.

    A list of pairs `(name, array)` is one too.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree

    def leaves(self) -> list[tuple[str, Any]]:
        """What it holds now, each with its name."""
        if is_pairs(self.tree):
            return list(self.tree)
        found = list(_leaves(self.tree, ()))
        if all(len(path) == 1 for path, _ in found):
            return [(path[0], leaf) for path, leaf in found]
        return [(".".join(map(str, path)), leaf) for path, leaf in found]

    def built(self, values: Sequence[Any]) -> Any:
        """Other leaves in the same structure."""
        if is_pairs(self.tree):
            return {name: value for (name, _), value in zip(self.tree, values, strict=True)}
        return _built(self.tree, iter(values))

    def grads(self, grads: Any, role: str = "grads") -> list[Any]:
        """The leaves of what has the same structure; None for a branch that has no gradients."""
        if not is_pairs(self.tree):
            return list(_matched(grads, self.tree, role))
        if isinstance(grads, Mapping):
            return list(_matched(grads, dict(self.tree), role))
        if isinstance(grads, Iterable) and not is_array(grads):
            grads = list(grads)
        return list(_matched(grads, [leaf for _, leaf in self.tree], role))


def is_array(value: Any) -> bool:
    """Whether it is an array of any library."""
    return isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def is_pairs(value: Any) -> bool:
    """Whether it is a list of pairs `(name, array)`, as `named_parameters()` gives."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) for entry in value)
    )


def listed(params: Any, role: str = "params") -> Any:
    """What can be gone through once only as a list; everything else as it is."""
    if isinstance(params, set | frozenset):
        raise TypeError(f"{role}: expected an order, got a {type(params).__name__}, which has none: give a list")
    if isinstance(params, str | bytes | Mapping | list | tuple) or is_array(params):
        return params
    entries = list(params) if isinstance(params, Iterable) else None
    # A module of PyTorch's; a list of parameters is one too.
    if hasattr(params, "named_parameters") and (entries is None or not all(map(is_array, entries))):
        kind = type(params).__qualname__
        raise TypeError(f"{role}: expected arrays, got {kind}: give its parameters, {role}.parameters()")
    return params if entries is None else entries


def parse(params: Any, role: str = "params") -> Given:
    """The parameters of one group.

    Raises:
        TypeError: Something without an order, or that holds no arrays.
        ValueError: Two of one name.
    """
    again = isinstance(params, Mapping | list | tuple)
    params = listed(params, role)
    if isinstance(params, str | bytes):
        raise TypeError(f"{role}: expected arrays, got {type(params).__name__}")
    if not isinstance(params, Mapping | list | tuple):
        return Given([params], None, None)
    nested = isinstance(params, Mapping) and any(isinstance(v, Mapping | list | tuple) for v in params.values())
    if nested or is_pairs(params):
        container = Nested(params)
        leaves = container.leaves()
        names = [name for name, _ in leaves]
        for name, count in Counter(names).items():
            if count > 1:
                raise ValueError(f"{role}: two parameters are named {name!r}")
        return Given([leaf for _, leaf in leaves], names, container if again else None)
    if isinstance(params, Mapping):
        return Given(list(params.values()), list(params), params if isinstance(params, dict) else Nested(params))
    return Given(list(params), None, params if isinstance(params, list) and again else None)


def held(container: Any) -> list[tuple[Any, Any]]:
    """What a container holds now: pairs of a name, or a place, and an object."""
    if isinstance(container, Nested):
        return container.leaves()
    return list(container.items() if isinstance(container, Mapping) else enumerate(container))


def refuse_orphans(given: Given) -> None:
    """ValueError where a container holds other objects than when it was given."""
    if given.container is None:
        return
    names = range(len(given.objects)) if given.names is None else given.names
    now = dict(held(given.container))
    for name, param in zip(names, given.objects, strict=True):
        if name not in now:
            _refuse(f"params: {name!r} is gone, which is trained")
        if now[name] is not param:
            _refuse(f"params[{name!r}]: holds another array than the one that is trained")
    for name in now.keys() - set(names):
        _refuse(f"params: {name!r} is new, and not trained")


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        f"{what}; opt.rebind(params) goes on with what params holds now, and `array[...] = value` writes into an array"
    )


def flat_grads(grads: Any, container: Any) -> list[Any]:
    """Gradients as a list: those of an iterator, or of a tree."""
    return container.grads(grads) if isinstance(container, Nested) else list(grads)


def _leaves(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if len(path) > _DEEPEST:
        raise ValueError(f"params: more than {_DEEPEST} dicts within each other")
    if isinstance(tree, Mapping | list | tuple):
        for key, entry in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(entry, (*path, key))
    else:
        yield path, tree


def _built(tree: Any, values: Iterator[Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _built(entry, values) for key, entry in tree.items()}
    if isinstance(tree, list | tuple):
        entries = [_built(entry, values) for entry in tree]
        return entries if isinstance(tree, list) else tuple(entries)
    return next(values)


def _matched(grads: Any, tree: Any, role: str) -> Iterator[Any]:
    """The leaves of `grads` in the order of those of `tree`."""
    kind = type(grads).__qualname__
    if not isinstance(tree, Mapping | list | tuple):
        yield grads
    elif grads is None:
        for _ in _leaves(tree, ()):
            yield None
    elif isinstance(tree, Mapping):
        if not isinstance(grads, Mapping):
            raise TypeError(f"{role}: expected a dict with the parameters' names, got {kind}")
        for key in tree:
            if key not in grads:
                raise ValueError(f"{role}: no gradient for {key!r} (give None to leave it out)")
        for key in grads:
            if key not in tree:
                raise ValueError(f"{role}: {key!r} is not the name of a parameter")
        for key, entry in tree.items():
            yield from _matched(grads[key], entry, f"{role}[{key!r}]")
    else:
        if not isinstance(grads, list | tuple):
            raise TypeError(f"{role}: expected a list of {len(tree)} arrays, got {kind}")
        if len(grads) != len(tree):
            raise ValueError(f"{role}: expected {len(tree)} arrays, got {len(grads)}")
        for k, (entry, grad) in enumerate(zip(tree, grads, strict=True)):
            yield from _matched(grad, entry, f"{role}[{k}]")
