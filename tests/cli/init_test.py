"""Tests of bin/init: what it writes runs as it is, and no pixel or count a class has a say in it."""

import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from tests.cli import verbs
import tf_dpdiff
from tf_dpdiff.cli import command
from tf_dpdiff.cli import configure
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import init
from tf_dpdiff.cli import train
from tf_dpdiff.data import datasets
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import forecast


@pytest.fixture(autouse=True)
def fixture_speed(monkeypatch):
    """A machine of known speed."""
    monkeypatch.setattr(forecast, 'measure_speed', lambda model, trainable, **options: forecast.Speed(2000.0, 800.0))


def write_folder(
    folder, *, seed=0, sizes=((32, 32), (40, 36)), mode='RGB', counts=(30, 30), name='{i}.png', classes=('ill', 'well')
):
    """Writes class folders of random pictures, image i of size i modulo the sizes."""
    generator, number = np.random.default_rng(seed), 0
    for class_name, count in zip(classes, counts):
        (folder / class_name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            height, width = sizes[number % len(sizes)]
            pixels = generator.integers(0, 256, [height, width, 3]).astype(np.uint8)
            image = Image.fromarray(pixels).convert(mode)
            image.save(folder / class_name / name.format(i=f'{number:03}', owner=number % 7))
            number += 1
    return folder


def call(*flags):
    """Runs bin/init in this process and returns its exit code."""
    return verbs.call(init, *map(str, flags))


def test_what_is_written_is_short_and_runs_as_it_is(tmp_path, capsys):
    folder, output = write_folder(tmp_path / 'scans', counts=(150, 150)), tmp_path / 'mine.gin'
    assert call(folder, f'--output={output}', '--epsilon=3') == command.DONE
    said = capsys.readouterr().out
    lines = output.read_text().splitlines()
    assert len(lines) <= 25 and any('#' in line for line in lines) and f'--gin_file={output}' in said
    recipe = gin_config.recipe(str(output))
    assert recipe.data.spec.image_shape == (32, 32, 3) and recipe.utility is None
    assert recipe.privacy.target_epsilon == 3.0
    # Of 240 units the noise hides most.
    assert 0.0 < recipe.finetuning.optimization.learning_rate < 1e-3
    # About a fifth of the images of a folder without a test part is held out.
    assert recipe.privacy.target_delta <= 1.0 / (10 * recipe.data.spec.num_units)
    for told in ('epsilon = ', 'noise on the means', 'noise on the steps', 'time', 'memory', 'verdict'):
        assert told.casefold() in said.casefold(), told
    assert verbs.call(train, f'--gin_file={output}', '--dry_run', f'--workdir={tmp_path / "run"}') == command.DONE


def test_neither_pixels_nor_counts_a_class_change_what_is_written(tmp_path):
    first = tf_dpdiff.configure(write_folder(tmp_path / 'a' / 'scans'))
    other_pixels = tf_dpdiff.configure(write_folder(tmp_path / 'b' / 'scans', seed=1))
    assert other_pixels == first.replace(str(tmp_path / 'a'), str(tmp_path / 'b'))
    # With a test part of its own all of train/ is trained on, whatever the names of the files.
    texts = []
    for name, counts in (('c', (30, 30)), ('d', (55, 5))):
        write_folder(tmp_path / name / 'scans' / 'train', counts=counts)
        write_folder(tmp_path / name / 'scans' / 'test', counts=(3, 3))
        texts.append(tf_dpdiff.configure(tmp_path / name / 'scans'))
    assert texts[1] == texts[0].replace(str(tmp_path / 'c'), str(tmp_path / 'd'))
    # Control: how many there are in all is public, and has a say.
    more = tf_dpdiff.configure(write_folder(tmp_path / 'e' / 'scans', counts=(150, 150)))
    assert more != texts[0].replace(str(tmp_path / 'c'), str(tmp_path / 'e'))


def test_owners_are_protected_where_asked_for_and_pointed_out_where_not(tmp_path):
    folder = write_folder(tmp_path / 'scans', name='p{owner}_{i}.png')
    text = tf_dpdiff.configure(folder, unit='patient')
    assert "owner_from = 'prefix'" in text and "unit = 'one patient'" in text
    (tmp_path / 'mine.gin').write_text(text)
    spec = gin_config.recipe(str(tmp_path / 'mine.gin')).data.spec
    assert spec.has_owners and spec.num_units < 7 + 1
    text = tf_dpdiff.configure(folder)
    assert "unit = 'one image'" in text and '7 owners' in text


def test_owners_that_nothing_names_are_asked_for(tmp_path, capsys):
    folder, output = write_folder(tmp_path / 'scans'), tmp_path / 'mine.gin'
    assert call(folder, f'--output={output}', '--unit=patient') == command.WRONG_USE
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'of which patient each image is' in said and '--unit=image' in said and not output.exists()


def test_a_table_beside_a_flat_folder_is_read(tmp_path):
    folder = write_folder(tmp_path / 'scans', classes=('images',), counts=(40,))
    rows = [
        f'images/{file.name},{"ab"[i % 2]},p{i % 9}' for i, file in enumerate(sorted((folder / 'images').iterdir()))
    ]
    (folder / 'metadata.csv').write_text('\n'.join(['file_name,label,patient_id', *rows]) + '\n')
    text = tf_dpdiff.configure(folder, unit='patient')
    assert "owner_column = 'patient_id'" in text
    (tmp_path / 'mine.gin').write_text(text)
    spec = gin_config.recipe(str(tmp_path / 'mine.gin')).data.spec
    assert spec.class_names == ('a', 'b') and spec.has_owners


def test_a_column_that_is_called_as_the_unit_says_whose_the_images_are(tmp_path):
    folder = write_folder(tmp_path / 'scans', classes=('images',), counts=(40,), sizes=((8, 8),))
    files = sorted((folder / 'images').iterdir())
    rows = [f'{file.name},{"ab"[i % 2]},s{i % 9},p{i % 20}' for i, file in enumerate(files)]
    table = folder / 'table.csv'
    table.write_text('\n'.join(['file,outcome,Shop_ID,patient', *rows]) + '\n')
    text = tf_dpdiff.configure(folder, unit='shop')  # Nor is it asked whether the shop is the class.
    assert "owner_column = 'Shop_ID'" in text and "label_column = 'outcome'" in text
    (tmp_path / 'mine.gin').write_text(text)
    assert gin_config.recipe(str(tmp_path / 'mine.gin')).data.spec.unit == 'one shop'
    assert "owner_column = 'patient'" in tf_dpdiff.configure(folder, unit='patient', label_column='outcome')
    table.write_text(table.read_text().replace(',patient', ',place'))
    with pytest.raises(ValueError, match=r"of which seller each image is.* add a column 'seller' to .*table\.csv"):
        tf_dpdiff.configure(folder, unit='seller', label_column='outcome')


def test_a_file_that_names_no_owner_among_those_that_do_is_named(tmp_path):
    folder = write_folder(tmp_path / 'scans', name='p{owner}_{i}.png', counts=(20, 20))
    next((folder / 'well').glob('*_025.png')).rename(folder / 'well' / 'scan25.png')
    with pytest.raises(ValueError, match=r'well/scan25.png does not say of which patient it is'):
        tf_dpdiff.configure(folder, unit='patient')


def test_a_table_with_a_column_for_each_class_is_read(tmp_path):
    folder = write_folder(tmp_path / 'scans', classes=('images',), counts=(30,))
    names = sorted(file.stem for file in (folder / 'images').iterdir())
    rows = [f'{name},{int(i % 3 == 0)}.0,{int(i % 3 == 1)}.0,{int(i % 3 == 2)}.0' for i, name in enumerate(names)]
    (folder / 'truth.csv').write_text('\n'.join(['image,MEL,NV,BCC', *rows]) + '\n')
    text = tf_dpdiff.configure(folder)
    assert "csv_images.label_columns = ('MEL', 'NV', 'BCC')" in text and 'CHECK' in text
    (tmp_path / 'mine.gin').write_text(text)
    assert gin_config.recipe(str(tmp_path / 'mine.gin')).data.spec.class_names == ('BCC', 'MEL', 'NV')
    # Control: of rows of two classes nothing is guessed.
    (folder / 'truth.csv').write_text('\n'.join(['image,MEL,NV,BCC', *rows[1:], f'{names[0]},1.0,1.0,0.0']) + '\n')
    with pytest.raises(ValueError, match='Say it by --label_column'):
        tf_dpdiff.configure(folder)


@pytest.mark.parametrize(
    'sizes, mode, expected, model',
    [
        (((32, 32),), 'RGB', (32, 32, 3), 'colour32'),
        (((300, 280),), 'RGB', (32, 32, 3), 'colour32'),
        (((64, 100),), 'L', (28, 28, 1), 'grey28'),
        (((8, 8),), 'L', (8, 8, 1), ''),
        (((9, 10),), 'RGB', (8, 8, 3), ''),
    ],
)
def test_images_come_to_the_size_of_a_public_model_or_keep_their_own(tmp_path, sizes, mode, expected, model):
    text = tf_dpdiff.configure(write_folder(tmp_path / 'scans', sizes=sizes, mode=mode))
    (tmp_path / 'mine.gin').write_text(text)
    recipe = gin_config.recipe(str(tmp_path / 'mine.gin'))
    assert recipe.data.spec.image_shape == expected == recipe.data.train.image_shape
    if model:
        assert recipe.finetuning.init_from.endswith(model) and recipe.pretraining is None
    else:
        assert recipe.pretraining.spec.image_shape == expected
    oblong = max(sizes[0]) / min(sizes[0]) > 1.25
    assert ("resize = 'pad'" in text) == oblong


@pytest.mark.parametrize(
    'image_size, model', [((64, 64), 'colour32'), ((40, 24), 'colour32'), ((36, 36), ''), ((16, 16), '')]
)
def test_images_of_other_sizes_start_from_the_public_model_where_its_network_can_halve_them(
    tmp_path, image_size, model
):
    (tmp_path / 'mine.gin').write_text(
        tf_dpdiff.configure(write_folder(tmp_path / 'scans', sizes=((70, 64),), mode='RGB'), image_size=image_size)
    )
    build = build_lib.Build(gin_config.recipe(str(tmp_path / 'mine.gin')))
    origin, network = build.open_origin(), build.make_network()
    assert build.spec.image_shape == (*image_size, 3)
    assert build.model.network.base_channels == (32 if model else 8)
    if model:
        origin.carry_over_to(network)  # Refuses weights that do not fit.
    else:
        assert origin is None and build.recipe.pretraining.spec.image_shape == (*image_size, 3)


def test_16_bits_need_a_window(tmp_path):
    for class_name in ('ill', 'well'):
        (tmp_path / 'scans' / class_name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 4096, [30, 30]).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / 'scans' / class_name / f'{number}.png')
    with pytest.raises(ValueError, match='--window='):
        tf_dpdiff.configure(tmp_path / 'scans')
    assert 'window = (0.0, 4095.0)' in tf_dpdiff.configure(tmp_path / 'scans', window=(0.0, 4095.0))


