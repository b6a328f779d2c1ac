"""Tests of bin/release: what is handed over, what is refused, and what the receiver can check."""

import base64
import hashlib
import html.parser
import json
import pathlib
import re
import shutil
import zipfile

import jsonschema
import mlcroissant
import numpy as np
from PIL import Image
import pytest
import yaml

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import release
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import report as page
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import meaning
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import curator
from tf_dpdiff.runs import leaks
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints

pytestmark = pytest.mark.usefixtures('small_network')
ANSWERS = """
name: Synthetic digits
data_curators: [University of Example, A. Example]
purpose: 'Teaching: how a digit | is drawn.'
region: Example
license: CC-BY-4.0
contact: data@example.org
max_images_per_unit: 4
publication_date: 2026-12-01
sector: Education
release_type: One release
data_source_type: Static
"""
NAMES = {
    'README.md',
    'SHA256SUMS',
    'croissant.json',
    'deployment.yaml',
    'model.json',
    'privacy_statement.json',
    'privacy_statement.txt',
    'report.html',
    'samples.npz',
    'samples.png',
    'saved_model',
}


@pytest.fixture(name='run', scope='module')
def fixture_run(tiny_run, tmp_path_factory):
    """A finished run with a file of answers beside it, and the budget that it was charged to; not to be changed."""
    workdir = shutil.copytree(tiny_run[0], tmp_path_factory.mktemp('hospital') / 'ward_3')
    (workdir.parent / 'curator.yaml').write_text(ANSWERS)
    return workdir, tiny_run[1]


def call(workdir, output, *flags):
    return verbs.call(release, f'--workdir={workdir}', f'--output={output}', *flags)


@pytest.fixture(name='released', scope='module')
def fixture_released(run, tmp_path_factory):
    """A release; not to be changed."""
    output, answers = tmp_path_factory.mktemp('out') / 'digits', run[0].parent / 'curator.yaml'
    assert call(run[0], output, f'--curator={answers}', f'--budget_file={run[1]}') == command.DONE
    return output


