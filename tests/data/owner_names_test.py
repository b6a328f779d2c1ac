"""Tests of which names are nobody's, and which are one person's."""

import unicodedata

import numpy as np
import pytest

from tf_dpdiff.data import owner_names
from tf_dpdiff.data import splitting

# As the programs write it.
MISSING = {
    'numpy': [str(value) for value in (np.nan, -np.nan, None, np.datetime64('NaT'), np.ma.masked)],
    'pandas': [
        'nan',
        'NaN',
        '<NA>',
        'NaT',
        'None',
        'N/A',
        'NA',
        'NULL',
        'n/a',
        'null',
        '-nan',
        '-NaN',
        '#N/A',
        '#NA',
        '#N/A N/A',
        '1.#IND',
        '-1.#IND',
        '1.#QNAN',
        '-1.#QNAN',
        '',
    ],
    'R': ['NA', '<NA>', 'NaN', 'NULL'],
    'Excel': ['#N/A', '#NV', '#N/D', '#VALUE!', '#WERT!', '#REF!', '#NAME?', '#NUM!', '#NULL!', '#DIV/0!'],
    'JSON': ['null', 'NaN', 'undefined'],
    'SQL': ['NULL', '\\N'],
    'C': ['nan', '-nan', 'nan(ind)', '-nan(ind)', 'nil', '(null)'],
    'numbers': ['-1', '-1.0', '-9', '-999', '-2147483648', '-9223372036854775808'],
    'people': [
        'unknown',
        'Unknown',
        'UNKNOWN',
        'n.a.',
        'missing',
        'anonymous',
        'not available',
        'not applicable',
        'nobody',
        '?',
        '-',
        '--',
        '.',
        '*',
        '/',
        '_',
    ],
    'unseen': [' ', '\t', '\n', '\xa0', '\u3000', '\u200b', '\ufeff', '\xad'],
}


def names_nobody(name, others=('p1', 'p2', 'q3')):
    return refusal([*others, name]).startswith(f'row {len(others)} names no owner: {name!r}; each image needs a name')


def refusal(owners):
    """Returns the objection to owners, or ''."""
    try:
        splitting.check_owners(np.array(owners), lambda row: f'row {row}')
    except ValueError as error:
        assert '\n' not in str(error)
        return str(error)
    return ''


@pytest.mark.parametrize('writer', MISSING)
def test_what_programs_write_for_a_missing_name_is_nobody(writer):
    for name in MISSING[writer]:
        for spelling in (name, name.upper(), name.lower(), f' {name}', f'{name} ', f'"{name}"', f'[{name}]'):
            assert names_nobody(spelling), spelling


@pytest.mark.parametrize(
    'name',
    [
        'p4',
        '0',
        '17',
        'Nancy',
        'Nana',
        'Annan',
        'nano',
        'Nones',
        'Nullmann',
        'Na Li',
        'Nathan',
        'X',
        'é',
        '山田',
        '#12',
        'a-1',
        '2020-01-31',
        'unknown soldier',
        '12e5',
        '1e10',
        '9f86d081884c7d65',
        'smith, john',
        'a' * 99,
    ],
)
def test_names_of_people_are_taken(name):
    assert refusal(['p1', 'p2', 'q3', name]) == ''


@pytest.mark.parametrize(
    'numbered, missing',
    [
        (['patient 1', 'patient 2'], 'patient nan'),
        (['p1', 'p2'], 'pnan'),
        (['p_01', 'p_02'], 'p_None'),
        (['P1', 'P2'], 'P<NA>'),
        (['case 1.0', 'case 2.0'], 'case nan'),
        (['p1', 'p2'], 'p-1'),
        (['s/1', 's/2'], 's/null'),
    ],
)
def test_number_that_is_missing_behind_a_prefix_is_nobody(numbered, missing):
    assert names_nobody(missing, numbered)
    assert refusal(['another', missing]) == '', 'it may be a name where no other has the prefix'
    assert refusal([*numbered, *(f'user {chr(97 + i)}' for i in range(26)), missing]) == '', 'a coincidence'


@pytest.mark.parametrize(
    'one, other',
    [
        ('p1', 'P1'),
        ('p1', 'p 1'),
        ('p 1', 'p  1'),
        ('p1', 'p\t1'),
        ('p1', 'p\xa01'),
        ('p1', 'p\u200b1'),
        ('é', 'e\u0301'),
        ('Å', '\u212b'),
        ('p1', 'ｐ１'),
        ('strasse', 'STRASSE'),
        ('straße', 'STRASSE'),
        ('ﬁnn', 'finn'),
        ('7', '007'),
        ('7', '7.0'),
        ('7', '7.'),
        ('0', '00'),
    ],
)
def test_two_spellings_of_a_name_are_refused_and_both_are_named(one, other):
    for owners in ([one, 'b', other], [other, 'b', one]):
        said = refusal(owners)
        assert said.startswith('row 2 names its owner ') and ', and row 0 ' in said
        shown = said.split("'")[1::2][:2]
        assert shown[0] != unicodedata.normalize('NFC', shown[1]), 'they must be told apart'
    assert refusal([one, 'b', one]) == refusal([other, 'b']) == ''


@pytest.mark.parametrize(
    'one, other',
    [
        ('p1', 'p11'),
        ('p1', 'q1'),
        ('7', '70'),
        ('7', '7.5'),
        ('p1', 'p01'),
        ('a', 'á'),
        ('smith, j', 'smith j'),
        ('1-2', '12'),
    ],
)
def test_names_that_differ_otherwise_are_two_people(one, other):
    assert refusal([one, other]) == ''
    assert owner_names.key(one) != owner_names.key(other)


@pytest.mark.parametrize('name', [' p1', 'p1 ', 'p1\t', 'p1\n', '\ufeffp1', 'p1\u200b', '\u3000p1'])
def test_space_around_a_name_is_refused_even_where_the_name_is_there_once(name):
    assert f'row 1 names its owner {name!r}, which has white space' in refusal(['b', name])


@pytest.mark.parametrize('name', ['1e+17', '1.23E+17', '1,23E+17', '1.234567e+06', '9007199254740992.0'])
def test_number_that_was_rounded_on_the_way_may_be_several_people(name):
    assert f'row 1 names its owner {name!r}, which is a rounded number' in refusal(['b', name])
    assert refusal(['b', '9007199254740993']) == refusal(['b', '9007199254740991.0']) == ''


def test_first_image_that_is_wrong_is_named():
    assert refusal(['b', 'a', 'nan', 'a ', 'nan']).startswith('row 2 names no owner')
    assert refusal(['b', 'a', 'B', 'nan']).startswith("row 2 names its owner 'B', and row 0 'b'")


def test_bytes_are_read_as_texts_are():
    for names in (['p1', 'nan'], ['p1', 'P1'], ['p1', 'é', 'e\u0301'], ['p1', 'p1 ']):
        of_bytes = refusal([name.encode() for name in names])
        assert of_bytes.replace("b'", "'") == refusal(names) != ''
