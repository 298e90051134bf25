"""How far a measurement is: a bar on a terminal, a callback, or nothing."""

from collections.abc import Callable
from typing import Any

from fusedstep._common.extras import require

#: True: a bar, where standard error is a terminal. False: nothing. A function: called with products done and planned.
Show = bool | Callable[[int, int], None]


class Progress:
    """Counts products and shows them."""

    def __init__(self, show: Show, total: int, title: str) -> None:
        if not (isinstance(show, bool) or callable(show)):
            raise TypeError(f"progress: expected a bool or a function, got {type(show).__qualname__}")
        self._total, self._done = total, 0
        self._call = show if callable(show) else None
        self._bar: Any = None
        if show is True:
            console = require("rich.console", "train").Console(stderr=True)
            if console.is_terminal:
                rich = require("rich.progress", "train")
                columns = rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=20), rich.MofNCompleteColumn()
                self._bar = rich.Progress(*columns, console=console, transient=True)
                self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """One more product begins."""
        self._done += 1
        self._total = max(self._total, self._done)
        if self._call is not None:
            self._call(self._done, self._total)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, total=self._total)
