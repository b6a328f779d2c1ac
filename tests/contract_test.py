"""The privacy contract, line by line: each promise beside a control that breaks it and must be noticed.

A check is called on the project's code, and on code that is wrong in the way that the line guards against: a check that
cannot tell the two apart would be worth nothing.
"""

import ast
import dataclasses
import functools
import math
import os
import pathlib
import types

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import model_check
from tf_dpdiff.privacy import noise as noise_lib
from tf_dpdiff.privacy import optimizer as optimizer_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import sampling
from tf_dpdiff.privacy import seeds
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import interruption
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import optimization
from tf_dpdiff.training import views as views_lib

pytestmark = pytest.mark.usefixtures('small_network')
CONFIG = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=200, num_steps=20, l2_norm_clip=0.1, target_epsilon=4.0
)
SECRET = seeds.PrivateSeed(bytes(range(32)))


@functools.lru_cache
def make_plan(config=CONFIG):
    return plan_lib.make_plan(config, 1000)


# A linear model: the gradient of a unit is the unit itself.
WEIGHTS = tf.Variable(tf.zeros([40]))
UNITS = np.random.default_rng(0).standard_normal([11, 6, 40]).astype(np.float32)


def clipped_sum(units, clip=2.0, is_padding=None, **options):
    """Returns the clipped sum of units, float32 [units, K, 40], each averaged over its views."""
    options = {'units_per_chunk': 4, **options}
    padding = np.zeros([len(units)], bool) if is_padding is None else np.array(is_padding)
    return (
        clipping.PerUnitClipper(clip)
        .clipped_sum(
            lambda unit: tf.reduce_mean(tf.linalg.matvec(unit, WEIGHTS)),
            [WEIGHTS],
            tf.constant(units),
            tf.constant(padding),
            **options,
        )
        .sums[0]
        .numpy()
    )


def gradient_of(optimizer, units):
    """Returns the update that an optimizer computes from units, float32 [40]."""
    return optimizer.compute_unit_gradients(lambda unit: tf.linalg.tensordot(unit, WEIGHTS, 1), units, [WEIGHTS])[0][
        0
    ].numpy()


class DividesByBatchAtHand(optimizer_lib.VectorizedDPSGD):
    """Divides by the sampled batch."""

    def compute_unit_gradients(self, loss_fn, batch, var_list, is_padding=None):
        pairs = super().compute_unit_gradients(loss_fn, batch, var_list, is_padding)
        return [(g * 8.0 / len(batch), v) for g, v in pairs]


@pytest.mark.parametrize('make, holds', [(optimizer_lib.VectorizedDPSGD, True), (DividesByBatchAtHand, False)])
def test_line_1_sum_is_divided_by_the_expected_batch_size(make, holds):
    optimizer = make(1e3, 0.0, expected_batch_size=8)
    results = [
        np.allclose(gradient_of(optimizer, UNITS[:size, 0]), UNITS[:size, 0].sum(0) / 8.0, atol=1e-4)
        for size in (2, 5, 11)
    ]
    assert all(results) == holds


def noise_follows_the_sensitivity(plan, expected_sensitivity):
    return plan.noise.stddev == plan.config.noise_multiplier * expected_sensitivity


def test_line_2_noise_is_calibrated_from_the_clippers_own_sensitivity(monkeypatch):
    assert noise_follows_the_sensitivity(make_plan(), 0.1)
    assert CONFIG.neighboring_relation == 'replace_with_zero'
    monkeypatch.setattr(clipping.PerUnitClipper, 'sensitivity', lambda self, relation: 3.0 * self.l2_norm_clip)
    tripled = plan_lib.make_plan(dataclasses.replace(make_plan().config), 1000)
    assert tripled.noise.stddev == pytest.approx(3.0 * make_plan().noise.stddev)
    # Control: noise that is derived from the clip norm anew does not follow.
    rederived = dataclasses.replace(tripled, noise=make_plan().noise)
    assert not noise_follows_the_sensitivity(rederived, tripled.clipper.sensitivity('add_or_remove_one'))


