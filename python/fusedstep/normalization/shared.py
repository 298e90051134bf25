"""What workers tell each other in a pass: a message of one length, from which all compute the same numbers."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.normalization.arguments import Doubles
from fusedstep.reference.batch_norm import merge_all, merge_gradient_sums

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
    return _padded("; ".join(f"{name}: {value}" for name, value in terms.items()))


def refused(error: Exception) -> bytes:
    """Why a worker does not take part, as text."""
    return _padded(f"{_REFUSED}{type(error).__name__}: {error}")


def _padded(text: str) -> bytes:
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
    parts = []
    for row in table[:, TEXT:]:
        mean, m2, mean_low, m2_low = row[1:].reshape(4, -1)
        parts.append((int(row[0]), (mean, mean_low), (m2, m2_low)))
    count, (mean, _), (m2, _) = merge_all(parts, (table.shape[1] - TEXT - 1) // 4)
    return count, np.ascontiguousarray(mean), np.ascontiguousarray(m2)


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
    for rank, text in enumerate(plain):
        if text.startswith(_REFUSED):
            raise DisagreementError(f"{name(rank)} {text}")
    first = _terms(plain[0])
    for rank, text in enumerate(plain):
        mine = _terms(text)
        for key in {**first, **mine}:
            if mine.get(key) != first.get(key):
                raise DisagreementError(
                    f"{key}: {name(rank)} has {mine.get(key, 'none')}, {name(0)} has {first.get(key, 'none')}"
                )


def _terms(text: str) -> Mapping[str, str]:
    pairs = (term.partition(": ") for term in text.split("; "))
    return {key: value for key, _, value in pairs}
