"""Writes what no person writes in README.md and docs/: the reference of configurations, and blocks of measured numbers.

    .venv/bin/python -I docs/generate.py
    .venv/bin/python -I docs/generate.py --check

A block of numbers stands between `<!-- numbers: NAME -->` and `<!-- /numbers -->`, a number within a text between
`<!-- number: NAME -->` and `<!-- /number -->`. With --check nothing is written, and what is stale is named.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs.generators import configuration
from docs.generators import numbers


def generated(root: pathlib.Path = ROOT) -> dict[pathlib.Path, str]:
    """Returns what each page should hold.

    Args:
      root: Of the checkout, whose README.md and docs/ are looked at.

    Raises:
      ValueError: names a page that cannot be made, and says why.
    """
    pages = {root / configuration.PAGE: configuration.page()}
    for path in [root / 'README.md', *sorted((root / 'docs').glob('**/*.md'))]:
        if path not in pages and path.is_file():
            try:
                pages[path] = numbers.rewrite(path.read_text(encoding='utf-8'))
            except ValueError as error:
                raise ValueError(f'{path.relative_to(root)}: {error}') from error
    return pages


def main(argv: Sequence[str] | None = None, root: pathlib.Path = ROOT) -> int:
    """Writes or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, name what is stale')
    flags = parser.parse_args(argv)
    try:
        stale = {
            path: text
            for path, text in generated(root).items()
            if not path.is_file() or path.read_text(encoding='utf-8') != text
        }
    except ValueError as error:
        print(f'generate: error: {error}', file=sys.stderr)
        return 1
    for path, text in stale.items():
        print(f'{path.relative_to(root)} {"is stale: run docs/generate.py" if flags.check else "written"}')
        if not flags.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding='utf-8')
    return int(bool(stale) and flags.check)


if __name__ == '__main__':
    sys.exit(main())
