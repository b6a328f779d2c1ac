"""Tests of the library: what `import tf_dpdiff` promises, from a recipe to images."""

import ast
import dataclasses
import math
import os
import pathlib
import shutil
import subprocess
import sys

import gin
import numpy as np
import pytest

import tf_dpdiff
from tf_dpdiff.cli import gin_config
from tf_dpdiff.data import datasets
from tf_dpdiff.networks import kinds
from tf_dpdiff.runs import handover
from tf_dpdiff.runs import library
from tf_dpdiff.runs import outcome
from tf_dpdiff.runs import source as source_lib
from tf_dpdiff.sampling import store

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TINY = str(ROOT / 'tests' / 'cli' / 'tiny_digits.gin')


def make_recipe(**changes):
    """Returns a tiny private run that is made in Python alone."""
    optimization = tf_dpdiff.OptimizationConfig(learning_rate=0.01)
    arguments = dict(
        network=tf_dpdiff.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2),
        process=tf_dpdiff.DiffusionProcess(),
        data=tf_dpdiff.digits(),
        privacy=tf_dpdiff.DpSgdConfig(
            target_delta=1e-4, expected_batch_size=30, num_steps=2, l2_norm_clip=1e-2, noise_multiplier=5.0
        ),
        finetuning=tf_dpdiff.FinetuningConfig(optimization, tf_dpdiff.ViewsConfig(), units_per_chunk=10),
        sampler=tf_dpdiff.SamplerConfig(num_steps=2),
        samples=tf_dpdiff.GenerateConfig(num_images=40, chunk_size=20),
    )
    return tf_dpdiff.Recipe(**{**arguments, **changes})


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory, small_network):
    """A finished run."""
    del small_network
    return tf_dpdiff.train(make_recipe(), tmp_path_factory.mktemp('library') / 'run')


def test_importing_the_package_imports_no_tensorflow():
    program = 'import sys, tf_dpdiff; print("tensorflow" in sys.modules, len(dir(tf_dpdiff)))'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ['False', str(len(tf_dpdiff.__all__))]


@pytest.mark.parametrize('given, expected', [({}, '1'), ({'TF_ENABLE_ONEDNN_OPTS': '0'}, '0')])
def test_fast_kernels_are_asked_for_on_every_processor_unless_someone_says_otherwise(given, expected):
    program = 'import os, tf_dpdiff; print(os.environ["TF_ENABLE_ONEDNN_OPTS"])'
    others = {name: value for name, value in os.environ.items() if name != 'TF_ENABLE_ONEDNN_OPTS'}
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True, cwd=ROOT, env={**others, **given}
    )
    assert done.stdout.split() == [expected]


def test_every_promised_name_is_there_and_documented():
    for name in tf_dpdiff.__all__:
        assert name == '__version__' or getattr(tf_dpdiff, name).__doc__, name
    with pytest.raises(AttributeError):
        tf_dpdiff.no_such_name  # noqa: B018


def test_stub_lists_each_module_that_a_name_is_defined_in():
    for node in ast.parse((ROOT / 'tf_dpdiff' / '__init__.pyi').read_text()).body:
        (alias,) = node.names
        promised = getattr(tf_dpdiff, alias.name)
        assert getattr(promised, '__module__', 'tf_dpdiff.version') == f'tf_dpdiff.{node.module}'


def test_configuration_files_and_programs_use_the_same_names():
    configured = {function.__name__ for function in gin_config._REGISTERED}
    assert configured <= set(tf_dpdiff.__all__)
    assert {config.__name__ for config in kinds.CONFIGS} <= configured
    assert 'Recipe' not in configured


def test_run_has_a_statement_and_what_was_chosen_is_on_record(run):
    assert 0.0 < run.statement.epsilon < math.inf and run.statement.delta == 1e-4
    assert 'PRIVACY STATEMENT' in str(run.statement)
    recorded = (run.workdir / 'operative_config.gin').read_text()
    assert recorded == make_recipe().to_text()
    assert "# train.data: 1,437 units of 'digits'" in recorded


def test_record_does_not_tell_how_many_images_the_owners_have():
    digits = tf_dpdiff.digits()
    owners = np.arange(len(digits.train)) // 3
    owned = dataclasses.replace(digits.train, owners=owners, unit='one patient')
    texts = []
    for images in (
        owned,
        dataclasses.replace(owned, images_uint8=owned.images_uint8[:-1], labels=owned.labels[:-1], owners=owners[:-1]),
    ):
        data = datasets.PrivateData(train=images, held_out=digits.held_out)
        texts.append(make_recipe(data=data).to_text())
    assert texts[0] == texts[1] and "479 units of 'digits'" in texts[0]


@pytest.mark.parametrize('kind', [str, pathlib.Path])
def test_folders_of_this_machine_are_cut_from_what_is_released(kind):
    text = make_recipe(budget_file=kind('/data/ward 3/our.budget')).to_text()
    assert "train.budget_file = '/data/ward 3/our.budget'" in text
    assert "train.budget_file = '.../our.budget'" in outcome.cut_paths(text)


def test_run_of_a_program_is_gone_on_with_and_refused_as_by_the_command(run, tmp_path):
    again = tf_dpdiff.train(make_recipe(), run.workdir)  # It is complete.
    assert again.statement.fields == run.statement.fields
    with pytest.raises(ValueError, match='begun with another configuration .*base_channels'):
        tf_dpdiff.train(make_recipe(network=dataclasses.replace(make_recipe().network, base_channels=8)), run.workdir)
    with pytest.raises(FileNotFoundError, match='holds no run'):
        tf_dpdiff.load(tmp_path / 'nothing') if (tmp_path / 'nothing').exists() else tf_dpdiff.Run(tmp_path)


