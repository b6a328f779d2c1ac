"""Tests of the plan and its ledger: the parts agree, the budget holds."""

import dataclasses
import functools
import math

import pytest

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.privacy import truncation

CONFIG = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=200, num_steps=50, l2_norm_clip=0.1, target_epsilon=4.0
)
GIVEN = dataclasses.replace(CONFIG, target_epsilon=None, noise_multiplier=50.0)  # Where no calibration is looked at.


@functools.lru_cache  # Calibration takes seconds.
def make_plan(config=CONFIG, release=None, **options):
    return plan_lib.make_plan(config, 1000, release, **options)


def test_parts_of_a_plan_agree():
    plan = make_plan()
    assert plan.sampler.sampling_probability == plan.sampling_probability == 0.2
    assert plan.clipper.l2_norm_clip == 0.1
    assert plan.noise.stddev == pytest.approx(plan.config.noise_multiplier * 0.1)
    assert plan.epsilon() <= 4.0 < plan.epsilon() * 1.01
    direct = ledger_lib.dp_event(plan.config.noise_multiplier, 0.2, 50)
    assert plan.epsilon() == pytest.approx(accounting.epsilon(direct, 1e-4), abs=1e-9)


def test_noise_follows_the_sensitivity_that_the_clipper_names():
    once, doubled = make_plan(), plan_lib.make_plan(dataclasses.replace(CONFIG, l2_norm_clip=0.2), 1000)
    assert doubled.noise.stddev == pytest.approx(2.0 * once.noise.stddev)
    assert doubled.config.noise_multiplier == once.config.noise_multiplier


@pytest.mark.parametrize('relation', relations.ACCOUNTED)
@pytest.mark.parametrize('clipping', plan_lib.CLIPPINGS)
def test_noise_is_the_multiplier_times_what_a_unit_adds_however_it_is_clipped(clipping, relation):
    config = dataclasses.replace(
        make_plan().config, clipping=clipping, neighboring_relation=relation, noise_multiplier=50.0, l2_norm_clip=0.3
    )
    plan = plan_lib.make_plan(config, 1000)
    # Layer by layer, as a whole or normalized, a unit adds at most C: the clipper's tests show it.
    assert plan.clipper.per_layer == (clipping == 'per_layer')
    assert plan.clipper.normalized == (clipping == 'normalized')
    assert plan.noise.stddev == pytest.approx(50.0 * 0.3) == 50.0 * plan.clipper.sensitivity(relation)


def test_clipping_and_generator_are_those_of_the_config():
    changed = dataclasses.replace(CONFIG, noise_multiplier=50.0, clipping='per_layer', noise_generator='shake256')
    plan = plan_lib.make_plan(changed, 1000)
    assert plan.clipper.per_layer and plan.noise.generator == 'shake256'
    assert not make_plan().clipper.per_layer and make_plan().noise.generator == 'philox'
    assert {'clipping', 'noise_generator'} <= set(plan.fingerprint())


def test_class_means_are_paid_from_the_same_budget():
    release = class_means.ClassMeansConfig(3.0, 1.0)
    alone, together = make_plan(), make_plan(CONFIG, release)
    assert together.config.noise_multiplier > alone.config.noise_multiplier
    assert together.epsilon() <= 4.0
    # Forgetting the release would understate what is spent.
    assert together.epsilon(ledger_lib.Ledger(together.planned_ledger().releases[1:])) < together.epsilon() * 0.99


def test_each_round_of_the_class_means_is_paid():
    four = make_plan(CONFIG, class_means.ClassMeansConfig(6.0, 1.0, 10, 4))
    assert [(release.mechanism, release.count) for release in four.planned_ledger().releases] == [
        ('noisy_class_means', 4),
        ('dp_sgd_step', 50),
    ]
    # Four rounds of noise 6 are as one of noise 3, and not as one of noise 6.
    as_four = make_plan(CONFIG, class_means.ClassMeansConfig(3.0, 1.0))
    assert four.config.noise_multiplier == pytest.approx(as_four.config.noise_multiplier, rel=1e-3)


