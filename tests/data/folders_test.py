"""Tests of images in class folders."""

import io
import os

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.data import folders
from tf_dpdiff.data import problems

CLASSES = ('cat', 'dog')


def picture(seed, shape=(6, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file)


def write(root, num_images=20, order=1, first=0):
    """Writes num_images a class of five owners; returns the pixels by class and file name."""
    pixels = {}
    for label, name in enumerate(CLASSES):
        for i in range(num_images)[::order]:
            file = f'patient{i % 5}_{i}.png'
            pixels[name, file] = picture(first + 1000 * label + i)
            save(root / name / file, pixels[name, file])
    return pixels


def sides(data, pixels):
    """Returns the names of the files of each part."""
    names = {image.tobytes(): key for key, image in pixels.items()}
    return [[names[image.tobytes()] for image in part.images_uint8] for part in (data.train, data.held_out)]


def test_images_are_split_without_loss_and_labelled_by_their_folders(tmp_path):
    pixels = write(tmp_path / 'pets')
    data = folders.image_folder(tmp_path / 'pets')
    assert data.spec == data.train.spec and data.spec.class_names == CLASSES and data.spec.unit == 'one image'
    train, held_out = sides(data, pixels)
    assert len(train) + len(held_out) == 40 and set(train) | set(held_out) == set(pixels)
    for part, names in ((data.train, train), (data.held_out, held_out)):
        assert [CLASSES[label] for label in part.labels] == [name for name, _ in names]


def test_no_image_moves_when_another_one_is_removed_or_added(tmp_path):
    pixels = write(tmp_path)
    save(tmp_path / 'cat' / 'a.png', picture(5000))
    pixels['cat', 'a.png'] = picture(5000)
    before = [set(part) for part in sides(folders.image_folder(tmp_path), pixels)]
    for name, file in pixels:
        (tmp_path / name / file).rename(tmp_path / 'away')
        after = sides(folders.image_folder(tmp_path), pixels)
        assert [set(part) for part in after] == [part - {(name, file)} for part in before]
        (tmp_path / 'away').rename(tmp_path / name / file)


def test_result_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    write(tmp_path / 'a')
    write(tmp_path / 'b', order=-1)
    (tmp_path / 'b' / '.hidden').mkdir()
    (tmp_path / 'b' / 'cat' / '.DS_Store').touch()
    (tmp_path / 'b' / 'readme.txt').touch()
    one = folders.image_folder(tmp_path / 'a')
    listdir, scandir = os.listdir, os.scandir
    monkeypatch.setattr(os, 'listdir', lambda path: listdir(path)[::-1])
    monkeypatch.setattr(os, 'scandir', lambda path: reversed(list(scandir(path))))
    monkeypatch.setattr(type(tmp_path), 'iterdir', lambda path: iter(sorted(path / n for n in listdir(path))[::-1]))
    other = folders.image_folder(tmp_path / 'b')
    assert one.train.fingerprint() == other.train.fingerprint()
    assert one.held_out.fingerprint() == other.held_out.fingerprint()


def test_folders_train_and_test_are_the_parts(tmp_path):
    pixels = {**write(tmp_path / 'train', 3), **write(tmp_path / 'test', 2, first=100)}
    data = folders.image_folder(tmp_path)
    assert len(data.train) == data.spec.num_images == 6 and len(data.held_out) == 4
    np.testing.assert_array_equal(data.train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.held_out.images_uint8[2], pixels['dog', 'patient0_0.png'])


def test_folder_train_alone_is_split(tmp_path):
    write(tmp_path / 'train')
    data = folders.image_folder(tmp_path, held_out_fraction=0.5)
    assert len(data.train) + len(data.held_out) == 40 and data.train.class_names == CLASSES


def test_nobody_owns_images_on_both_sides_whatever_their_class(tmp_path):
    pixels = write(tmp_path)
    data = folders.image_folder(tmp_path, owner_from='prefix', held_out_fraction=0.5)
    assert data.spec == data.train.spec and data.spec.unit == 'one owner' and data.spec.has_owners
    assert data.spec.num_units + data.held_out.num_units == 5
    train, held_out = sides(data, pixels)
    owners = [{file.split('_')[0] for _, file in part} for part in (train, held_out)]
    assert not owners[0] & owners[1] and len(owners[0] | owners[1]) == 5
    names = sorted(owners[0])
    assert [names[owner] for owner in data.train.owners] == [file.split('_')[0] for _, file in train]


def owners_of(data, pixels):
    """Returns which files of each part belong to one owner."""
    train, held_out = sides(data, pixels)
    groups = [dict(), dict()]
    for part, names, group in zip((data.train, data.held_out), (train, held_out), groups):
        for owner, name in zip(part.owners, names):
            group.setdefault(int(owner), set()).add(name)
    return {frozenset(files) for group in groups for files in group.values()}


def write_owners(file, rows, columns=('file', 'who')):
    file.write_text('\n'.join(','.join(map(str, row)) for row in (columns, *rows)) + '\n', encoding='utf-8')
    return {'owners': file, 'file_column': columns[0], 'owner_column': columns[1]}


def test_owners_by_prefix_pattern_and_table_are_the_same(tmp_path):
    pixels = write(tmp_path / 'pets')
    table = write_owners(tmp_path / 'o.csv', [(f'{name}/{file}', f'{file[7]}') for name, file in pixels])
    found = [
        folders.image_folder(tmp_path / 'pets', held_out_fraction=0.5, **options)
        for options in (
            {'owner_from': 'prefix'},
            {'owner_pattern': r'^(patient\d)_'},
            {'owner_pattern': r't(\d)_'},
            table,
        )
    ]
    expected = {frozenset(key for key in pixels if key[1].startswith(f'patient{i}_')) for i in range(5)}
    for data in found:
        assert owners_of(data, pixels) == expected and data.spec.unit == 'one owner'


def test_table_of_owners_may_list_more_files_and_name_those_that_only_one_has_without_folder_and_suffix(tmp_path):
    for i in range(12):
        save(tmp_path / 'pets' / CLASSES[i % 2] / f'scan {i}.PNG', picture(i))
    rows = [(f'scan {i}', i // 3) for i in range(20)]
    data = folders.image_folder(tmp_path / 'pets', held_out_fraction=0.5, **write_owners(tmp_path / 'o.csv', rows))
    assert data.train.num_units + data.held_out.num_units == 4


@pytest.mark.parametrize(
    'rows, said',
    [
        (lambda rows: rows[1:], ['cat/0.png has no owner in']),
        (lambda rows: rows[:-2], ['dog/10.png has no owner in', 'dog/11.png has no owner in']),
        (lambda rows: [*rows, rows[0]], ['line 14 lists', 'as line 2 does']),
        (lambda rows: [(rows[0][0], 'nan'), *rows[1:]], ["cat/0.png names no owner: 'nan'"]),
        (lambda rows: [(rows[0][0], '007'), (rows[1][0], '7'), *rows[2:]], ["names its owner '7', and ", "'007'"]),
    ],
)
def test_what_is_wrong_with_a_table_of_owners_is_told_at_once(tmp_path, rows, said):
    for i in range(12):
        save(tmp_path / 'pets' / CLASSES[i >= 6] / f'{i}.png', picture(i))
    good = [(f'{CLASSES[i >= 6]}/{i}.png', f'p{i // 2}') for i in range(12)]
    with pytest.raises(ValueError) as error:
        folders.image_folder(tmp_path / 'pets', **write_owners(tmp_path / 'o.csv', rows(good)))
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'owner_pattern': '(a'}, r"owner_pattern='\(a' is no regular expression: missing \)"),
        ({'owner_pattern': 'a'}, "owner_pattern='a' must have one group, which is the owner, got 0"),
        ({'owner_pattern': '(a)(b)'}, 'must have one group, which is the owner, got 2'),
        ({'owner_pattern': r'^(x\d+)_'}, r'patient0_0.png names no owner: its name has nothing like owner_pattern='),
        ({'owner_pattern': '(x*)'}, 'patient0_0.png names no owner'),
        ({'owner_pattern': '(a)', 'owner_from': 'prefix'}, 'both say whose an image is: leave one of them out'),
        ({'owners': 'o.csv'}, "owners='o.csv' and file_column=None: a table of owners needs both"),
        ({'owner_column': 'o'}, "owners=None and owner_column='o': a table of owners needs both"),
        ({'owners': 'o.csv', 'file_column': 'f', 'owner_column': 'o'}, 'no such file: o.csv'),
    ],
)
def test_options_of_owners_that_mean_nothing_are_named(tmp_path, options, message):
    write(tmp_path / 'pets')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        folders.image_folder(tmp_path / 'pets', **options)


