"""What workers tell each other in a pass: a message of one length, from which all compute the same numbers."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.normalization.arguments import Doubles
from fusedstep.reference.batch_norm import merge_gradient_sums
from fusedstep.reference.two_doubles import two_sum

#: Doubles that hold a text: what a worker calls for, or why it refuses.
TEXT = 32
_REFUSED = "refused: "
#: A worker's name in errors.
Name = Callable[[int], str]


class DisagreementError(ValueError):
    """Workers that do not call for the same."""


@lru_cache(256)
def described(**terms: Any) -> bytes:
    """What all workers must call for alike, as text."""
    return padded("; ".join(f"{name}: {value}" for name, value in terms.items()))


def refused(error: Exception) -> bytes:
    """Why a worker does not take part, as text."""
    return padded(f"{_REFUSED}{type(error).__name__}: {error}")


def padded(text: str) -> bytes:
    """A text in the bytes that a message has for it; what is longer is cut."""
    return text.encode()[: 8 * TEXT].ljust(8 * TEXT, b"\0")


def forward_message(channels: int, text: bytes, statistics: tuple[Any, ...] | None) -> Doubles:
    """A text, and the count, mean, m2, mean_low and m2_low of this worker's values, if it has some."""
    message = np.zeros(TEXT + 1 + 4 * channels)
    message[:TEXT] = np.frombuffer(text)
    if statistics is not None:
        count, *arrays = statistics
        message[TEXT] = count
        np.concatenate(arrays, out=message[TEXT + 1 :])
    return message


def backward_message(channels: int, text: bytes, sums: tuple[Doubles, Doubles] | None) -> Doubles:
    """A text, and Σ dy and Σ dy · (x − mean) over this worker's values, if it has some."""
    message = np.zeros(TEXT + 2 * channels)
    message[:TEXT] = np.frombuffer(text)
    if sums is not None:
        np.concatenate(sums, out=message[TEXT:])
    return message


def read_forward(table: NDArray[np.float64], name: Name) -> tuple[int, Doubles, Doubles]:
    """The count, mean and m2 of all workers' values, from the messages of all, one a row.

    Raises:
        DisagreementError: A worker refused, or calls for something else; all workers raise the same.
    """
    require_agreement([row.tobytes() for row in table[:, :TEXT]], name)
    counts = table[:, TEXT]
    return merged(counts, table[:, TEXT + 1 :].reshape(len(table), 4, -1)[counts > 0])


def merged(counts: Doubles, parts: NDArray[np.float64]) -> tuple[int, Doubles, Doubles]:
    """Count, mean and m2 of all values from those of parts, (n, 4, C): mean, m2 and what rounding left of both.

    `merge_stats` for many parts at once, rounded to doubles. With the first part's mean as the origin, the others' are
    small differences, whose squares are taken about their own mean: nothing cancels.
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
    """The sums over all workers' values, from the messages of all, one a row, added in the order of workers.

    Raises:
        DisagreementError: As in `read_forward`.
    """
    require_agreement([row.tobytes() for row in table[:, :TEXT]], name)
    return merge_gradient_sums(tuple(row.reshape(2, -1)) for row in table[:, TEXT:])


def require_agreement(texts: list[bytes], name: Name) -> None:
    """DisagreementError, naming the worker and the difference, unless all texts are the first."""
    if all(text == texts[0] for text in texts):
        return
    plain = [text.rstrip(b"\0").decode(errors="replace") for text in texts]
    require_alike([text.split("; ") for text in plain], name)


def require_alike(lists: list[list[str]], name: Name) -> None:
    """DisagreementError, naming the worker and the difference, unless all lists have the same pairs "name: value"."""
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