def test_feature_means_are_paid_from_the_same_budget():
    release = feature_means.FeatureMeansConfig(3.0)
    plan = make_plan(CONFIG, release)
    assert [(r.mechanism, r.noise_multiplier, r.sampling_probability, r.count) for r in plan.planned_ledger().releases][
        0
    ] == ('noisy_feature_means', 3.0, 1.0, 1)
    # As much as class means of the same noise.
    as_means = make_plan(CONFIG, class_means.ClassMeansConfig(3.0, 1.0))
    assert plan.config.noise_multiplier == pytest.approx(as_means.config.noise_multiplier, rel=1e-6)
    assert plan.config.noise_multiplier > make_plan().config.noise_multiplier and plan.epsilon() <= 4.0


def test_teacher_and_warm_start_are_paid_together_from_the_same_budget():
    teacher, means = teacher_lib.TeacherConfig(30.0, num_rounds=100), class_means.ClassMeansConfig(3.0, 1.0)
    plan = make_plan(CONFIG, means, teacher=teacher)
    releases = [(r.mechanism, r.noise_multiplier, r.count) for r in plan.planned_ledger().releases]
    assert releases[:2] == [('teacher_gradients', 30.0, 100), ('noisy_class_means', 3.0, 1)]
    # A hundred rounds with noise of 30 cost as much as one release with noise of 3.
    as_one = make_plan(CONFIG, means, teacher=teacher_lib.TeacherConfig(2.0**0.5 * 3.0, num_rounds=2))
    assert plan.config.noise_multiplier == pytest.approx(as_one.config.noise_multiplier, rel=1e-3)
    assert plan.config.noise_multiplier > make_plan(CONFIG, means).config.noise_multiplier
    assert plan.epsilon() <= 4.0


def test_kind_of_the_warm_start_and_its_settings_are_in_the_fingerprint():
    releases = [
        None,
        class_means.ClassMeansConfig(3.0, 1.0),
        feature_means.FeatureMeansConfig(3.0),
        feature_means.FeatureMeansConfig(4.0),
    ]
    prints = [str(make_plan(GIVEN, release).fingerprint()['warm_start_release']) for release in releases]
    assert len(set(prints)) == 4


def test_runs_begun_before_feature_means_had_a_weight_of_the_count_go_on():
    def release_of(*settings):
        release = feature_means.FeatureMeansConfig(3.0, *settings)
        return make_plan(GIVEN, release).fingerprint()['warm_start_release']

    before = release_of()
    assert before == {'mechanism': 'noisy_feature_means', 'noise_multiplier': 3.0}
    assert release_of(0.5) == {**before, 'count_weight': 0.5}


def test_what_images_match_is_paid_from_the_same_budget():
    means, matching = class_means.ClassMeansConfig(3.0, 1.0), feature_means.FeatureMeansConfig(3.0, 0.2)
    plan = make_plan(CONFIG, means, matching=matching)
    releases = [(r.mechanism, r.noise_multiplier, r.count) for r in plan.planned_ledger().releases]
    assert releases[:2] == [('noisy_class_means', 3.0, 1), ('noisy_feature_means', 3.0, 1)]
    # As much as a teacher of as much noise.
    as_teacher = make_plan(CONFIG, means, teacher=teacher_lib.TeacherConfig(2.0**0.5 * 3.0, num_rounds=2))
    assert plan.config.noise_multiplier == pytest.approx(as_teacher.config.noise_multiplier, rel=1e-3)
    assert plan.epsilon() <= 4.0


def test_epsilon_is_that_of_the_steps_run_not_of_those_planned():
    plan = make_plan()
    ledger = ledger_lib.Ledger()
    spent = [plan.epsilon(ledger)]
    for _ in range(3):
        ledger = plan.record_step(ledger)
        spent.append(plan.epsilon(ledger))
    assert spent[0] == 0.0
    assert spent == sorted(spent) and len(set(spent)) == 4
    assert spent[-1] < plan.epsilon()


def test_no_step_beyond_the_plan_is_recorded():
    plan = make_plan()
    with pytest.raises(accounting.BudgetError, match='all 50 planned steps have been run'):
        plan.record_step(plan.planned_ledger())
    last = plan.planned_ledger(num_steps=49)
    assert plan.record_step(last) == plan.planned_ledger()


@pytest.mark.parametrize('several', [(), (10, 4)])
def test_ledger_of_all_steps_equals_the_planned_one(several):
    plan = make_plan(GIVEN, class_means.ClassMeansConfig(3.0, 1.0, *several))
    ledger = plan.record_release(ledger_lib.Ledger(), plan.warm_start_release)
    for _ in range(50):
        ledger = plan.record_step(ledger)
    assert ledger == plan.planned_ledger()
    assert ledger_lib.Ledger.from_json(ledger.to_json()) == ledger


