"""Writes what follows from the list of optimizers: `python tests/generate.py`.

The types of `fusedstep.functional`; in README.md the table of optimizers and those that take row-sparse gradients; in
docs/memory.md the table of bytes; in the documentation of `Options` the optimizers that may be cautious, and the states
that keep their bits; with torch, the types of `fusedstep.torch.optim`. `test_contract.py` says when one of them is
stale.
"""

import importlib.util
import inspect
import re
import textwrap
from pathlib import Path

import numpy as np

import fusedstep as fs
from fusedstep import _core
from fusedstep.optimizers import REGISTRY

ROOT = Path(__file__).parents[1]


def functional():
    """The stub of `fusedstep.functional`: one function a rule, made at run time."""
    lines = ['"""Made by `python tests/generate.py`; see functional.py."""', "", "from typing import Any", ""]
    lines += ["from numpy.typing import NDArray", "", "Array = NDArray[Any]", ""]
    for name in fs.functional.__all__:
        lines.append(f"def {name}(")
        star = False
        for p in inspect.signature(getattr(fs.functional, name)).parameters.values():
            if p.kind is p.KEYWORD_ONLY and not star:
                lines.append("    *,")
                star = True
            optional = " | None" if p.default is None and "None" not in p.annotation else ""
            default = "" if p.default is p.empty else " = ..."
            lines.append(f"    {p.name}: {p.annotation}{optional}{default},")
        lines.append(") -> None: ...")
    return "\n".join(lines) + "\n"


def readme():
    """README.md with its table of optimizers, and those that take row-sparse gradients."""
    rows = [
        f"| `fs.{optimizer.__name__}` | {inspect.getdoc(optimizer).splitlines()[0].rstrip('.')} | {states_of(rule)} |"
        for rule, optimizer in REGISTRY.items()
    ]
    text = with_table(read("README.md"), "| optimizer | what it is | states (with some hyper-parameters) |", rows)
    sparse = [f"`{optimizer.__name__}`" for rule, optimizer in REGISTRY.items() if _core.rules()[rule]["sparse"]]
    paragraph = re.search(r"^All optimizers take `maximize=True` too\..*?\n(?=\n)", text, re.MULTILINE | re.DOTALL)[0]
    return with_words(text, paragraph, r"shape\)`, for .*?:", f"shape)`, for {listed(sparse)}:")


def states_of(rule):
    """Those of all variants, and in brackets those of some; where they share none, one variant or another."""
    description = _core.rules()[rule]
    variants = [list(kept) for kept in dict.fromkeys(map(tuple, description["variants"]))]
    always = [name for name in description["states"] if all(name in kept for kept in variants)]
    some = [name for name in description["states"] if name not in always]
    if always:
        text = code(always) + (f" ({code(some)})" if some else "")
    else:
        text = " or ".join(code(kept) if kept else "none" for kept in variants)
    return ", ".join([text, *([code(description["scalars"])] if description["scalars"] else [])])


def code(names):
    return f"`{' '.join(names)}`"


def memory():
    """docs/memory.md with its table of bytes."""
    rows = []
    for optimizer in sorted(REGISTRY.values(), key=lambda optimizer: optimizer.__name__.casefold()):
        numbers = (bytes_of(optimizer, state_dtype) for state_dtype in ("float32", "bfloat16", "8bit"))
        rows.append(f"| `{optimizer.__name__}` | {' | '.join(numbers)} |")
    return with_table(read("docs/memory.md"), "| optimizer | float32 | bfloat16 | 8bit |", rows)


def bytes_of(optimizer, state_dtype):
    """Per element of a matrix of 65,536, after a step; of SGD with momentum."""
    p = np.ones((256, 256), np.float32)
    hypers = {"momentum": 0.9} if optimizer is fs.SGD else {}
    try:
        made = optimizer(p, state_dtype=state_dtype, **hypers)
    except ValueError:
        return "–"
    dense = _core.rules()[optimizer.rule]["dense"]
    made.step(p.copy() if dense else fs.RowSparse(np.arange(len(p)), p.copy(), p.shape))
    return f"{made.nbytes / p.size:.2f}"


def options():
    """The module of `Options`, with the optimizers that may be cautious, and the states that keep their bits."""
    text = read("python/fusedstep/optimizers/base/options.py")
    rules = [(optimizer.__name__, _core.rules()[rule]) for rule, optimizer in REGISTRY.items()]
    cautious = [f"`{name}`" for name, rule in rules if rule["cautious"]]
    text = with_words(text, attribute_of(text, "cautious"), r"Only for .*", f"Only for {listed(cautious)}.")
    kept = [
        f"{listed([f'`{state}`' for state in exact])} of `{name}`"
        for name, rule in rules
        # An optimizer that keeps all of them refuses other dtypes.
        if 0 < len(exact := [state for state in rule["states"] if state in rule["exact"]]) < len(rule["states"])
    ]
    states = listed(["`ema`", "`master`", *kept])
    return with_words(text, attribute_of(text, "state_dtype"), r"`ema`, .*? stay float32", f"{states} stay float32")


def attribute_of(text, name):
    """The lines of a docstring that document an attribute."""
    return re.search(rf"^        {name}: .*?(?=^        \w+: )", text, re.MULTILINE | re.DOTALL)[0]


def with_words(text, paragraph, pattern, words):
    """A text with other words in the place of some of a paragraph, whose lines are filled again."""
    changed, count = re.subn(pattern, lambda _: words, " ".join(paragraph.split()))
    assert count == 1, pattern
    first = " " * (len(paragraph) - len(paragraph.lstrip(" ")))
    further = first + " " * 4 if first else ""
    wrapped = textwrap.fill(
        changed, 120, initial_indent=first, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )
    return text.replace(paragraph, wrapped + "\n")


def listed(names):
    """`a`, `b` and `c`."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def with_table(text, header, rows):
    """A document, with these rows in the place of those under the header."""
    lines = text.splitlines()
    start = lines.index(header)
    end = next(k for k in range(start, len(lines)) if not lines[k].startswith("|"))
    return "\n".join([*lines[: start + 2], *rows, *lines[end:]]) + "\n"


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def files():
    """What each file is to hold, by its path."""
    made = {
        "python/fusedstep/functional.pyi": functional(),
        "python/fusedstep/optimizers/base/options.py": options(),
        "README.md": readme(),
        "docs/memory.md": memory(),
    }
    if importlib.util.find_spec("torch"):
        from generate_torch import stub

        made["python/fusedstep/torch/optim/__init__.pyi"] = stub()
    return made


if __name__ == "__main__":
    for path, text in files().items():
        if not (ROOT / path).exists() or read(path) != text:
            (ROOT / path).write_text(text, encoding="utf-8")
            print(f"{path}: written anew")
