"""Tests that README.md and docs/ tell the truth about commands, configurations, names, files and numbers."""

import ast
import collections
import errno
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys

import gin
import numpy as np
import pytest
import yaml

import docs.generate
from docs.generators import configuration
from docs.generators import numbers
from tests import pages
import tf_dpdiff
from tf_dpdiff.cli import account
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import export
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_types
from tf_dpdiff.cli import gin_usage
from tf_dpdiff.cli import init
from tf_dpdiff.cli import release
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import select
from tf_dpdiff.cli import serve
from tf_dpdiff.cli import tensorboard
from tf_dpdiff.cli import train
from tf_dpdiff.cli import tune
from tf_dpdiff.data import datasets
from tf_dpdiff.runs import forecast

VERBS = {
    'init': init,
    'train': train,
    'sample': sample,
    'evaluate': evaluate,
    'select': select,
    'tune': tune,
    'export': export,
    'release': release,
    'account': account,
    'audit': audit,
    'serve': serve,
    'tensorboard': tensorboard,
}
CONFIGURED = ('train', 'evaluate', 'select', 'audit', 'tune')
MOST_WORDS = 1000
MISSPELT = {'DpSgdConfig.num_step = 10'}  # On purpose: pages say what is refused.
# Pages in which one looks up an answer, and does not read them through.
LOOKED_UP = ('docs/contract.md',)

each_page = pytest.mark.parametrize('path', pages.PAGES, ids=pages.name_of)


def each_with(*languages):
    return pytest.mark.parametrize('path', pages.with_blocks(*languages), ids=pages.name_of)


def commands_of(path):
    """Returns (verb, arguments) of each command of bin/ on a page."""
    found = []
    for block in pages.blocks(path, 'sh'):
        for line in block.commands():
            words = shlex.split(line, comments=True)
            while words and re.match(r'\w+=', words[0]):  # A variable of the environment.
                words.pop(0)
            if words and words[0].startswith('bin/'):
                found.append((words[0].removeprefix('bin/'), words[1:]))
    return found


@pytest.fixture(name='parse')
def fixture_parse(monkeypatch):
    """Parses the flags of a command as the command itself does."""
    seen = []

    def parse_only(parser, unused_main, argv):
        seen.append(parser.parse_args(argv))
        return command.DONE

    monkeypatch.setattr(command, 'run', parse_only)

    def parse(verb, arguments):
        with pytest.raises(SystemExit) as ended:
            VERBS[verb].run(arguments)
        assert not ended.value.code, f'bin/{verb} {shlex.join(arguments)}'
        return seen.pop() if seen else None  # --help ends before.

    return parse


@each_with('sh')
def test_commands_use_flags_that_exist(path, parse):
    for verb, arguments in commands_of(path):
        if verb == 'test':  # pytest's flags, and those of tests/lanes.py.
            continue
        flags = parse(verb, arguments)
        workdir = getattr(flags, 'workdir', None)
        # bin/tensorboard takes several.
        assert workdir is None or np.atleast_1d(workdir)[0].startswith('runs'), (verb, arguments)


@each_with('sh')
def test_commands_bind_what_exists(path, parse):
    made = set()  # Configurations that an earlier command of the page writes.
    for verb, arguments in commands_of(path):
        flags = parse(verb, arguments) if verb != 'test' else None
        if verb == 'init' and flags:
            made.add(flags.output)
        if verb in CONFIGURED and flags and flags.gin_file and not made & {*flags.gin_file}:
            read_by = 'train' if getattr(flags, 'membership', False) else verb
            given = [f'{verb}.budget_file'] if getattr(flags, 'budget_file', None) else []
            gin_config.parse(flags.gin_file, flags.gin_param, None if read_by != verb else verb, given=given)


def test_there_are_commands_of_every_verb():
    verbs = {verb for path in pages.PAGES for verb, _ in commands_of(path)}
    assert verbs >= VERBS.keys()


