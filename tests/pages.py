"""The pages that people read, README.md and docs/, as tests look at them: blocks of code, words, links."""

from collections.abc import Iterator
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.glob('**/*.md'))]
_FENCED = re.compile(r'^( *)```(\w*)[^\n]*\n(.*?)^\1```$', re.M | re.S)


class Block(NamedTuple):
    """A fenced block of code.

    Attributes:
      language: Such as 'sh'; '' where none is named.
      text: Its lines.
    """

    language: str
    text: str

    def commands(self) -> list[str]:
        """Returns the commands of a block of shell, each in one line."""
        lines = re.sub(r'\\\n\s*', ' ', self.text).splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith('#')]


def name_of(path: pathlib.Path) -> str:
    """Returns the name of a page."""
    return str(path.relative_to(ROOT))


def blocks(path: pathlib.Path, *languages: str) -> list[Block]:
    """Returns the blocks of a page, in order; with languages only theirs."""
    found = [Block(language, text) for _, language, text in _FENCED.findall(path.read_text())]
    return [block for block in found if not languages or block.language in languages]


def prose(path: pathlib.Path) -> str:
    """Returns a page without its blocks of code."""
    return _FENCED.sub('', path.read_text())


def inline_code(path: pathlib.Path) -> list[str]:
    """Returns what stands between backticks within the text and the tables of a page."""
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose(path))]


def links(path: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields the file and the anchor, or '', of each link and picture that does not lead to another site."""
    for target in re.findall(r'\]\(((?!https?:|mailto:)[^)\s]+)\)', prose(path)):
        name, _, anchor = target.partition('#')
        yield (path.parent / name if name else path).resolve(), anchor


def with_blocks(*languages: str) -> list[pathlib.Path]:
    """Returns the pages that have blocks of these languages."""
    return [path for path in PAGES if blocks(path, *languages)]


def num_words(path: pathlib.Path) -> int:
    """Returns how many words of a page are read in order: without code, and without tables, which are looked up."""
    text = re.sub(r'^\|.*$|<!--.*?-->', '', prose(path), flags=re.M)
    return sum(bool(re.search(r'\w', word)) for word in re.sub(r'\]\([^)]*\)', ']', text).split())