def test_given_noise_that_misses_the_target_is_refused_without_tolerance():
    enough = make_plan().config.noise_multiplier
    plan_lib.make_plan(dataclasses.replace(CONFIG, noise_multiplier=enough), 1000)
    with pytest.raises(accounting.BudgetError, match='more than target_epsilon=4'):
        plan_lib.make_plan(dataclasses.replace(CONFIG, noise_multiplier=0.999 * enough), 1000)


def test_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(ValueError, match='expected_batch_size=200 is larger than the data set of 150 units'):
        plan_lib.make_plan(CONFIG, 150)


def test_shuffled_batches_train_but_claim_nothing():
    baseline = dataclasses.replace(CONFIG, sampling='shuffled_batches', target_epsilon=None, noise_multiplier=5.0)
    plan = plan_lib.make_plan(baseline, 1000)
    assert plan.epsilon() == math.inf
    assert len(plan.sampler.sample(1000, seed=0, step=0)) == 200
    with pytest.raises(ValueError, match='has no epsilon to calibrate to'):
        plan_lib.make_plan(dataclasses.replace(CONFIG, sampling='shuffled_batches'), 1000)
    with pytest.raises(accounting.BudgetError):
        plan_lib.make_plan(dataclasses.replace(baseline, target_epsilon=4.0), 1000)


def test_no_noise_trains_but_claims_nothing():
    plan = plan_lib.make_plan(dataclasses.replace(CONFIG, noise_multiplier=0.0, target_epsilon=None), 1000)
    assert plan.epsilon() == math.inf and plan.noise.stddev == 0.0


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'target_delta': 0.0}, 'target_delta must be in'),
        ({'expected_batch_size': 0}, 'expected_batch_size must be a whole number'),
        ({'num_steps': 2.5}, 'num_steps must be a whole number'),
        ({'l2_norm_clip': 0.0}, 'l2_norm_clip must be in '),
        ({'target_epsilon': None}, 'one of target_epsilon and noise_multiplier'),
        ({'target_epsilon': float('nan')}, 'target_epsilon must be finite'),
        ({'noise_multiplier': -1.0}, 'noise_multiplier must be finite'),
        ({'neighboring_relation': 'replace_one'}, "neighboring_relation must be one of .*, got 'replace_one'"),
        ({'sampling': 'uniform'}, 'sampling must be one of'),
        ({'clipping': 'per_channel'}, 'clipping must be one of'),
        ({'noise_generator': 'mersenne'}, 'noise generator must be one of'),
        ({'truncated_batch_size': 199}, 'truncated_batch_size must be .* of at least expected_batch_size=200, got 199'),
        ({'truncated_batch_size': 250.5}, 'truncated_batch_size must be None or a whole number .* got 250.5'),
        (
            {'truncated_batch_size': 250, 'sampling': 'shuffled_batches'},
            "truncated_batch_size=250 goes with sampling='poisson' alone, got 'shuffled_batches'",
        ),
        (
            {'truncated_batch_size': 250, 'neighboring_relation': 'add_or_remove_one'},
            "truncated_batch_size=250 .* neighboring_relation='replace_with_zero' alone, got 'add_or_remove_one'",
        ),
    ],
)
def test_impossible_config_is_refused_naming_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


TRUNCATED = dataclasses.replace(GIVEN, truncated_batch_size=220)


def test_truncated_batches_are_drawn_charged_and_put_on_record():
    plan, plain = make_plan(TRUNCATED), make_plan(GIVEN)
    bound = truncation.Truncation(1000, 220)
    (release,) = plan.planned_ledger().releases
    assert plan.truncation == release.truncation == bound and plain.truncation is None
    assert release == ledger_lib.Release(ledger_lib.DP_SGD_STEP, 50.0, 0.2, 50, bound)
    assert plan.record_step(plan.planned_ledger(num_steps=49)) == plan.planned_ledger()
    sizes = [len(plan.sampler.sample(1000, seed=1, step=step)) for step in range(60)]
    assert max(sizes) == 220 > min(sizes) and plan.sampling_probability == 0.2
    assert plan.noise == plain.noise and plan.clipper == plain.clipper
    assert plan.epsilon() > plain.epsilon() and plan.epsilon(accountant='rdp') > plain.epsilon(accountant='rdp')