def claims_a_guarantee(plan, ledger=None):
    statement = statement_lib.PrivacyStatement('one image', 'toy', plan, ledger or plan.planned_ledger(), 1)
    fields = statement.to_dict()
    said = 'NO PRIVACY GUARANTEE' not in statement.to_text()
    assert said == fields['guarantee_claimed'] == math.isfinite(plan.epsilon(ledger)) == (fields['epsilon'] is not None)
    return said


def test_line_3_only_poisson_sampling_leads_to_an_epsilon():
    shuffled = dataclasses.replace(make_plan().config, sampling='shuffled_batches', target_epsilon=None)
    assert CONFIG.sampling == 'poisson'
    assert claims_a_guarantee(make_plan())
    assert not claims_a_guarantee(plan_lib.make_plan(shuffled, 1000))
    with pytest.raises(accounting.BudgetError):
        plan_lib.make_plan(dataclasses.replace(shuffled, target_epsilon=4.0), 1000)
    # Control: accounted as if it were Poisson, the same run would claim one.
    claimed = ledger_lib.Ledger((ledger_lib.Release(ledger_lib.DP_SGD_STEP, shuffled.noise_multiplier, 0.2, 20),))
    assert claims_a_guarantee(plan_lib.make_plan(shuffled, 1000), claimed)


def poisoned_sum(bad, sum_units):
    """Returns the sum of a batch whose unit 3 is bad and whose last two are padding with bad pixels."""
    units = UNITS.copy()
    units[3] = bad
    units[-2:] = bad
    return sum_units(units, np.arange(11) >= 9)


def sum_that_multiplies_by_zero(units, is_padding):
    """A clipper that weighs what does not count with zero instead of leaving it out."""
    gradients = units.mean(1)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients * np.minimum(1.0, 2.0 / norms) * ~is_padding[:, None]).sum(0)


@pytest.mark.filterwarnings('ignore:.*encountered in:RuntimeWarning')
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 3e38])
def test_line_4_units_that_are_not_finite_and_padding_contribute_exactly_zero(bad):
    good = clipped_sum(np.delete(UNITS, [3, 9, 10], axis=0))
    ours = poisoned_sum(bad, lambda units, is_padding: clipped_sum(units, is_padding=is_padding))
    np.testing.assert_allclose(ours, good, atol=1e-5)
    np.testing.assert_array_equal(clipped_sum(UNITS, is_padding=[True] * 11), 0.0)
    np.testing.assert_array_equal(clipped_sum(UNITS[:0]), 0.0)
    control = poisoned_sum(bad, sum_that_multiplies_by_zero)
    assert not np.allclose(control, good, atol=1e-5)


def noise_of_a_step(clip, sigma, parts, once, step=0):
    """Returns the noise of a step whose sum was made in parts, over what it should be."""
    size = tf.zeros([8000])
    adder = noise_lib.GaussianNoise(sigma * clip)
    draws = 1 if once else parts
    total = sum(adder.add([size], seed=SECRET, step=tf.constant(draws * step + i, tf.int64))[0] for i in range(draws))
    return total.numpy() / (sigma * clip)


def is_standard_normal(values):
    return stats.kstest(values, 'norm').pvalue > 1e-3


@pytest.mark.parametrize(
    'options',
    [
        {'units_per_chunk': 1},
        {'units_per_chunk': 3},
        {'units_per_chunk': 50},
        {'views_per_chunk': 2},
        {'views_per_chunk': 1, 'units_per_chunk': 2},
    ],
)
def test_line_5_sum_does_not_depend_on_how_the_batch_is_cut(options):
    np.testing.assert_allclose(clipped_sum(UNITS, **options), clipped_sum(UNITS), atol=1e-5)


@pytest.mark.parametrize('num_replicas', [2, 3, 8])
def test_line_5_replicas_together_take_the_step_of_one(num_replicas):
    sampler = sampling.PoissonSampler(0.6)
    whole = clipped_sum(UNITS[sampler.sample(11, seed=4, step=2)])
    shards = [sampler.sample(11, seed=4, step=2, replica=r, num_replicas=num_replicas) for r in range(num_replicas)]
    np.testing.assert_allclose(sum(clipped_sum(UNITS[shard]) for shard in shards), whole, atol=1e-5)
    # Control: replicas that each draw from all units take another step.
    drawn = [sampler.sample(11, seed=4 + r, step=2) for r in range(num_replicas)]
    assert not np.allclose(sum(clipped_sum(UNITS[units]) for units in drawn), whole, atol=1e-2)


