"""Writing one figure: SVG, PNG and what it claims."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any, Protocol

from fusedstep._common.extras import require
from fusedstep._common.files import write_whole
from fusedstep._common.plain import plain
from fusedstep.apps.gallery import looks

Data = dict[str, Any]


class Drawable(Protocol):
    """The interface of a figure's module."""

    TITLE: str

    def compute(self, seed: int = 0, quick: bool = False) -> Data:
        """The numbers."""

    def draw(self, data: Data) -> Any:
        """The picture."""

    def caption(self, data: Data) -> str:
        """What to see."""


def write(name: str, figure: Drawable, folder: Path, *, quick: bool = False, animate: bool = False) -> Data:
    """Computes and draws a figure into a folder: NAME.svg, NAME.png, NAME.json and, where asked for and able, NAME.gif.

    Args:
        name: What the files are called.
        figure: A module of this package.
        folder: Where to; it exists.
        quick: Whether to compute less.
        animate: Whether to write a GIF too.

    Returns:
        What is in NAME.json: `name`, `title`, `caption`, `claims`, and whether it is `animated`.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[gallery]` is not installed.
        OSError: The folder cannot be written.

    Examples:
        >>> import pathlib, tempfile
        >>> from fusedstep.apps import gallery
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     entry = gallery.write("critical", gallery.FIGURES["critical"], folder)
        ...     page = gallery.write_index(folder, gallery.FIGURES)
        ...     print(sorted(path.name for path in folder.iterdir()))
        ['critical.json', 'critical.png', 'critical.svg', 'index.html']
        >>> print(entry["claims"]["kinds"]["saddle"], entry["claims"]["saddle_kind"])
        4 saddle
    """
    rc_context = require("matplotlib", "gallery").rc_context
    data = figure.compute(quick=quick)
    files: dict[str, bytes] = {}
    with rc_context(looks.SETTINGS):
        drawn = figure.draw(data)
        for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
            memory = io.BytesIO()
            drawn.savefig(memory, format=suffix, **options)
            files[suffix] = memory.getvalue()
    animated = animate and hasattr(figure, "animate")
    entry = {
        "name": name,
        "title": figure.TITLE,
        "caption": figure.caption(data),
        "claims": plain_claims(data["claims"]),
        "animated": animated,
    }
    for suffix, content in files.items():
        write_whole(folder / f"{name}.{suffix}", content)
    if animated:
        with rc_context(looks.SETTINGS), tempfile.TemporaryDirectory() as made:
            drawn_to = Path(made) / f"{name}.gif"
            figure.animate(data, drawn_to)  # type: ignore[attr-defined]
            write_whole(folder / drawn_to.name, drawn_to.read_bytes())
    write_whole(folder / f"{name}.json", (json.dumps(entry, indent=2, allow_nan=False) + "\n").encode())
    return entry


def plain_claims(value: Any) -> Any:
    """As JSON has it; null for a number that is not finite."""
    if isinstance(value, dict):
        return {str(key): plain_claims(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_claims(entry) for entry in value]
    value = plain(value)
    if isinstance(value, list):
        return [plain_claims(entry) for entry in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
