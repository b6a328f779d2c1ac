"""Tests of report.html."""

import base64
import html.parser
import io
import re

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.evaluation import pictures
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


def write(
    tmp_path,
    grid,
    *,
    statement='The training is (9.99, 1e-4)-differentially private.\nMore.',
    cell='89.9% ± 0.3%',
    caption='A look.',
    **replaced,
):
    pictures.write_png(tmp_path / 'grid.png', grid)
    sections = [
        report.Section('Samples', report.picture(tmp_path / 'grid.png', alt=caption, caption=caption)),
        report.Section(
            'Numbers',
            report.heading('Beside')
            + report.table(('classifier', 'accuracy'), [('svm', cell)])
            + report.paragraph('A note.'),
        ),
        report.Section('Statement', report.preformatted(statement)),
    ]
    arguments = {'title': 'Digits', 'facts': {'epsilon': '9.99', 'delta': '1e-4'}, 'sections': sections}
    report.write_page(tmp_path / 'report.html', **{**arguments, **replaced})
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


def test_page_holds_what_it_was_given_in_its_order(tmp_path, grid):
    page = Page(write(tmp_path, grid))
    assert page.texts_of('title') == page.texts_of('h1') == ['Digits']
    assert page.texts_of('th') == ['epsilon', 'delta', 'classifier', 'accuracy']
    assert page.texts_of('td') == ['9.99', '1e-4', 'svm', '89.9% ± 0.3%']
    assert page.texts_of('h2') == ['Samples', 'Numbers', 'Statement'] and page.texts_of('h3') == ['Beside']
    assert page.texts_of('pre') == ['The training is (9.99, 1e-4)-differentially private.\nMore.']


def test_page_fits_a_phone(tmp_path, grid):
    page = Page(write(tmp_path, grid))
    assert {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'} in [a for _, a in page.tags]
    tables = [attributes for tag, attributes in page.tags if tag == 'div']
    assert tables == [{'class': 'scroll'}]


def test_numbers_are_aligned_on_the_right_and_names_are_not(tmp_path, grid):
    cells = [attributes for tag, attributes in Page(write(tmp_path, grid)).tags if tag == 'td']
    assert cells[-2:] == [{}, {'class': 'number'}]
    cells = [attributes for tag, attributes in Page(write(tmp_path, grid, cell='high')).tags if tag == 'td']
    assert cells[-2:] == [{}, {}]


def test_warning_stands_above_everything_else(tmp_path, grid):
    assert 'class="warning"' not in write(tmp_path, grid)
    text = write(tmp_path, grid, warning='Not for <everybody>.')
    assert text.index('Not for &lt;everybody&gt;.') < text.index('class="facts"')


@pytest.mark.parametrize(
    'where, tag, count',
    [
        ('title', 'h1', 1),
        ('warning', 'p', 1),
        ('statement', 'pre', 1),
        ('facts', 'td', 1),
        ('cell', 'td', 1),
        ('caption', 'figcaption', 1),
    ],
)
def test_text_is_never_taken_for_html(tmp_path, grid, where, tag, count):
    plain = {'facts': {'b': 'c', 'd': 'e'}, 'warning': 'plain', 'cell': 'plain'}
    plain_tags = [name for name, _ in Page(write(tmp_path, grid, **plain)).tags]
    hostile = {**plain, where: {_HOSTILE: _HOSTILE, 'b': 'c'} if where == 'facts' else _HOSTILE}
    page = Page(write(tmp_path, grid, **hostile))
    assert [name for name, _ in page.tags] == plain_tags
    assert page.texts_of(tag).count(_HOSTILE) == count


def test_picture_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        report.picture(tmp_path / 'missing.png', alt='', caption='')
