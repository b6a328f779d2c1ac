"""Tests of bin/sample: which images it draws, in which files they end, and what it refuses."""

import dataclasses
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests.cli import sampling
from tests.cli import verbs
from tests.serving import servers
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export as export_verb
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import source as source_lib
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export

pytestmark = pytest.mark.usefixtures('loaded_once')


def test_classes_are_drawn_in_equal_parts_and_with_seeds_that_count_up(toy_run, tmp_path, capsys):
    labels = np.arange(7, 367) % 3
    drawn = sampling.draw(toy_run, tmp_path / 'set', num_images=360, seed=7)
    np.testing.assert_array_equal(drawn.labels, labels)
    # A chunk begins at a multiple of its size, wherever the set begins.
    np.testing.assert_array_equal(drawn.images, sampling.images_of(toy_run, np.arange(500) % 3)[7:367])
    assert drawn.class_names == sampling.NAMES and drawn.images.std() > 10
    assert '360 images of 3 classes in ' in capsys.readouterr().out


def test_seeds_that_the_run_may_have_drawn_itself_are_pointed_out(toy_run, tmp_path, capsys):
    run = tmp_path / 'run'
    shutil.copytree(toy_run, run)

    def said(**flags):
        shutil.rmtree(tmp_path / 'set', ignore_errors=True)
        assert sampling.call(run, tmp_path / 'set', num_images=3, **flags) == command.DONE
        return capsys.readouterr().out

    assert '--seed=' not in said()  # There are no samples of the run.
    np.savez(run / folder_lib.SAMPLES, images=np.zeros([50, 4, 4, 1], np.uint8), labels=np.zeros([50], np.int32))
    assert '--seed=50 draws others' in said(seed=49)
    assert '--seed=' not in said(seed=50)
    assert '--seed=' not in said(num_steps=1)  # Another sampler draws other images.
    (run / folder_lib.SAMPLES).write_bytes(b'damaged')
    assert '--seed=' not in said()


@pytest.mark.parametrize(
    'classes, labels', [('dog, cat', (2, 0)), ('öwl', (1,)), ('no_class', (3,)), ('no_class,cat', (3, 0))]
)
def test_classes_asked_for_are_drawn_in_equal_parts(toy_run, tmp_path, classes, labels):
    drawn = sampling.draw(toy_run, tmp_path / 'set', classes=classes)
    assert drawn.labels.tolist() == [labels[seed % len(labels)] for seed in range(60)]
    whole_chunk = np.arange(draw.CHUNK_SIZE) % len(labels)
    np.testing.assert_array_equal(drawn.images, sampling.images_of(toy_run, np.array(labels)[whole_chunk])[:60])


def test_classes_are_drawn_by_their_weights(toy_run, tmp_path):
    drawn = sampling.draw(toy_run, tmp_path / 'set', num_images=1000, class_weights='dog=2, cat=0.5,no_class=0')
    counts = np.bincount(drawn.labels, minlength=4)
    assert np.abs(counts - [200, 0, 800, 0]).max() <= 2
    np.testing.assert_array_equal(drawn.images, sampling.images_of(toy_run, drawn.labels))


@pytest.mark.parametrize(
    'changes',
    [
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ({'name': 'ancestral'}, {'num_steps': 1}, {'guidance_scale': 3.0})
        ),
        {'name': 'dpmpp_2m', 'num_steps': 3, 'guidance_scale': 2.0},
    ],
)
def test_sampler_asked_for_draws(toy_run, tmp_path, changes):
    drawn = sampling.draw(
        toy_run, tmp_path / 'set', **{'sampler' if key == 'name' else key: changes[key] for key in changes}
    )
    description = folder_lib.read_model(toy_run)
    image_sampler = source_lib.load_run(
        toy_run, description.with_sampler(dataclasses.replace(description.sampler, **changes))
    )
    labels = np.arange(draw.CHUNK_SIZE) % 3
    images = image_sampler.sample(tf.constant(labels, tf.int32), tf.range(len(labels), dtype=tf.int64))['images']
    np.testing.assert_array_equal(drawn.images, images.numpy()[:60])
    assert not np.array_equal(drawn.images, sampling.images_of(toy_run, labels)[:60])