def test_owner_in_both_folders_is_refused_at_once(tmp_path):
    write(tmp_path / 'train')
    save(tmp_path / 'test' / 'cat' / 'patient7_1.png', picture(1))
    save(tmp_path / 'test' / 'dog' / 'patient8_1.png', picture(2))
    data = folders.image_folder(tmp_path, owner_from='prefix', unit='one patient')
    assert data.spec.unit == 'one patient' and data.held_out.num_units == 2
    save(tmp_path / 'test' / 'dog' / 'patient3_99.png', picture(3))
    with pytest.raises(
        ValueError, match=f"^{tmp_path}: 1 owner.* both training and held-out images, such as 'patient3'"
    ):
        folders.image_folder(tmp_path, owner_from='prefix')
    assert len(folders.image_folder(tmp_path).held_out) == 3  # Without owners a unit is an image.


def test_images_of_several_sizes_and_kinds_are_made_alike_where_asked(tmp_path):
    write(tmp_path)
    save(tmp_path / 'cat' / 'patient0_0.png', picture(0, (8, 16, 1)))
    data = folders.image_folder(tmp_path, image_size=4, channels=1)
    assert data.train.image_shape == data.held_out.image_shape == (4, 4, 1)
    grey = np.asarray(Image.fromarray(picture(0, (8, 16, 1))[..., 0]))[:, 4:12].reshape(4, 2, 4, 2).mean((1, 3))
    every = np.concatenate([data.train.images_uint8, data.held_out.images_uint8])
    assert min(np.abs(image[..., 0] - grey).max() for image in every) <= 0.5