@pytest.mark.parametrize(
    'flags, message',
    [
        (('--epsilon=0',), 'epsilon must be finite and > 0'),
        (('--hours=-1',), 'hours must be finite and > 0'),
        (('--delta=2',), r'delta must be in (0, 1)'),
        (('--image_size=big',), '--image_size must be such as 32 or 48x40'),
        (('--unit=',), 'unit must be'),
        (('--unit=Patient 7',), 'unit must be'),
        (('--image_size=0',), 'image_size must be even numbers of pixels from 4 on'),
        (('--image_size=48x7',), 'image_size must be even numbers of pixels from 4 on'),
        (('--window=nan,4095',), 'window must be (low, high)'),
        (('--held_out_fraction=1',), 'held_out_fraction must be in (0, 1)'),
    ],
)
def test_wishes_that_mean_nothing_are_refused(tmp_path, capsys, flags, message):
    output = tmp_path / 'mine.gin'
    assert call(tmp_path, f'--output={output}', *flags) == command.WRONG_USE
    assert message in capsys.readouterr().err.splitlines()[-1] and not output.exists()


@pytest.mark.parametrize(
    'flags, message',
    [
        (('--delta=0.5',), 'delta = 0.5 is not below 1 /'),
        (('--window=0,4095',), 'drop --window'),
        (('--label_column=grade',), 'drop --label_column'),
        (('--output={folder}/ill/mine.gin',), 'lies among the images'),
        (('--output={folder}.txt/mine.gin',), 'no folder that can be written to'),
    ],
)
def test_wishes_that_do_not_fit_the_images_are_refused_and_nothing_is_written(tmp_path, capsys, flags, message):
    folder = write_folder(tmp_path / 'scans', sizes=((32, 32),))
    (tmp_path / 'scans.txt').touch()
    flags = [flag.format(folder=folder) for flag in flags]
    outputs = [] if flags[0].startswith('--output') else [f'--output={tmp_path / "mine.gin"}']
    before = sorted(tmp_path.rglob('*'))
    assert call(folder, *outputs, *flags) == command.WRONG_USE
    assert message in capsys.readouterr().err.splitlines()[-1] and sorted(tmp_path.rglob('*')) == before


