"""Tests of configuration files: which one is found, and the one line that names one that cannot be read."""

import os

import gin
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import train


@pytest.fixture(name='refused')
def fixture_refused(tmp_path, capsys):
    """Returns a function from the content of my.gin to the one line by which bin/train refuses it."""

    def refuse(content=None, *flags):
        if content is not None:
            (tmp_path / 'my.gin').write_bytes(content if isinstance(content, bytes) else content.encode())
        given = [f'--gin_file={tmp_path / "my.gin"}', f'--workdir={tmp_path / "run"}', *flags]
        assert verbs.call(train, *given) == command.WRONG_USE
        error = capsys.readouterr().err.strip()
        assert error.startswith('train: error: ') and '\n' not in error and 'Traceback' not in error
        assert not (tmp_path / 'run').exists()
        return error[len('train: error: ') :].replace(str(tmp_path), 'HERE')

    return refuse


DIGITS = "include 'digits.gin'\n"


@pytest.mark.parametrize(
    'content, said',
    [
        (b'\xef\xbb\xbfA = 1', 'HERE/my.gin begins with a byte-order mark: save it as UTF-8 without one.'),
        (DIGITS.encode('utf-16'), 'HERE/my.gin, line 1: this is no text in UTF-8: save the file as UTF-8.'),
        (DIGITS.encode('utf-16-le'), 'HERE/my.gin holds zero bytes, as text in UTF-16 does: save it as UTF-8.'),
        (DIGITS.encode('utf-32-be'), 'HERE/my.gin holds zero bytes, as text in UTF-16 does: save it as UTF-8.'),
        (DIGITS.encode() + '# Größe\n'.encode('latin-1'), 'HERE/my.gin, line 2: this is no text in UTF-8'),
        ('NUM_STEPS = (3', 'HERE/my.gin, line 1: a bracket or a quote is left open'),
        (
            DIGITS + 'SamplerConfig.name = ddim',
            "HERE/my.gin, line 2: ddim is no value: a text stands in quotes, 'ddim',",
        ),
        (DIGITS + "SamplerConfig.name = 'ddim", 'HERE/my.gin, line 2: '),
        (DIGITS + 'SamplerConfig.name = @ddim', "HERE/my.gin, line 2: No configurable matching reference '@ddim'."),
        (DIGITS + 'NUM_STEPS = 3 4', 'HERE/my.gin, line 2: Expected newline.'),
        (DIGITS + 'NUM_STEPS == 3', 'HERE/my.gin, line 2: '),
        (
            DIGITS + '\n\nDpSgdConfg.num_steps = 3',
            "HERE/my.gin, line 4: No configurable matching 'DpSgdConfg'. Did you",
        ),
        (DIGITS + "X = (('mlp', {'width': 2, 'width': 3}),)", "HERE/my.gin, line 2: the key 'width' is given twice"),
        (DIGITS + 'X = {[1]: 2}', 'HERE/my.gin, line 2: unhashable'),
        ('include 3', 'HERE/my.gin, line 1: Expected file path as string'),
        (
            "include 'nowhere.gin'",
            "HERE/my.gin, line 1: there is no 'nowhere.gin' to include, neither beside this file",
        ),
        ("include 'models'", 'gin/models is a folder, not a configuration file'),
        ("include 'my.gin'", 'the include goes round in a circle'),
        ('import nothing_of_this_name', "HERE/my.gin, line 1: No module named 'nothing_of_this_name'."),
        ('from __gin__ import dynamic_registration', 'is not for configurations of this project'),
    ],
)
def test_file_that_cannot_be_read_is_one_line_that_names_it(refused, content, said):
    assert said in refused(content)


def test_circle_of_includes_names_all_files(refused, tmp_path):
    (tmp_path / 'b.gin').write_text("include 'sub/c.gin'")
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'c.gin').write_text("\ninclude '../my.gin'")
    error = refused("include 'b.gin'")
    assert error.startswith('HERE/sub/c.gin, line 2: ') or error.startswith('HERE/./sub/c.gin, line 2: ')
    assert error.endswith('circle: HERE/my.gin -> HERE/b.gin -> HERE/sub/c.gin -> HERE/my.gin.')


