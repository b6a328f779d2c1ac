"""Tests of the page for browsers: what it is sent with, who gets it, and that a browser shows what the model draws."""

import base64
import contextlib
import hashlib
import http.client
import io
import json
import re
import shutil
import urllib.parse

import numpy as np
from PIL import Image
import pytest

from tests.cli import sampling
from tests.serving import browser as browser_lib
from tests.serving import toy_models
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import report
from tf_dpdiff.serving import export
from tf_dpdiff.serving import page
from tf_dpdiff.serving import predict
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import status

_TOKEN = 'a-token-of-the-tests-0123'
_SHAPES = {'grey': (4, 4, 1), 'colour': (6, 4, 3)}
_DESKTOP, _PHONE = (1280, 800), (390, 844)


def get(server, path, method='GET', **headers):
    connection = http.client.HTTPConnection('127.0.0.1', server.rest_port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize('path', ['/', '/?model=toys&class=1&seed=2&number=3'])
def test_page_comes_with_headers_that_forbid_all_but_itself(server, path):
    code, headers, content = get(server, path)
    assert (code, headers['content-type']) == (200, 'text/html; charset=utf-8')
    policy = dict(part.split(' ', 1) for part in headers['content-security-policy'].split('; '))
    assert policy['default-src'] == policy['frame-ancestors'] == policy['base-uri'] == policy['form-action'] == "'none'"
    assert (policy['connect-src'], policy['img-src']) == ("'self'", 'data:')
    for kind in ('script', 'style'):
        (inline,) = re.findall(rf'<{kind}>(.*?)</{kind}>'.encode(), content, re.DOTALL)
        assert policy[f'{kind}-src'] == f"'sha256-{base64.b64encode(hashlib.sha256(inline).digest()).decode()}'"
    assert (headers['x-content-type-options'], headers['x-frame-options']) == ('nosniff', 'DENY')
    assert (headers['referrer-policy'], headers['cross-origin-resource-policy']) == ('no-referrer', 'same-origin')


def test_page_loads_nothing_and_holds_nothing_that_its_policy_forbids():
    content = page.content().decode()
    assert not re.search(r'https?:|//\w+\.|@import|url\(|\ssrc=', content)
    markup = content.partition('<script>')[0]
    assert not re.search(r'\s(on\w+|style)=', markup)
    assert not re.search(r'innerHTML|insertAdjacentHTML|document\.write|\beval\b|Storage\b|cookie', content)


def test_everyone_gets_the_page_and_only_the_token_gets_the_names_of_models(folder):
    with toy_models.serving(folder, security=security_lib.Security(_TOKEN)) as server:
        assert get(server, '/')[::2] == (200, page.content()) and folder.name.encode() not in page.content()
        assert get(server, '/models')[0] == get(server, '/x')[0] == get(server, '/', 'POST')[0] == 401
        code, _, content = get(server, '/models', Authorization=f'Bearer {_TOKEN}')
        assert (code, json.loads(content)) == (200, {'models': [folder.name]})


@pytest.mark.parametrize('token, code', [(None, 404), (_TOKEN, 401)])
def test_page_can_be_switched_off(folder, token, code):
    with toy_models.serving(folder, page=False, security=security_lib.Security(token)) as server:
        assert [get(server, path)[0] for path in ('/', '/?class=1', '/models')] == [code] * 3


@pytest.mark.parametrize('path, method', [('/models', 'POST'), ('/models?x', 'GET'), ('//', 'GET'), ('/', 'PUT')])
def test_nothing_else_is_the_page(server, path, method):
    assert get(server, path, method)[0] == 404


@pytest.fixture(name='models', scope='module')
def fixture_models(tmp_path_factory, small_network):
    """Folders of exported models, grey and (with several step counts and a poor epsilon) colour, and their runs."""
    del small_network
    folder, found = tmp_path_factory.mktemp('page'), {}
    for name, shape in _SHAPES.items():
        changes = {'step_counts': (2, 3), 'noise_multiplier': 0.3} if name == 'colour' else {}
        run = sampling.make_run(folder / name, image_shape=shape, described=True, **changes)
        found[name] = run / folder_lib.SAVED_MODEL, run
    return found


@pytest.fixture(name='served', scope='module')
def fixture_served(models):
    """The address of a server of each."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(toy_models.serving(folder)) for name, (folder, _) in models.items()}
        yield {name: f'http://127.0.0.1:{server.rest_port}/' for name, server in servers.items()}


def test_page_reads_epsilon_where_the_statement_says_it(models):
    (pattern,) = re.findall('^const CLAIM = /(.*)/m;$', page.content().decode(), re.MULTILINE)
    _, run = models['grey']
    fields = folder_lib.read_statement(run)
    found = re.search(pattern, (run / folder_lib.STATEMENT_TEXT).read_text(), re.MULTILINE)
    assert found.groups() == (rounding.round_up(fields['epsilon']), rounding.exact(fields['delta']))


@pytest.fixture(name='browser', scope='module')
def fixture_browser(tmp_path_factory):
    path = browser_lib.find()
    if not path:
        pytest.skip(f'none of {", ".join(browser_lib.NAMES)} is on PATH, so there is no browser to test with')
    with browser_lib.Browser(path, tmp_path_factory.mktemp('profile')) as browser:
        yield browser


def text_of(browser, name):
    return browser.evaluate(f'document.getElementById("{name}").innerText')


def shown(browser):
    """Returns the pixels of the images of the page, and the seed and label of each."""
    urls = browser.evaluate('[...document.querySelectorAll("figure img")].map((image) => image.src)')
    pngs = [base64.b64decode(re.fullmatch('data:image/png;base64,(.*)', url)[1]) for url in urls]
    rows = browser.evaluate('[...document.querySelectorAll("figure")].map((one) => ({...one.dataset}))')
    return [np.asarray(Image.open(io.BytesIO(png))) for png in pngs], rows


def troubles(browser):
    """Returns what the browser complains of: scripts that fail, what the policy forbids."""
    return [one for one in browser.events if one['method'] in ('Log.entryAdded', 'Runtime.exceptionThrown')]


@pytest.mark.parametrize('name', _SHAPES)
@pytest.mark.parametrize('size', [_DESKTOP, _PHONE], ids=['desktop', 'phone'])
def test_browser_shows_what_the_model_draws_and_what_it_promises(models, served, browser, name, size):
    folder, run = models[name]
    steps = 3 if name == 'colour' else None
    browser.events.clear()
    browser.resize(*size, mobile=size == _PHONE)
    browser.open(f'{served[name]}?class=1&seed=1&number=4' + (f'&steps={steps}' if steps else ''), 'done')
    images, rows = shown(browser)
    expected = export.load_sample_fn(folder, steps)(np.full([4], 1, np.int32), np.arange(1, 5, dtype=np.int64))
    np.testing.assert_array_equal(np.reshape(images, expected.shape), expected)
    assert rows == [{'seed': str(seed), 'label': '1'} for seed in range(1, 5)]
    assert 'öwl' in text_of(browser, 'images') and 'seed 4' in text_of(browser, 'images')
    statement = (run / folder_lib.STATEMENT_TEXT).read_text()
    shown_text = browser.evaluate('document.getElementById("statement").textContent')
    assert shown_text.rstrip('\n') == report.flowing(statement) and shown_text.split() == statement.split()
    fields = folder_lib.read_statement(run)
    assert text_of(browser, 'epsilon') == rounding.round_up(fields['epsilon'])
    assert text_of(browser, 'delta') == rounding.exact(fields['delta'])
    assert bool(fields['cautions']) == (name == 'colour')
    assert all(f'Caution: {caution}' in text_of(browser, 'cautions') for caution in fields['cautions'])
    browser.evaluate('document.querySelector("details").open = true')
    assert browser.evaluate('document.documentElement.scrollWidth') == size[0]
    assert browser.evaluate(
        '[...document.querySelectorAll("body *")].every((e) => e.getBoundingClientRect().right <= innerWidth)'
    )
    assert not troubles(browser)
    asked = [one['params']['request']['url'] for one in browser.events if one['method'] == 'Network.requestWillBeSent']
    assert asked and all(url.startswith((served[name], 'data:', 'about:')) for url in asked)


def test_link_may_name_a_class_by_what_it_is_called(served, browser):
    browser.open(f'{served["grey"]}?class={urllib.parse.quote("öwl")}&seed=1&number=2', 'done')
    assert [row['label'] for row in shown(browser)[1]] == ['1', '1']


def test_classes_in_turn_are_those_of_the_sampling_command(models, served, browser, tmp_path):
    browser.open(f'{served["grey"]}?class=all&seed=7&number=11', 'done')
    _, rows = shown(browser)
    samples = sampling.draw(models['grey'][1], tmp_path / 'samples', 'npz file', seed=7, num_images=11)
    assert [int(row['label']) for row in rows] == samples.labels.tolist()


def test_page_asks_for_the_token_and_keeps_it_to_itself(models, browser):
    with toy_models.serving(models['grey'][0], security=security_lib.Security(_TOKEN)) as server:
        assert browser.open(f'http://127.0.0.1:{server.rest_port}/?class=2&seed=5&number=2', 'locked') == 'locked'
        assert not browser.evaluate('document.getElementById("statement").textContent')
        for token, state, words in ((_TOKEN + 'x', 'locked', 'does not know this token'), (_TOKEN, 'done', '2 images')):
            browser.evaluate(
                f'document.body.dataset.state = ""; document.getElementById("token").value = "{token}";'
                'document.querySelector("#token-form button").click()'
            )
            browser.wait(state)
            assert words in text_of(browser, 'status')
        assert len(shown(browser)[0]) == 2
        kept = browser.evaluate(
            '[location.href, document.cookie, ...Object.values({...localStorage, ...sessionStorage})]'
        )
        assert not any(_TOKEN in text for text in kept)


def test_page_says_that_the_server_is_busy_and_asks_again(served, browser, monkeypatch):
    browser.open(served['grey'], 'ready')
    use, refused = predict.Core.use, []

    def busy(core, spec):
        if not refused:
            refused.append(spec)
            raise status.ServingError(status.Code.UNAVAILABLE, 'the queue is full.')
        return use(core, spec)

    monkeypatch.setattr(predict.Core, 'use', busy)
    browser.evaluate('document.getElementById("draw").click()')
    toy_models.wait_until(lambda: 'Trying again' in text_of(browser, 'status'))
    assert 'The server is busy' in text_of(browser, 'status') and 'the queue is full' in text_of(browser, 'status')
    browser.wait('done')
    assert len(shown(browser)[0]) == 16


def test_images_and_statement_are_of_one_version(models, browser, tmp_path):
    folder = shutil.copytree(models['grey'][0], tmp_path / toy_models.NAME)
    with toy_models.serving(folder) as server:
        browser.open(f'http://127.0.0.1:{server.rest_port}/?class=1&seed=1&number=2', 'done')
        assert 'version 1' in text_of(browser, 'about')
        shutil.copytree(models['grey'][0] / '1', tmp_path / 'new').rename(folder / '2')
        toy_models.wait_until(lambda: server.newest_version() == 2)
        browser.evaluate('document.getElementById("next").click()')
        toy_models.wait_until(lambda: 'version 2' in text_of(browser, 'about'))
        browser.wait('done')
        assert [row['seed'] for row in shown(browser)[1]] == ['3', '4'] and len(shown(browser)[0]) == 2
        browser.open(f'http://127.0.0.1:{server.rest_port}/?class=1&seed=1&number=2&version=1', 'done')
        toy_models.wait_until(lambda: 'made with version 1' in text_of(browser, 'status'))


@pytest.mark.parametrize(
    'query, words',
    [
        ('number=65', 'Images: '),
        ('seed=-1', 'First seed: '),
        ('seed=1&class=7', 'This model has no class 7.'),
        ('model=other&seed=1', 'This server has no model other; it has toys.'),
    ],
)
def test_link_that_cannot_be_is_said_to_be_so(served, browser, query, words):
    browser.open(f'{served["grey"]}?{query}', 'failed')
    assert text_of(browser, 'status').startswith(words) and not shown(browser)[0]


def test_model_without_a_statement_is_said_to_have_none(server, browser):
    browser.open(f'http://127.0.0.1:{server.rest_port}/?seed=1', 'failed')
    assert 'carries no privacy statement' in text_of(browser, 'privacy')
    assert 'export it anew with bin/export' in text_of(browser, 'status')


def test_page_says_that_the_server_is_gone(models, browser):
    with toy_models.serving(models['grey'][0]) as server:
        browser.open(f'http://127.0.0.1:{server.rest_port}/', 'ready')
    browser.evaluate('document.getElementById("draw").click()')
    browser.wait('done')
    assert 'The server does not answer' in text_of(browser, 'status') and not shown(browser)[0]