def test_class_is_asked_for_where_no_column_looks_like_it(tmp_path):
    folder = write_folder(tmp_path / 'scans', classes=('images',), counts=(60,), sizes=((8, 8),))
    files = sorted((folder / 'images').iterdir())
    rows = [f'{file.name},{i % 5},{"ab"[i % 2]}' for i, file in enumerate(files)]
    (folder / 'table.csv').write_text('\n'.join(['file,hospital,outcome', *rows]) + '\n')
    with pytest.raises(ValueError, match="--label_column: 'hospital', 'outcome'"):
        tf_dpdiff.configure(folder)
    text = tf_dpdiff.configure(folder, label_column='outcome', held_out_fraction=0.3)
    (tmp_path / 'mine.gin').write_text(text)
    recipe = gin_config.recipe(str(tmp_path / 'mine.gin'))
    assert recipe.data.spec.class_names == ('a', 'b')
    assert recipe.pretraining.spec.num_classes == 2 and 'held_out_fraction = 0.3' in text


def test_what_a_source_passes_over_is_told(tmp_path):
    for part in ('train', 'val', 'test'):
        write_folder(tmp_path / 'scans' / part, counts=(10, 10))
    text = tf_dpdiff.configure(tmp_path / 'scans')
    assert 'CHECK: images beside train and test are not read.' in text
    shutil.rmtree(tmp_path / 'scans' / 'val')
    assert 'CHECK' not in tf_dpdiff.configure(tmp_path / 'scans')