@each_page
def test_flags_in_the_text_exist(path):
    sources = {verb: inspect.getsource(module) for verb, module in VERBS.items()}
    shared = ''.join(
        inspect.getsource(importlib.import_module(f'tf_dpdiff.cli.{name}'))
        for name in ('command', 'planner_flags', 'sampler_flags', 'strategy_flags')
    )
    for code in pages.inline_code(path):
        named = re.match(r'bin/(\w+) ', code)
        if named and named.group(1) in VERBS:
            for flag in re.findall(r' (--\w+)', code):
                text = sources[named.group(1)] + shared
                assert flag == '--help' or f"'{flag}'" in text, code


@each_with('gin')
def test_configurations_parse_strictly(path, tmp_path):
    for number, block in enumerate(pages.blocks(path, 'gin')):
        file = tmp_path / f'{number}.gin'
        # A part of a configuration stands for what a whole one would say.
        is_part = not block.text.lstrip().startswith('include')
        file.write_text(f"include 'digits.gin'\n{block.text}" if is_part else block.text)
        gin_config.parse([str(file)], [])


@each_page
def test_bindings_in_the_text_exist_and_have_the_right_type(path):
    known = gin_config.configurables()
    parameters = {name: list(inspect.signature(function).parameters) for name, function in known.items()}
    for code in pages.inline_code(path):
        named = re.match(r'(?:\w+/)?(\w+)\.\w+ = \S', code)
        if named and named.group(1) in known and code not in MISSPELT:
            bindings = gin_files.read([], [code], parameters).bindings
            gin_types.check(gin_usage.Configuration(bindings), bindings, [*known.values()])


@each_page
def test_parameters_in_the_text_exist(path):
    known = gin_config.configurables()
    for code in pages.inline_code(path):
        named = re.fullmatch(r'(?:\w+/)?([A-Z]\w+Config|\w+_images|image_folder|dicom_folder)\.(\w+)', code)
        if named and named.group(1) in known:
            function, parameter = known[named.group(1)], named.group(2)
            assert parameter in inspect.signature(function).parameters or hasattr(function, parameter), code


@each_page
def test_links_and_pictures_lead_to_files(path):
    for target, _ in pages.links(path):
        assert target.exists(), target


@each_page
def test_files_in_the_text_exist(path):
    written = re.compile(r'(gin|tests|benchmarks|examples|tf_dpdiff|docs|bin)/[\w./-]*\w')
    for code in pages.inline_code(path):
        if written.fullmatch(code) and not re.search(r'[A-Z]{3}', code):  # NAME stands for any.
            assert (pages.ROOT / code).exists(), code


def test_every_page_is_in_the_menu_and_every_entry_is_a_page():
    menu = yaml.safe_load((pages.ROOT / 'mkdocs.yml').read_text())['nav']
    listed = [page for section in menu for entries in section.values() for entry in entries for page in entry.values()]
    there = [str(path.relative_to(pages.DOCS)) for path in pages.PAGES if pages.DOCS in path.parents]
    assert sorted(listed) == sorted(there)


@each_page
def test_pages_can_be_read_in_five_minutes_and_have_one_title(path):
    name = pages.name_of(path)
    assert len(re.findall(r'^# ', pages.prose(path), re.M)) == 1
    if name not in LOOKED_UP and not name.startswith('docs/reference/'):
        assert pages.num_words(path) <= MOST_WORDS


@each_page
def test_blocks_name_their_language(path):
    if path.parent != pages.ROOT:
        assert {block.language for block in pages.blocks(path)} <= {'sh', 'python', 'gin', 'yaml', 'json', 'text'}


