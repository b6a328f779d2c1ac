"""Tests of bin/audit --samples as a user calls it: copies are found, the rest is not, and what is wrong is one line."""

import json

import numpy as np
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.data import datasets
from tf_dpdiff.sampling import store

CLAIM = {'guarantee_claimed': True, 'epsilon': 1.0, 'delta': 1e-5}


@pytest.fixture(name='data', scope='module')
def fixture_data(tmp_path_factory):
    """A file of 300 images of noise, of which about 240 are trained on."""
    path = tmp_path_factory.mktemp('data') / 'images.npz'
    images = np.random.default_rng(0).integers(0, 256, [300, 4, 4, 1]).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(300) % 2)
    return path


def flags(data, samples, *more):
    bindings = ('DATA = @npz_images()', f"npz_images.path = '{data}'", 'SampleAttackConfig.features = None')
    gin = [f'--gin_param={binding}' for binding in bindings]
    return ['--gin_file=gin/digits.gin', f'--samples={samples}', *gin, *more]


def release(directory, images, claim=CLAIM):
    """Writes the samples of a release, and its statement."""
    directory.mkdir()
    labels = (np.arange(len(images)) % 2).astype(np.int32)
    store.write_file(directory / 'samples.npz', images, labels, ('0', '1'))
    (directory / 'privacy_statement.json').write_text(json.dumps(claim))
    return directory


def other_images(count=200):
    return np.random.default_rng(1).integers(0, 256, [count, 4, 4, 1]).astype(np.uint8)


def read(workdir):
    (path,) = (workdir / 'non_private').glob('sample_attacks_*.json')
    return json.loads(path.read_text())


def test_samples_that_copy_members_pass_their_claim(data, tmp_path, capsys):
    copies = release(tmp_path / 'copies', datasets.npz_images(str(data)).train.images_uint8)
    assert verbs.call(audit, *flags(data, copies, f'--workdir={tmp_path / "audit"}')) == command.FAILED
    said = capsys.readouterr()
    assert 'MORE THAN THE CLAIM PERMITS' in said.err and 'do not release before you know which' in said.err
    assert 'holds no checkpoints: whether its run was trained on these images' in said.err
    out = ' '.join(said.out.replace('│', ' ').split())
    for fact in ('not to be released', 'epsilon = 1.0000', 'domias, pixels', 'needs at least 1,000 non-members'):
        assert fact in out
    found = read(tmp_path / 'audit')
    assert 'not to be released' in found['note'] and found['epsilon'] == 1.0
    distance = found['attacks'][0]
    assert distance['attack'] == 'distance' and distance['auc'] == 1.0
    assert distance['true_positive_rate_at_false_positive_rate'] == {'0.001': 1.0, '0.01': 1.0}
    # What is private is in the folder of the audit alone, and not in what is handed over.
    assert {path.name for path in copies.iterdir()} == {'samples.npz', 'privacy_statement.json'}
    assert {path.name for path in (tmp_path / 'audit').iterdir()} == {'non_private'}


def test_samples_that_know_no_member_do_not(data, tmp_path, capsys):
    samples = release(tmp_path / 'samples', other_images())
    assert verbs.call(audit, *flags(data, samples / 'samples.npz', f'--workdir={tmp_path}')) == command.DONE
    assert read(tmp_path)['faults'] == []
    assert 'prove nothing' in ' '.join(capsys.readouterr().out.replace('│', ' ').split())


def test_without_a_claim_nothing_is_passed(data, tmp_path):
    images = datasets.npz_images(str(data)).train.images_uint8
    samples = release(tmp_path / 'samples', images, {'guarantee_claimed': False, 'epsilon': None, 'delta': None})
    assert verbs.call(audit, *flags(data, samples, f'--workdir={tmp_path}')) == command.DONE
    found = read(tmp_path)
    assert found['epsilon'] is None and found['attacks'][0]['auc'] == 1.0


def test_what_is_wrong_is_one_clear_line(data, tmp_path, capsys):
    model, empty_run = tmp_path / 'saved_model', tmp_path / 'run'
    for path in (model / '1', empty_run / 'checkpoints'):
        path.mkdir(parents=True)
    (model / '1' / 'saved_model.pb').touch()
    larger = tmp_path / 'larger.npz'
    store.write_file(larger, np.zeros([4, 8, 8, 1], np.uint8), np.zeros(4, np.int32), ('0', '1'))
    damaged = release(tmp_path / 'damaged', other_images(4), {'epsilon': 1.0})
    workdir = f'--workdir={tmp_path / "audit"}'
    wrong = [
        (flags(data, tmp_path / 'none', workdir), 'no samples at'),
        (flags(data, model, workdir), f'is an exported model: draw samples from it (bin/sample --saved_model={model}'),
        (flags(data, model / '1', workdir), 'is an exported model'),
        (flags(data, empty_run), 'has no samples.npz yet'),
        (flags(data, larger, workdir), "holds images of shape (8, 8, 1), 'images' of (4, 4, 1)"),
        (flags(data, damaged, workdir), 'the privacy statement of'),
        (flags(data, damaged, workdir, '--dry_run'), '--samples trains no model of images, so it has no --dry_run'),
        (flags(data, damaged, workdir, '--membership'), '--membership and --samples are two audits'),
    ]
    for arguments, message in wrong:
        assert verbs.call(audit, *arguments) == command.WRONG_USE
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith('audit: error: ') and message in error
    assert not (tmp_path / 'audit').exists() or not list((tmp_path / 'audit').rglob('*.json'))
