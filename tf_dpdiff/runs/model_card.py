"""The card of a released model: README.md, in the form that model hubs read, and what its guarantee means to people.

References: Mitchell et al. 2019, arXiv:1810.03993 (model cards); the Hugging Face Hub's specification of a card's
  metadata (modelcard.md of huggingface/hub-docs) and its annotated template, whose headings these are.
"""

from collections.abc import Iterator, Sequence
import re

import yaml

from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import curator
from tf_dpdiff.runs import facts as facts_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.serving import export

_TAGS = ('differential-privacy', 'synthetic-data', 'diffusion', 'image-generation', 'tensorflow', 'saved-model')
_CITATIONS = (
    'Ghalebikesabi et al. 2023, Differentially Private Diffusion Models Generate Useful Synthetic Images, '
    'arXiv:2302.13861',
    'Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv:1607.00133',
)


def write(facts: facts_lib.Facts, files: Sequence[tuple[str, str]]) -> str:
    """Returns the card.

    Args:
      facts: What is known of the release.
      files: What lies beside it: names, and what each is.
    """
    head = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    body = '\n\n'.join(block for block in _blocks(facts, files) if block)
    return f'---\n{head}---\n\n{body}\n'


def _metadata(facts: facts_lib.Facts) -> dict:
    """Returns the front matter."""
    tags = [*_TAGS, *(() if facts.has_guarantee else ('no-privacy-guarantee',))]
    fields = {
        **_license(facts.answers.given.get('license')),
        'library_name': 'tf_dpdiff',
        'pipeline_tag': 'unconditional-image-generation',
        'tags': tags,
    }
    dataset = facts.statement.get('dataset')
    if dataset and re.fullmatch(r'[\w.-]+(/[\w.-]+)?', dataset):  # As hubs name data sets.
        fields['datasets'] = [dataset]
    return fields


def _license(name: str | None) -> dict[str, str]:
    if name is None:
        return {'license': 'unknown'}
    if re.fullmatch(r'[A-Za-z0-9.+-]+', name):
        return {'license': name.lower()}
    short = re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')
    return {'license': 'other', 'license_name': short or 'other', 'license_link': folder.MODEL_CARD}


