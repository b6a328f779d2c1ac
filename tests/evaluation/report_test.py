"""Tests of report.html."""

import base64
import html.parser
import io
import os
import re

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import report

_HOSTILE = '<script>alert("x")</script> & {braces} %s \'quoted\' </pre><img src="http://example.com/x.png"> ε ≤ 10\n'

# Elements that have no end tag.
_VOID = ('meta', 'img', 'link', 'br')


class Page(html.parser.HTMLParser):
    """What a browser sees: tags with their attributes, and the text within each tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f'unexpected </{tag}>'

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1] if self._open else None, data))

    def texts_of(self, tag):
        return [text for name, text in self.texts if name == tag]


@pytest.fixture
def grid():
    return np.random.default_rng(0).integers(0, 256, [6, 9, 3]).astype(np.uint8)


def write(tmp_path, grid, **replaced):
    generate.write_png(tmp_path / 'grid.png', grid)
    arguments = {
        'title': 'Digits',
        'facts': {
            'epsilon': '9.99',
            'delta': '1e-4'
        },
        'grid_png': tmp_path / 'grid.png',
        'statement': 'The training is (9.99, 1e-4)-differentially private.\nMore.',
        'configuration': "Schedule.name = 'cosine'\n",
    }
    report.write_report(tmp_path / 'report.html', **{**arguments, **replaced})
    return (tmp_path / 'report.html').read_text(encoding='utf-8')


def test_page_loads_nothing_from_elsewhere(tmp_path, grid):
    text = write(tmp_path, grid)
    for tag, attributes in Page(text).tags:
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed', 'base')
        for name in ('src', 'href', 'srcset', 'poster', 'data', 'background'):
            assert attributes.get(name, 'data:').startswith('data:')
    assert not re.search(r'@import|url\s*\(|https?:|//[a-z]', re.sub('base64,[A-Za-z0-9+/=]+', '', text))


def test_page_shows_the_grid(tmp_path, grid):
    (image,) = [attributes for tag, attributes in Page(write(tmp_path, grid)).tags if tag == 'img']
    kind, content = image['src'].split(',')
    assert kind == 'data:image/png;base64' and image['alt']
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as picture:
        assert picture.format == 'PNG'
        np.testing.assert_array_equal(np.array(picture), grid)


def test_page_holds_title_facts_statement_and_configuration(tmp_path, grid):
    page = Page(write(tmp_path, grid))
    assert page.texts_of('title') == page.texts_of('h1') == ['Digits']
    assert page.texts_of('th') == ['epsilon', 'delta'] and page.texts_of('td') == ['9.99', '1e-4']
    assert page.texts_of('pre') == [
        'The training is (9.99, 1e-4)-differentially private.\nMore.', "Schedule.name = 'cosine'\n"
    ]


@pytest.mark.parametrize('where', ['title', 'statement', 'configuration', 'facts'])
def test_text_is_never_taken_for_html(tmp_path, grid, where):
    plain_tags = [tag for tag, _ in Page(write(tmp_path, grid)).tags]
    page = Page(write(tmp_path, grid, **{where: {_HOSTILE: _HOSTILE, 'b': 'c'} if where == 'facts' else _HOSTILE}))
    assert [tag for tag, _ in page.tags] == plain_tags
    shown_in = {'title': ['title', 'h1'], 'facts': ['th', 'td'], 'statement': ['pre'], 'configuration': ['pre']}[where]
    for tag in shown_in:
        assert _HOSTILE in page.texts_of(tag)


def test_report_without_its_grid_is_not_written(tmp_path, grid):
    with pytest.raises(FileNotFoundError):
        write(tmp_path, grid, grid_png=tmp_path / 'missing.png')
    assert os.listdir(tmp_path) == ['grid.png']