def test_data_set_is_loaded_by_tfds(toy_run, tmp_path):
    assert (
        sampling.call(toy_run, tmp_path / 'set', 'tfds', shard_size=25, classes='cat,dog,no_class', name=None)
        == command.DONE
    )
    import tensorflow_datasets as tfds

    loaded, info = tfds.load(
        'synthetic_toys_1', data_dir=tmp_path / 'set', split='train', batch_size=-1, with_info=True
    )
    order = np.argsort(loaded['seed'])
    np.testing.assert_array_equal(loaded['seed'].numpy()[order], np.arange(60))
    np.testing.assert_array_equal(loaded['label'].numpy()[order], np.tile([0, 2, -1], 20))
    np.testing.assert_array_equal(
        loaded['image'].numpy()[order], sampling.images_of(toy_run, np.resize([0, 2, 3], 250))[:60]
    )
    assert info.features['label'].names == list(sampling.NAMES) and info.splits['train'].num_shards == 3
    assert 'differentially private' in info.description


def test_class_folders_hold_an_image_a_file(toy_run, tmp_path):
    assert sampling.call(toy_run, tmp_path / 'set', 'png') == command.DONE
    images = sampling.images_of(toy_run, np.arange(250) % 3)
    for seed in range(60):
        with Image.open(tmp_path / 'set' / sampling.NAMES[seed % 3] / f'{seed:07d}.png') as image:
            np.testing.assert_array_equal(np.array(image), images[seed, ..., 0])
    assert len(list((tmp_path / 'set').glob('*/*'))) == 60


def test_arrays_name_their_classes_and_seeds(toy_run, tmp_path):
    assert sampling.call(toy_run, tmp_path / 'set', 'npz file', seed=20, shard_size=25) == command.DONE
    with np.load(tmp_path / 'set.npz', allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays['seeds'], np.arange(20, 80))
        np.testing.assert_array_equal(arrays['labels'], np.arange(20, 80) % 3)
        np.testing.assert_array_equal(arrays['images'], sampling.images_of(toy_run, np.arange(250) % 3)[20:80])
        assert arrays['class_names'].tolist() == list(sampling.NAMES)


def test_output_and_format_are_chosen_where_they_are_not_given(toy_run, tmp_path):
    assert sampling.call(toy_run, tmp_path / 'set.npz', format=None, num_images=3) == command.DONE
    assert (tmp_path / 'set.npz').is_file()
    assert sampling.call(toy_run, tmp_path / 'set', format=None, num_images=3) == command.DONE
    assert (tmp_path / 'set' / 'cat' / '0000000.png').is_file()
    own = shutil.copytree(toy_run, tmp_path / 'run')
    assert sampling.call(own, None, format=None, num_images=3, seed=4) == command.DONE
    assert (own / 'samples_3_seed_4.npz').is_file()
    assert sampling.call(own, None, 'tfds', num_images=3) == command.DONE
    assert (own / 'samples_3_seed_0_tfds' / 'toy_set').is_dir()


@sampling.formats
def test_statement_goes_with_the_images(toy_run, tmp_path, kind, capsys):
    found = sampling.draw(toy_run, tmp_path / 'set', kind)
    assert 'differentially private with epsilon = ' in capsys.readouterr().out
    for path in folder_lib.statement_paths(toy_run):
        beside = pathlib.Path(f'{tmp_path}/set{"." if kind == "npz file" else "/"}{path.name}')
        assert beside.read_bytes() == path.read_bytes()
    assert found.statement_text == (toy_run / 'privacy_statement.txt').read_text()


def test_exported_model_with_a_description_needs_no_run(toy_run, tmp_path):
    assert (
        verbs.call(export_verb, f'--workdir={toy_run}', f'--output={tmp_path / "toys"}', '--num_steps=1')
        == command.DONE
    )
    alone = sampling.draw(None, tmp_path / 'alone', 'tfds', saved_model=tmp_path / 'toys', name=None)
    assert (tmp_path / 'alone' / 'synthetic_toys').is_dir()
    assert alone.statement_text == (toy_run / 'privacy_statement.txt').read_text()
    np.testing.assert_array_equal(alone.images, sampling.draw(toy_run, tmp_path / 'set', num_steps=1).images)


