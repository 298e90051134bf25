"""Philox 4x32-10: random words of a counter and a key, without a state.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
GROUP = 64
_LOW = np.uint64(0xFFFFFFFF)


def philox(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Four words for every counter of four words, (…, 4)."""
    c = [counters[..., k].astype(np.uint64) for k in range(4)]
    for k in range(ROUNDS):
        keys = [np.uint64((key[0] + k * 0x9E3779B9) % 2**32), np.uint64((key[1] + k * 0xBB67AE85) % 2**32)]
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ keys[0], p1 & _LOW, (p0 >> np.uint64(32)) ^ c[3] ^ keys[1], p0 & _LOW]
    return np.stack(c, axis=-1).astype(np.uint32)


def element_words(key: int, offset: int, size: int) -> NDArray[np.uint32]:
    """The words of elements offset to offset + size − 1.

    Elements 64 g to 64 g + 63 share the counters 16 g to 16 g + 15: number 16 k + j of them has word k of counter j.
    """
    first, last = offset // GROUP, (offset + size + GROUP - 1) // GROUP
    counters: NDArray[Any] = np.zeros((max(0, last - first) * 16, 4), np.uint32)
    numbers = np.arange(len(counters), dtype=np.uint64) + np.uint64(first * 16 % 2**64)
    counters[:, 0], counters[:, 1] = numbers & _LOW, numbers >> np.uint64(32)
    words = philox(counters, (key % 2**32, key // 2**32)).reshape(-1, 16, 4).transpose(0, 2, 1).reshape(-1)
    start = offset - first * GROUP
    return words[start : start + size]