def test_a_run_that_cannot_work_is_written_and_says_so(tmp_path, capsys):
    folder, output = write_folder(tmp_path / 'scans', sizes=((8, 8),)), tmp_path / 'mine.gin'
    assert call(folder, f'--output={output}', '--epsilon=0.01') == command.DONE
    assert 'asks for --anyway' in output.read_text() and 'runs as it is' not in output.read_text()
    said = ' '.join(capsys.readouterr().out.split())
    assert 'This cannot work' in said and 'or the budget buys noise' in said and 'bin/train --gin_file' not in said


def test_a_run_that_takes_longer_than_asked_for_says_so(tmp_path):
    folder = write_folder(tmp_path / 'scans', sizes=((8, 8),), mode='L')
    assert 'it will rather take' in tf_dpdiff.configure(folder, hours=1e-6)
    assert 'all the same' not in tf_dpdiff.configure(folder, hours=10.0)


@pytest.mark.parametrize('name', ['it\'s 100% @x() "q" ü', 'a b'])
def test_names_of_any_kind_are_written_so_that_they_are_read(tmp_path, name):
    folder = write_folder(tmp_path / name / 'scans', classes=(name, '%B'), sizes=((8, 8),))
    output = tmp_path / name / f'{name}.gin'
    assert call(folder, f'--output={output}', '--unit=image') == command.DONE
    assert gin_config.recipe(str(output)).data.spec.class_names == tuple(sorted((name, '%B')))


def test_bad_files_are_all_reported_and_nothing_is_written(tmp_path, capsys):
    folder, output = write_folder(tmp_path / 'scans'), tmp_path / 'mine.gin'
    for name in ('bad1.png', 'bad2.png'):
        (folder / 'ill' / name).write_bytes(b'no picture')
    assert call(folder, f'--output={output}') == command.WRONG_USE
    said = capsys.readouterr().err
    assert 'bad1.png' in said and 'bad2.png' in said and not output.exists()


def test_a_file_that_is_there_is_kept(tmp_path, capsys):
    output = tmp_path / 'mine.gin'
    output.write_text('mine')
    assert call(write_folder(tmp_path / 'scans'), f'--output={output}') == command.WRONG_USE
    assert 'exists' in capsys.readouterr().err and output.read_text() == 'mine'


