"""`fusedstep gallery`: draws what the figures claim, from real computation."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import fusedstep as fs
from fusedstep._common.extras import require
from fusedstep.apps.cli.common import add_runtime_options, check_writable, use_runtime, write_json


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "gallery",
        help="draw why training is stuck, and what moves it on",
        description="Computes and draws figures, each as SVG, PNG and JSON (what it claims, as numbers), and a page "
        "that shows them with their captions: index.html. Figures already in the folder stay on the page.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which figures (default: all)")
    parser.add_argument("--out", metavar="DIR", help="the folder to write to; created if it does not exist")
    parser.add_argument("--list", action="store_true", help="list the figures")
    parser.add_argument("--animate", action="store_true", help="a GIF too, of those that move: optimizers, ravine")
    parser.add_argument("--quick", action="store_true", help="compute less: fewer steps, seeds and sizes")
    parser.add_argument("--json", metavar="FILE", help="write what all drawn figures claim ('-': to standard output)")
    add_runtime_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draws one figure after the other; what is done when it is interrupted stays."""
    from fusedstep.apps import gallery

    if options.list:
        width = max(map(len, gallery.FIGURES))
        print("\n".join(f"{name:<{width}}  {figure.TITLE}" for name, figure in gallery.FIGURES.items()))
        return 0
    for name in options.names:
        if name not in gallery.FIGURES:
            raise ValueError(f"NAME: expected one of {', '.join(gallery.FIGURES)}, got {name!r}")
    if options.out is None:
        raise ValueError("--out: expected a folder to write to")
    for module in ("matplotlib", "rich", "scipy", "sklearn"):
        require(module, "gallery")
    if options.json is not None and options.json != "-":
        check_writable("--json", options.json)
    folder = _folder(options.out)
    names = [name for name in gallery.FIGURES if name in options.names or not options.names]
    drawn: list[dict[str, Any]] = []
    interrupted, page = False, None
    with use_runtime(options), Progress(len(names), quiet=options.json == "-") as progress:
        try:
            for name in names:
                progress.begin(name)
                figure = gallery.FIGURES[name]
                drawn.append(gallery.write(name, figure, folder, quick=options.quick, animate=options.animate))
                page = gallery.write_index(folder, gallery.FIGURES)
                progress.done(name)
        except KeyboardInterrupt:
            interrupted = True
    out = sys.stderr if options.json == "-" else sys.stdout
    if interrupted:
        print(f"interrupted after {len(drawn)} of {len(names)} figures", file=out)
    if page is not None:
        print(page, file=out)
    if options.json:
        write_json({"version": fs.__version__, "quick": options.quick, "figures": drawn}, options.json)
    return 130 if interrupted else 0


def _folder(text: str) -> Path:
    """The folder, created if it does not exist; an error if it cannot be written."""
    folder = Path(text)
    try:
        if not text:
            raise OSError("no name")
        folder.mkdir(parents=True, exist_ok=True)
        # Rights alone do not tell of a file system that is full or read-only.
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"\0" * 4096)
    except OSError as error:
        raise ValueError(f"--out: cannot write to a folder {text!r} ({error.strerror or error})") from error
    return folder


class Progress:
    """A live bar on a terminal; a line per figure elsewhere."""

    def __init__(self, figures: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=quiet)
        self.figures, self.count = figures, 0
        self.live = console.is_terminal
        self.stream = sys.stderr if quiet else sys.stdout
        self.bar = Bar(
            SpinnerColumn(),
            TextColumn("figure"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("", total=figures)

    def __enter__(self) -> "Progress":
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # rich 13 ends a bar that it has not shown with an empty line.
        if self.live:
            self.bar.stop()

    def begin(self, name: str) -> None:
        """The next figure is under way."""
        self.bar.update(self.task, description=name)

    def done(self, name: str) -> None:
        """It is there."""
        self.count += 1
        self.bar.update(self.task, completed=self.count)
        if not self.live:
            print(f"{self.count}/{self.figures}  {name}", file=self.stream, flush=True)
