"""Tests of the privacy statement."""

import dataclasses
import functools
from importlib import metadata
import json
import re

import dp_accounting
import pytest

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import statement

CONFIG = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=200, num_steps=50, l2_norm_clip=0.1, target_epsilon=4.0
)


@functools.lru_cache  # Calibration takes seconds.
def make_plan(config):
    return plan_lib.make_plan(config, 1000, class_means.ClassMeansConfig(3.0, 1.0))


def make_statement(ledger=None, config=CONFIG, **changes):
    plan = make_plan(config)
    fields = dict(
        unit='one image',
        dataset='toy',
        plan=plan,
        ledger=plan.planned_ledger() if ledger is None else ledger,
        augmentation_multiplicity=8,
    )
    return statement.PrivacyStatement(**{**fields, **changes})


def test_statement_names_what_a_reader_needs():
    made = make_statement()
    fields = json.loads(made.to_json())
    assert fields['epsilon'] <= 4.0 and fields['epsilon'] == fields['epsilon_by_accountant']['pld']
    assert fields['epsilon_by_accountant']['rdp'] >= fields['epsilon']
    expected = {
        'delta': 1e-4,
        'unit': 'one image',
        'neighboring_relation': 'replace_with_zero',
        'dataset': 'toy',
        'num_units_treated_as_public': 1000,
        'sampling': 'poisson',
        'sampling_probability': 0.2,
        'l2_norm_clip': 0.1,
        'noise_multiplier': made.plan.config.noise_multiplier,
        'steps_run': 50,
        'augmentation_multiplicity': 8,
        'guarantee_claimed': True,
        'clipping': 'flat',
        'noise_generator': 'philox',
        'sampling_generator': 'philox',
    }
    assert {name: fields[name] for name in expected} == expected
    assert set(fields['versions']) >= {'tensorflow', 'dp_accounting', 'numpy', 'python'}
    text = made.to_text()
    for fact in (
        'one image',
        'replaced with a null record',
        'noisy class means, once',
        'DP-SGD step, 50 times',
        '0.0001',
        'tuning',
        'Not covered',
        '1000 units',
        '8 view(s)',
        '(flat)',
        'Philox',
        rounding.round_up(fields['epsilon']),
    ):
        assert fact in text


@pytest.mark.parametrize(
    'clipping, words', [('per_layer', '(per layer)'), ('normalized', '(normalized: a shorter one')]
)
def test_statement_says_how_gradients_are_clipped(clipping, words):
    made = make_statement(config=dataclasses.replace(CONFIG, clipping=clipping))
    assert words in made.to_text() and made.to_dict()['clipping'] == clipping


def test_statement_says_how_many_units_are_kept_of_those_drawn_and_nothing_where_all_are():
    given = dataclasses.replace(CONFIG, target_epsilon=None, noise_multiplier=5.0)
    plain, truncated = (
        make_statement(config=dataclasses.replace(given, truncated_batch_size=bound)) for bound in (None, 250)
    )
    fields, others = truncated.to_dict(), plain.to_dict()
    assert fields['truncated_batch_size'] == 250 and set(fields) - set(others) == {'truncated_batch_size'}
    assert fields['releases'][1].pop('truncation') == {'num_units': 1000, 'truncated_batch_size': 250}
    assert fields['releases'] == others['releases'] and fields['epsilon'] > others['epsilon']
    assert 'TruncatedSubsampledGaussianDpEvent(dataset_size=1000' in fields['dp_event']
    said = ' '.join(truncated.to_text().split())
    assert 'drawn with probability 0.2, at most 250 kept at random, noise multiplier 5' in said
    assert 'which is public; the null record keeps its place in the draw of a step, where it may be kept' in said
    assert not any(phrase in plain.to_text() for phrase in ('kept at random', 'keeps its place'))
    assert ledger_lib.Ledger.from_json(json.dumps(truncated.to_dict()['releases'])) == truncated.ledger


def test_statement_says_what_was_done_to_the_images_and_nothing_where_nothing_was():
    plain, prepared = make_statement(), make_statement(preparation='resized to 32x32 (cropped)')
    assert prepared.to_dict() == {**plain.to_dict(), 'image_preparation': 'resized to 32x32 (cropped)'}
    assert 'image_preparation' not in plain.to_dict()
    said = 'Each of its images was resized to 32x32 (cropped).'
    assert said in prepared.to_text() and prepared.to_text().replace(f'{said}\n', '') == plain.to_text()


