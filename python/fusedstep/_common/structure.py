"""Parameters as they are given: an array, a list, a dict, or dicts and lists within each other."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

#: The most dicts within each other: one that is deeper holds itself.
_DEEPEST = 100
#: Whether a list or a dict is one array to its consumer.
Leaf = Callable[[Any], bool]


def no_leaf(value: Any) -> bool:
    """No list and no dict is an array."""
    return False


class Given(NamedTuple):
    """Parameters in order, their names where they have some, and where they were given.

    `container` is what must go on holding them: a list, a dict or a `Nested`; None where there is nothing to look at.
    """

    objects: list[Any]
    names: list[Any] | None
    container: Any

    def copied(self) -> "Given":
        """With a new list, because a group's may be changed."""
        return self._replace(objects=list(self.objects))


class Nested:
    """A tree of dicts, lists and tuples whose leaves are arrays; a leaf is named by its path, joined by points.

    A list of pairs `(name, array)` is one too.
    """

    #: Also of those that were pickled without one.
    leaf: Leaf = staticmethod(no_leaf)

    def __init__(self, tree: Any, leaf: Leaf = no_leaf) -> None:
        self.tree = tree
        if leaf is not no_leaf:
            self.leaf = leaf

    def leaves(self) -> list[tuple[str, Any]]:
        """What it holds now, each with its name."""
        if is_pairs(self.tree):
            return list(self.tree)
        found = list(_leaves(self.tree, (), self.leaf))
        if all(len(path) == 1 for path, _ in found):
            return [(path[0], leaf) for path, leaf in found]
        return [(".".join(map(str, path)), leaf) for path, leaf in found]

    def built(self, values: Sequence[Any]) -> Any:
        """Other leaves in the same structure."""
        if is_pairs(self.tree):
            return {name: value for (name, _), value in zip(self.tree, values, strict=True)}
        return _built(self.tree, iter(values), self.leaf)

    def values(self, given: Any, name: str) -> list[Any]:
        """The leaves of what has the same structure."""
        return list(_same(given, dict(self.tree) if is_pairs(self.tree) else self.tree, name, self.leaf))

    def grads(self, grads: Any, role: str = "grads") -> list[Any]:
        """The leaves of a value of the same structure; None for a branch without gradients."""
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
    """An iterator as a list; everything else as it is."""
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


def is_groups(params: Any) -> bool:
    """Whether it is a list of groups, dicts that hold parameters and hyper-parameters."""
    return isinstance(params, list | tuple) and len(params) > 0 and all(isinstance(entry, Mapping) for entry in params)


def parse(params: Any, role: str = "params", leaf: Leaf = no_leaf) -> Given:
    """The parameters of one group.

    Raises:
        TypeError: Something without an order, or that holds no arrays.
        ValueError: Two of one name.
    """
    again = isinstance(params, Mapping | list | tuple)
    params = listed(params, role)
    if isinstance(params, str | bytes):
        raise TypeError(f"{role}: expected arrays, got {type(params).__name__}")
    if not isinstance(params, Mapping | list | tuple) or leaf(params):
        return Given([params], None, None)
    nested = isinstance(params, Mapping) and any(_is_branch(value, leaf) for value in params.values())
    if nested or is_pairs(params):
        container = Nested(params, leaf)
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
    """The present content of a container: pairs of a name, or a place, and an object."""
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


