"""A run file read piece by piece: what the doctor needs of it, whatever else it holds."""

import codecs
import json
import math
import re
from array import array
from collections.abc import Iterator
from os import PathLike
from typing import Any

from fusedstep.doctor.run import TELEMETRY, numbers

#: Bytes that are read at a time. Of a list that is longer only the numbers are kept, not the text.
PIECE = 1 << 20
#: The most letters of a value that is no list of numbers.
_LARGEST = 1 << 24
_SPACE = re.compile(r"[ \t\n\r]*")
#: How far to look ahead in a list that holds more than numbers.
_SHORT = 256
_DECODER = json.JSONDecoder()


def read_record(path: str | PathLike[str]) -> dict[str, Any]:
    """The record in a file, as `Run.from_record` takes it: lists of numbers as arrays, and only what a run has.

    Raises:
        json.JSONDecodeError: It is no JSON.
        OSError: It cannot be read.
        TypeError: A list of numbers holds something else.
        UnicodeDecodeError: It is no UTF-8.
        ValueError: A number is out of range.
        RecursionError: It is nested too deeply.
    """
    with open(path, "rb") as file:
        text = _Text(iter(lambda: file.read(PIECE), b""))
        if text.next() != "{":
            value = text.value()
            text.end()
            return value  # type: ignore[no-any-return]
        record: dict[str, Any] = {}
        for key in text.members():
            name = f"record[{key!r}]"
            if key == "steps":
                record[key] = text.numbers(name, 0.0)
            elif key == "telemetry":
                record[key] = _telemetry(text, name)
            elif key == "epochs":
                record[key] = list(text.entries()) if text.next() == "[" else text.value()
            elif key in ("options", "chance_loss"):
                record[key] = text.value()
            else:
                text.skip()
        text.end()
        return record


def _telemetry(text: "_Text", name: str) -> Any:
    if text.next() != "{":
        return text.value()
    lists = {}
    for key in text.members():
        if key in TELEMETRY:
            lists[key] = text.numbers(f"{name}[{key!r}]", -math.inf if key.endswith("cosine") else 0.0)
        else:
            text.skip()
    return lists


class _Text:
    """JSON text of which a piece is in memory."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    def _more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self._ended:
            return False
        self._before += self._at
        piece = next(self._pieces, b"")
        self._ended = not piece
        self._text, self._at = self._text[self._at :] + self._decode.decode(piece, final=self._ended), 0
        return True

    def _fail(self, expected: str) -> json.JSONDecodeError:
        error = json.JSONDecodeError(f"Expecting {expected}", "", 0)
        error.args = (f"Expecting {expected}: char {self._before + self._at}",)
        return error

    def next(self) -> str:
        """The next letter that is no space, which stays; nothing at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _take(self, letter: str, expected: str) -> None:
        if self.next() != letter:
            raise self._fail(expected)
        self._at += 1

    def end(self) -> None:
        """Nothing may follow."""
        if self.next():
            raise self._fail("the end")

    def value(self) -> Any:
        """The next value, all of it in memory."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                # The value may be cut off at the end of the piece: read on, up to the limit.
                if len(self._text) - self._at > _LARGEST or not self._more():
                    raise self._fail("value") from None
                continue
            # A number at the end of a piece may have more digits, behind a point or an exponent's sign.
            if end + 3 > len(self._text) and isinstance(value, (int, float)) and self._more():
                continue
            self._at = end
            return value

    def members(self) -> Iterator[str]:
        """The names in an object; the value after each is to be taken before the next is asked for."""
        self._take("{", "'{'")
        if self.next() == "}":
            self._at += 1
            return
        while True:
            if self.next() != '"':
                raise self._fail("a name in double quotes")
            name = self.value()
            self._take(":", "':'")
            yield name
            if self.next() == "}":
                self._at += 1
                return
            self._take(",", "',' or '}'")

    def entries(self) -> Iterator[Any]:
        """The values of a list, one after the other."""
        for _ in self._places():
            yield self.value()

    def _places(self) -> Iterator[None]:
        self._take("[", "'['")
        if self.next() == "]":
            self._at += 1
            return
        while True:
            yield
            if self.next() == "]":
                self._at += 1
                return
            self._take(",", "',' or ']'")

    def numbers(self, name: str, least: float) -> Any:
        """A list of numbers as an array; another value as it is."""
        if self.next() != "[":
            return self.value()
        found = array("d")
        for piece in self._runs():
            piece = [self.value()] if piece is None else piece
            found.frombytes(numbers(piece, name, least, first=len(found)).tobytes())
        return found

    def _runs(self) -> Iterator[list[Any] | None]:
        """The values of a list, many at a time; None before a list, object or string, which is to be taken then."""
        self._take("[", "'['")
        if self.next() == "]":
            self._at += 1
            return
        window = _SHORT
        while True:
            if self.next() in ("[", "{", '"'):
                window = _SHORT
                yield None
                if self.next() == "]":
                    self._at += 1
                    return
                self._take(",", "',' or ']'")
                continue
            until = self._at + window
            end = self._text.find("]", self._at, until)
            until = until if end < 0 else end
            nested = min((at for at in (self._text.find(c, self._at, until) for c in '[{"') if at >= 0), default=-1)
            comma = self._text.rfind(",", self._at, until if nested < 0 else nested)
            if nested < 0 and end >= 0:
                yield self._decoded(end)
                self._at = end + 1
                return
            if comma >= 0:
                yield self._decoded(comma)
                self._at = comma + 1
                window = min(2 * window, PIECE)
            elif until < len(self._text) and nested < 0 and window < _LARGEST:
                window *= 2
            elif nested >= 0 or window >= _LARGEST or not self._more():
                raise self._fail("',' or ']'")

    def _decoded(self, end: int) -> list[Any]:
        try:
            values: list[Any] = json.loads(f"[{self._text[self._at : end]}]")
        except json.JSONDecodeError as error:
            self._at += max(error.pos - 1, 0)
            raise self._fail("value") from None
        if not values:
            raise self._fail("value")
        return values

    def skip(self, depth: int = 0) -> None:
        """Over the next value, of any length."""
        if depth > 200:
            raise RecursionError("nested too deeply")
        kind = self.next()
        if kind == "{":
            for _ in self.members():
                self.skip(depth + 1)
        elif kind == "[":
            for run in self._runs():
                if run is None:
                    self.skip(depth + 1)
        else:
            self.value()