@pytest.mark.parametrize('once', [True, False])
def test_line_5_noise_has_the_variance_of_one_draw_however_many_parts_there_are(once):
    assert is_standard_normal(noise_of_a_step(2.0, 1.5, parts=3, once=once)) == once


def test_line_6_steps_stop_before_the_budget_would_be_passed():
    plan = make_plan()
    assert plan.epsilon() <= 4.0
    with pytest.raises(accounting.BudgetError):
        plan.record_step(plan.planned_ledger())
    # Controls: one step less is allowed; a hundredth less noise would pass the target.
    assert plan.record_step(plan.planned_ledger(19)) == plan.planned_ledger()
    careless = dataclasses.replace(CONFIG, noise_multiplier=0.99 * plan.config.noise_multiplier)
    with pytest.raises(accounting.BudgetError):
        plan_lib.make_plan(careless, 1000)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'expected_batch_size': 201},
        {'noise_multiplier': 50.0},
        {'l2_norm_clip': 0.2},
        {'target_delta': 2e-4},
        {'clipping': 'per_layer'},
        {'clipping': 'normalized'},
        'other data',
    ],
)
def test_line_6_resuming_under_another_contract_is_refused(tmp_path, changes):

    def configuration(plan, data):
        return {'privacy': plan.fingerprint(), 'data_fingerprint': data}

    begun = configuration(make_plan(), 'a1')
    checkpoint = checkpoints.RunCheckpoint(tmp_path, begun, weights=WEIGHTS)
    checkpoint.save(checkpoints.RunState(SECRET))
    if changes == 'other data':
        now = configuration(make_plan(), 'b2')
    else:
        config = dataclasses.replace(make_plan().config, target_epsilon=None, **changes) if changes else CONFIG
        now = configuration(plan_lib.make_plan(config, 1000), 'a1')
    if changes:
        with pytest.raises(checkpoints.CheckpointMismatchError):
            checkpoints.read_state(tmp_path, now)
    else:  # Control: the same contract goes on.
        assert checkpoints.read_state(tmp_path, now).private_seed.reveal() == SECRET.reveal()