class Parameters:
    """Parameters in any structure that an optimizer takes, with the same labels and errors everywhere.

    That is an array; a list, a tuple or an iterator of arrays; a dict of them, also with dicts and lists within; pairs
    of a name and an array; or a list of groups, whose entry "params" is one of these.

    Args:
        params: What was given.
        role: Its name in errors.
        leaf: Lists that are one array.

    Raises:
        TypeError: Something without an order, or that holds no arrays.
        ValueError: Two of one name; a group without parameters.
    """

    def __init__(self, params: Any, role: str = "params", leaf: Leaf = no_leaf) -> None:
        params = listed(params, role)
        self.leaf = leaf
        self.single = not _is_branch(params, leaf) and not isinstance(params, str | bytes)
        self.grouped = is_groups(params)
        self.kind: type = tuple if isinstance(params, tuple) else list
        if not self.grouped:
            self.groups = [parse(params, role, leaf)]
            return
        for k, group in enumerate(params):
            if "params" not in group:
                raise ValueError(f"{role}[{k}]: a group has no 'params'")
        self.groups = [parse(group["params"], role, leaf).copied() for group in params]

    @classmethod
    def of(cls, given: Given, single: bool) -> "Parameters":
        """Those of one group, which was parsed before."""
        made = cls([])
        made.groups, made.single = [given], single
        return made

    @property
    def objects(self) -> list[Any]:
        """All that were given, in order."""
        return [value for group in self.groups for value in group.objects]

    def labels(self, name: str) -> list[str]:
        """The name of each in errors."""
        if self.single:
            return [name]
        keys: list[Any] = []
        for group in self.groups:
            keys += range(len(keys), len(keys) + len(group.objects)) if group.names is None else group.names
        return [f"{name}[{key!r}]" for key in keys]

    def refuse_orphans(self) -> None:
        """ValueError if their container holds other objects than when it was given."""
        for group in self.groups:
            refuse_orphans(group)

    def built(self, values: Sequence[Any]) -> Any:
        """Other values in the same structure; pairs as a dict, groups as one flat list."""
        (given,) = self.groups if not self.grouped else [None]
        if given is None:
            return list(values)
        if self.single:
            return values[0]
        if isinstance(given.container, Nested):
            return given.container.built(values)
        return self.kind(values) if given.names is None else dict(zip(given.names, values, strict=True))

    def values(self, given: Any, name: str) -> list[Any]:
        """The leaves of what has the same structure; of groups also one flat list.

        Raises:
            TypeError: It has another kind.
            ValueError: Other names, or another number of arrays.
        """
        if not self.grouped:
            return _values_of(self.groups[0], self.single, given, name, self.leaf)
        _require_list(given, name)
        counts = [len(group.objects) for group in self.groups]
        if len(given) == sum(counts) and not any(_is_branch(entry, self.leaf) for entry in given):
            return list(given)
        if len(given) != len(counts):
            raise ValueError(f"{name}: expected {len(counts)} groups or {sum(counts)} arrays, got {len(given)} entries")
        found = []
        for k, (group, entry) in enumerate(zip(self.groups, given, strict=True)):
            single = len(group.objects) == 1 and not _is_branch(entry, self.leaf)
            found += _values_of(group, single, entry, f"{name}[{k}]", self.leaf)
        return found


def flat(values: Any, role: str) -> list[tuple[str, Any]]:
    """The leaves of gradients or other values, each with its label, where it is not known what they belong to."""
    values = listed(values, role)
    if not isinstance(values, Mapping | list | tuple):
        return [(role, values)]
    pairs = list(values) if is_pairs(values) else [(".".join(map(str, path)), v) for path, v in _leaves(values, ())]
    return [(f"{role}[{name if name.isdigit() else repr(name)}]", value) for name, value in pairs]


def _values_of(group: Given, single: bool, given: Any, name: str, leaf: Leaf) -> list[Any]:
    """The values of one group."""
    if single:
        if _is_branch(given, leaf):
            raise TypeError(f"{name}: expected an array, got {type(given).__name__}")
        return [given]
    if isinstance(group.container, Nested):
        return group.container.values(given, name)
    if group.names is not None:
        return list(_same(given, dict.fromkeys(group.names), name, leaf, deep=False))
    return list(_same(given, group.objects, name, leaf, deep=False))


def _same(given: Any, tree: Any, name: str, leaf: Leaf, *, deep: bool = True) -> Iterator[Any]:
    """The leaves of `given` in the order of those of `tree`, whose structure it has."""
    if not _is_branch(tree, leaf):
        yield given
    elif isinstance(tree, Mapping):
        if not isinstance(given, Mapping):
            raise TypeError(f"{name}: expected a dict, got {type(given).__name__}")
        if set(given) != set(tree):
            raise ValueError(f"{name}: expected a dict with the names {list(tree)}, got {list(given)}")
        for key, entry in tree.items():
            yield from _same(given[key], entry, f"{name}[{key!r}]", leaf) if deep else [given[key]]
    else:
        _require_list(given, name)
        if len(given) != len(tree):
            raise ValueError(f"{name}: expected {len(tree)} arrays, got {len(given)}")
        for k, (value, entry) in enumerate(zip(given, tree, strict=True)):
            yield from _same(value, entry, f"{name}[{k}]", leaf) if deep else [value]


def _require_list(given: Any, name: str) -> None:
    if not isinstance(given, list | tuple):
        raise TypeError(f"{name}: expected a list, got {type(given).__name__}")


def _is_branch(value: Any, leaf: Leaf) -> bool:
    return isinstance(value, Mapping | list | tuple) and not leaf(value)


def _leaves(tree: Any, path: tuple[Any, ...], leaf: Leaf = no_leaf) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if len(path) > _DEEPEST:
        raise ValueError(f"params: more than {_DEEPEST} dicts within each other")
    if _is_branch(tree, leaf):
        for key, entry in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(entry, (*path, key), leaf)
    else:
        yield path, tree


def _built(tree: Any, values: Iterator[Any], leaf: Leaf = no_leaf) -> Any:
    if not _is_branch(tree, leaf):
        return next(values)
    if isinstance(tree, Mapping):
        return {key: _built(entry, values, leaf) for key, entry in tree.items()}
    entries = [_built(entry, values, leaf) for entry in tree]
    return entries if isinstance(tree, list) else tuple(entries)


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
