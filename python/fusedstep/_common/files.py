"""Files that are written whole or not at all."""

import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, or vanishes when it fails.

    Raises:
        ValueError: `path` is there and no regular file.
        OSError: It cannot be written.
    """
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{os.fspath(path)!s}: is there, and no regular file")
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".fusedstep-{secrets.token_hex(8)}.tmp")
    try:
        # Not `tempfile`, whose files only their owner may read.
        with open(temporary, "x+b") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    # Until the directory is on the disk too, a loss of power may bring the old file back.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file at once, so that an interrupt leaves the old one.

    It writes directly into a pipe or a terminal, and into a file whose directory takes no other.

    Raises:
        OSError: It cannot be written.
    """
    directory = os.path.dirname(os.path.realpath(path))
    if os.path.exists(path) and not (os.path.isfile(path) and os.access(directory, os.W_OK)):
        with open(path, "wb") as stream:
            stream.write(content)
        return
    with replacing(path) as file:
        file.write(content)


def save_figure(figure: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """Writes a figure of matplotlib at once; the suffix of the path is the format, by default matplotlib's."""
    suffix = os.path.splitext(os.fspath(path))[1][1:]
    kind = suffix or figure.canvas.get_default_filetype()
    memory = io.BytesIO()
    figure.savefig(memory, format=kind, **options)
    write_whole(path if suffix else f"{os.fspath(path)}.{kind}", memory.getvalue())
