"""Tests of images that no run could end with: refused before anything is trained or charged, by every verb alike."""

import pathlib

import numpy as np
from PIL import Image
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import select
from tf_dpdiff.cli import train
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.runs import budget as budget_file

pytestmark = pytest.mark.usefixtures('small_network')
TINY = pathlib.Path(__file__).with_name('tiny_digits.gin')
COUNT = 200


def arrays(**changes):
    """Returns arrays of which a run could be made, with changes."""
    images = np.random.default_rng(0).integers(0, 256, [COUNT, 8, 8, 1]).astype(np.uint8)
    return {'images': images, 'labels': np.arange(COUNT) % 2, 'owners': np.arange(COUNT) // 5, **changes}


UNFIT = {
    'channels first': (arrays(images=np.zeros([COUNT, 1, 8, 8], np.uint8)), 'images.transpose(0, 2, 3, 1)'),
    'transparency': (arrays(images=np.zeros([COUNT, 8, 8, 4], np.uint8)), 'images[..., :3]'),
    'nobody': (arrays(owners=np.array(['nan', 'p1', 'p2', 'p3'])[np.arange(COUNT) % 4]), "names no owner: 'nan'"),
    'spellings': (arrays(owners=np.array(['p1', 'p1 '])[np.arange(COUNT) % 2]), "names its owner 'p1 '"),
    'other name': (arrays(owner=np.arange(COUNT) // 5), 'holds `owner`, which nothing reads: is it `owners`?'),
    'objects': (arrays(owners=np.array([f'p{i}' for i in range(COUNT)], object)), 'store owners.astype(str)'),
    'labels from 1': (arrays(labels=np.arange(COUNT) % 2 + 1), 'subtract 1 from each'),
    'class names': (arrays(class_names=np.array(['a', 'a'])), "two classes are called 'a'"),
}


def flags_of(path):
    bindings = [
        'DATA = @npz_images()',
        f'npz_images.path = "{path}"',
        'random_strokes.num_classes = 2',
        'EXPECTED_BATCH_SIZE = 8',
    ]
    return [f'--gin_file={TINY}', *(f'--gin_param={binding}' for binding in bindings)]


def test_data_as_they_are_changed_here_are_fit_before(tmp_path, capsys):
    np.savez(tmp_path / 'own.npz', **arrays())
    assert verbs.call(train, *flags_of(tmp_path / 'own.npz'), '--dry_run') == command.DONE
    assert 'owners' in capsys.readouterr().out


@pytest.mark.parametrize('dry_run', [True, False])
@pytest.mark.parametrize('name', UNFIT)
def test_unfit_data_are_refused_before_anything_is_trained_or_charged(tmp_path, capsys, name, dry_run):
    changed, message = UNFIT[name]
    np.savez(tmp_path / 'own.npz', **changed)
    budget_file.create(tmp_path / 'own.budget', budget_lib.Budget(20.0, 1e-4))
    before = (tmp_path / 'own.budget').read_bytes()
    flags = [f'--workdir={tmp_path / "run"}', f'--budget_file={tmp_path / "own.budget"}', *['--dry_run'] * dry_run]
    assert verbs.call(train, *flags_of(tmp_path / 'own.npz'), *flags) == command.WRONG_USE
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith('train: error: ') and said.err.count('\n') == 1
    assert not said.out and (tmp_path / 'own.budget').read_bytes() == before
    assert not [path for path in (tmp_path / 'run').rglob('*') if not path.name.startswith('.')]


@pytest.mark.parametrize('verb, name', [(evaluate, 'digits'), (select, 'select_digits'), (audit, 'audit_digits')])
def test_every_verb_that_reads_private_images_refuses_the_same(tmp_path, tiny_run, capsys, verb, name):
    np.savez(tmp_path / 'own.npz', **UNFIT['channels first'][0])
    bindings = ['DATA = @npz_images()', f'npz_images.path = "{tmp_path / "own.npz"}"']
    flags = [f'--gin_param={binding}' for binding in bindings]
    assert verbs.call(verb, f'--gin_file=gin/{name}.gin', *flags, f'--workdir={tiny_run[0]}') == command.WRONG_USE
    assert 'images.transpose(0, 2, 3, 1)' in capsys.readouterr().err


def test_class_folders_of_undecodable_names_are_refused_in_one_line(tmp_path, capsys):
    for name in ('dog', 'caf\udce9'):
        (tmp_path / 'scans' / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 256, [8, 8]).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'scans' / name / f'{i}.png')
    bindings = ['DATA = @image_folder()', f'image_folder.path = "{tmp_path / "scans"}"']
    flags = [f'--gin_file={TINY}', *(f'--gin_param={binding}' for binding in bindings), '--dry_run']
    assert verbs.call(train, *flags) == command.WRONG_USE
    said = capsys.readouterr().err
    assert 'the name of a class must be Unicode text' in said and said.count('\n') == 1