def test_statement_is_made_from_the_ledger_not_from_the_plan():
    plan = make_plan(CONFIG)
    half = make_statement(plan.planned_ledger(num_steps=25))
    assert half.to_dict()['steps_run'] == 25
    assert half.to_dict()['epsilon'] < 0.9 * make_statement().to_dict()['epsilon']
    assert 'DP-SGD step, 25 times' in half.to_text()


@pytest.mark.parametrize(
    'changes, reason, other',
    [
        ({'noise_multiplier': 0.0}, 'trained without noise', 'Poisson'),
        (
            {'noise_multiplier': 5.0, 'sampling': 'shuffled_batches'},
            'batches were not Poisson-sampled',
            'without noise',
        ),
    ],
)
def test_statement_without_a_guarantee_says_why_and_shows_no_epsilon(changes, reason, other):
    made = make_statement(config=dataclasses.replace(CONFIG, target_epsilon=None, **changes))
    first = made.to_text().split('Unit:')[0]
    assert reason in first and other not in first and made.to_dict()['cautions'] == []
    assert json.loads(made.to_json())['epsilon'] is None
    assert not made.to_dict()['guarantee_claimed']
    assert 'NO PRIVACY GUARANTEE' in made.to_text() and 'epsilon =' not in made.to_text()


def test_statement_at_a_tiny_delta_claims_what_renyi_accounting_proves():
    made = make_statement(config=dataclasses.replace(CONFIG, target_delta=1e-15))
    fields = made.to_dict()
    assert fields['guarantee_claimed'] and 3.6 < fields['epsilon'] <= 4.0
    text = made.to_text()
    assert 'without noise' not in text and 'Accountant: Renyi (RDP)' in text and 'Accountants:' not in text
    assert 'Accountants: privacy loss distribution' in make_statement().to_text()  # The control.


def test_cautions_stand_in_words_below_the_claim():
    assert make_statement().to_dict()['cautions'] == [] and 'CAUTION' not in make_statement().to_text()
    config = dataclasses.replace(CONFIG, target_epsilon=20.0, target_delta=0.01, accept_large_delta=True)
    made = make_statement(config=config)
    cautions = json.loads(made.to_json())['cautions']
    assert len(cautions) == 2 and 'is above 10' in cautions[0] and 'about 10 people' in cautions[1]
    text = ' '.join(made.to_text().split())
    for caution in cautions:
        assert f'CAUTION: {caution}' in text and text.index(caution) < text.index('Protected unit')
    assert max(map(len, made.to_text().splitlines())) < 120


def test_nothing_released_costs_nothing():
    assert make_statement(ledger_lib.Ledger()).to_dict()['epsilon'] == 0.0


@pytest.mark.parametrize('value', [9.99991, 9.99996, 0.00001, 3.0, 1.23456])
def test_printed_epsilon_is_never_below_the_true_one(value):
    assert value <= float(rounding.round_up(value)) < value + 1.01e-4


def test_public_images_are_named_as_what_is_not_protected():
    made = make_statement(public_data=("30 images of 'strokes'",))
    assert "public images it was trained on before: 30 images of 'strokes'" in made.to_text()
    fields = json.loads(made.to_json())
    assert fields['public_data'] == ["30 images of 'strokes'"] and "30 images of 'strokes'" in fields['not_covered'][0]
    # Those that a run lets through are told of without their number, which is private.
    assert 'private images that are among those public ones too' in fields['not_covered'][1]
    assert 'public images' not in make_statement().to_text() and 'public ones' not in make_statement().to_text()


def test_statement_of_a_public_model_claims_nothing():
    made = statement.PublicStatement(("30 images of 'strokes'",), num_steps=7, run_id='abc')
    fields = json.loads(made.to_json())
    assert fields['guarantee_claimed'] is False and fields['epsilon'] is None and fields['steps_run'] == 7
    assert fields['run_id'] == 'abc'
    text = made.to_text()
    assert 'NO GUARANTEE IS\nCLAIMED' in text and "30 images of 'strokes'" in text and 'epsilon =' not in text


def test_statement_says_whether_a_unit_is_more_than_one_image():
    single, owned = make_statement(unit='one patient'), make_statement(unit='one patient', has_owners=True)
    assert 'Protected unit: one patient (each single image).' in single.to_text()
    assert 'Protected unit: one patient (an owner with all of its images).' in owned.to_text()
    assert single.to_dict()['unit_is'] != owned.to_dict()['unit_is']


