"""Tests of summaries of audits: what is public goes out as it is, and nothing else does."""

import json

import pytest

from tf_dpdiff.runs import audit_summary


@pytest.fixture(name='path')
def fixture_path(tmp_path):
    audit_summary.write(
        tmp_path, note='a note', what='a test', summary='All is well.', settings={'m': 3}, audit={'is_violation': False}
    )
    return tmp_path / 'audit_summary.json'


def test_summary_says_that_it_is_public_and_is_read_as_it_was_written(path):
    fields = json.loads(audit_summary.read(path))
    assert fields['is_public'] is True and fields['settings'] == {'m': 3} and fields['version']
    assert audit_summary.read(path) == path.read_text()
    assert (path.parent / 'audit_summary.txt').read_text() == 'All is well.\n'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda fields: fields.update(is_public=False), 'does not say that it is public'),
        (lambda fields: fields.update(is_public='yes'), 'does not say that it is public'),
        (lambda fields: fields.pop('is_public'), 'is no audit_summary.json'),
        (lambda fields: fields.update(membership_attack={'auc': 0.9}), 'is no audit_summary.json'),
        (lambda fields: fields.update(audit=[1]), 'is no audit_summary.json'),
        (lambda fields: fields['audit'].update(is_violation=True), 'tells of faults'),
        (lambda fields: fields['audit'].pop('is_violation'), 'tells of faults'),
    ],
)
def test_what_is_not_public_no_summary_or_tells_of_faults_is_refused(path, change, message):
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        audit_summary.read(path)


def test_missing_summary_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        audit_summary.read(tmp_path / 'audit_summary.json')
