"""The page that shows all figures of a folder."""

import html
import json
from collections.abc import Iterable
from pathlib import Path

from fusedstep._common.files import write_whole

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fusedstep: why is it stuck?</title>
<style>
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif;
  color: #222; background: #fff; }}
figure {{ margin: 0 0 3rem; }}
img {{ max-width: 100%; height: auto; }}
figcaption {{ margin-top: .5rem; }}
nav a {{ margin-right: 1em; }}
</style>
</head>
<body>
<h1>Why is it stuck?</h1>
<p>Computed and drawn by <code>fusedstep gallery</code>. The numbers in the captions were measured in the run that drew
the figure; those that each figure claims are behind its link to JSON.</p>
<nav>{links}</nav>
{figures}
</body>
</html>
"""

_FIGURE = """<figure id="{name}">
<h2>{title}</h2>
<img src="{name}.svg" alt="{title}">{animation}
<figcaption>{caption}
<a href="{name}.png">PNG</a> <a href="{name}.svg">SVG</a> <a href="{name}.json">JSON</a></figcaption>
</figure>"""


def write_index(folder: Path, names: Iterable[str]) -> Path:
    """Writes index.html over the figures that are in a folder, from this run or another.

    Args:
        folder: Where `write` has written.
        names: Of the figures, in the order to show them; those that are not there are left out.

    Returns:
        The path of the page.

    Raises:
        ValueError: A file beside a figure is not what `write` writes.
    """
    links, figures = [], []
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            title, caption = html.escape(entry["title"]), html.escape(entry["caption"])
            animation = f'\n<img src="{name}.gif" alt="{title}, moving">' if entry["animated"] else ""
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}: not what the gallery writes; remove it, or draw {name} again") from None
        links.append(f'<a href="#{name}">{title}</a>')
        figures.append(_FIGURE.format(name=name, title=title, caption=caption, animation=animation))
    page = folder / "index.html"
    write_whole(page, _PAGE.format(links="\n".join(links), figures="\n".join(figures)).encode())
    return page