@each_with('python')
def test_python_names_what_exists(path):
    code = '\n'.join(block.text for block in pages.blocks(path, 'python'))
    tree = ast.parse(code)
    checked = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--isolated', '--select=E9,F821', '--stdin-filename=page.py', '-'],
        input=code,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(ast.unparse(node), names)
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        found = names.get(root_of(node)) if isinstance(node, ast.Attribute) else None
        if inspect.ismodule(found) and root_of(node) not in assigned:
            eval(ast.unparse(node), names)  # An attribute that is not there is an error.


def messages_of_the_code():
    """Returns the texts in the source, with ... for what is put into them."""
    found = []
    for path in sorted((pages.ROOT / 'tf_dpdiff').glob('**/*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
                found.append(''.join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return '\n'.join(found)


def test_errors_that_are_explained_are_those_of_the_code():
    text = (pages.DOCS / 'troubleshooting.md').read_text()
    headings = re.findall(r'^### (.*)', text, re.M)
    quoted = [error for heading in headings for error in re.findall(r'"(.*?)"', heading)]
    assert len(quoted) >= len(headings) > 10
    code = messages_of_the_code()
    for error in quoted:
        if error != os.strerror(errno.ENOSPC):
            assert is_message(error, code), error
    assert not is_message('the run in ... was eaten by a mouse', code)


def is_message(error, code):
    """Returns whether an error of a page is in the code, which puts in some of its words."""
    words = [r'.*?' if word == '...' else rf'(?:{re.escape(word)}|\S*\.\.\.\S*)' for word in error.split()]
    return re.search(' '.join(words), code) is not None


def root_of(node):
    """Returns the name that a chain of attributes begins with, or None."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def test_own_images_work_as_written(tmp_path, monkeypatch, capsys):
    (block,) = [block.text for block in pages.blocks(pages.DOCS / 'init.md', 'gin') if '@npz_images' in block.text]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, 'measure_speed', lambda model, trainable, **options: forecast.Speed(300.0, 500.0))
    (tmp_path / 'my.gin').write_text(block)
    images = np.random.default_rng(0).integers(0, 256, [1600, 28, 28, 1]).astype(np.uint8)
    np.savez(tmp_path / 'my_images.npz', images=images, labels=np.arange(1600) % 4)
    gin.clear_config()
    with pytest.raises(SystemExit) as ended:
        train.run(
            [
                '--gin_file=my.gin',
                '--workdir=runs/mine',
                '--dry_run',
                '--gin_param=train.utility = None',
                '--gin_param=DpSgdConfig.noise_multiplier = 20.0',
            ]
        )
    assert ended.value.code == command.DONE
    num_images = datasets.npz_images(str(tmp_path / 'my_images.npz')).spec.num_images
    assert abs(num_images - 1280) < 5.0 * np.sqrt(1600 * 0.2 * 0.8)  # One in five is held out, more or less.
    assert f'{num_images:,} of 28x28x1, 4 classes' in capsys.readouterr().out


def test_every_source_of_ones_own_images_has_a_row_that_works():
    table = (pages.DOCS / 'sources.md').read_text().split('| images are in |')[1].split('\n\n')[0]
    rows = table.strip().splitlines()[2:]
    named = set()
    for row in rows:
        bindings = re.findall(r'`([\w.]+ = [^`]+)`', row)
        named.add(re.fullmatch(r'DATA = @(\w+)\(\)', bindings[0]).group(1))
        assert len(bindings) >= 2, row
        gin_config.parse(['gin/digits.gin'], bindings)  # Strict: an unknown name is an error.
    of_others = {'digits', 'public_images', 'random_shapes', 'random_strokes', 'AugmentationConfig'}
    assert named == {*configuration.GROUPS['Data']} - of_others


def test_generated_parts_are_of_today(capsys):
    assert docs.generate.main(['--check']) == 0, capsys.readouterr().out


@pytest.mark.parametrize('name', numbers.TABLES)
def test_numbers_are_tables(name):
    head, rule, *rows = numbers.TABLES[name]().splitlines()
    assert rows and re.fullmatch(r'\|(---\|)+', rule)
    assert {line.count('|') for line in (head, *rows)} == {rule.count('|')}


def page_of(folder, text):
    """Makes a checkout of one page."""
    (folder / 'docs').mkdir()
    (folder / 'docs' / 'mine.md').write_text(text)
    return folder / 'docs' / 'mine.md'


def test_stale_numbers_are_told_and_written_anew_and_the_rest_is_left(tmp_path, capsys):
    text = 'Before\n\n<!-- numbers: scaling -->\n{}<!-- /numbers -->\n\nBehind, with `<b>` | a bar\n'
    page = page_of(tmp_path, text.format('| 12 |\n'))
    assert docs.generate.main(['--check'], tmp_path) == 1
    said = capsys.readouterr().out
    assert 'docs/mine.md is stale' in said and 'docs/reference/configuration.md is stale' in said
    assert page.read_text() == text.format('| 12 |\n')
    assert docs.generate.main([], tmp_path) == 0
    assert page.read_text() == text.format(numbers.TABLES['scaling']() + '\n')
    assert docs.generate.main(['--check'], tmp_path) == 0
    reference = tmp_path / configuration.PAGE
    reference.write_text(reference.read_text().replace('*must be given*', 'optional'))
    assert docs.generate.main(['--check'], tmp_path) == 1


@pytest.mark.parametrize(
    'text, message',
    [
        ('<!-- numbers: weather -->\n<!-- /numbers -->\n', "no numbers 'weather'"),
        ('<!-- numbers: scale -->\n| 1 |\n', 'begins or ends no block'),
        ('<!-- /numbers -->\n', 'begins or ends no block'),
        ('It is <!-- number: weather -->7<!-- /number -->.\n', "no numbers 'weather'"),
        ('It is <!-- number: mnist -->7.\n', 'begins or ends no block'),
        ('<!-- numbers scale -->\n<!-- /numbers -->\n', 'begins or ends no block'),
    ],
)
def test_blocks_that_cannot_be_filled_are_one_line_that_names_the_page(tmp_path, capsys, text, message):
    page_of(tmp_path, text)
    assert docs.generate.main([], tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith('generate: error: docs/mine.md: ') and message in said and said.count('\n') == 1


def test_every_block_of_numbers_is_on_a_page():
    text = ''.join(path.read_text() for path in pages.PAGES)
    assert {*re.findall(r'<!-- numbers: (\w+) -->', text)} == {*numbers.TABLES}
    assert {*re.findall(r'<!-- number: (\w+) -->', text)} == {*numbers.SINGLE}
    assert not re.search(r'^<!-- /?number\b', text, re.M)  # It would end the paragraph.


def test_number_within_a_text_is_written_anew():
    text = 'It reads <!-- number: mnist -->{}<!-- /number --> of *them*.\n'
    assert numbers.rewrite(text.format('12.3%')) == text.format(numbers.SINGLE['mnist']())


def test_parameter_without_a_description_is_an_error(monkeypatch):
    def undescribed(path: str):
        """Does something.

        Args:
          other: Not what it takes.
        """

    known = {**gin_config.configurables(), 'digits': undescribed}
    monkeypatch.setattr(gin_config, 'configurables', lambda: known)
    with pytest.raises(ValueError, match='docstring of digits does not describe path'):
        configuration.page()


def test_what_is_in_no_group_is_an_error(monkeypatch):
    monkeypatch.setitem(configuration.GROUPS, 'Sampling', ('SamplerConfig',))
    with pytest.raises(ValueError, match="too little: .'GenerateConfig'."):
        configuration.page()


def test_reference_of_the_library_has_every_promised_name_once():
    shown = re.findall(r'^::: tf_dpdiff\.(\w+)$', (pages.DOCS / 'reference' / 'api.md').read_text(), re.M)
    counts = collections.Counter(shown)
    assert counts == collections.Counter(name for name in tf_dpdiff.__all__ if name != '__version__')