def test_error_in_an_included_file_names_that_file(refused, tmp_path):
    (tmp_path / 'part.gin').write_text('\nNUM_STEPS = ten\n')
    assert refused(f"{DIGITS}include 'part.gin'").startswith('HERE/part.gin, line 2: ten is no value')
    (tmp_path / 'part.gin').write_text('TARGET_EPSILION = 1.0')
    assert refused(f"{DIGITS}include 'part.gin'").startswith('HERE/part.gin, line 1: TARGET_EPSILION = 1.0 is not used')


@pytest.mark.parametrize('kind, said', [('folder', 'is a folder'), ('missing', 'no such configuration')])
def test_folder_given_as_a_file_is_said_to_be_one(refused, tmp_path, kind, said):
    if kind == 'folder':
        (tmp_path / 'my.gin').mkdir()
    assert said in refused()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read all files')
def test_file_that_may_not_be_read_is_one_line(refused, tmp_path):
    (tmp_path / 'my.gin').write_text(DIGITS)
    (tmp_path / 'my.gin').chmod(0)
    assert 'my.gin cannot be read: Permission denied' in refused()


@pytest.mark.parametrize('content', [DIGITS.replace('\n', '\r\n'), DIGITS.strip(), f'# Größe: µm\n{DIGITS}'])
def test_files_of_other_systems_and_letters_are_read(tmp_path, content):
    (tmp_path / 'my.gin').write_bytes(content.encode())
    gin_config.parse([str(tmp_path / 'my.gin')], [], 'train')
    assert gin.query_parameter('TARGET_EPSILON/gin.macro.value') == 10.0


@pytest.mark.parametrize('folder', ['.', 'elsewhere'])
def test_include_is_found_beside_the_including_file_wherever_one_stands(tmp_path, monkeypatch, folder):
    for name, content in (
        ('elsewhere/other.gin', ''),
        ('mine/my.gin', "include 'parts/a.gin'"),
        ('mine/parts/a.gin', "include 'other.gin'\nNUM_STEPS = 7"),
        ('mine/parts/other.gin', "include 'digits.gin'\nTARGET_DELTA = 1e-6"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path / folder)
    gin_config.parse([os.path.relpath(tmp_path / 'mine' / 'my.gin')], [], 'train')
    assert gin.query_parameter('NUM_STEPS/gin.macro.value') == 7
    assert gin.query_parameter('TARGET_DELTA/gin.macro.value') == 1e-6


def test_file_beside_the_including_one_comes_before_the_projects_own(tmp_path, monkeypatch):
    (tmp_path / 'eps.gin').write_text("include 'mnist.gin'\ninclude 'privacy/eps1.gin'")
    (tmp_path / 'privacy').mkdir()
    (tmp_path / 'privacy' / 'eps1.gin').write_text('TARGET_EPSILON = 1.5')
    monkeypatch.chdir('/')
    gin_config.parse([str(tmp_path / 'eps.gin')], [], 'train')
    assert gin.query_parameter('TARGET_EPSILON/gin.macro.value') == 1.5


def test_file_that_is_included_twice_is_no_circle_and_binds_nothing_in_vain(tmp_path):
    (tmp_path / 'common.gin').write_text('NUM_STEPS = 9')
    for name in 'ab':
        (tmp_path / f'{name}.gin').write_text("include 'common.gin'")
    (tmp_path / 'my.gin').write_text("include 'a.gin'\ninclude 'b.gin'\ninclude 'digits.gin'\ninclude 'a.gin'")
    gin_config.parse([str(tmp_path / 'my.gin')], [], 'train')
    assert gin.query_parameter('NUM_STEPS/gin.macro.value') == 9


def test_imported_module_registers_what_a_file_refers_to(tmp_path, monkeypatch):
    (tmp_path / 'sources_of_a_hospital.py').write_text(
        'import gin\nfrom tf_dpdiff.data import datasets\n\n\n'
        '@gin.register\ndef scans() -> datasets.PrivateData:\n'
        '    return datasets.digits()\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'my.gin').write_text(f'import sources_of_a_hospital\n{DIGITS}DATA = @scans()')
    gin_config.parse([str(tmp_path / 'my.gin')], [], 'train')
    assert gin.get_bindings('train')['data'].spec.name == 'digits'


def test_nearest_name_does_not_depend_on_capitals():
    assert gin_files.nearest('target_epsilon', ['TARGET_DELTA', 'TARGET_EPSILON']) == ' Did you mean TARGET_EPSILON?'
    assert gin_files.nearest('pixels', ['TARGET_DELTA']) == ''
