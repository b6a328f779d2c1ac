"""Tests of a run of bin/train, from a file, whose samples are chosen and labelled by a private teacher."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import export
from tf_dpdiff.cli import release
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import train
from tf_dpdiff.data import datasets
from tf_dpdiff.runs import library
from tf_dpdiff.serving import batching
from tf_dpdiff.serving import servables
from tf_dpdiff.training import teacher as teacher_stage

pytestmark = pytest.mark.usefixtures('small_network')
TINY = pathlib.Path(__file__).resolve().parent / 'tiny_digits.gin'
BINDINGS = [
    'train.teacher = @TeacherConfig()',
    'TeacherConfig.noise_multiplier = 20.0',
    'TeacherConfig.num_rounds = 10',
    "GenerateConfig.labels = 'teacher'",
    'SamplerConfig.num_candidates = 2',
    'train.pretraining = None',
    'TrainerConfig.grids_per_stage = 1',
]


def flags(*bindings):
    return [f'--gin_file={TINY}', *(f'--gin_param={binding}' for binding in [*BINDINGS, *bindings])]


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory, small_network):
    """A whole run, to be copied."""
    del small_network
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    assert verbs.call(train, *flags(), f'--workdir={workdir}') == command.DONE
    return workdir


def teacher_labels(workdir, images):
    run_id = json.loads((workdir / 'privacy_statement.json').read_text())['run_id']
    bias = json.loads((workdir / 'model.json').read_text())['label_bias']
    return teacher_stage.read_labeller(workdir, run_id, images.shape[1:], bias)(images)


def test_samples_have_the_labels_that_the_teacher_gives_them(run):
    with np.load(run / 'samples.npz') as samples:
        images, labels = samples['images'], samples['labels']
    np.testing.assert_array_equal(labels, teacher_labels(run, images))
    assert not np.array_equal(labels, np.arange(120) % 10)
    # Each class as often as it was asked for, nearly.
    assert np.abs(np.bincount(labels, minlength=10) - 12).max() <= 4


@pytest.mark.parametrize('share', [0.0, 0.5, 0.9])
def test_labels_are_chosen_by_what_the_teacher_sees_of_them(tmp_path, capsys, monkeypatch, share):
    kept, generator = share > 0.7, np.random.default_rng(0)

    def logits(unused_labeller, images):
        told = np.where(generator.random(len(images)) < share, np.arange(len(images)), generator.permutation(120)) % 10
        return 5.0 * np.eye(10, dtype=np.float32)[told] + generator.normal(size=[len(images), 10]).astype(np.float32)

    monkeypatch.setattr(teacher_stage.Labeller, 'logits', logits)
    workdir = tmp_path / 'run'
    assert verbs.call(train, *flags("GenerateConfig.labels = 'auto'"), f'--workdir={workdir}') == command.DONE
    printed = capsys.readouterr()
    told = ' '.join(printed.err.split())
    # A table, which breaks lines where the path of the model before it ends, and words that are too long.
    assert 'withtheteacher(signatureclassify)' in re.sub(r'[│\s]', '', printed.out)
    assert ('they keep these labels' in told) == kept and ('labels them anew' in told) != kept
    with np.load(workdir / 'samples.npz') as samples:
        assert np.array_equal(samples['labels'], np.arange(120) % 10) == kept
    assert (json.loads((workdir / 'model.json').read_text())['label_bias'] is None) == kept


def test_statement_and_report_tell_of_the_teacher(run):
    statement = json.loads((run / 'privacy_statement.json').read_text())
    assert [(release['mechanism'], release['count']) for release in statement['releases']] == [
        ('teacher_gradients', 10),
        ('noisy_class_means', 1),
        ('dp_sgd_step', 3),
    ]
    assert 'teacher gradients, 10 times: all units, noise multiplier 20' in (run / 'privacy_statement.txt').read_text()


def test_every_way_to_sample_gives_the_same_images_and_labels(run, tmp_path, capsys):
    run, exported = shutil.copytree(run, tmp_path / 'run'), tmp_path / 'exported'
    with np.load(run / 'samples.npz') as samples:
        expected = dict(samples)
    assert verbs.call(export, f'--workdir={run}', f'--output={exported}', '--warmup_batch_sizes=none') == command.DONE
    for source in (f'--workdir={run}', f'--saved_model={exported}'):
        path = tmp_path / 'drawn.npz'
        assert verbs.call(sample, source, '--num_images=120', f'--output={path}') == command.DONE
        with np.load(path) as samples:
            np.testing.assert_array_equal(samples['images'], expected['images'])
            np.testing.assert_array_equal(samples['labels'], expected['labels'])
        for left in tmp_path.glob('drawn*'):
            left.unlink()
    capsys.readouterr()
    given = [f'--workdir={run}', '--num_images=10', '--format=png', f'--output={tmp_path / "folders"}']
    assert verbs.call(sample, *given) == command.WRONG_USE
    assert 'say --format=npz or --format=tfds' in capsys.readouterr().err
    given = [f'--workdir={run}', '--num_images=10', f'--output={tmp_path / "folder"}']  # No format, so no PNG files.
    assert verbs.call(sample, *given) == command.DONE
    np.testing.assert_array_equal(sample.store.read(tmp_path / 'folder').labels, expected['labels'][:10])
    (run / teacher_stage.FILE).unlink()
    # Another sampler draws from the checkpoint, which needs the file.
    given = [f'--workdir={run}', '--num_steps=4', '--num_images=10', f'--output={tmp_path / "none.npz"}']
    assert verbs.call(sample, *given) != command.DONE
    assert (
        'teacher.npz, the teacher of the run, is missing' in capsys.readouterr().err
        and not (tmp_path / 'none.npz').exists()
    )


def test_teacher_goes_out_with_the_generator_and_says_what_the_run_s_says(run, tmp_path, capsys):
    images = datasets.digits().held_out.images_uint8[:30]
    run_id = json.loads((run / 'privacy_statement.json').read_text())['run_id']
    logits = teacher_stage.read_scorer(run, run_id, images.shape[1:])(tf.constant(images))
    expected, labels = tf.nn.softmax(logits).numpy(), np.argmax(logits, axis=1)
    assert verbs.call(release, f'--workdir={run}', f'--output={tmp_path / "out"}') == command.DONE
    assert 'not looked for' not in capsys.readouterr().err  # Private images: they were found by the configuration.
    for folder in (run, tmp_path / 'out' / 'saved_model'):
        np.testing.assert_allclose(library.load(folder).classify(images), expected, atol=1e-5)
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert "signatures['classify']" in card and 'The generator, the classifier beside it, and everything drawn' in card
    # As a server has it, which has answered the warm-up requests by then.
    servable = servables.Servable(tmp_path / 'out' / 'saved_model' / '1', batching.BatchingConfig())
    found = servable.signature('classify').run({'images': images})
    np.testing.assert_array_equal(found['labels'], labels)
    np.testing.assert_array_equal(
        servable.signature('label_samples').run({'images': images})['labels'], teacher_labels(run, images)
    )
    servable.close()


@pytest.mark.parametrize('changed', [lambda images: images[:, :4], lambda images: images / 255.0])
def test_teacher_takes_images_of_its_run_alone(run, changed):
    images = datasets.digits().held_out.images_uint8[:3]
    with pytest.raises(ValueError, match=r'images must be uint8 \[images, 8, 8, 1\], got'):
        library.load(run).classify(changed(images))


def test_model_without_a_teacher_says_so(tiny_run):
    with pytest.raises(ValueError, match='the model has no classifier'):
        library.load(tiny_run[0]).classify(np.zeros([1, 8, 8, 1], np.uint8))


def test_accuracy_of_the_teacher_is_measured_and_private(run, tmp_path, capsys):
    run, held_out = shutil.copytree(run, tmp_path / 'run'), datasets.digits().held_out
    only = ('evaluate.quality = None', 'evaluate.neighbors = None', "UtilityConfig.classifiers = ('rbf_svm',)")
    given = [f'--gin_file={TINY}', *(f'--gin_param={binding}' for binding in (*only, 'UtilityConfig.curve_sizes = ()'))]
    assert verbs.call(evaluate, *given, f'--workdir={run}') == command.DONE
    said = ' '.join(capsys.readouterr().out.split())
    expected = np.mean(np.argmax(library.load(run).classify(held_out.images_uint8), axis=1) == held_out.labels)
    assert re.search(rf'teacher of the run.* by itself: {expected:.1%} of the 360 held-out real images. \(.*not', said)
    measured = json.loads((run / 'non_private' / 'evaluation_samples' / 'evaluation.json').read_text())
    assert measured['utility']['teacher'] == expected
    assert f'{expected:.1%}' in (run / 'non_private' / 'evaluation_samples' / 'report.html').read_text()


def test_a_set_of_samples_can_be_read_back_with_the_labels_of_the_teacher(run, tmp_path):
    path = tmp_path / 'set'
    given = [f'--workdir={run}', '--num_images=30', '--format=tfds', f'--output={path}']
    assert verbs.call(sample, *given) == command.DONE
    found = sample.store.read(path)
    np.testing.assert_array_equal(found.labels, teacher_labels(run, found.images))
    assert verbs.call(sample, *given) == command.DONE  # It is complete.


@pytest.mark.parametrize(
    'binding, message',
    [
        ('train.teacher = None', 'needs a teacher'),
        ("GenerateConfig.labels = 'guessed'", 'labels of the samples must be one of'),
        ('TeacherConfig.num_rounds = 1', 'num_rounds of the teacher must be a whole number of at least 2'),
    ],
)
def test_wrong_configuration_is_one_clear_line(tmp_path, capsys, binding, message):
    workdir = tmp_path / 'none'
    changed = flags(binding)
    if binding.startswith('train.teacher'):
        changed = [flag for flag in changed if 'TeacherConfig' not in flag]
    assert verbs.call(train, *changed, f'--workdir={workdir}') == command.WRONG_USE
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (workdir / 'checkpoints').exists()


def test_candidates_want_a_teacher_or_feature_means(tmp_path, capsys):
    given = [f'--gin_file={TINY}', '--gin_param=SamplerConfig.num_candidates = 2', f'--workdir={tmp_path / "none"}']
    assert verbs.call(train, *given) == command.WRONG_USE
    assert 'needs a run with a teacher to choose by' in capsys.readouterr().err
