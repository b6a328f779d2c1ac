"""Tests that nothing is measured on held-out private images unasked, and that what is measured is marked."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.cli import select
from tf_dpdiff.cli import train
from tf_dpdiff.data import datasets
from tf_dpdiff.sampling import store

QUICK_PUBLIC = (
    'random_strokes.num_images = 20',
    'PretrainingConfig.num_steps = 1',
    'WarmStartConfig.num_steps = 1',
    'WarmStartConfig.num_images = 20',
    'ClassMeansConfig.noise_multiplier = 9.0',
)
QUICK = (
    'UNetConfig.base_channels = 4',
    'NUM_STEPS = 1',
    'EXPECTED_BATCH_SIZE = 10',
    'AUGMENTATION_MULTIPLICITY = 1',
    'DpSgdConfig.noise_multiplier = 30.0',
    'SamplerConfig.num_steps = 2',
    'GenerateConfig.num_images = 40',
    'GenerateConfig.chunk_size = 40',
    'TrainerConfig.grids_per_stage = 0',
)
PRIVATE_ALONE = ('train.pretraining = None', 'train.warm_start = None')
MARK = '(not to be released)'


@pytest.fixture(name='my_gin', scope='module')
def fixture_my_gin(tmp_path_factory):
    """A file of a person who builds on digits.gin, beside images of their own."""
    folder = tmp_path_factory.mktemp('own')
    images = np.random.default_rng(0).integers(0, 256, [400, 8, 8, 1]).astype(np.uint8)
    np.savez(folder / 'own.npz', images=images, labels=np.arange(400) % 10)
    path = folder / 'my.gin'
    path.write_text(
        "include 'digits.gin'\nDATA = @npz_images()\nnpz_images.path = 'own.npz'\n" + '\n'.join((*QUICK, *QUICK_PUBLIC))
    )
    return path


def with_more(my_gin, name, *bindings):
    """Writes a file beside another one, which says more, or leaves the public stages out."""
    path = my_gin.with_name(name)
    left_out = QUICK_PUBLIC if set(PRIVATE_ALONE) <= set(bindings) else ()
    path.write_text('\n'.join([line for line in my_gin.read_text().split('\n') if line not in left_out] + [*bindings]))
    return path


def run(path, workdir, *bindings):
    flags = [f'--gin_file={path}', f'--workdir={workdir}', '--anyway', *(f'--gin_param={b}' for b in bindings)]
    return verbs.call(train, *flags)


def words(printed):
    """Returns the printed words, without the lines of tables and breaks."""
    return ' '.join(re.sub('[│┃━┏┓┗┛┡┩╇┳┻─└┘┴]', ' ', printed).split())


@pytest.fixture(name='unasked', scope='module')
def fixture_unasked(my_gin, tmp_path_factory, small_network):
    """A run of the file as it is, which cannot read held-out images, to be copied; and what it printed."""
    del small_network
    workdir, out, err = tmp_path_factory.mktemp('unasked') / 'run', io.StringIO(), io.StringIO()

    def refuse(self):
        raise AssertionError(f'held-out images of {self.spec.name} were read')

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(datasets.PrivateData, 'held_out', property(refuse))
        assert run(my_gin, workdir) == command.DONE
    return workdir, out.getvalue(), err.getvalue()


def test_who_includes_the_digits_measures_nothing_on_images_of_their_own(unasked):
    workdir, out, err = unasked
    assert "train: no classifier is tested on the held-out images of 'own'" in err
    assert 'accuracy' not in out and 'real images' not in out and 'statement' in out
    assert not (workdir / 'non_private').exists()


@pytest.mark.usefixtures('small_network')
@pytest.mark.parametrize(
    'asked_by',
    [
        'quick/UtilityConfig.only_public_data = False',
        pytest.param(
            'train.utility = @mine/UtilityConfig()\nmine/UtilityConfig.classifiers = ("rbf_svm",)\n'
            'mine/UtilityConfig.curve_sizes = (10, 1000)',
            marks=pytest.mark.long,
        ),
    ],
)
def test_who_asks_for_it_measures_and_is_told_that_it_must_not_be_released(my_gin, tmp_path, capsys, asked_by):
    assert run(with_more(my_gin, 'asked.gin', asked_by, *PRIVATE_ALONE), tmp_path / 'run') == command.DONE
    printed = capsys.readouterr()
    said = words(printed.out)
    (entry,) = json.loads((tmp_path / 'run' / 'non_private' / 'utility.json').read_text())['classifiers']
    for source in ('synthetic_images', 'real_images'):
        accuracy = f'rbf_svm on {source.replace("_", " ")} {entry[source]["accuracy"]:.1%}'
        assert re.search(rf'{re.escape(accuracy)} of \d+ held-out real images {re.escape(MARK)}', said)
    assert ('since there are 40 samples: 1,000' in printed.err) == ('mine' in asked_by)  # Known before the first step.
    (events,) = (tmp_path / 'run' / 'non_private' / 'tensorboard').glob('events*')
    content = events.read_bytes()
    assert content.count(b'rbf_svm') == content.count(b'non_private/rbf_svm') > 0
    for path in (tmp_path / 'run' / 'tensorboard').rglob('events*'):
        assert b'rbf_svm/' not in path.read_bytes()  # The configuration may name it.


@pytest.mark.usefixtures('small_network')
def test_digits_say_that_they_are_public_and_are_measured_and_marked(tmp_path, capsys):
    (tmp_path / 'my.gin').write_text("include 'digits.gin'\n" + '\n'.join((*QUICK, *PRIVATE_ALONE)))
    assert datasets.digits().is_public
    assert run(tmp_path / 'my.gin', tmp_path / 'run') == command.DONE
    assert f'of 360 held-out real images {MARK}' in words(capsys.readouterr().out)


def test_no_source_of_ones_own_images_is_public(my_gin):
    assert not datasets.npz_images(str(my_gin.with_name('own.npz'))).is_public
    train_images = datasets.digits().train
    assert not datasets.PrivateData(train=train_images, held_out=train_images).is_public


@pytest.mark.parametrize('flags, marks', [((), 6), (('--synthetic_only',), 0)])
def test_selection_is_marked_where_real_images_were_looked_at(tmp_path, capsys, flags, marks):
    data = datasets.digits().train
    store.write_file(tmp_path / 'samples.npz', data.images_uint8[:200], data.labels[:200], data.class_names)
    candidates = "--gin_param=SelectionConfig.candidates = ('rbf_svm', 'logistic_regression')"
    given = ['--gin_file=gin/select_digits.gin', candidates, f'--workdir={tmp_path}', *flags]
    assert verbs.call(select, *given) == command.DONE
    said = words(capsys.readouterr().out)
    assert said.count(MARK) == marks
    for sentence in ('a regret of', 'Rank correlation of'):
        assert (sentence in said) == bool(marks)


@pytest.mark.usefixtures('small_network')
def test_audit_and_attack_are_marked(my_gin, unasked, tmp_path, capsys):
    audited = with_more(
        my_gin,
        'audited.gin',
        'audit.pretraining = None',
        'audit.warm_start = None',
        'AuditConfig.num_canaries = 20',
        'AuditConfig.confidence = 0.99999',  # Or else a correct program is accused now and then.
    )
    assert verbs.call(audit, f'--gin_file={audited}', f'--workdir={tmp_path / "audit"}') == command.DONE
    assert words(capsys.readouterr().out).startswith(f'audit {MARK}')
    workdir = shutil.copytree(unasked[0], tmp_path / 'run')
    assert verbs.call(audit, f'--gin_file={audited}', f'--workdir={workdir}', '--membership') == command.DONE
    assert words(capsys.readouterr().out).startswith(f'membership attack {MARK}')
