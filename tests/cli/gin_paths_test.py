"""Tests that a path in a configuration means the same from any working folder, or is refused."""

import glob
import os
import shutil

import gin
import numpy as np
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_paths
from tf_dpdiff.cli import train

ROOT = gin_files.gin_folder().parent
# Every parameter that is a path: what binds it, and its name in the end.
PATHS = {
    'npz_images.path': ('DATA = @npz_images()', 'npz_images.path'),
    'npy_images.path': ('DATA = @npy_images()', 'npy_images.path'),
    'image_folder.path': ('DATA = @image_folder()', 'image_folder.path'),
    'image_folder.owners': ('DATA = @image_folder()\nimage_folder.path = "/x"', 'image_folder.owners'),
    'csv_images.path': ('DATA = @csv_images()', 'csv_images.path'),
    'csv_images.root': ('DATA = @csv_images()\ncsv_images.path = "/x"', 'csv_images.root'),
    'dicom_folder.path': ('DATA = @dicom_folder()', 'dicom_folder.path'),
    'dicom_folder.labels': ('DATA = @dicom_folder()\ndicom_folder.path = "/x"', 'dicom_folder.labels'),
    'tfds_images.data_dir': ('DATA = @tfds_images()\ntfds_images.name = "mnist"', 'tfds_images.data_dir'),
    'tfrecord_images.pattern': ('DATA = @tfrecord_images()', 'tfrecord_images.pattern'),
    'tfrecord_images.held_out_pattern': (
        'DATA = @tfrecord_images()\ntfrecord_images.pattern = "/x"',
        'tfrecord_images.held_out_pattern',
    ),
    'wilds_camelyon17.root': ('DATA = @wilds_camelyon17()', 'wilds_camelyon17.root'),
    'wilds_camelyon17.cache_dir': (
        'DATA = @wilds_camelyon17()\nwilds_camelyon17.root = "/x"',
        'wilds_camelyon17.cache_dir',
    ),
    'public/npz_images.path': (
        'PretrainingConfig.dataset = @public_images()\npublic_images.data = @public/npz_images()',
        'public/npz_images.path',
    ),
    'FinetuningConfig.init_from': ('', 'FinetuningConfig.init_from'),
    'train.budget_file': ('', 'train.budget_file'),
    'evaluate.budget_file': ('', 'evaluate.budget_file'),
}