def test_held_out_images_stay_unread(tmp_path):
    write(tmp_path / 'train')
    write(tmp_path / 'test')
    (tmp_path / 'test' / 'dog' / 'patient0_0.png').write_bytes(b'damaged')
    data = folders.image_folder(tmp_path)
    assert len(data.train) == data.spec.num_images
    with pytest.raises(ValueError, match='test/dog/patient0_0.png is no PNG'):
        data.held_out


def truncated():
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, 'PNG')
    return buffer.getvalue()[:-40]


@pytest.mark.parametrize(
    'change, options, message',
    [
        (lambda root: (root / 'dog' / 'a.png').write_bytes(b''), {}, r'dog/a.png is an empty file'),
        (lambda root: (root / 'dog' / 'a.png').write_bytes(truncated()), {}, r'dog/a.png is a damaged image'),
        (
            lambda root: save(root / 'dog' / 'a.png', picture(0, (5, 6, 3))),
            {},
            r'dog/a.png is 5x6x3 .*cat/patient0_0.png is 6x5x3; give image_size',
        ),
        (
            lambda root: save(root / 'dog' / 'a.png', picture(0, (6, 5, 1))),
            {},
            r'dog/a.png is 6x5x1 .*cat/patient0_0.png is 6x5x3; give channels',
        ),
        (lambda root: save(root / 'dog' / 'a.png', picture(0, (6, 5, 4))), {}, r'dog/a.png has transparent pixels'),
        (lambda root: (root / 'dog' / 'a.txt').touch(), {}, r'dog/a.txt is no image file'),
        (lambda root: (root / 'dog' / 'a.png').mkdir(), {}, r'dog/a.png is no image file'),
        (
            lambda root: (root / 'dog' / 'a.png').symlink_to('b.png'),
            {},
            r'^\S*/pets/dog/a.png is a link to b.png, which is not there; restore that, or remove the link',
        ),
        (lambda root: (root / 'dog' / 'a.png').symlink_to('a.png'), {}, 'dog/a.png is a link to a.png, which is not'),
        (lambda root: (root / 'eel').symlink_to('/nowhere'), {}, r'pets/eel is a link to /nowhere, which is not there'),
        (lambda root: (write(root / 'train'), (root / 'test').symlink_to('gone')), {}, 'pets/test is a link to gone'),
        (lambda root: (root / 'eel').mkdir(), {}, r'the class folder .*eel holds no images'),
        (lambda root: save(root / 'eel' / 'a.png', picture(0)), {}, r"class 'eel' has too few images to hold one out"),
        (lambda root: save(root / 'train' / 'x' / 'cat' / 'a.png', picture(0)), {}, r'train/x/cat is no image file'),
        (
            lambda root: (write(root / 'train'), save(root / 'test' / 'eel' / 'a.png', picture(0))),
            {},
            r"train and test must have the same class folders; 'cat' is in one of them only",
        ),
        (lambda root: (root / 'train').mkdir(), {}, r'train holds no class folders'),
        (lambda root: save(root / 'dog' / 'a.png', picture(0)), {'owner_from': 'prefix'}, r'dog/a.png names no owner'),
        (
            lambda root: save(root / 'dog' / '_a.png', picture(0)),
            {'owner_from': 'prefix'},
            r'dog/_a.png names no owner',
        ),
        (lambda root: None, {'owner_from': 'suffix'}, r"owner_from must be None or 'prefix', got 'suffix'"),
        (lambda root: None, {'held_out_fraction': 1.0}, r'held_out_fraction must be in \(0, 1\), got 1.0'),
        (
            lambda root: None,
            {'held_out_fraction': 1e-9},
            r"pets: no image of class 'cat' would be held out with held_out_fraction=1e-09; choose another",
        ),
        (lambda root: None, {'unit': 'one pet'}, r"data set 'pets': unit='one pet' needs owners"),
        (lambda root: None, {'image_size': 0}, r'image_size must be at least 1, got 0'),
        (lambda root: None, {'channels': 4}, r'channels must be 1 \(grey\) or 3 \(colour\), got 4'),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, change, options, message):
    write(tmp_path / 'pets')
    folders.image_folder(tmp_path / 'pets').train
    change(tmp_path / 'pets')
    with pytest.raises(ValueError, match=message) as error:
        data = folders.image_folder(tmp_path / 'pets', **options)
        len(data.train), len(data.held_out)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', [b'caf\xe9', b'eel\n', b'eel ', b'no_class'])
def test_class_folder_under_whose_name_no_sample_could_be_written_is_refused(tmp_path, name):
    write(tmp_path)
    save(tmp_path / os.fsdecode(name) / 'a.png', picture(1))
    save(tmp_path / os.fsdecode(name) / 'b.png', picture(2))
    with pytest.raises(ValueError, match=f'^{tmp_path}: .*class') as error:
        folders.image_folder(tmp_path)
    assert str(error.value).isprintable()


def test_file_or_folder_of_an_undecodable_name_is_refused(tmp_path):
    file, folder = 'patient1_\udce9.png', 'pets\udce9'
    write(tmp_path / 'pets')
    save(tmp_path / 'pets' / 'cat' / file, picture(1))
    with pytest.raises(
        ValueError, match=r"name of a file in \S*/pets/cat must be Unicode .* got 'patient1_\\udce9.png'"
    ):
        folders.image_folder(tmp_path / 'pets')
    write(tmp_path / folder)
    with pytest.raises(ValueError, match=r"its name must be Unicode .* got 'pets\\udce9'"):
        folders.image_folder(tmp_path / folder)


@pytest.mark.parametrize('part', ['train', 'held_out'])
def test_all_bad_files_are_told_at_once_when_they_are_looked_at_and_when_they_are_read(tmp_path, part):
    write(tmp_path / 'train')
    write(tmp_path / 'test')
    folder = tmp_path / {'train': 'train', 'held_out': 'test'}[part] / 'cat'
    for i in range(12):
        (folder / f'patient{i % 5}_{i}.png').write_bytes(b'damaged')
    save(folder / 'z.png', picture(0, (9, 9, 3)))
    with pytest.raises(problems.ProblemsError) as read:
        # Where the first image of all is damaged, so that there is no size to compare the others with, at once.
        data = folders.image_folder(tmp_path)
        getattr(data, part)
    lines = read.value.text.split('\n  ')
    assert lines[0].startswith(f'{12 + (part == "held_out")} problems with the images of') and len(lines) == 12
    assert all('is no PNG' in line and str(folder) in line for line in lines[1:11])
    assert lines[11] == f'... and {2 + (part == "held_out")} more.'
    if part == 'held_out':
        with pytest.raises(problems.ProblemsError) as looked:
            data.look_at(part)
        assert looked.value.text == read.value.text


def test_all_files_that_are_no_images_are_told_at_once(tmp_path):
    write(tmp_path)
    for name in ('a.txt', 'b.gif'):
        (tmp_path / 'cat' / name).touch()
    for name in ('Thumbs.db', 'desktop.ini', '.DS_Store', '._patient.png'):
        (tmp_path / 'dog' / name).touch()
    (tmp_path / '__MACOSX').mkdir()
    with pytest.raises(problems.ProblemsError) as error:
        folders.image_folder(tmp_path)
    assert (
        error.value.text.count('is no image file') == 2 and 'a.txt' in error.value.text and '__MACOSX' not in str(error)
    )


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder: .*pets'):
        folders.image_folder(tmp_path / 'pets')
    with pytest.raises(ValueError, match='holds no class folders'):
        folders.image_folder(tmp_path)
