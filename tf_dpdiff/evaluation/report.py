"""Self-contained HTML pages: sections of tables, pictures and text, which load nothing from elsewhere."""

import base64
from collections.abc import Sequence
import html
import pathlib
import re
from typing import NamedTuple

from tf_dpdiff import files

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem; color: #222; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; }}
h3 {{ font-size: 1rem; margin-top: 1.5rem; }}
pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; white-space: pre-wrap; font-size: 13px; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; height: auto; }}
img.pixels {{ image-rendering: pixelated; }}
figcaption, .note {{ color: #555; font-size: 0.9rem; }}
.warning {{ background: #fdecea; border-left: 5px solid #c0392b; padding: 0.7rem 1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.95rem; }}
td, th {{ padding: 0.25rem 1rem 0.25rem 0; text-align: left; vertical-align: top; }}
thead th {{ border-bottom: 1px solid #999; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
{warning}<table class="facts">{facts}</table>
{sections}
</body>
</html>
"""


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      title: Its heading, plain text.
      body: HTML, made by the functions of this module.
    """

    title: str
    body: str


def paragraph(text: str) -> str:
    """Returns a note of plain text."""
    return f'<p class="note">{html.escape(text)}</p>\n'


def heading(text: str) -> str:
    """Returns a heading within a section."""
    return f'<h3>{html.escape(text)}</h3>\n'


def preformatted(text: str) -> str:
    """Returns plain text as it is, lines kept."""
    return f'<pre>{html.escape(text)}</pre>\n'


def picture(png: pathlib.Path, *, alt: str, caption: str, pixelated: bool = True) -> str:
    """Returns a picture that is part of the page.

    Args:
      png: A PNG file.
      alt: What it shows, for who cannot see it.
      caption: Stands below it.
      pixelated: Whether pixels stay squares where the picture is enlarged.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    content = base64.b64encode(png.read_bytes()).decode('ascii')
    return (
        f'<figure><img{" class=pixels" if pixelated else ""} src="data:image/png;base64,{content}" '
        f'alt="{html.escape(alt)}">\n<figcaption>{html.escape(caption)}</figcaption></figure>\n'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; what does not fit on a narrow screen can be scrolled to.

    Args:
      header: A name a column.
      rows: A text a column; texts that are numbers are aligned on the right.
    """
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]

    def line(tag, cells):
        return ''.join(
            f'<{tag}{" class=number" if number else ""}>{html.escape(cell)}</{tag}>'
            for cell, number in zip(cells, numeric)
        )

    body = ''.join(f'<tr>{line("td", row)}</tr>\n' for row in rows)
    head = f'<thead><tr>{line("th", header)}</tr></thead>'
    return f'<div class="scroll"><table>{head}\n<tbody>{body}</tbody></table></div>\n'


def write_page(
    path: pathlib.Path, *, title: str, facts: dict[str, str], sections: Sequence[Section], warning: str = ''
) -> None:
    """Writes the page.

    Args:
      path: Where to.
      title: Its heading.
      facts: Short facts for the table on top.
      sections: In the order of the page.
      warning: Who may not see the page, in plain text; empty where everybody may.
    """
    files.write_text(
        path,
        _PAGE.format(
            title=html.escape(title),
            warning=f'<p class="warning">{html.escape(warning)}</p>\n' if warning else '',
            facts=''.join(f'<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in facts.items()),
            sections=''.join(f'<h2>{html.escape(part.title)}</h2>\n{part.body}' for part in sections),
        ),
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r'[-+]?[\d.,]+%?( ± [\d.]+%?)?|-|', text) is not None
