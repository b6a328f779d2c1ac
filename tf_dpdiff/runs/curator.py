"""What only the curator of a release knows: a short file of answers, of which none is ever made up."""

from collections.abc import Mapping
import dataclasses
import datetime
import difflib
import os
import pathlib
import textwrap
from typing import Any

import yaml

NOT_STATED = 'not stated'
_TEXT, _NAMES, _DATE, _COUNT, _CHOICE = 'a text', 'a list of names', 'a date (YYYY-MM-DD)', 'a whole number', 'one of'


@dataclasses.dataclass(frozen=True)
class Question:
    """A question to the curator.

    Attributes:
      key: Its name in the file.
      text: The question.
      example: An answer.
      tier: Of the deployments registry: up to which completeness of a record it is needed.
      kind: What the answer is.
      choices: The answers there are, where it is a choice.
    """

    key: str
    text: str
    example: str
    tier: int = 3
    kind: str = _TEXT
    choices: tuple[str, ...] = ()


QUESTIONS = (
    Question('name', 'Of the data product.', 'Synthetic chest X-rays 2026', 1),
    Question(
        'data_curators', 'Who publishes it.', '[University Hospital of Example, Institute of Radiology]', 1, _NAMES
    ),
    Question('contact', 'Where questions, and people whose data may have been used, can turn to.', 'data@example.org'),
    Question('purpose', 'What it is for.', 'Teaching, and testing software before it may see patients.', 1),
    Question('not_for', 'What it must not be used for.', 'Diagnosis, and conclusions on rare findings.'),
    Question('region', 'Which region the data describe, or whose law applies.', 'Example, European Union', 1),
    Question(
        'sector',
        'Of the deployments registry.',
        'Healthcare',
        1,
        _CHOICE,
        ('Technology', 'Healthcare', 'Education', 'Government', 'Energy', 'Finance'),
    ),
    Question(
        'publication_date', 'When it is published; the day of writing where there is no answer.', '2026-12-01', 1, _DATE
    ),
    Question(
        'license',
        "Of the release, by its name or SPDX identifier. The program's own does not extend to it.",
        'CC-BY-4.0',
    ),
    Question('sources', 'Where more can be read.', 'https://example.org/synthetic-xrays', 1),
    Question('registry_authors', 'Who filled in this file.', '[A. Example]', 1, _NAMES),
    Question(
        'people', 'Whom the private images are of, and whom not.', 'Adults examined at the hospital from 2019 to 2024.'
    ),
    Question(
        'collection',
        'How the private images were collected, and on what legal basis or consent.',
        'Routine care; broad consent.',
    ),
    Question(
        'preprocessing',
        'What was done to the private images beforehand, and whether it was private.',
        'Scaled to 32x32 pixels.',
    ),
    Question(
        'max_images_per_unit',
        'The largest number of images one person can have, if that is public and was fixed beforehand. It is never '
        'computed from the data.',
        '4',
        3,
        _COUNT,
    ),
    Question('why_epsilon', 'Why this epsilon and delta; who decided.', 'The data protection board set 3 as the most.'),
    Question(
        'tuning',
        'How settings were chosen, and whether by looking at the private images.',
        'On a public data set alone.',
    ),
    Question(
        'trust_model',
        'Who sees the private images, and whom one has to trust.',
        'Two engineers of the institute, on its own machines.',
    ),
    Question(
        'threat_model',
        'Against whom it is meant to protect, and what they are thought to know.',
        'Anyone who has the release, whatever else they know.',
    ),
    Question('access', 'Who gets the release, and on what terms.', 'Anyone, on the terms of the licence.'),
    Question(
        'retention',
        'How long private images and checkpoints are kept, and how they are protected.',
        'Checkpoints were deleted; images stay in the archive.',
    ),
    Question(
        'future_releases',
        'Whether more will be released from the same data, and how its cost is kept account of.',
        'One more in 2027, within the same budget file.',
    ),
    Question(
        'release_type', 'Of the deployments registry.', 'One release', 2, _CHOICE, ('One release', 'Many releases')
    ),
    Question('data_source_type', 'Whether new data come in over time.', 'Static', 2, _CHOICE, ('Static', 'Dynamic')),
    Question('biases', 'Whom the images show less often or less well than others.', 'Children are missing.'),
    Question(
        'utility',
        'What is known of its use, and how it was measured without looking at the private images for free.',
        'Not measured.',
    ),
)
_DATE_KEY = 'publication_date'
_OF_PRIVATE_IMAGES = frozenset(
    {
        'people',
        'collection',
        'preprocessing',
        'max_images_per_unit',
        'why_epsilon',
        'tuning',
        'trust_model',
        'threat_model',
        'retention',
    }
)
_BY_KEY = {question.key: question for question in QUESTIONS}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the curator has answered.

    Attributes:
      given: By the key of the question; a text, or a tuple of names, or a whole number.
    """

    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def say(self, key: str) -> str:
        """Returns an answer as one text, or that it is not stated."""
        value = self.given.get(key)
        if value is None:
            return NOT_STATED
        return ', '.join(value) if isinstance(value, tuple) else str(value)

    def names(self, key: str) -> list[str]:
        """Returns the names of an answer; one that says that they are not stated where there is none."""
        return list(self.given.get(key, (NOT_STATED,)))

    def missing(self, *, is_private: bool = True) -> list[Question]:
        """Returns the questions without an answer; the day of publication is that of writing where there is none.

        Args:
          is_private: Whether the release is after private images; else what is asked of these is left out.
        """
        known = {*self.given, _DATE_KEY, *(() if is_private else _OF_PRIVATE_IMAGES)}
        return [question for question in QUESTIONS if question.key not in known]

    @property
    def tier(self) -> int:
        """How complete a record of the deployments registry these answers make, from 1 to 3."""
        return max(1, min([question.tier for question in self.missing()], default=4) - 1)


def template() -> str:
    """Returns a file without answers: each question with an example as a comment."""
    lines = [
        '# What only you know about a release. bin/release --curator=THIS_FILE puts it into the model card, the data',
        f'# sheet and the deployment record. What you leave empty is listed there as {NOT_STATED!r}.',
        '# All of it becomes public.',
    ]
    for question in QUESTIONS:
        choices = f' One of: {", ".join(question.choices)}.' if question.choices else ''
        kind = '' if question.kind in (_TEXT, _CHOICE) else f' ({question.kind})'
        comment = textwrap.wrap(f'{question.text}{choices}{kind}', 110)
        lines += ['', *(f'# {line}' for line in comment), f'# For example: {question.example}', f'{question.key}:']
    return '\n'.join(lines) + '\n'


def read(path: str | os.PathLike) -> Answers:
    """Reads a file of answers.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is no YAML, or a key or an answer is not one that there is; one line that says what to do.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no file of answers at {path}; bin/release --template={path} writes one.')
    try:
        text = path.read_text(encoding='utf-8')
        fields, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f'{path} is no YAML ({reason}); put texts with a colon in quotes.') from error
    if fields is None:
        return Answers()
    if not isinstance(fields, dict):
        raise ValueError(
            f'{path} must hold lines of the form KEY: ANSWER; bin/release --template=FILE writes an example.'
        )
    _check_keys(path, [key.value for key, _ in node.value])
    return Answers({key: _checked(path, key, value) for key, value in fields.items() if value not in (None, '', [])})


