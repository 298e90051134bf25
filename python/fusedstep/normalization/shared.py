"""The messages that workers exchange in a pass. All have one length; all workers compute the same from them."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.normalization.arguments import Doubles
from fusedstep.reference.batch_norm import merge_gradient_sums
from fusedstep.reference.two_doubles import two_sum

#: Number of float64 values that hold the text: the description of a call, or the error of a worker.
TEXT = 32
_REFUSED = "refused: "
#: Gives a worker's name in errors.
Name = Callable[[int], str]


class DisagreementError(ValueError):
    """The calls of workers differ."""


@lru_cache(256)
def described(**terms: Any) -> bytes:
    """The description of a call, which must be equal for all workers, as text."""
    return padded("; ".join(f"{name}: {value}" for name, value in terms.items()))


def refused(error: Exception) -> bytes:
    """The error of a worker that refuses its input, as text."""
    return padded(f"{_REFUSED}{type(error).__name__}: {error}")


def padded(text: str) -> bytes:
    """A text, cut or padded to the bytes that a message has for it."""
    return text.encode()[: 8 * TEXT].ljust(8 * TEXT, b"\0")


def forward_message(channels: int, text: bytes, statistics: tuple[Any, ...] | None) -> Doubles:
    """A text, and the count, mean, m2, mean_low and m2_low of this worker's values; zeros without statistics."""
    message = np.zeros(TEXT + 1 + 4 * channels)
    message[:TEXT] = np.frombuffer(text)
    if statistics is not None:
        count, *arrays = statistics
        message[TEXT] = count
        np.concatenate(arrays, out=message[TEXT + 1 :])
    return message


def backward_message(channels: int, text: bytes, sums: tuple[Doubles, Doubles] | None) -> Doubles:
    """A text, and Σ dy and Σ dy · (x − mean) over this worker's values; zeros without sums."""
    message = np.zeros(TEXT + 2 * channels)
    message[:TEXT] = np.frombuffer(text)
    if sums is not None:
        np.concatenate(sums, out=message[TEXT:])
    return message


def read_forward(table: NDArray[np.float64], name: Name) -> tuple[int, Doubles, Doubles]:
    """The count, mean and m2 of all workers' values, from the messages of all workers, one per row.

    Raises:
        DisagreementError: A worker refused its input, or calls differ; all workers raise the same.
    """
    require_agreement([row.tobytes() for row in table[:, :TEXT]], name)
    counts = table[:, TEXT]
    return merged(counts, table[:, TEXT + 1 :].reshape(len(table), 4, -1)[counts > 0])


def merged(counts: Doubles, parts: NDArray[np.float64]) -> tuple[int, Doubles, Doubles]:
    """Count, mean and m2 of all values from those of parts, (n, 4, C): mean, m2 and the rounding errors of both.

    This is `merge_stats` for many parts at once, rounded to float64. The means are taken relative to that of the first
    part. So they are small, and their squared deviations do not cancel.
    """
    total = int(counts.sum())
    counts = counts[counts > 0]
    if total == 0:
        return 0, np.zeros(parts.shape[2]), np.zeros(parts.shape[2])
    weights = counts[:, None]
    with np.errstate(all="ignore"):
        mean, m2, mean_low, m2_low = parts.transpose(1, 0, 2)
        away, low = two_sum(mean, -mean[0])
        low = low + (mean_low - mean_low[0])
        shift = (weights * away).sum(0) / total
        away = (away - shift) + low
        rest = (weights * away).sum(0) / total
        high, low = two_sum(mean[0], shift)
        centre = high + (low + mean_low[0] + rest)
        squares = (m2 + (m2_low + weights * np.square(away - rest))).sum(0)
    return total, centre, squares


def read_backward(table: NDArray[np.float64], name: Name) -> tuple[Doubles, Doubles]:
    """The sums over all workers' values, from the messages of all, one per row, added in the order of workers.

    Raises:
        DisagreementError: As in `read_forward`.
    """
    require_agreement([row.tobytes() for row in table[:, :TEXT]], name)
    return merge_gradient_sums(tuple(row.reshape(2, -1)) for row in table[:, TEXT:])


def require_agreement(texts: list[bytes], name: Name) -> None:
    """DisagreementError that names the worker and the difference, unless all texts are equal."""
    if all(text == texts[0] for text in texts):
        return
    plain = [text.rstrip(b"\0").decode(errors="replace") for text in texts]
    require_alike([text.split("; ") for text in plain], name)


def require_alike(lists: list[list[str]], name: Name) -> None:
    """DisagreementError that names the worker and the difference, unless all lists have equal pairs "name: value"."""
    for rank, lines in enumerate(lists):
        if lines and lines[0].startswith(_REFUSED):
            raise DisagreementError(f"{name(rank)} {'; '.join(lines)}")
    first = _terms(lists[0])
    for rank, lines in enumerate(lists):
        mine = _terms(lines)
        for key in {**first, **mine}:
            if mine.get(key) != first.get(key):
                raise DisagreementError(
                    f"{key}: {name(rank)} has {mine.get(key, 'none')}, {name(0)} has {first.get(key, 'none')}"
                )


def _terms(lines: list[str]) -> Mapping[str, str]:
    pairs = (line.partition(": ") for line in lines)
    return {key: value for key, _, value in pairs}
