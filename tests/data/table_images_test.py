"""Tests of images that a table lists."""

import json
import re

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.data import datasets
from tf_dpdiff.data import problems
from tf_dpdiff.data import table
from tf_dpdiff.data import table_images

COUNT = 24


def picture(i):
    return np.full([4, 3, 3], i, np.uint8)


def save(file, i):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(i)).save(file)


def write_csv(file, rows, delimiter=',', encoding='utf-8', columns=('file_name', 'label', 'owner')):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [delimiter.join(map(str, row)) for row in (columns, *rows)]
    file.write_text('\r\n'.join(lines) + '\r\n', encoding=encoding)
    return file


def rows_of(count=COUNT, suffix='.png'):
    return [(f'scan{i}{suffix}', 'ab'[i % 2], f'P{i // 4}') for i in range(count)]


def write(folder, count=COUNT, table_name='metadata.csv', first=0, **options):
    """Writes images of one grey level each, in turns of two classes, four of an owner."""
    for i in range(count):
        save(folder / f'scan{i}.png', first + i)
    return write_csv(folder / table_name, rows_of(count), **options)


def whole(data):
    """Returns (grey level, class name, part, owner) of each image, and which part it is in."""
    found = {}
    for name, part in (('train', data.train), ('held_out', data.held_out)):
        for i, image in enumerate(part.images_uint8):
            assert (image == image[0, 0, 0]).all()
            owner = None if part.owners is None else int(part.owners[i])
            found[int(image[0, 0, 0])] = (part.class_names[part.labels[i]], name, owner)
    return found


