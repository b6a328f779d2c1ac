"""report.html: one self-contained page about a run, made of what may be released."""

import base64
import html
import pathlib
from typing import Dict

from tf_dpdiff import files

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; white-space: pre-wrap; font-size: 14px; }}
img {{ max-width: 100%; image-rendering: pixelated; }}
td, th {{ padding: 0.2rem 1rem 0.2rem 0; text-align: left; }}
figcaption {{ color: #555; }}
</style>
<h1>{title}</h1>
<table>{facts}</table>
<h2>Samples</h2>
<figure><img src="data:image/png;base64,{grid}" alt="Samples, one row a class">
<figcaption>Samples of the released model, one row a class.</figcaption></figure>
<h2>Privacy statement</h2>
<pre>{statement}</pre>
<h2>Configuration</h2>
<pre>{configuration}</pre>
<p>This page holds only what the statement covers. Numbers measured against private images are in the run's
<code>non_private/</code> folder and must not be released.</p>
</html>
"""


def write_report(path: pathlib.Path, *, title: str, facts: Dict[str, str], grid_png: pathlib.Path, statement: str,
                 configuration: str) -> None:
    """Writes the page.

    Args:
      path: Where to.
      title: Its heading.
      facts: Short facts for the table on top.
      grid_png: A picture of samples.
      statement: The privacy statement.
      configuration: The operative gin configuration.
    """
    rows = ''.join(f'<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in facts.items())
    files.write_text(
        path,
        _PAGE.format(title=html.escape(title),
                     facts=rows,
                     grid=base64.b64encode(grid_png.read_bytes()).decode('ascii'),
                     statement=html.escape(statement),
                     configuration=html.escape(configuration)))
