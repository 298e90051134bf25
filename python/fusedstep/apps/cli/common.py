"""What the commands share."""

import argparse
import codecs
import json
import math
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from fusedstep import runtime
from fusedstep._common.files import write_whole

T = TypeVar("T")

#: How a terminal reads what it has no letters for.
_PLAIN = {
    "·": "-",
    "–": "-",
    "…": "...",
    "µ": "u",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "√": "sqrt",
    "σ": "sigma",
    "θ": "theta",
    "Δ": "d",
    "‖": "|",
    "−": "-",
    "²": "^2",
    "✓": "+",
    "✗": "x",
    "’": "'",
    "“": '"',
    "”": '"',
    "━": "=",
    "╸": "=",
    "╺": "-",
}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in text)
    return plain, error.end


codecs.register_error("fusedstep.plainly", _plainly)


@contextmanager
def any_terminal() -> Iterator[None]:
    """Standard output and error take any text inside, whatever their encoding: an ASCII terminal plain letters."""
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and hasattr(stream, "errors"):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="fusedstep.plainly")
    try:
        yield
    finally:
        for stream, errors in changed:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Adds --isa and --threads."""
    parser.add_argument("--isa", metavar="NAME", help="instruction set to compute with (default: the widest)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="number of threads (default: all processors)")


def use_runtime(options: argparse.Namespace) -> ExitStack:
    """Enters what add_runtime_options read."""
    with ExitStack() as stack:
        if options.isa is not None:
            stack.enter_context(runtime.use_isa(options.isa))
        if options.threads is not None:
            stack.enter_context(runtime.threads(options.threads))
        return stack.pop_all()


def parsed(kind: Callable[[str], T], valid: Callable[[T], bool], expected: str) -> Callable[[str], T]:
    """An argparse type: what `kind` makes of the text, where that is valid; the error says what is expected."""

    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            pass
        else:
            if valid(value):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


positive_seconds = parsed(float, lambda value: 0 < value < math.inf, "a finite number > 0")
positive_int = parsed(int, lambda value: value >= 1, "a whole number >= 1")
whole = parsed(int, lambda value: value >= 0, "a whole number >= 0")
share = parsed(float, lambda value: 0 <= value < 1, "a number in [0, 1)")


def check_writable(option: str, path: str, *, replaced: bool = False) -> None:
    """Refuses a path that cannot be written, before the work that would be lost.

    It tries to write: permissions alone do not show a full or read-only file system. An existing file is not changed.

    Args:
        option: What asks for it.
        path: Where to write.
        replaced: Whether the file is written beside and then put in its place, which only a file of its own bears.
    """
    try:
        if not path:
            raise OSError("no name")
        try:
            kind = os.stat(path).st_mode
        except FileNotFoundError:
            kind = None
        if kind is not None and not stat.S_ISREG(kind):
            if replaced or not (stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)):
                raise OSError("no file")
            if stat.S_ISCHR(kind):
                _try_device(path)
            return
        if kind is not None:
            os.close(os.open(path, os.O_WRONLY))
        if replaced or kind is None:
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))) as trial:
                trial.write(b"\0" * 4096)
                trial.flush()
    except OSError as error:
        reason = f" ({error.strerror or error})"
        raise ValueError(f"{option}: cannot write {path!r}{reason}") from error


def _try_device(path: str) -> None:
    """A line break, which is as good as nothing in what is printed there; not to a terminal."""
    handle = os.open(path, os.O_WRONLY | os.O_NOCTTY)
    try:
        if not os.isatty(handle):
            os.write(handle, b"\n")
    finally:
        os.close(handle)


def check_different(paths: dict[str, str | None]) -> None:
    """Refuses one file for two outputs, however its name is written; by option."""
    written = [path for path in paths.values() if path is not None and path != "-"]
    if len({os.path.realpath(path) for path in written}) < len(written):
        raise ValueError(f"{', '.join(paths)}: expected a file each, got {written}")


def write_json(content: dict[str, Any], target: str) -> None:
    """Writes to a file, or to standard output for '-'. A number that is not finite, which JSON has not, is null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_whole(target, text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