def test_text_of_a_recipe_makes_the_same_recipe(tmp_path):
    recipe = tf_dpdiff.recipe(TINY)
    changed = dataclasses.replace(recipe, privacy=dataclasses.replace(recipe.privacy, num_steps=2), utility=None)
    text = changed.to_text()
    assert 'num_steps = 2' in text and text != recipe.to_text()  # It does not tell of the file any more.
    path = tmp_path / 'mine.gin'
    data = 'train.data = @digits()\npretraining/PretrainingConfig.dataset = @random_strokes()\n'
    strokes = 'random_strokes.num_images = 50\nrandom_strokes.image_size = 8\n'
    path.write_text(text + data + strokes)
    again = tf_dpdiff.recipe(str(path))
    for field in dataclasses.fields(recipe):
        if field.name not in ('data', 'pretraining', '_configuration'):
            assert getattr(again, field.name) == getattr(changed, field.name), field.name
    assert again.pretraining.optimization == changed.pretraining.optimization


def test_recipe_of_a_file_is_what_the_command_would_run_and_records_the_file():
    recipe = tf_dpdiff.recipe(TINY, bindings=['NUM_STEPS = 2'], AUGMENTATION_MULTIPLICITY=4)
    assert recipe.privacy.num_steps == 2 and recipe.finetuning.views.augmentation_multiplicity == 4
    assert recipe.to_text() == gin.operative_config_str()
    with pytest.raises(ValueError, match='AUGMENTATION_MULTIPLICTY'):
        tf_dpdiff.recipe(TINY, AUGMENTATION_MULTIPLICTY=4)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'privacy': None}, 'train.privacy and train.finetuning must be bound'),
        ({'data': None}, 'but what belongs to them .train.privacy, train.finetuning.'),
        ({'data': None, 'privacy': None, 'finetuning': None}, 'no public ones either'),
    ],
)
def test_recipe_that_is_incomplete_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_recipe(**changes)


@pytest.mark.parametrize('opened', ['run', 'saved_model'])
def test_generator_draws_what_the_run_drew_and_more(run, opened):
    generator = tf_dpdiff.load(run.workdir if opened == 'run' else run.workdir / 'saved_model')
    images, labels = generator.sample(40)
    samples = store.read(run.workdir / 'samples.npz')
    np.testing.assert_array_equal(labels, samples.labels)
    assert images.shape == (40, *generator.image_shape) and images.dtype == np.uint8
    assert generator.statement.epsilon == run.statement.epsilon
    threes, labels = generator.sample(5, seed=7, classes=('3',))
    assert len(threes) == 5 and set(labels) == {3}
    np.testing.assert_array_equal(generator.sample(5, seed=7, classes=('3',))[0], threes)
    with pytest.raises(ValueError, match="there is no class 'ten'"):
        generator.sample(1, classes=('ten',))


def test_generator_draws_no_class_that_its_model_was_not_trained_on(run):
    source = source_lib.find(run.workdir, None)
    with pytest.raises(ValueError, match='was never trained without labels'):
        library.Generator(source).sample(1, classes=('no_class',))
    unlabelled = library.Generator(dataclasses.replace(source, description=source.description._replace(labelled=False)))
    with pytest.raises(ValueError, match='trained without labels, so it draws only no_class'):
        unlabelled.sample(1, classes=('3',))


def test_release_holds_what_may_be_sent_on_and_nothing_else(run, tmp_path):
    output = run.release(tmp_path / 'released')
    released = {path.name for path in output.iterdir()}
    assert {'privacy_statement.txt', 'saved_model', 'samples.npz', 'report.html', 'model.json'} <= released
    kept = {'checkpoints', 'non_private', 'operative_config.gin', 'tensorboard', '.lock'}
    assert not released & kept and (run.workdir / 'checkpoints').exists()
    assert tf_dpdiff.load(output / 'saved_model').sample(2)[0].shape[0] == 2
    with pytest.raises(FileExistsError, match='name a new folder'):
        run.release(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['released', 'released.zip']
    # What the folder holds is enough to draw from, as the run is.
    assert tf_dpdiff.load(output).statement.epsilon == run.statement.epsilon
    assert all(check.is_good for check in handover.verify(tmp_path / 'released.zip'))


def test_summary_of_an_audit_goes_out_where_it_is_named(run, tmp_path):
    summary = tmp_path / 'audit_summary.json'
    summary.write_text('{"is_public": false}')
    with pytest.raises(ValueError, match='audit_summary.json'):
        run.release(tmp_path / 'released', audit=summary)
    assert [path.name for path in tmp_path.iterdir()] == ['audit_summary.json']


def test_private_image_is_not_released_where_the_data_are_given(run, tmp_path):
    copied = tf_dpdiff.Run(shutil.copytree(run.workdir, tmp_path / 'run'))
    data = tf_dpdiff.digits()
    with np.load(copied.workdir / 'samples.npz') as samples:
        arrays = dict(samples)
    np.savez(
        copied.workdir / 'samples.npz', **{**arrays, 'images': data.held_out.images_uint8[: len(arrays['images'])]}
    )
    with pytest.raises(ValueError, match='nothing is released: samples.npz holds a private image'):
        copied.release(tmp_path / 'released', data=data)


def test_run_is_evaluated_as_by_the_command(run):
    recipe = tf_dpdiff.EvaluationRecipe(
        data=tf_dpdiff.digits(),
        utility=tf_dpdiff.UtilityConfig(classifiers=('logistic_regression',), num_seeds=1, curve_sizes=()),
        quality=None,
        neighbors=None,
    )
    measured = run.evaluate(recipe)
    assert measured['num_samples'] == 40 and measured['utility']['num_test'] == 360
    assert (run.workdir / 'non_private' / 'evaluation_samples' / 'report.html').exists()