@pytest.mark.long
def test_from_a_folder_to_samples(tmp_path):
    """With no line edited, on drawings of two kinds, for two minutes."""
    generator = np.random.default_rng(0)
    for label, class_name in enumerate(('down', 'up')):
        (tmp_path / 'scans' / class_name).mkdir(parents=True)
        for number in range(400):
            pixels = generator.integers(0, 60, [8, 8])
            pixels[(slice(0, 4), slice(4, 8))[label], 2:6] += 180
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / 'scans' / class_name / f'{number}.png')
    output = tmp_path / 'mine.gin'
    assert call(tmp_path / 'scans', f'--output={output}', '--hours=0.03') == command.DONE
    assert verbs.call(train, f'--gin_file={output}', f'--workdir={tmp_path / "run"}') == command.DONE
    images, labels = tf_dpdiff.load(tmp_path / 'run').sample(40)
    upper = images[:, :4, 2:6].mean(axis=(1, 2, 3)) - images[:, 4:, 2:6].mean(axis=(1, 2, 3))
    assert np.mean((upper > 0.0) == (labels == 0)) > 0.9
    assert pathlib.Path(tmp_path / 'run' / 'samples.npz').exists()


def test_owners_in_a_table_beside_class_folders(tmp_path):
    folder = write_folder(tmp_path / 'scans')
    names = sorted(str(file.relative_to(folder)) for file in folder.glob('*/*.png'))
    rows = [f'{name},q{i % 9}' for i, name in enumerate(names)]
    (folder / 'owners.csv').write_text('\n'.join(['file,owner', *rows]) + '\n')
    (tmp_path / 'mine.gin').write_text(tf_dpdiff.configure(folder, unit='person'))
    spec = gin_config.recipe(str(tmp_path / 'mine.gin')).data.spec
    assert spec.has_owners and spec.unit == 'one person' and spec.class_names == ('ill', 'well')


def test_npz_files_with_owners_protect_them(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [60, 28, 28, 1]).astype(np.uint8)
    arrays = {'images': images, 'labels': np.arange(60) % 2}
    np.savez(tmp_path / 'owned.npz', owners=np.arange(60) // 4, **arrays)
    (tmp_path / 'mine.gin').write_text(tf_dpdiff.configure(tmp_path / 'owned.npz'))
    assert gin_config.recipe(str(tmp_path / 'mine.gin')).data.spec.unit == 'one owner'
    with pytest.raises(ValueError, match='names the owner of each image'):
        tf_dpdiff.configure(tmp_path / 'owned.npz', unit='image')
    np.savez(tmp_path / 'large.npz', **{**arrays, 'images': images.repeat(2, axis=1)})
    with pytest.raises(ValueError, match='--image_size=56x28'):
        tf_dpdiff.configure(tmp_path / 'large.npz')


def test_dicom_files_protect_patients(tmp_path):
    pydicom = pytest.importorskip('pydicom')
    from pydicom import uid

    for number in range(40):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.generate_uid()
        dataset.PatientID, dataset.Rows, dataset.Columns = f'secret{number // 2}', 30, 30
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, 'MONOCHROME2', 0
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.WindowCenter, dataset.WindowWidth = 15, 500, 1000
        dataset.PixelData = np.random.default_rng(number).integers(0, 1000, [30, 30]).astype(np.uint16).tobytes()
        folder = tmp_path / 'scans' / ('ill', 'well')[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        dataset.save_as(folder / f'{number}.dcm', enforce_file_format=True)
    text = tf_dpdiff.configure(tmp_path / 'scans')
    assert 'secret' not in text
    (tmp_path / 'mine.gin').write_text(text)
    spec = gin_config.recipe(str(tmp_path / 'mine.gin')).data.spec
    assert spec.unit == 'one patient' and spec.image_shape == (28, 28, 1)


@pytest.mark.parametrize('is_there', [True, False])
def test_public_models_of_an_installed_package_lie_in_the_working_folder(tmp_path, monkeypatch, is_there):
    monkeypatch.setattr(gin_files, 'gin_folder', lambda: pathlib.Path(tf_dpdiff.__file__).resolve().parent / 'gin')
    monkeypatch.chdir(tmp_path)
    if is_there:
        (tmp_path / 'saved_models' / 'colour32').mkdir(parents=True)
        (tmp_path / 'saved_models' / 'colour32' / 'pretrained.json').touch()
    spec = datasets.DatasetSpec('scans', (32, 32, 3), ('ill', 'well'), 60, 60)
    (line, *_) = configure._start(spec)
    assert ("FinetuningConfig.init_from = 'saved_models/colour32'" in line) == is_there