def refusal(path, **options):
    """Returns the lines of an error."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        data = table_images.csv_images(path, **options)
        len(data.train), len(data.held_out)
    if isinstance(error.value, problems.ProblemsError):
        return error.value.text.split('\n  ')[1:]
    assert '\n' not in str(error.value)
    return [str(error.value)]


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
@pytest.mark.parametrize('is_stated', [True, False])
def test_table_says_of_which_class_and_whose_each_image_is(tmp_path, delimiter, encoding, is_stated):
    file = write(tmp_path, table_name='t.csv', delimiter=delimiter, encoding=encoding)
    data = table_images.csv_images(
        file,
        owner_column='owner',
        unit='one patient',
        delimiter=delimiter if is_stated else None,
        held_out_fraction=0.4,
    )
    found = whole(data)
    assert {i: label for i, (label, _, _) in found.items()} == {i: 'ab'[i % 2] for i in range(COUNT)}
    assert len({(part, owner) for _, part, owner in found.values()}) == 6
    for i in range(COUNT):
        assert found[i][1:] == found[4 * (i // 4)][1:]  # Of one owner, on one side.
    assert data.spec == data.train.spec and data.spec.unit == 'one patient' and data.spec.name == 't'


def test_json_lines_say_the_same_as_csv(tmp_path):
    write(tmp_path / 'csv')
    write(tmp_path / 'json')
    (tmp_path / 'json' / 'metadata.csv').unlink()
    lines = [
        json.dumps({'file_name': file, 'label': label, 'owner': int(owner[1:]), 'boxes': [[1, 2]], 'note': None})
        for file, label, owner in rows_of()
    ]
    (tmp_path / 'json' / 'metadata.jsonl').write_text('\n'.join(lines) + '\n\n')
    one, other = (
        table_images.csv_images(tmp_path / kind, owner_column='owner', held_out_fraction=0.4)
        for kind in ('csv', 'json')
    )
    labels = [{i: label for i, (label, _, _) in whole(data).items()} for data in (one, other)]
    assert labels[0] == labels[1]
    assert one.spec.num_units + one.held_out.num_units == other.spec.num_units + other.held_out.num_units == 6
    assert 'must be a text or a number' in refusal(tmp_path / 'json', label_column='boxes')[0]


def test_order_of_the_rows_changes_nothing(tmp_path):
    write(tmp_path)
    one = table_images.csv_images(tmp_path)
    write_csv(tmp_path / 'metadata.csv', rows_of()[::-1])
    assert table_images.csv_images(tmp_path).train.fingerprint() == one.train.fingerprint()


@pytest.mark.parametrize('kind', ['suffix stated', 'found', 'upper case', 'sub-folders', 'path', 'windows', 'unicode'])
def test_files_are_found_by_what_the_table_calls_them(tmp_path, kind):
    names, files, options = [], [], {}
    for i in range(COUNT):
        name, file = f'ISIC_{i:07d}', f'ISIC_{i:07d}.jpg'
        if kind == 'suffix stated':
            options = {'suffix': '.jpg'}
            save(tmp_path / f'{name}.png', 200)  # Another file of that name.
        elif kind == 'upper case':
            name, file = f'{name}.jpg', f'{name}.JPG'
        elif kind == 'sub-folders':
            file = f'part {i % 2}/{file}'
        elif kind == 'path':
            name = file = f'part {i % 2}/{i}.jpg'
        elif kind == 'windows':
            name, file = f'.\\part {i % 2}\\{i}.jpg', f'part {i % 2}/{i}.jpg'
        elif kind == 'unicode':
            name, file = f'h\u00f4pital {i}', f'ho\u0302pital {i}.jpg'
        names.append(name)
        files.append(file)
        save(tmp_path / file, i)
    write_csv(tmp_path / 't.csv', [(name, 'ab'[i % 2]) for i, name in enumerate(names)], columns=('isic_id', 'dx'))
    options |= {'unlisted': 'pass_over'} if kind == 'suffix stated' else {}
    options |= {'file_column': 'isic_id', 'label_column': 'dx', 'held_out_fraction': 0.4}
    data = table_images.csv_images(tmp_path / 't.csv', **options)
    assert {i: label for i, (label, _, _) in whole(data).items()} == {i: 'ab'[i % 2] for i in range(COUNT)}


def test_name_that_several_files_have_is_refused(tmp_path):
    write(tmp_path)
    save(tmp_path / 'a' / 'x.png', 1)
    save(tmp_path / 'b' / 'x.png', 2)
    write_csv(tmp_path / 'metadata.csv', [*rows_of(), ('x.png', 'a', 'P1'), ('a/x.png', 'a', 'P1')])
    said = refusal(tmp_path)
    assert len(said) == 2 and "line 26: 'x.png' may be" in said[0] and 'b/x.png is not listed' in said[1]


ONE_HOT = ('image', 'nevus', 'melanoma', 'other')


def write_one_hot(folder, rows):
    """Writes images scan0, scan1, ... and a table as ISIC has them: a column for each class."""
    for i in range(len(rows)):
        save(folder / f'scan{i}.png', i)
    return write_csv(folder / 'truth.csv', [(f'scan{i}', *row) for i, row in enumerate(rows)], columns=ONE_HOT)


@pytest.mark.parametrize('zero, one', [('0', '1'), ('0.0', '1.0')])
def test_table_may_have_a_column_for_each_class(tmp_path, zero, one):
    file = write_one_hot(tmp_path / 'scans', [[one if i % 3 == j else zero for j in range(3)] for i in range(COUNT)])
    data = table_images.csv_images(file, file_column='image', label_columns=ONE_HOT[1:])
    assert data.spec.class_names == ('melanoma', 'nevus', 'other')
    expected = {i: ONE_HOT[1 + i % 3] for i in range(COUNT)}
    assert {i: name for i, (name, _, _) in whole(data).items()} == expected


def test_rows_that_are_not_of_one_class_are_refused(tmp_path):
    rows = [(1, 0, 0), (0, 1, 0), (0, 0, 0), (1, 1, 0), (0.5, 0.5, 0), ('', 1, 0)]
    file = write_one_hot(tmp_path / 'scans', rows)
    lines = refusal(file, file_column='image', label_columns=ONE_HOT[1:])
    for line in (4, 5, 6, 7):
        assert f'truth.csv, line {line}: one of nevus, melanoma, other must be 1 and all others 0.' in '\n'.join(lines)
    assert "truth.csv has no row in which 'other' is 1" in '\n'.join(lines)
    assert 'line 2' not in '\n'.join(lines)
    assert 'the columns of two classes or more' in '\n'.join(refusal(file, file_column='image', label_columns='nevus'))


def test_images_may_lie_elsewhere(tmp_path):
    write(tmp_path / 'images')
    (tmp_path / 'images' / 'metadata.csv').rename(tmp_path / 't.csv')
    assert len(whole(table_images.csv_images(tmp_path / 't.csv', root=tmp_path / 'images'))) == COUNT
    assert 'no such folder' in refusal(tmp_path / 't.csv', root=tmp_path / 'none')[0]


@pytest.mark.parametrize('layout', ['a table each', 'one table'])
def test_layout_of_hugging_face_is_read_as_it_is(tmp_path, layout):
    write(tmp_path / 'train')
    write(tmp_path / 'test', 6, first=100)
    if layout == 'one table':
        for part in ('train', 'test'):
            (tmp_path / part / 'metadata.csv').unlink()
        rows = [(f'{part}/{row[0]}', *row[1:]) for part, n in (('train', COUNT), ('test', 6)) for row in rows_of(n)]
        write_csv(tmp_path / 'metadata.csv', rows)
    data = table_images.csv_images(tmp_path)
    assert len(data.train) == COUNT and len(data.held_out) == 6 and data.spec.name == tmp_path.name
    assert {part for i, (_, part, _) in whole(data).items() if i >= 100} == {'held_out'}
    said = refusal(tmp_path, owner_column='owner')
    assert len(said) == 1 and "2 owner(s) have both training and held-out images, such as 'p0'" in said[0].lower()


def test_train_alone_is_split(tmp_path):
    write(tmp_path / 'train')
    data = table_images.csv_images(tmp_path)
    assert len(data.train) + len(data.held_out) == COUNT


def test_label_that_no_training_image_has_is_refused(tmp_path):
    write(tmp_path / 'train')
    write(tmp_path / 'test', 6)
    write_csv(tmp_path / 'test' / 'metadata.csv', [(f'scan{i}.png', 'c', 'Q') for i in range(6)])
    assert "the label 'c' is that of no training image" in refusal(tmp_path)[0]


def test_class_of_held_out_images_alone_is_refused_in_one_table_too(tmp_path):
    for i in range(12):
        save(tmp_path / ('test' if i > 7 else 'train') / f'{i}.png', i)
    rows = [(f'{i}.png', 'b' if i > 7 else 'a', 'P') for i in range(12)]
    write_csv(tmp_path / 'metadata.csv', rows)
    assert "class 'b' has no training image" in refusal(tmp_path)[0]


@pytest.mark.parametrize(
    'labels, names',
    [
        (['10', '9', '1'], ('1', '9', '10')),
        (['b', ' a ', 'c'], ('a', 'b', 'c')),
        (['10', 'b', '9'], ('10', '9', 'b')),
        (['none', 'NA', 'yes'], ('NA', 'none', 'yes')),
    ],
)
def test_classes_are_in_the_order_of_numbers_or_names(tmp_path, labels, names):
    write(tmp_path)
    write_csv(tmp_path / 'metadata.csv', [(file, labels[i % 3], owner) for i, (file, _, owner) in enumerate(rows_of())])
    data = table_images.csv_images(tmp_path, held_out_fraction=0.4)
    assert data.spec.class_names == names
    assert whole(data)[1][0] == labels[1].strip()


def test_all_that_is_wrong_is_told_at_once_a_line_each(tmp_path):
    write(tmp_path)
    rows = rows_of()
    rows[0] = ('scan0.png', ' ', 'P0')
    rows[1] = ('gone.png', 'b', 'P0')
    rows[3] = ('scan2.png', 'b', 'P0')
    rows[5] = ('scan5.png', 'A', 'P1')
    rows[8] = ('scan8.png', 'a', 'nan')
    rows[9] = ('scan9.png', 'b', 'p3')
    rows[10] = ('../scan10.png', 'b', 'P2')
    write_csv(tmp_path / 'metadata.csv', rows)
    said = refusal(tmp_path, owner_column='owner')
    table_name = tmp_path / 'metadata.csv'
    expected = [
        f"{table_name}, line 3: there is no 'gone.png' in {tmp_path}.",
        f'{table_name}, line 5 lists {tmp_path}/scan2.png, as line 4 does.',
        f"{table_name}, line 12: '../scan10.png' is no file below {tmp_path}.",
        *(f'{tmp_path}/scan{i}.png is not listed in' for i in (1, 10, 3)),
        f"{table_name}, line 2: the label is missing, got ''.",
        f"{table_name}, line 10 names no owner: 'nan'",
        f"{table_name}, line 14 names its owner 'P3', and {table_name}, line 11 'p3'",
        f"{table_name}: the labels 'A' and 'a' differ in spelling alone",
    ]
    assert len(said) == len(expected) and all(line.startswith(start) for line, start in zip(said, expected)), said


def test_many_problems_are_counted(tmp_path):
    write(tmp_path, 12)
    write_csv(tmp_path / 'metadata.csv', rows_of(40))
    said = refusal(tmp_path)
    assert len(said) == 11 and said[10] == '... and 18 more.'


@pytest.mark.parametrize(
    'owners, message',
    [(['7', '007'], "names its owner '007', and"), (['x', ' x'], 'white space'), (['', 'x'], "names no owner: ''")],
)
def test_owners_in_two_spellings_or_of_nobody_are_refused(tmp_path, owners, message):
    write(tmp_path)
    rows = [(file, label, owners[i] if i < 2 else owner) for i, (file, label, owner) in enumerate(rows_of())]
    write_csv(tmp_path / 'metadata.csv', rows)
    assert any(message in line for line in refusal(tmp_path, owner_column='owner'))


def test_unread_column_of_owners_is_told_of(tmp_path, capsys):
    write(tmp_path)
    table_images.csv_images(tmp_path)
    assert "'owner' seems to say whose image each is, and is not read" in capsys.readouterr().err
    table_images.csv_images(tmp_path, unit=datasets.ONE_IMAGE)
    table_images.csv_images(tmp_path, owner_column='owner', held_out_fraction=0.4)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        ('name;label\r\nA\xe9;b\r\n'.encode('latin-1'), 'line 2 is not in UTF-8; save the table anew as CSV'),
        ('file_name,label\n'.encode('utf-16'), 'line 1 is not in UTF-8'),
        (b'file_name,label\na.png\n', 'line 2 has 1 values for 2 columns'),
        (b'file_name,label,label\na.png,a,a\n', "has two columns 'label'"),
        (b'file_name;a,label\nb;c,d\n', "may be separated by ',' or ';'; say by which"),
        (b'file_name,label\n"a.png,a\n', 'line 2: unexpected end of data'),
        (b'filename,label\na.png,b\n', "has no column 'file_name': is it 'filename'\\? It has 'filename', 'label'"),
        (b'"file_name,label\n' + b'x' * 200000, 'line 1: field larger than field limit'),
        (b'file_name,label\n', 'holds no images|is not listed'),
    ],
)
def test_table_that_is_none_is_named(tmp_path, content, message):
    write(tmp_path, 2)
    (tmp_path / 'metadata.csv').write_bytes(content)
    assert any(re.search(message, line) for line in refusal(tmp_path))


@pytest.mark.parametrize(
    'content, message', [('{"a": 1}\n[1]\nx', 'is no JSON object'), ('{"file_name": 1}', "'label'")]
)
def test_json_that_is_none_is_named(tmp_path, content, message):
    write(tmp_path, 2)
    (tmp_path / 't.jsonl').write_text(content)
    assert message in refusal(tmp_path / 't.jsonl')[0]


def test_document_of_json_is_named_for_what_it_is(tmp_path):
    (tmp_path / 't.json').write_text('[{"file_name": "a.png", "label": 1}]')
    assert 'holds one JSON document; write one object a line' in refusal(tmp_path / 't.json')[0]


def test_data_of_the_working_folder_have_its_name(tmp_path, monkeypatch):
    write(tmp_path / 'scans')
    monkeypatch.chdir(tmp_path / 'scans')
    assert table_images.csv_images('.').spec.name == table_images.csv_images('metadata.csv').spec.name == 'scans'


def test_values_of_csv_are_texts_with_their_lines(tmp_path):
    (tmp_path / 't.csv').write_bytes(b'\xef\xbb\xbf a ,b\r\n"x\r\ny",1\r\n\r\n"q ""r""",007\r\n,\r\n , \r\n')
    read = table.read(tmp_path / 't.csv')
    assert read.column('a') == ['x\r\ny', 'q "r"'] and read.column('b') == ['1', '007']
    assert read.lines == (2, 5)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'unlisted': 'drop'}, "unlisted must be 'refuse' or 'pass_over', got 'drop'"),
        ({'delimiter': ', '}, "delimiter must be one character, got ', '"),
        ({'delimiter': ';'}, 'has no column'),
        ({'held_out_fraction': 0.0}, 'held_out_fraction must be in'),
        ({'unit': 'one patient'}, "unit='one patient' needs owners"),
        ({'resize': 'stretch'}, "resize='stretch' needs image_size"),
    ],
)
def test_options_that_mean_nothing_are_named(tmp_path, options, message):
    write(tmp_path)
    assert message in refusal(tmp_path, **options)[0]


def test_folder_without_a_table_or_with_two_is_named(tmp_path):
    assert 'holds no metadata.csv or metadata.jsonl' in refusal(tmp_path)[0]
    assert 'no such file' in refusal(tmp_path / 'none.csv')[0]
    write(tmp_path)
    (tmp_path / 'metadata.jsonl').touch()
    assert 'are both there: give the one that is meant' in refusal(tmp_path)[0]


def test_bad_images_are_told_at_once(tmp_path):
    write(tmp_path)
    for i in range(3):
        (tmp_path / f'scan{i}.png').write_bytes(b'')
    assert len(refusal(tmp_path)) == 3