def _blocks(facts: facts_lib.Facts, files: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yields the paragraphs of the card."""
    say = facts.answers.say
    yield f'# {_plain(facts.name)}'
    yield from _top(facts)
    yield f'![Samples of the generator, one row per class]({folder.SAMPLES_PICTURE})'
    yield '## Model Details'
    yield _list(
        [
            ('Published by', ', '.join(facts.answers.names('data_curators'))),
            ('Model', facts.model),
            ('Trained on', facts.source),
            ('Classes', ', '.join(facts.description.class_names) if facts.description.labelled else 'none'),
            ('License', say('license')),
            ('Contact', say('contact')),
            ('Date', facts.date),
            ('More', say('sources')),
        ]
    )
    yield '## Uses'
    yield _list([('Direct use', say('purpose')), ('Out-of-scope use', say('not_for'))])
    if facts.has_guarantee:
        yield '## What the Guarantee Means'
        yield from _meaning(facts)
        yield '## To Judge the Guarantee By'
        yield 'In the order of NIST SP 800-226, what a guarantee rests on:'
        yield _table(
            ('what', 'what is known of it'), [(f'**{name}**', _plain(text)) for name, text in facts.to_judge_by()]
        )
    yield '## Bias, Risks, and Limitations'
    yield f'Whom the images show less often or less well than others: {_plain(say("biases"))}.'
    yield (
        'Samples are made up. Rare findings and small groups come out worse than frequent ones, the more so the '
        'stronger the guarantee: do not draw conclusions on single images, and none on small groups without '
        'checking them elsewhere.'
    )
    if facts.is_private:
        yield 'Not covered by the statement:'
        yield '\n'.join(f'* {_plain(item)}' for item in facts.statement['not_covered'])
    yield '## How to Get Started with the Model'
    yield from _start(facts)
    yield '## Training Details'
    yield _list(
        [
            (
                'Training data',
                f'{facts.source}. Whom the images are of: {say("people")}. Collection: {say("collection")}',
            ),
            ('Public images before that', '; '.join(facts.statement['public_data']) or 'none'),
            ('Steps', f'{facts.statement["steps_run"]:,}'),
            ('Software', ', '.join(f'{name} {version}' for name, version in facts.statement['versions'].items())),
        ]
    )
    yield '## Evaluation'
    yield from _evaluation(facts)
    yield '## Environmental Impact'
    yield f'{curator.NOT_STATED.capitalize()}.'
    yield '## Files'
    yield _table(('file', 'what it is'), [(f'`{name}`', _plain(text)) for name, text in files])
    yield '## Citation'
    yield '\n'.join(f'* {item}' for item in _CITATIONS)
    yield '## Model Card Contact'
    yield _plain(say('contact'))
    missing = facts.answers.missing(is_private=facts.is_private)
    if missing:
        yield '## Not Stated'
        yield 'The curator has not answered:'
        yield '\n'.join(f'* {question.key}: {question.text}' for question in missing)


def _top(facts: facts_lib.Facts) -> Iterator[str]:
    """Yields what must be read first."""
    if facts.is_private and not facts.has_guarantee:
        yield f'> **{_plain(facts.claim)}**'
        return
    yield _plain(facts.claim)
    for caution in facts.cautions:
        yield f'> **Caution:** {_plain(caution)}'


def _meaning(facts: facts_lib.Facts) -> Iterator[str]:
    unit = facts.statement['unit']
    yield (
        f'Someone has all of this release, and wants to know whether {unit} was in the data that it was made from. '
        'Suppose they know everything else: the method, and all other images. However clever they are, this bounds how '
        'often they can be right:'
    )
    yield _table(
        ('of those that were not used, they wrongly name', 'of those that were used, they find at most'),
        facts.right_guesses,
    )
    yield (
        'Guessing blindly finds as many as it wrongly names. The bounds are proven from the same losses as epsilon, '
        'and rounded upwards; real attackers mostly know less than is supposed here.'
        + (' They count the accuracies below in.' if facts.accuracy else '')
    )
    if facts.groups:
        yield (
            f'This is about {unit}. A person with several images is protected less: epsilon, at the same delta, for '
            'data sets that differ in so many images:'
        )
        yield _table(('images of one person', 'epsilon'), facts.groups)
        most = facts.answers.given.get('max_images_per_unit')
        stated = f'{most}, by the curator' if most else curator.NOT_STATED
        yield f'The largest number of images of one person: {stated}.'
    yield f'{_plain(facts.of_other_releases)} How settings were chosen: {_plain(facts.answers.say("tuning"))}.'


def _start(facts: facts_lib.Facts) -> Iterator[str]:
    label = facts.description.labels[0]
    yield 'The generator needs TensorFlow and nothing else:'
    yield (
        '```python\n'
        'import tensorflow as tf\n\n'
        f"model = tf.saved_model.load('{folder.SAVED_MODEL}/1')\n"
        f"draw = model.signatures['serving_default']\n"
        f'images = draw(labels=tf.constant([{label}, {label}]), seeds=tf.constant([0, 1], tf.int64))'
        "['images']  # uint8\n"
        '```'
    )
    if facts.description.has_teacher:
        height, width, channels = facts.description.image_shape
        yield 'The classifier beside it takes real images of the same size:'
        yield (
            '```python\n'
            f'images = tf.zeros([1, {height}, {width}, {channels}], tf.uint8)  # In place of your own.\n'
            f"found = model.signatures['{export.CLASSIFY}'](images=images)\n"
            "print(found['labels'], found['probabilities'])  # Not calibrated.\n"
            '```'
        )
    yield 'The same label and seed give the same image. Whether the release has arrived whole, and is of one piece:'
    yield (
        '```sh\nsha256sum --check SHA256SUMS\nbin/release --verify=.  # of tf_dpdiff; compares the statements too\n```'
    )


def _evaluation(facts: facts_lib.Facts) -> Iterator[str]:
    yield f'What is known of its use: {_plain(facts.answers.say("utility"))}.'
    if facts.accuracy:
        yield _table(
            ('classifier, trained on samples', 'accuracy on held-out private images, released with noise'),
            [(_plain(name), f'{value:.1%}') for name, value in facts.accuracy['accuracy'].items()],
        )
        yield _plain(facts.accuracy['text'])
    elif facts.is_private:
        yield 'No number measured on private images is part of the release.'


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return '\n'.join(f'* **{name}:** {_plain(text)}' for name, text in rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |' for line in lines)


def _plain(text: str) -> str:
    """Returns text of others as Markdown that shows it as it is, on one line."""
    return re.sub(r'([\\`*_\[\]<>#])', r'\\\1', ' '.join(text.split()))


def epsilon_of(card: str) -> str | None:
    """Returns epsilon as a card tells it, None where it claims none."""
    found = re.search(r'epsilon = ([0-9.]+) at delta', card)
    return found.group(1) if found else None


def says(card: str, epsilon: float | None) -> bool:
    """Returns whether a card claims an epsilon, or none."""
    return epsilon_of(card) == (None if epsilon is None else rounding.round_up(epsilon))