def make_trainer(workdir, log_non_private=False):
    """A run of DP-SGD alone on toy images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, [20, 4, 4, 1]).astype(np.uint8)
    config = plan_lib.DpSgdConfig(1e-4, 8, 4, 1e-2, noise_multiplier=1.0)
    private = datasets.ImageDataset('toy', images, (np.arange(20) % 2).astype(np.int32), ('a', 'b'))
    recipe = recipe_lib.Recipe(
        network=unet.UNetConfig(base_channels=4, groups=2),
        process=process_lib.DiffusionProcess(),
        data=datasets.PrivateData(train=private, held_out=private),
        privacy=config,
        finetuning=finetuning_lib.FinetuningConfig(
            optimization.OptimizationConfig(0.01), views_lib.ViewsConfig(), units_per_chunk=4
        ),
        loop=loop_lib.TrainerConfig(log_non_private=log_non_private, log_every_steps=1),
    )
    return build_lib.Build(recipe).make_training(workdir, private, make_grid_drawer=None).trainer


NEVER, AT_ONCE = (types.SimpleNamespace(requested=requested, reason='a test') for requested in (False, True))


def run_to_the_end(workdir, **options):
    trainer = make_trainer(workdir, **options)
    trainer.run(NEVER)
    trainer.summaries.flush()
    return trainer


@pytest.fixture(name='whole_run', scope='module')
def fixture_whole_run(tmp_path_factory, small_network):
    """A run that was never stopped, and keeps its private numbers to itself."""
    workdir = tmp_path_factory.mktemp('whole')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: SECRET)
        return workdir, run_to_the_end(workdir)


@pytest.fixture(name='other_run', scope='module')
def fixture_other_run(tmp_path_factory, small_network):
    """A run with a secret of its own that was asked for private numbers."""
    workdir = tmp_path_factory.mktemp('other')
    return workdir, run_to_the_end(workdir, log_non_private=True)


def weights_of(trainer):
    return np.concatenate([w.ravel() for w in trainer.average.get_weights()])


def test_line_7_resumed_run_reaches_the_same_weights_and_counts_each_step_once(
    tmp_path, monkeypatch, whole_run, other_run
):
    monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: SECRET)
    stopped = make_trainer(tmp_path)
    with pytest.raises(interruption.Interrupted):
        stopped.run(AT_ONCE)
    resumed = run_to_the_end(tmp_path)
    assert resumed.resumed and resumed.state.ledger.count(ledger_lib.DP_SGD_STEP) == 4
    np.testing.assert_array_equal(weights_of(resumed), weights_of(whole_run[1]))
    # Control: the weights hang on the secret, so they would differ if the resumed run drew anew.
    assert not np.allclose(weights_of(other_run[1]), weights_of(whole_run[1]), atol=1e-4)


def draws_are_distinct(seed_of):
    """Tells if no seed is used for two (step, variable) pairs, given a function from the pair to its seed."""
    used = [seed_of(step, variable) for step in range(1000) for variable in range(7)]
    return len(set(used)) == len(used)


def test_line_7_no_noise_draw_is_used_for_two_sums(monkeypatch):
    counters = {}

    def record(shape, seed, **options):
        counters[len(counters)] = tuple(np.array(seed))
        return tf.zeros(shape, options['dtype'])

    monkeypatch.setattr(tf.random, 'stateless_uniform', record)
    adder = noise_lib.GaussianNoise(1.0)
    for step in (0, 1, 2, 3, 2**31, 2**31 + 1):
        adder.add([tf.zeros([1])] * 7, seed=SECRET, step=tf.constant(step, tf.int64))
    assert len(set(counters.values())) == 6 * 7
    assert draws_are_distinct(lambda step, variable: 7 * step + variable)
    # Control: a sum of step and variable, and 32-bit folds, meet.
    assert not draws_are_distinct(lambda step, variable: step + variable)


def files_with(workdir, traces):
    """Returns the files below a folder that hold one of the traces, relative to it."""
    found = []
    for folder, _, names in os.walk(workdir):
        for path in (pathlib.Path(folder) / name for name in names):
            content = path.read_bytes()
            if any(trace in content for trace in traces):
                found.append(str(path.relative_to(workdir)))
    return found


def test_line_8_secret_is_in_the_private_checkpoint_alone(whole_run):
    workdir, _ = whole_run
    keys = [SECRET.reveal()] + [SECRET.derive_key(purpose) for purpose in ('noise', 'sampling', 'views')]
    traces = keys + [key.hex().encode() for key in keys] + [str(SECRET.derive('noise')).encode()]
    found = files_with(workdir, traces)
    assert found and all(name.startswith('checkpoints' + os.sep) for name in found)
    # Control: a secret that is left elsewhere is found.
    leak = workdir / 'leak.txt'
    leak.write_text(SECRET.reveal().hex())
    assert 'leak.txt' in files_with(workdir, traces)
    leak.unlink()


def private_tags(workdir):
    """Returns the tags of numbers that were computed without noise, by the folder that holds them."""
    tags = {}
    for path in workdir.glob('**/events*'):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if any(word in value.tag for word in ('loss', 'norm', 'clipped', 'num_')):
                    tags.setdefault(path.relative_to(workdir).parts[0], set()).add(value.tag)
    return tags


def test_line_9_private_numbers_are_off_by_default_and_tagged_when_on(whole_run, other_run):
    assert not private_tags(whole_run[0]) and not (whole_run[0] / 'non_private').exists()
    # Control: where they are asked for, they are found, in their own folder and under their own name.
    asked = private_tags(other_run[0])
    assert set(asked) == {'non_private'} and all(tag.startswith('non_private/') for tag in asked['non_private'])


def check_views(draw):
    model_check.check_views(draw, [2, 2, 1])


def timesteps_of(units):
    return tf.cast(units, tf.float32)


def check_layer(layer):
    model_check.check_layers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,)), layer]))


# What is refused, beside its harmless relative that must pass.
REFUSED = [
    (lambda: check_layer(keras.layers.BatchNormalization()), lambda: check_layer(keras.layers.LayerNormalization())),
    (
        lambda: model_check.check_loss(lambda y, p: tf.reduce_mean(p, -1) - tf.reduce_mean(p), [4]),
        lambda: model_check.check_loss(lambda y, p: tf.reduce_mean(tf.square(p - y), -1), [4]),
    ),
    (
        lambda: check_views(lambda images, units: tf.concat([timesteps_of(units[:2]), -timesteps_of(units[:1])], 0)),
        lambda: check_views(lambda images, units: timesteps_of(units)),
    ),
    (
        lambda: check_views(lambda images, units: tf.roll(images, 1, 0)),
        lambda: check_views(lambda images, units: images),
    ),
    (lambda: views_lib.ViewsConfig(timesteps=lambda losses: losses), views_lib.ViewsConfig),
]
REFUSED_NAMES = ['BatchNorm', 'batch-coupled loss', 'antithetic timesteps', 'mix-up', 'loss-aware timesteps']


@pytest.mark.parametrize('refused, passes', REFUSED, ids=REFUSED_NAMES)
def test_line_10_what_couples_units_is_refused(refused, passes):
    with pytest.raises(ValueError):
        refused()
    passes()


def statistical_tests_without_control(source):
    """Tells if a module of tests draws on statistics and holds no control."""
    tree = ast.parse(source)
    tests = {node.name: ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    has_statistics = any('pvalue' in body for body in tests.values())
    has_control = any('control' in name.lower() or 'control' in body.lower() for name, body in tests.items())
    return has_statistics and not (has_control or '# Control' in source)


@pytest.mark.parametrize('path', sorted(pathlib.Path(__file__).parent.glob('**/*_test.py')), ids=lambda p: p.name)
def test_line_11_each_module_of_statistical_tests_has_a_control(path):
    assert not statistical_tests_without_control(path.read_text())


def test_line_11_control_a_module_without_control_is_noticed():
    body = 'def test_law():\n    assert stats.kstest(draw(), "norm").pvalue > 0.01\n'
    assert statistical_tests_without_control(body)
    assert not statistical_tests_without_control(body + 'def test_control():\n    assert not law(wrong())\n')


@pytest.mark.parametrize('factor, passes', [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_line_11_noise_of_another_scale_is_noticed(factor, passes):
    assert is_standard_normal(factor * noise_of_a_step(2.0, 1.5, parts=1, once=True)) == passes


@pytest.mark.parametrize('skips_a_unit', [False, True])
def test_line_11_clipper_that_skips_one_unit_is_noticed(skips_a_unit):
    neighbours = UNITS.copy()
    neighbours[4] *= -100.0
    sums = [clipped_sum(units) for units in (UNITS, neighbours)]
    if skips_a_unit:
        sums = [s + units[4].mean(0) for s, units in zip(sums, (UNITS, neighbours))]
    bound = clipping.PerUnitClipper(2.0).sensitivity('replace_one') * (1.0 + 1e-5)
    assert (np.linalg.norm(sums[0] - sums[1]) <= bound) != skips_a_unit


NAMED = {
    'unit': 'one patient',
    'neighboring_relation': 'null record',
    'delta': '0.0001',
    'sampling': 'drawn with',
    'noise_multiplier': 'noise multiplier',
    'l2_norm_clip': 'L2 norm of 0.1',
    'steps_run': '20 times',
    'augmentation_multiplicity': '8 view',
    'num_units_treated_as_public': '1000 units',
    'not_covered': 'Not covered',
    'versions': 'dp_accounting',
    'epsilon_by_accountant': 'PLD',
}


def what_is_missing(fields, text):
    """Returns the facts that a statement does not name."""
    return {name for name, words in NAMED.items() if name not in fields or words not in text}


def test_line_12_statement_names_every_fact():
    made = statement_lib.PrivacyStatement('one patient', 'toy', make_plan(), make_plan().planned_ledger(), 8)
    fields, text = made.to_dict(), made.to_text()
    assert not what_is_missing(fields, text)
    for accountant in accounting.ACCOUNTANTS:
        assert rounding.round_up(fields['epsilon_by_accountant'][accountant]) in text
    assert any('tuning' in item for item in fields['not_covered'])
    assert any('evaluation' in item for item in fields['not_covered'])
    # Control: each fact that is left out is missed.
    for name, words in NAMED.items():
        assert name in what_is_missing({k: v for k, v in fields.items() if k != name}, text)
        assert name in what_is_missing(fields, text.replace(words, ''))