def test_bound_is_in_the_fingerprint_and_that_of_a_run_from_before_stays():
    before = make_plan(GIVEN).fingerprint()
    assert 'truncated_batch_size' not in before
    assert make_plan(TRUNCATED).fingerprint() == {**before, 'truncated_batch_size': 220}


def test_runs_with_truncated_batches_are_not_chosen_among():
    tuning = best_of_runs.Tuning(best_of_runs.NumRuns(4.0), 'a score', ('a', 'b'), None)
    plan_lib.make_plan(GIVEN, 1000, tuning=tuning)
    with pytest.raises(ValueError, match='truncated_batch_size=None, got 220') as error:
        plan_lib.make_plan(TRUNCATED, 1000, tuning=tuning)
    assert '\n' not in str(error.value)


LARGE = dict(target_epsilon=None, noise_multiplier=5.0)


@pytest.mark.parametrize('delta', [1e-3, 2e-3, 0.5])
def test_delta_of_one_unit_or_more_is_refused_unless_accepted(delta):
    config = dataclasses.replace(CONFIG, target_delta=delta, **LARGE)
    with pytest.raises(ValueError, match='is not below 1 / 1,000 units.*accept_large_delta = True') as error:
        plan_lib.make_plan(config, 1000)
    assert '\n' not in str(error.value)
    accepted = plan_lib.make_plan(dataclasses.replace(config, accept_large_delta=True), 1000)
    assert len(accepted.cautions()) == 1 and 'whole images of about' in accepted.cautions()[0]
    # The control: the same delta is good for fewer units.
    assert plan_lib.make_plan(dataclasses.replace(config, expected_batch_size=1), 1).cautions() == []


def test_large_epsilon_is_cautioned_against():
    cautious, careless = (
        plan_lib.make_plan(dataclasses.replace(CONFIG, target_epsilon=None, noise_multiplier=noise_multiplier), 1000)
        for noise_multiplier in (3.0, 0.6)
    )
    assert cautious.cautions() == []
    assert careless.epsilon() > 10.0 and 'hardly any protection' in careless.cautions()[0]


@pytest.mark.parametrize('delta', [1e-12, 1e-15, 1e-100])
def test_plan_at_a_tiny_delta_has_a_finite_epsilon_that_meets_its_target(delta):
    plan = plan_lib.make_plan(dataclasses.replace(CONFIG, target_delta=delta), 1000)
    assert plan.epsilon() <= 4.0 < 1.1 * plan.epsilon()


@pytest.mark.parametrize(
    'config, release',
    [(dict(noise_multiplier=1e-4), None), (dict(noise_multiplier=5.0), class_means.ClassMeansConfig(1e-6, 1.0))],
)
def test_noise_for_which_no_epsilon_is_known_is_refused_and_none_at_all_claims_nothing(config, release):
    with pytest.raises(accounting.BudgetError, match='no epsilon is known for a noise multiplier below 0.001'):
        plan_lib.make_plan(dataclasses.replace(CONFIG, target_epsilon=None, **config), 1000, release)
    assert (
        plan_lib.make_plan(dataclasses.replace(CONFIG, target_epsilon=None, noise_multiplier=0.0), 1000).epsilon()
        == math.inf
    )


def test_fingerprint_of_a_run_from_before_stays_and_one_in_progress_cannot_accept_afterwards():
    config = dataclasses.replace(CONFIG, **LARGE)
    before = plan_lib.make_plan(config, 1000).fingerprint()
    assert 'accept_large_delta' not in before
    after = plan_lib.make_plan(dataclasses.replace(config, accept_large_delta=True), 1000).fingerprint()
    assert after == {**before, 'accept_large_delta': True}


def test_runs_begun_before_releases_had_a_center_and_smoothing_go_on():
    def release_of(**settings):
        release = class_means.ClassMeansConfig(2.0, 1.0, **settings)
        return plan_lib.make_plan(CONFIG, 1000, release).fingerprint()['warm_start_release']

    before = release_of()
    assert not {'center', 'smooth'} & set(before)
    assert release_of(center=0.5, smooth=True) == {**before, 'center': 0.5, 'smooth': True}


def test_fingerprint_holds_what_must_not_change_on_resume():
    fingerprint = make_plan().fingerprint()
    for name in ('sampling_probability', 'noise_multiplier', 'l2_norm_clip', 'target_delta', 'num_steps', 'num_units'):
        assert name in fingerprint
