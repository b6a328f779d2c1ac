"""Tests of the curator's answers: what is missing is said, and what is wrong is refused."""

import re

import pytest
import yaml

from tf_dpdiff.runs import curator


def write(folder, text):
    path = folder / 'curator.yaml'
    path.write_text(text)
    return path


def test_template_with_its_examples_taken_is_a_complete_file_of_answers(tmp_path):
    text = re.sub(r'# For example: (.*)\n(\w+):\n', r'\2: \1\n', curator.template())
    answers = curator.read(write(tmp_path, text))
    assert not answers.missing() and answers.tier == 3
    assert set(answers.given) == set(yaml.safe_load(curator.template()))
    assert answers.names('data_curators') == ['University Hospital of Example', 'Institute of Radiology']
    assert answers.given['max_images_per_unit'] == 4 and answers.say('publication_date') == '2026-12-01'


@pytest.mark.parametrize('text', ['', '# Nothing yet.\n', 'purpose:\ncontact: ""\ndata_curators: []\n'])
def test_what_is_not_answered_is_not_stated(tmp_path, text):
    answers = curator.read(write(tmp_path, text))
    assert answers.say('purpose') == 'not stated' and answers.names('data_curators') == ['not stated']
    assert {question.key for question in answers.missing()} >= {'purpose', 'contact', 'why_epsilon'}
    assert 'why_epsilon' not in {question.key for question in answers.missing(is_private=False)}
    assert answers.tier == 1


@pytest.mark.parametrize(
    'text, message',
    [
        ('purpos: teaching', "answers 'purpos', which is no question; did you mean purpose?"),
        ('zzz: 1', "answers 'zzz', which is no question; there are name, "),
        ('purpose: a\npurpose: b', "answers 'purpose' twice"),
        ('contact: no', 'contact must be a text, got False; put it in quotes'),
        ('max_images_per_unit: many', "max_images_per_unit must be a whole number, got 'many'"),
        ('max_images_per_unit: 0', 'max_images_per_unit must be a whole number, got 0'),
        ('max_images_per_unit: true', 'max_images_per_unit must be a whole number, got True'),
        ('sector: Space', 'sector must be one of Technology, .*, got .Space.'),
        ('publication_date: soon', 'publication_date must be a date'),
        ('data_curators: [1]', 'data_curators must be a list of names'),
        ('purpose: teaching: at schools', 'is no YAML .*put texts with a colon in quotes'),
        ('- a', 'must hold lines of the form KEY: ANSWER'),
        ('a text', 'must hold lines of the form KEY: ANSWER'),
    ],
)
def test_wrong_answer_is_one_line_that_says_what_to_do(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as refused:
        curator.read(write(tmp_path, text))
    assert '\n' not in str(refused.value) and 'curator.yaml' in str(refused.value)


def test_missing_file_names_the_template(tmp_path):
    with pytest.raises(FileNotFoundError, match='--template='):
        curator.read(tmp_path / 'none.yaml')