def _check_keys(path: pathlib.Path, keys: list[str]) -> None:
    for key in keys:
        if key not in _BY_KEY:
            near = difflib.get_close_matches(key, _BY_KEY, 1, 0.5)
            meant = f'did you mean {near[0]}?' if near else f'there are {", ".join(_BY_KEY)}.'
            raise ValueError(f'{path} answers {key!r}, which is no question; {meant}')
        if keys.count(key) > 1:
            raise ValueError(f'{path} answers {key!r} twice; keep one.')


def _checked(path: pathlib.Path, key: str, value: Any) -> Any:
    """Returns an answer in its type."""
    question = _BY_KEY[key]
    if question.kind == _DATE and isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat()
    if question.kind == _COUNT and isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if question.kind == _NAMES and isinstance(value, str):
        value = [value]
    if question.kind == _NAMES and isinstance(value, list) and all(isinstance(name, str) and name for name in value):
        return tuple(' '.join(name.split()) for name in value)
    if question.kind == _TEXT and isinstance(value, str) and value.strip():
        return ' '.join(value.split()).rstrip('.')  # It becomes a part of sentences.
    if question.kind == _CHOICE and value in question.choices:
        return value
    wanted = f'{question.kind} {", ".join(question.choices)}' if question.choices else question.kind
    quotes = '; put it in quotes' if question.kind == _TEXT else ''
    raise ValueError(f'{path}: {key} must be {wanted}, got {value!r}{quotes}.')