def write(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def resolved(path, parameter, *flags):
    """Returns the value of a parameter after the file is parsed."""
    gin_config.parse([str(path)], flags, parameter.split('.')[0] if '.budget' in parameter else 'train')
    return gin.query_parameter(parameter)


@pytest.mark.parametrize('parameter', PATHS)
@pytest.mark.parametrize('folder', ['.', 'mine', 'elsewhere'])
def test_relative_path_in_a_file_is_relative_to_that_file(tmp_path, monkeypatch, parameter, folder):
    path = write(tmp_path, 'mine/my.gin', f"include 'digits.gin'\n{PATHS[parameter][0]}\n{parameter} = 'a/data'")
    write(tmp_path, 'mine/a/data', '')
    write(tmp_path, 'elsewhere/a/data', '')
    monkeypatch.chdir(tmp_path / folder)
    assert resolved(os.path.relpath(path), parameter) == str(tmp_path / 'mine' / 'a' / 'data')


def test_every_path_of_every_source_and_configuration_is_known():
    known = {(name, parameter) for name, parameters in gin_paths._PATHS.items() for parameter in parameters}
    tried = {tuple(name.split('/')[-1].split('.')) for name in PATHS} | {('FeaturesConfig', 'source')}
    assert known == tried
    for function in gin_config._REGISTERED:
        for parameter, kind in getattr(function, '__annotations__', {}).items():
            is_name = parameter.endswith('_column') or parameter == 'owner_pattern'
            if (
                'str' in str(kind)
                and any(word in parameter for word in ('path', 'dir', 'root', 'pattern', 'file'))
                and not is_name
            ):
                assert (function.__name__, parameter) in known


@pytest.mark.parametrize('parameter', PATHS)
def test_relative_path_in_a_flag_is_relative_to_the_working_folder(tmp_path, monkeypatch, parameter):
    path = write(tmp_path, 'mine/my.gin', f"include 'digits.gin'\n{PATHS[parameter][0]}\n{parameter} = '/x'")
    write(tmp_path, 'mine/data', '')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert resolved(path, parameter, f"{parameter} = 'data'") == str(tmp_path / 'here' / 'data')


@pytest.mark.parametrize('value', ['/data/a', '~/a', ''])
def test_path_that_is_not_relative_stays_as_it_is(tmp_path, value):
    path = write(tmp_path, 'my.gin', f"include 'digits.gin'\nFinetuningConfig.init_from = '{value}'")
    assert resolved(path, 'FinetuningConfig.init_from') == value


def test_path_is_relative_to_the_file_that_says_it_and_not_to_one_that_includes_it_or_names_a_macro(tmp_path):
    write(tmp_path, 'base/base.gin', "include 'digits.gin'\nFinetuningConfig.init_from = %START\nSTART = 'own'")
    path = write(tmp_path, 'my.gin', "include 'base/base.gin'")
    assert resolved(path, 'FinetuningConfig.init_from') == str(tmp_path / 'base' / 'own')
    path = write(tmp_path, 'my.gin', "include 'base/base.gin'\nSTART = 'mine'")
    assert resolved(path, 'FinetuningConfig.init_from') == str(tmp_path / 'mine')
    assert resolved(path, 'FinetuningConfig.init_from', "START = 'x'") == os.path.join(os.getcwd(), 'x')


@pytest.mark.parametrize(
    'name, parameter, below_root',
    [
        ('mnist_cpu.gin', 'FinetuningConfig.init_from', 'saved_models/grey28'),
        ('cifar10.gin', 'FinetuningConfig.init_from', 'runs/imagenet32'),
        ('camelyon.gin', 'wilds_camelyon17.root', 'data/camelyon17_v1.0'),
    ],
)
def test_path_in_a_file_of_the_project_is_below_the_root_from_any_folder(
    tmp_path, monkeypatch, name, parameter, below_root
):
    monkeypatch.chdir(tmp_path)
    assert resolved(f'gin/{name}', parameter) == str(ROOT / below_root)
    path = write(tmp_path, 'my.gin', f"include '{name}'")
    assert resolved(path, parameter) == str(ROOT / below_root)


def test_what_the_project_ships_is_found_from_a_file_elsewhere_unless_something_else_has_its_name(tmp_path):
    path = write(tmp_path, 'my.gin', "include 'digits.gin'\nFinetuningConfig.init_from = 'saved_models/grey28'")
    assert resolved(path, 'FinetuningConfig.init_from') == str(ROOT / 'saved_models' / 'grey28')
    (tmp_path / 'saved_models' / 'grey28').mkdir(parents=True)
    with pytest.raises(command.UsageError, match='my.gin, line 2: .* may mean .* which are both there'):
        resolved(path, 'FinetuningConfig.init_from')
    path.write_text(path.read_text().replace("'saved", "'./saved"))
    assert os.path.samefile(resolved(path, 'FinetuningConfig.init_from'), tmp_path / 'saved_models' / 'grey28')
    shutil.rmtree(tmp_path / 'saved_models')
    (tmp_path / 'saved_models').symlink_to(ROOT / 'saved_models')  # Both are there, and are the same.
    path.write_text(path.read_text().replace("'./saved", "'saved"))
    assert os.path.samefile(resolved(path, 'FinetuningConfig.init_from'), ROOT / 'saved_models' / 'grey28')


def test_path_that_was_meant_from_the_working_folder_says_what_it_means_now(tmp_path, monkeypatch):
    path = write(tmp_path, 'configs/my.gin', "include 'digits.gin'\nFinetuningConfig.init_from = 'runs/a'")
    (tmp_path / 'runs' / 'a').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(command.UsageError, match='which a path in a file is not relative to') as refused:
        resolved(path, 'FinetuningConfig.init_from')
    assert '\n' not in str(refused.value)
    monkeypatch.chdir('/')
    assert resolved(path, 'FinetuningConfig.init_from') == str(tmp_path / 'configs' / 'runs' / 'a')


def test_pattern_matches_below_a_folder_with_brackets_in_its_name(tmp_path):
    path = write(
        tmp_path,
        'scans [2024]/my.gin',
        "include 'digits.gin'\nDATA = @tfrecord_images()\ntfrecord_images.pattern = 'part-*'",
    )
    write(tmp_path, 'scans [2024]/part-1', '')
    assert glob.glob(resolved(path, 'tfrecord_images.pattern')) == [str(tmp_path / 'scans [2024]' / 'part-1')]


@pytest.mark.parametrize('value', ['classifier', 'inception', 'nowhere'])
def test_name_of_features_is_no_path(tmp_path, value):
    path = write(tmp_path, 'my.gin', f"include 'digits.gin'\nFeaturesConfig.source = '{value}'")
    gin_config.parse([str(path)], [], 'evaluate')
    assert gin.query_parameter('FeaturesConfig.source') == value


def test_folder_of_features_is_a_path(tmp_path, monkeypatch):
    (tmp_path / 'features').mkdir()
    path = write(tmp_path, 'my.gin', "include 'digits.gin'\nFeaturesConfig.source = 'features'")
    monkeypatch.chdir('/')
    gin_config.parse([str(path)], [], 'evaluate')
    assert gin.query_parameter('FeaturesConfig.source') == str(tmp_path / 'features')


@pytest.mark.parametrize('folder', ['.', 'elsewhere'])
def test_dry_run_reads_the_same_data_from_any_folder(tmp_path, monkeypatch, capsys, folder):
    images = np.random.default_rng(0).integers(0, 256, [400, 8, 8, 1]).astype(np.uint8)
    np.savez(tmp_path / 'own.npz', images=images, labels=np.arange(400) % 10)
    path = write(
        tmp_path,
        'my.gin',
        "include 'digits.gin'\nDATA = @npz_images()\nnpz_images.path = 'own.npz'\n"
        'EXPECTED_BATCH_SIZE = 20\nDpSgdConfig.noise_multiplier = 20.0',
    )
    (tmp_path / 'elsewhere').mkdir()
    np.savez(tmp_path / 'elsewhere' / 'own.npz', images=images[:100], labels=np.arange(100) % 10)
    monkeypatch.chdir(tmp_path / folder)
    assert verbs.call(train, f'--gin_file={path}', '--workdir=run', '--dry_run', '--show_config') == command.DONE
    said = capsys.readouterr().out
    assert 'of 8x8x1, 10 classes' in said and f"npz_images.path = '{tmp_path / 'own.npz'}'" in said.replace(
        '\\\n    ', ''
    )