def test_epsilon_over_steps_begins_with_the_class_means_and_ends_with_the_claim():
    made = make_statement()
    points = made.epsilon_over_steps()
    assert points[0].num_steps == 0 and points[-1].num_steps == 50
    assert points[-1].pld == made.to_dict()['epsilon']
    assert points[0].pld == pytest.approx(accounting.epsilon(dp_accounting.GaussianDpEvent(3.0), 1e-4), rel=1e-2)
    assert [point.pld for point in points] == sorted(point.pld for point in points)
    middle = points[len(points) // 2]
    ledger = made.plan.record_release(ledger_lib.Ledger(), made.plan.warm_start_release)
    for _ in range(middle.num_steps):
        ledger = made.plan.record_step(ledger)
    exact = accounting.epsilon(ledger.dp_event(), 1e-4)
    assert exact <= middle.pld <= 1.01 * exact


def test_epsilon_over_steps_follows_what_was_run_and_not_the_plan():
    plan = make_plan(CONFIG)
    ledger = plan.record_step(plan.record_step(ledger_lib.Ledger()))
    points = make_statement(ledger).epsilon_over_steps()
    assert [point.num_steps for point in points] == [1, 2]


def test_nothing_claimed_has_no_epsilon_over_steps():
    config = dataclasses.replace(CONFIG, target_epsilon=None, noise_multiplier=0.0)
    assert make_statement(config=config).epsilon_over_steps() == []
    assert make_statement(ledger_lib.Ledger()).epsilon_over_steps() == []


@pytest.mark.parametrize(
    'relation, words',
    [
        ('replace_with_zero', 'replaced with a null record, .* same number of units, which is public'),
        ('add_or_remove_one', 'add or remove one unit, at the same sampling probability; .* not protected'),
    ],
)
def test_relation_is_said_in_words_with_what_it_means_for_the_number_of_units(relation, words):
    text = make_statement(config=dataclasses.replace(CONFIG, neighboring_relation=relation)).to_text()
    assert re.search(words, ' '.join(text.split()))
    others = set(relations.ACCOUNTED) - {relation}
    assert others and not any(relations.ACCOUNTED[other] in ' '.join(text.split()) for other in others)


@pytest.mark.parametrize('generator, name', [('philox', 'Philox'), ('shake256', 'SHAKE-256')])
def test_statement_tells_what_draws_the_noise_from_what_draws_the_units(generator, name):
    made = make_statement(config=dataclasses.replace(CONFIG, noise_generator=generator))
    text = ' '.join(made.to_text().split())
    assert f'The noise comes from {name}' in text
    assert re.search('Which units take part in a step, .* is drawn by Philox', text)
    assert (made.to_dict()['noise_generator'], made.to_dict()['sampling_generator']) == (generator, 'philox')


def test_bound_on_the_tail_of_the_noise_is_printed_and_never_below_itself():
    made = make_statement()
    bound = made.to_dict()['noise_tail_adds_to_delta_at_most']
    printed = float(re.search(r'adds at most (\S+) to delta', ' '.join(made.to_text().split())).group(1))
    assert 0.0 < bound <= printed < 2.0 * bound + 1e-300 and printed < 1e-6 * CONFIG.target_delta
    assert make_statement(ledger_lib.Ledger()).to_dict()['noise_tail_adds_to_delta_at_most'] == 0.0


def test_bound_on_the_tail_counts_what_is_released_once_where_its_tail_is_cut_too():
    def bound(ledger, generator):
        made = make_statement(ledger, dataclasses.replace(CONFIG, noise_generator=generator))
        return made.to_dict()['noise_tail_adds_to_delta_at_most']

    means = ledger_lib.Ledger(tuple(r for r in make_plan(CONFIG).planned_ledger().releases if r.count == 1))
    assert [release.noise_multiplier for release in means.releases] == [3.0]
    expected = noise.tail_delta(3.0, num_draws=1, num_numbers=noise.MOST_PARAMETERS, generator='shake256')
    assert bound(means, 'shake256') == expected > 0.0
    assert bound(means, 'philox') == 0.0  # NumPy's noise.
    assert bound(None, 'shake256') > expected


def test_versions_name_what_the_claim_was_computed_with_and_what_trained():
    versions = statement._versions()
    for name in ('dp-accounting', 'tensorflow', 'tf-keras', 'numpy'):
        assert versions[name.replace('-', '_')] == metadata.version(name)
