"""Tests of how the project is laid out: who imports whom, what is shipped, what bin/ and gin/ may hold."""

import ast
import configparser
import os
import pathlib
import re
import subprocess

import gin
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'tf_dpdiff'
# A package imports only packages of a lower level.
LEVELS = {
    'privacy': 1,
    'diffusion': 1,
    'networks': 1,
    'data': 1,
    'serving': 2,
    'sampling': 3,
    'training': 3,
    'evaluation': 4,
    'runs': 5,
    'cli': 6,
}
PRIVACY_MAY_IMPORT = {'numpy', 'scipy', 'tensorflow', 'dp_accounting'}
# The ageing libraries, each behind one module.
ONLY_IN = {
    'keras_cv': 'data/augmentation.py',
    'gin': 'cli',
    'tensorflow_gan': 'evaluation/metrics.py',
    'tensorflow_hub': None,
    'tensorflow_privacy': None,
    'tf_keras': 'keras.py',
    'keras': None,
    'tensorflow_datasets': 'data/tfds_',
}
MODULES = sorted(PACKAGE.glob('**/*.py'))


def imports(path):
    """Yields the dotted names that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def package_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_packages_import_only_what_is_below_them(path):
    here = package_of(path)
    for name in imports(path):
        parts = name.split('.')
        if parts[0] == 'tf_dpdiff' and len(parts) > 1 and parts[1] in LEVELS and parts[1] != here:
            assert here is not None and LEVELS[parts[1]] < LEVELS[here], f'{path.name} imports {name}'


@pytest.mark.parametrize('path', sorted((PACKAGE / 'privacy').glob('*.py')), ids=lambda p: p.name)
def test_privacy_imports_nothing_else_of_ours(path):
    standard = {
        'collections',
        'contextlib',
        'dataclasses',
        'decimal',
        'functools',
        'gc',
        'hashlib',
        'hmac',
        'importlib',
        'itertools',
        'json',
        'math',
        're',
        'secrets',
        'sys',
        'textwrap',
        'typing',
        'warnings',
        'weakref',
    }
    for name in imports(path):
        allowed = name.split('.')[0] in PRIVACY_MAY_IMPORT | standard or name.startswith('tf_dpdiff.privacy')
        allowed = allowed or name == 'tf_dpdiff.keras'  # Keras, as the project names it.
        assert allowed, f'{path.name} imports {name}'


def test_index_of_privacy_names_each_of_its_modules_once():
    index = ast.get_docstring(ast.parse((PACKAGE / 'privacy/__init__.py').read_text()))
    named = re.findall(r'^    (\w+)  +\S', index, re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in (PACKAGE / 'privacy').glob('*.py') if path.stem != '__init__')


@pytest.mark.parametrize('library', ONLY_IN)
def test_ageing_library_is_imported_in_one_place(library):
    users = {
        str(path.relative_to(PACKAGE)) for path in MODULES if any(n.split('.')[0] == library for n in imports(path))
    }
    assert all(ONLY_IN[library] and user.startswith(ONLY_IN[library]) for user in users), users


@pytest.mark.parametrize(
    'path',
    [
        path
        for folder in ('tf_dpdiff', 'tests', 'benchmarks')
        for path in sorted((ROOT / folder).glob('**/*.py'))
        if path not in (PACKAGE / 'keras.py', ROOT / 'tests/keras_test.py', pathlib.Path(__file__))
    ],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_keras_is_named_in_one_module(path):
    # Of which Keras it is depends on what was imported first.
    assert not re.search(r'\btf\.keras\b(?!.layers.GroupNormalization., \()', path.read_text())  # But for a row's name.


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_have_a_subject(path):
    assert path.stem not in ('utils', 'helpers', 'common', 'misc')


KERAS_METHODS = {'build', 'call', 'get_config'}


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_public_is_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    public = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != '_']
    for node in public:
        assert ast.get_docstring(node), f'{node.name} has no docstring'
        for method in getattr(node, 'body', []) if isinstance(node, ast.ClassDef) else []:
            if isinstance(method, ast.FunctionDef) and method.name[0] != '_' and method.name not in KERAS_METHODS:
                assert ast.get_docstring(method), f'{node.name}.{method.name} has no docstring'


def test_gin_folder_holds_only_gin_files_so_that_it_does_not_shadow_the_library():
    files = [path for path in (ROOT / 'gin').glob('**/*') if path.is_file()]
    assert files and all(path.suffix == '.gin' for path in files)
    assert callable(gin.register)


def test_setup_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    listed = set(config['options']['packages'].split())
    found = {'.'.join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.glob('**/__init__.py')}
    assert listed == found | {'tf_dpdiff.gin'}


def test_setup_lists_every_file_that_is_no_module():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    listed = set()
    for package, patterns in config['options.package_data'].items():
        folder = ROOT / 'gin' if package == 'tf_dpdiff.gin' else ROOT.joinpath(*package.split('.'))
        listed.update(path for pattern in patterns.split() for path in folder.glob(pattern))
    found = [path for folder in (PACKAGE, ROOT / 'gin') for path in folder.rglob('*') if path.is_file()]
    assert listed == {path for path in found if path.suffix not in ('.py', '.pyc')}


def test_console_scripts_equal_the_verbs_of_bin():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    scripts = dict(line.split(' = ') for line in config['options.entry_points']['console_scripts'].strip().splitlines())
    verbs = {path.name for path in (ROOT / 'bin').iterdir() if path.suffix != '.sh'} - {'test'}
    assert scripts == {f'tf_dpdiff_{verb}': f'tf_dpdiff.cli.{verb}:run' for verb in verbs}


def test_commands_are_short_and_executable():
    for path in (ROOT / 'bin').iterdir():
        if path.suffix != '.sh':
            assert os.access(path, os.X_OK) and len(path.read_text().splitlines()) <= 15


def test_pyproject_holds_the_build_system_only():
    tables = [line for line in (ROOT / 'pyproject.toml').read_text().splitlines() if line.startswith('[')]
    assert tables == ['[build-system]']


def test_no_work_is_left_undone():
    tracked = subprocess.run(
        ['git', 'ls-files', '*.py', '*.gin', '*.md'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip('not a git checkout')
    marks = ['TO' + 'DO', 'FIX' + 'ME', 'X' * 3]
    left = [name for name in tracked.stdout.split() if any(mark in (ROOT / name).read_text() for mark in marks)]
    assert not left