@sampling.formats
def test_same_seeds_are_the_same_images_however_they_are_cut(toy_run, tmp_path, kind):
    whole = sampling.draw(toy_run, tmp_path / 'whole', kind, num_images=600, seed=30)
    cut = sampling.draw(toy_run, tmp_path / 'cut', kind, num_images=600, seed=30, shard_size=70)
    part = sampling.draw(toy_run, tmp_path / 'part', kind, num_images=100, seed=301, shard_size=33)
    for one, other in ((whole, cut), (store.Samples(whole.images[271:371], whole.labels[271:371], *whole[2:]), part)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    if kind == 'npz file':
        assert (tmp_path / 'whole.npz').read_bytes() == (tmp_path / 'cut.npz').read_bytes()
    if kind == 'png':
        assert {
            name: value for name, value in sampling.contents(tmp_path / 'whole').items() if name != 'samples.json'
        } == {name: value for name, value in sampling.contents(tmp_path / 'cut').items() if name != 'samples.json'}
    other = sampling.draw(toy_run, tmp_path / 'other', kind, num_images=600, seed=31)
    assert not np.array_equal(whole.images, other.images)


def test_complete_set_is_not_drawn_again(toy_run, tmp_path, capsys):
    sampling.draw(toy_run, tmp_path / 'set')
    before = sampling.contents(tmp_path)
    assert sampling.call(toy_run, tmp_path / 'set') == command.DONE
    assert 'set is complete; nothing is drawn' in capsys.readouterr().err and sampling.contents(tmp_path) == before


@pytest.mark.parametrize(
    'flags, message',
    [
        ({'num_images': 0}, 'num_images of the samples must be at least 1, got 0'),
        ({'seed': -1}, 'seeds of the samples must be from 0 to 2**63 - 1, got seed=-1'),
        ({'seed': 2**63}, 'seeds of the samples must be from 0 to 2**63 - 1'),
        ({'classes': 'cat,cow'}, "--classes: there is no class 'cow'; there are cat, öwl, dog, and no_class"),
        ({'classes': 'cat,cat'}, "--classes names the class 'cat' twice"),
        ({'classes': ''}, "there is no class ''"),
        ({'class_weights': 'cow=1'}, "--class_weights: there is no class 'cow'"),
        ({'class_weights': 'cat'}, "'cat' is not of the form CLASS=NUMBER"),
        ({'class_weights': 'cat=1e99999999,dog=1'}, "'cat=1e99999999' is not of the form CLASS=NUMBER"),
        ({'class_weights': 'cat=1/0'}, "'cat=1/0' is not of the form CLASS=NUMBER"),
        ({'class_weights': 'cat=nan'}, "'cat=nan' is not of the form CLASS=NUMBER"),
        ({'class_weights': 'cat=-1,dog=2'}, 'weights of classes must not be negative'),
        ({'class_weights': 'cat=0'}, 'at least one must be above 0'),
        ({'classes': 'cat', 'class_weights': 'cat=1'}, 'give --classes or --class_weights, not both'),
        ({'sampler': 'plms'}, "invalid choice: 'plms'"),
        ({'num_steps': 0}, 'num_steps of the sampler must be at least 1, got 0'),
        ({'num_steps': 51}, 'num_steps=51 of the sampler exceeds the 50 timesteps'),
        ({'format': 'jpg'}, "invalid choice: 'jpg'"),
        ({'name': 'toys'}, '--name=toys is for --format=tfds'),
        ({'kind': 'tfds', 'name': 'mnist'}, "has a data set 'mnist' already"),
        ({'kind': 'npz file', 'format': 'png'}, 'names an .npz file, and the format is png'),
        ({'endpoint': 'localhost:8501'}, '--endpoint=localhost:8501 is no address of a model'),
        (
            {'endpoint': 'http://localhost:1/v1/models/toys', 'num_steps': 1},
            'the sampler of an exported model is fixed',
        ),
        ({'saved_model': 'nowhere'}, 'no SavedModel in nowhere'),
        ({'workdir': 'nowhere'}, 'nowhere holds no run'),
    ],
)
def test_wrong_use_is_one_clear_line_and_writes_nothing(toy_run, tmp_path, capsys, flags, message):
    assert sampling.call(toy_run, tmp_path / 'set', **flags) == command.WRONG_USE
    assert message in sampling.error_of(capsys)
    assert not list(tmp_path.iterdir())


def test_candidates_of_a_run_without_feature_means_are_refused(toy_run, tmp_path, capsys):
    assert sampling.call(toy_run, tmp_path / 'set', num_candidates=2) == command.WRONG_USE
    assert 'num_candidates=2 of the sampler needs a run with a teacher to choose by' in sampling.error_of(capsys)
    assert not (tmp_path / 'set').exists()


def test_guidance_of_a_model_that_always_saw_labels_is_refused(other_toy_run, tmp_path, capsys):
    assert sampling.call(other_toy_run, tmp_path / 'set', guidance_scale=2.0) == command.WRONG_USE
    assert 'guidance_scale=2 of the sampler needs a model that was trained with label_drop' in sampling.error_of(capsys)


def test_images_without_a_statement_are_refused(toy_run, tmp_path, capsys):
    own = shutil.copytree(toy_run, tmp_path / 'run')
    for path in folder_lib.statement_paths(own / 'saved_model' / '1' / export.EXTRA):
        path.unlink()
    assert sampling.call(own, tmp_path / 'set') == command.WRONG_USE
    assert 'carries no privacy statement' in sampling.error_of(capsys)
    (own / 'privacy_statement.json').unlink()
    for flags in ({}, {'num_steps': 1}):
        assert sampling.call(own, tmp_path / 'set', **flags) == command.WRONG_USE
        assert 'is not complete: it has no privacy statement yet' in sampling.error_of(capsys)
    assert not (tmp_path / 'set').exists()


def test_model_of_another_run_is_refused(toy_run, other_toy_run, tmp_path, capsys):
    assert sampling.call(toy_run, tmp_path / 'set', saved_model=other_toy_run / 'saved_model') == command.WRONG_USE
    assert 'carries another privacy statement than the run in' in sampling.error_of(capsys)
    assert sampling.call(None, tmp_path / 'set', saved_model=other_toy_run / 'saved_model') == command.WRONG_USE
    assert 'does not say what its classes are' in sampling.error_of(capsys)


def serving(workdir):
    """Returns the answers of a server of a run's exported model."""
    sample_fn = export.load_sample_fn(workdir / 'saved_model')

    def answer(request):
        inputs = request['inputs']
        images = sample_fn(tf.constant(inputs['labels'], tf.int32), tf.constant(inputs['seeds'], tf.int64))
        return 200, {'outputs': images.numpy().tolist()}

    return answer


def test_server_draws(toy_run, tmp_path):
    with servers.Server(serving(toy_run)) as server:
        served = sampling.draw(toy_run, tmp_path / 'served', num_images=300, endpoint=server.url)
    assert [len(request['inputs']['seeds']) for _, request in server.requests] == [8, 250, 1, 250, 1]
    local = sampling.draw(toy_run, tmp_path / 'local', num_images=300)
    np.testing.assert_array_equal(served.images, local.images)
    assert served.statement_text == local.statement_text


def test_server_of_another_model_is_refused(toy_run, other_toy_run, tmp_path, capsys):
    with servers.Server(serving(other_toy_run)) as server:
        assert sampling.call(toy_run, tmp_path / 'set', endpoint=server.url) == command.WRONG_USE
    assert 'serves another model than the one whose privacy statement is to go with its images' in sampling.error_of(
        capsys
    )
    assert not (tmp_path / 'set').exists()


def test_server_that_turns_to_another_model_half_way_is_found_out(toy_run, other_toy_run, tmp_path, capsys):
    good, other, arguments = serving(toy_run), serving(other_toy_run), {'num_images': 1000, 'shard_size': 250}
    with servers.Server(*[good] * 3, other) as server:
        assert sampling.call(toy_run, tmp_path / 'set', endpoint=server.url, **arguments) == command.WRONG_USE
    assert 'serves another model than the one' in sampling.error_of(capsys)
    kept = list((tmp_path / 'set').glob('samples-*'))
    assert [path.name for path in kept] == ['samples-00000-of-00004.npz']
    with servers.Server(good) as server:
        served = sampling.draw(toy_run, tmp_path / 'set', endpoint=server.url, **arguments)
    np.testing.assert_array_equal(served.images, sampling.draw(toy_run, tmp_path / 'local', **arguments).images)


def test_server_that_fails_half_way_keeps_finished_shards(toy_run, tmp_path, capsys):
    good, arguments = serving(toy_run), {'num_images': 1000, 'shard_size': 250}
    with servers.Server(*[good] * 5, (500, {'error': 'out of memory'})) as server:
        assert sampling.call(toy_run, tmp_path / 'set', endpoint=server.url, **arguments) == command.FAILED
        assert (
            sampling.error_of(capsys)
            == f'sample: error: {server.url}:predict: HTTP 500 Internal Server Error: out of memory.'
        )
    assert len(list((tmp_path / 'set').glob('samples-*'))) == 2
    with servers.Server(good) as server:  # It may have moved.
        served = sampling.draw(toy_run, tmp_path / 'set', endpoint=server.url, **arguments)
    assert '2 of 4 shards are complete; going on' in capsys.readouterr().err
    np.testing.assert_array_equal(served.images, sampling.draw(toy_run, tmp_path / 'local', **arguments).images)