@pytest.fixture(name='changed_run')
def fixture_changed_run(run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(run[0], tmp_path / 'run')


@pytest.fixture(name='changed')
def fixture_changed(released, tmp_path):
    """A copy of the release that a test may change, at another place."""
    return shutil.copytree(released, tmp_path / 'received')


def files_of(directory):
    return {path.relative_to(directory).as_posix() for path in directory.rglob('*') if path.is_file()}


def statement_of(directory):
    return json.loads((directory / 'privacy_statement.json').read_text())


def write_sums(directory):
    """Lists the files as they are now, as whoever has changed one would."""
    lines = [
        f'{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n'
        for name in sorted(files_of(directory) - {'SHA256SUMS'})
    ]
    (directory / 'SHA256SUMS').write_text(''.join(lines))


def test_what_may_go_out_is_in_it_and_nothing_else(released):
    assert {path.name for path in released.iterdir()} == NAMES
    of_model = {path.relative_to(released / 'saved_model').parts for path in (released / 'saved_model').rglob('*')}
    assert {parts[0] for parts in of_model} == {'1'}
    with zipfile.ZipFile(f'{released}.zip') as archive:
        names = {name.removeprefix('digits/') for name in archive.namelist()}
        assert names == files_of(released)
        assert all(archive.read(f'digits/{name}') == (released / name).read_bytes() for name in names)
    assert {path.name for path in released.parent.iterdir()} == {'digits', 'digits.zip'}, 'temporary files are left'
    with np.load(released / 'samples.npz') as samples:
        assert sorted(samples) == ['class_names', 'images', 'labels'] and len(samples['images']) == 120


def test_summary_of_an_audit_goes_out_where_it_is_named_and_public(run, tmp_path, capsys):
    summary = {'note': '', 'is_public': True, 'version': '0', 'what': '', 'summary': '', 'settings': {}}
    for is_public, is_violation, message in (
        (False, False, 'does not say that it is public'),
        (True, True, 'tells of faults'),
    ):
        audit = {**summary, 'is_public': is_public, 'audit': {'is_violation': is_violation}}
        (tmp_path / 'audit.json').write_text(json.dumps(audit))
        assert call(run[0], tmp_path / 'out', f'--audit={tmp_path / "audit.json"}') == command.WRONG_USE
        assert message in capsys.readouterr().err and not (tmp_path / 'out').exists()
    (tmp_path / 'audit.json').write_text(json.dumps({**summary, 'audit': {'is_violation': False}}))
    assert call(run[0], tmp_path / 'out', f'--audit={tmp_path / "audit.json"}') == command.DONE
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {*NAMES, 'audit_summary.json'}
    assert 'audit_summary.json' in (tmp_path / 'out' / 'README.md').read_text()
    assert verbs.call(release, f'--verify={tmp_path / "out"}') == command.DONE


def test_digests_are_in_the_form_of_sha256sum_and_of_all_files(released):
    lines = (released / 'SHA256SUMS').read_text().splitlines()
    listed = dict(reversed(line.split('  ', 1)) for line in lines)
    assert set(listed) == files_of(released) - {'SHA256SUMS'}
    for name, digest in listed.items():
        assert hashlib.sha256((released / name).read_bytes()).hexdigest() == digest


def test_card_has_the_head_that_hubs_read_and_tells_what_is_stated_and_what_is_not(released):
    card = (released / 'README.md').read_text()
    _, head, body = card.split('---\n', 2)
    fields = yaml.safe_load(head)
    assert fields['license'] == 'cc-by-4.0' and fields['pipeline_tag'] == 'unconditional-image-generation'
    assert fields['datasets'] == ['digits'] and 'differential-privacy' in fields['tags']
    assert body.lstrip().startswith('# Synthetic digits\n')
    for heading in ('Model Details', 'Uses', 'What the Guarantee Means', 'Bias, Risks, and Limitations', 'Evaluation'):
        assert f'\n## {heading}\n' in body
    assert 'University of Example, A. Example' in body and r'how a digit | is drawn' in body
    not_stated = body.split('## Not Stated')[1]
    assert 'retention:' in not_stated and 'tuning:' in not_stated and 'purpose:' not in not_stated
    # The budget file, which holds one run.
    statement = statement_of(released)
    assert '1 run(s) cost epsilon' in body and rounding.round_up(statement['epsilon']) in body


def test_card_bounds_what_an_attacker_can_do_by_the_releases_of_the_statement(released):
    card, statement = (released / 'README.md').read_text(), statement_of(released)
    ledger = ledger_lib.Ledger.from_json(json.dumps(statement['releases']))
    for words, rate in (('1 in 1,000', 0.001), ('1 in 100', 0.01)):
        shown = float(re.search(rf'\| {words} \| ([0-9.]+)% \|', card).group(1)) / 100.0
        least = meaning.true_positive_rate(ledger.dp_event(), rate)
        assert rate < least <= shown <= least + 2e-4
    epsilon = statement['epsilon']
    for count, shown in re.findall(r'^\| (\d+) \| ([0-9.]+) \|$', card, re.M):
        assert float(shown) >= meaning.group_epsilon(ledger.dp_event(), int(count), statement['delta']) > epsilon
    assert 'The largest number of images of one person: 4, by the curator.' in card


@pytest.mark.parametrize(
    'field',
    [
        'Epsilon',
        'Delta',
        'Unit of privacy',
        'Neighbouring data sets',
        'Bounds on contribution',
        'Mechanisms',
        'Composition, privacy budget',
        'Tuning of settings',
        'Post-processing',
        'Utility',
        'Bias',
        'Trust model',
        'Threat model',
        'Floating-point numbers',
        'Timing and other side channels',
        'Access to the release',
        'Access to private images, retention',
        'Collection of the private images',
    ],
)
def test_what_is_needed_to_judge_a_guarantee_is_there_or_said_to_be_missing(released, field):
    # NIST SP 800-226: what its pyramid is made of.
    (text,) = re.findall(rf'^\| \*\*{field}\*\* \| (.+) \|$', (released / 'README.md').read_text(), re.M)
    assert text.strip()


def test_data_sheet_is_valid_croissant_about_these_samples(released):
    sheet = mlcroissant.Dataset(jsonld=released / 'croissant.json')
    assert not sheet.metadata.ctx.issues.errors
    (samples,) = sheet.metadata.distribution
    assert samples.sha256 == hashlib.sha256((released / samples.content_url).read_bytes()).hexdigest()
    classes = list(sheet.records('classes'))
    assert [record['classes/label'] for record in classes] == list(range(10))
    described = sheet.metadata.to_json()
    responsible = {name for name in described if name.startswith('rai:')}
    assert {
        'rai:dataCollection',
        'rai:dataBiases',
        'rai:personalSensitiveInformation',
        'rai:dataUseCases',
    } <= responsible
    assert 'epsilon' in json.dumps(described['rai:personalSensitiveInformation'])


def closed(required=(), **properties):
    """Returns the schema of an object that has no other properties."""
    return {'type': 'object', 'additionalProperties': False, 'required': list(required), 'properties': properties}


TEXT, NAMES_OF_PEOPLE, NUMBER = (
    {'type': 'string'},
    {'type': 'array', 'items': {'type': 'string'}, 'minItems': 1},
    'number',
)
# The fields of OpenDP's deployments registry (opendp/deployments-registry-data, schemas/deployments-schema.yaml).
RECORD = closed(
    ('url_slug', 'status', 'tier', 'deployment'),
    url_slug=TEXT,
    status={'enum': ['Draft', 'Pending', 'Approved']},
    tier={'enum': [1, 2, 3]},
    deployment=closed(
        ('basic',),
        basic=closed(
            (
                'name',
                'data_curators',
                'description',
                'intended_use',
                'data_product_type',
                'data_product_region',
                'publication_date',
            ),
            name=TEXT,
            data_curators=NAMES_OF_PEOPLE,
            intended_use=TEXT,
            data_product_type={'enum': ['Machine learning model', 'Dataset', 'Synthetic data']},
            data_product_region=TEXT,
            description=TEXT,
            publication_date={'type': 'string', 'format': 'date'},
            data_product_sector={'enum': ['Technology', 'Healthcare', 'Education', 'Government', 'Energy', 'Finance']},
        ),
        dp_variant=closed(
            variant_name={'enum': ['Pure DP', 'Approximate DP', 'Zero-concentrated DP', 'Renyi DP', 'Custom']},
            data_domain=TEXT,
            unprotected_quantities=TEXT,
        ),
        privacy_loss=closed(
            privacy_unit=TEXT,
            privacy_unit_details=TEXT,
            privacy_parameters=closed(
                epsilon={'type': NUMBER}, delta={'type': [NUMBER, 'string']}, rho={'type': NUMBER}
            ),
            privacy_parameters_details=TEXT,
        ),
        deployment_model=closed(
            model_name={'enum': ['Local', 'Central', 'Shuffle', 'Federated', 'Varies']},
            model_name_details=TEXT,
            actors=TEXT,
            release_type={'enum': ['One release', 'Many releases']},
            release_type_details=TEXT,
            data_source_type={'enum': ['Static', 'Dynamic']},
            data_source_type_details=TEXT,
            access_type={'enum': ['Interactive', 'Non-interactive']},
            access_type_details=TEXT,
        ),
        accounting=closed(post_processing=TEXT, composition=TEXT),
        implementation=closed(preprocessing_and_hyperparameter_tuning=TEXT, mechanisms=TEXT, justification=TEXT),
        administrative=closed(('registry_authors',), sources=TEXT, notes=TEXT, registry_authors=NAMES_OF_PEOPLE),
    ),
)


def test_deployment_record_is_one_that_the_registry_takes(released):
    record = yaml.safe_load((released / 'deployment.yaml').read_text())
    checker = jsonschema.Draft7Validator(RECORD, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER)
    assert [error.message for error in checker.iter_errors(record)] == []
    assert record['tier'] == 1 and record['deployment']['administrative']['registry_authors'] == ['not stated']
    assert record['url_slug'] == 'synthetic-digits-university-of-example-a-example-2026'
    parameters, statement = record['deployment']['privacy_loss']['privacy_parameters'], statement_of(released)
    assert parameters == {'epsilon': statement['epsilon'], 'delta': statement['delta']}
    # Control: the list of fields is closed.
    record['deployment']['surprise'] = 1
    assert list(checker.iter_errors(record))


class Links(html.parser.HTMLParser):
    """Collects what a page loads or links to, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.links, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ('src', 'href', 'srcset', 'action', 'data', 'poster')]


def test_page_loads_nothing_from_elsewhere(released):
    content = (released / 'report.html').read_text()
    found = Links(content)
    assert found.links and all(link.startswith('data:image/png;base64,') for link in found.links)
    assert not found.tags & {'script', 'iframe', 'link', 'object', 'embed', 'base'}
    assert not re.search(r'@import|url\(', content.split('</style>')[0])
    assert Links('<img src=https://elsewhere.example/a.png>').links == ['https://elsewhere.example/a.png']


@pytest.mark.parametrize('of', ['folder', 'zip'])
def test_receiver_needs_no_run(released, tmp_path, of, capsys):
    received = tmp_path / 'received'
    if of == 'folder':
        shutil.copytree(released, received)
    else:
        shutil.copy(f'{released}.zip', received)
    assert verbs.call(release, f'--verify={received}') == command.DONE
    said = capsys.readouterr().out
    assert 'BAD' not in said and said.count('good  ') == 7 and 'is complete and consistent' in said
    assert hashlib.sha256((released / 'SHA256SUMS').read_bytes()).hexdigest() in said


def change_text(name, before, after):
    def change(directory):
        path = directory / name
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    return change


def halve_epsilon(directory):
    for path in (directory / 'privacy_statement.json', directory / 'saved_model/1/assets.extra/privacy_statement.json'):
        statement = json.loads(path.read_text())
        path.write_text(json.dumps({**statement, 'epsilon': statement['epsilon'] / 2.0}))


DAMAGE = {
    'a byte of the samples': (
        lambda path: path.joinpath('samples.npz').open('ab').write(b'x'),
        'samples.npz has changed',
    ),
    'a file that is gone': (lambda path: path.joinpath('report.html').unlink(), 'report.html is missing'),
    'a file more': (lambda path: path.joinpath('more.txt').touch(), 'more.txt is not listed'),
    'a link': (
        lambda path: (path.joinpath('report.html').unlink(), path.joinpath('report.html').symlink_to('samples.png')),
        'report.html is a link',
    ),
    'no digests': (lambda path: path.joinpath('SHA256SUMS').unlink(), 'SHA256SUMS is missing'),
    'digests of nothing': (lambda path: path.joinpath('SHA256SUMS').write_text('x\n'), 'SHA256SUMS is damaged'),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_damage_is_found_and_named(changed, capsys, name):
    damage, message = DAMAGE[name]
    damage(changed)
    assert verbs.call(release, f'--verify={changed}') == command.FAILED
    said = capsys.readouterr().out
    assert f'BAD   {message}' in said and 'cannot be trusted' in said


FORGERIES = {
    'the statement of the folder': (
        change_text('privacy_statement.txt', 'epsilon', 'Epsilon'),
        'the statement in the model',
    ),
    'all statements but that in the graph': (halve_epsilon, 'the statement in the model'),
    'the report': (change_text('report.html', 'Not covered', 'Covered'), 'report.html shows that statement'),
    'the card': (change_text('README.md', 'epsilon = ', 'epsilon = 0'), 'README.md tells the epsilon'),
    'the record': (change_text('deployment.yaml', 'delta: 0.0001', 'delta: 1.0e-09'), 'deployment.yaml tells epsilon'),
    'the data sheet': (change_text('croissant.json', '"sha256": "', '"sha256": "0'), 'croissant.json is about'),
    'no record': (lambda path: path.joinpath('deployment.yaml').unlink(), 'deployment.yaml tells epsilon'),
}


@pytest.mark.parametrize('name', FORGERIES)
def test_papers_that_do_not_belong_together_are_found_where_digests_fit(changed, capsys, name):
    forge, message = FORGERIES[name]
    forge(changed)
    write_sums(changed)
    assert verbs.call(release, f'--verify={changed}') == command.FAILED
    said = capsys.readouterr().out
    assert 'all as listed in SHA256SUMS' in said and f'BAD   {message}' in said


def test_epsilon_is_computed_anew(changed, capsys):
    halve_epsilon(changed)
    write_sums(changed)
    verbs.call(release, f'--verify={changed}')
    assert 'BAD   computed anew from the releases' in capsys.readouterr().out


@pytest.mark.parametrize('content, message', [(None, 'no release at'), (b'PK no zip', 'neither a folder nor a zip')])
def test_what_is_no_release_is_one_line(tmp_path, capsys, content, message):
    path = tmp_path / 'received.zip'
    if content:
        path.write_bytes(content)
    assert verbs.call(release, f'--verify={path}') == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert message in error and '\n' not in error


def secret_of(workdir):
    return checkpoints.read_secret(workdir / 'checkpoints').reveal()


def plant_bytes(name, make):
    def plant(workdir):
        path = workdir / name
        path.write_bytes((path.read_bytes() if path.exists() else b'') + b'x' + make(workdir))

    return plant


def plant_private_image(workdir):
    with np.load(workdir / 'samples.npz') as samples:
        arrays = dict(samples)
    arrays['images'][7] = datasets.digits().train.images_uint8[3]
    np.savez(workdir / 'samples.npz', **arrays)


def plant_file(source, target='saved_model/1/assets.extra/labels.json'):
    def plant(workdir):
        (path,) = list(workdir.glob(source))[:1]
        shutil.copy(path, workdir / target)

    return plant


PLANTS = {
    'the secret as hex': (
        plant_bytes('report.html', lambda run: secret_of(run).hex().encode()),
        'report.html holds the secret seed of the run',
    ),
    'the secret among weights': (
        plant_bytes('saved_model/1/assets.extra/tf_serving_warmup_requests', secret_of),
        'holds the secret seed of the run',
    ),
    'the folder of the run': (
        plant_bytes('report.html', lambda run: str(run.resolve()).encode()),
        'report.html holds a path of this machine',
    ),
    'a private image': (plant_private_image, 'samples.npz holds a private image, pixel by pixel'),
    'a private measurement': (
        plant_file('non_private/utility.json'),
        'holds the private file non_private/utility.json',
    ),
    'a checkpoint': (plant_file('checkpoints/*/variables.index'), 'holds the private file checkpoints/'),
    'a file beside the model': (
        lambda run: (run / 'saved_model/1/notes.txt').touch(),
        'notes.txt is no part of an exported model',
    ),
    'a file among those beside the model': (
        lambda run: (run / 'saved_model/1/assets.extra/notes.txt').touch(),
        'notes.txt is no part of an exported model',
    ),
    'another statement in the report': (
        change_text('report.html', 'PRIVACY STATEMENT', 'Privacy statement'),
        'report.html shows another privacy statement',
    ),
    'another statement in the folder': (
        change_text('privacy_statement.txt', 'PRIVACY', 'Privacy'),
        'shows another privacy statement',
    ),
    'another statement beside the model': (
        change_text('saved_model/1/assets.extra/privacy_statement.txt', 'PRIVACY', 'Privacy'),
        'carries another privacy statement',
    ),
}


@pytest.mark.parametrize('name', PLANTS)
def test_what_must_stay_is_not_let_out(changed_run, tmp_path, capsys, name):
    plant, message = PLANTS[name]
    plant(changed_run)
    assert call(changed_run, tmp_path / 'out') == command.WRONG_USE
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ['run'], 'something was written'


def test_a_run_that_was_evaluated_is_let_out(changed_run, tmp_path):
    """Its evaluation keeps the picture of the samples among what is private."""
    copy = changed_run / 'non_private' / 'evaluation_samples' / 'samples.png'
    copy.parent.mkdir(parents=True)
    shutil.copyfile(changed_run / 'samples.png', copy)
    assert call(changed_run, tmp_path / 'out') == command.DONE
    # Control: any other private picture in its place is found.
    Image.fromarray(np.zeros([9, 9], np.uint8)).save(copy)
    page = changed_run / 'report.html'
    picture = base64.b64encode(copy.read_bytes()).decode()
    page.write_text(page.read_text().replace('</body>', f'<img src="data:image/png;base64,{picture}"></body>'))
    assert call(changed_run, tmp_path / 'other') == command.WRONG_USE


@pytest.mark.parametrize('encode', [bytes.hex, base64.b64encode, lambda x: str(int.from_bytes(x, 'little')), repr])
@pytest.mark.parametrize('packed', [False, True])
def test_secret_is_found_in_other_words_and_in_archives(run, tmp_path, encode, packed):
    text = encode(secret_of(run[0]))
    content = b'some text ' + (text if isinstance(text, bytes) else text.encode())
    if packed:
        with zipfile.ZipFile(tmp_path / 'a.bin', 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('b', content)
    else:
        (tmp_path / 'a.bin').write_bytes(content)
    assert leaks.find(tmp_path, leaks.collect(run[0], None)) == ['a.bin holds the secret seed of the run']


def test_run_without_a_guarantee_goes_out_only_on_request_and_says_so_first(changed_run, tmp_path, capsys):
    for folder in (changed_run, changed_run / 'saved_model' / '1' / export.EXTRA):
        fields = {**statement_of(folder), 'guarantee_claimed': False, 'epsilon': None, 'cautions': []}
        (folder / 'privacy_statement.json').write_text(json.dumps(fields))
    assert call(changed_run, tmp_path / 'out') == command.WRONG_USE
    assert 'has no privacy guarantee' in capsys.readouterr().err
    assert call(changed_run, tmp_path / 'out', '--without_guarantee') == command.DONE
    body = (tmp_path / 'out' / 'README.md').read_text().split('---\n', 2)[2]
    assert body.split('\n\n')[1].startswith('> **NO PRIVACY GUARANTEE')
    assert 'What the Guarantee Means' not in body and not (tmp_path / 'out' / 'deployment.yaml').exists()
    assert 'NO PRIVACY GUARANTEE' in (tmp_path / 'out' / 'croissant.json').read_text()


def test_model_of_public_images_alone_claims_nothing(changed_run, tmp_path, capsys):
    public = statement_lib.PublicStatement(("8 images of 'strokes'",), 3, run_id=statement_of(changed_run)['run_id'])
    for folder in (changed_run, changed_run / 'saved_model' / '1' / export.EXTRA):
        (folder / 'privacy_statement.json').write_text(public.to_json())
        (folder / 'privacy_statement.txt').write_text(public.to_text())
    (changed_run / 'report.html').write_text(page.preformatted(public.to_text()))
    shutil.rmtree(changed_run / 'checkpoints')  # They are those of a private run.
    assert call(changed_run, tmp_path / 'out') == command.DONE
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'trained on public images alone' in card and 'epsilon =' not in card and 'why_epsilon' not in card
    assert not (tmp_path / 'out' / 'deployment.yaml').exists()
    assert 'not looked for' not in capsys.readouterr().err  # There is no secret, and no private image.


@pytest.mark.parametrize('of_this_model', [True, False])
def test_accuracies_that_were_released_with_noise_count_in_if_they_are_of_this_model(
    changed_run, released, tmp_path, of_this_model
):
    fields = {
        'accuracy': {'small_cnn': 0.8125},
        'releases': json.loads(accuracy_release.AccuracyReleaseConfig(2.0).record(ledger_lib.Ledger()).to_json()),
        'model_run_id': statement_of(changed_run)['run_id'] if of_this_model else 'another',
        'text': 'Released with noise.',
    }
    (changed_run / 'released_accuracy.json').write_text(json.dumps(fields))
    assert call(changed_run, tmp_path / 'out') == command.DONE
    card, before = ((path / 'README.md').read_text() for path in (tmp_path / 'out', released))
    rates = [float(re.search(r'\| 1 in 100 \| ([0-9.]+)% \|', text).group(1)) for text in (card, before)]
    assert (rates[0] > rates[1]) == of_this_model == ('| small\\_cnn | 81.2% |' in card)
    assert (tmp_path / 'out' / 'released_accuracy.json').exists() == of_this_model
    assert verbs.call(release, f'--verify={tmp_path / "out"}') == command.DONE


def test_samples_are_drawn_anew_on_request(run, tmp_path):
    assert call(run[0], tmp_path / 'out', '--num_images=30') == command.DONE
    with np.load(tmp_path / 'out' / 'samples.npz') as samples:
        labels, images = samples['labels'], samples['images']
    drawn = export.load_sample_fn(run[0] / 'saved_model')(labels, np.arange(30, dtype=np.int64)).numpy()
    assert np.abs(images.astype(int) - drawn).max() <= 1 and len(set(labels)) == 10


def test_private_images_that_cannot_be_read_are_said_not_to_have_been_looked_for(changed_run, tmp_path, capsys):
    configuration = changed_run / 'operative_config.gin'
    configuration.write_text(configuration.read_text().replace('@digits()', '@npz_images()'))
    assert call(changed_run, tmp_path / 'out') == command.DONE
    said = capsys.readouterr().err
    assert 'so they were not looked for' in said and 'npz_images needs' in said


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--output={out}/a.zip'], 'name the folder; the zip of it is written too'),
        (['--output={out}'], 'exists; name a new folder'),
        ([], 'name an --output'),
        (['--template={out}/a.yaml', '--output={out}/b'], '--template stands alone; drop --output'),
        (['--template={out}/a.yaml', '--workdir={out}'], '--template stands alone; drop --workdir'),
        (['--output={out}/b', '--curator={out}/none.yaml'], 'no file of answers at'),
        (['--output={out}/b', '--budget_file={out}/none'], 'no budget file at'),
        (['--output={out}/b', '--num_images=-1'], 'num_images'),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(run, tmp_path, capsys, flags, message):
    flags = [flag.format(out=tmp_path) for flag in flags]
    given = [] if any(flag.startswith('--template') for flag in flags) else [f'--workdir={run[0]}']
    code = verbs.call(release, *given, *flags)
    error = capsys.readouterr().err.strip()
    assert code == command.WRONG_USE and message in error and '\n' not in error
    assert not list(tmp_path.iterdir())


def test_template_is_a_file_of_answers_without_answers(tmp_path, capsys):
    path = tmp_path / 'curator.yaml'
    assert verbs.call(release, f'--template={path}') == command.DONE
    assert curator.read(path).given == {}
    assert verbs.call(release, f'--template={path}') == command.WRONG_USE
    assert 'exists; name a new file' in capsys.readouterr().err
    assert pathlib.Path(path).read_text().count('# For example: ') == len(curator.QUESTIONS)
