"""Long: would the tests notice? Each mutant breaks one promise of the privacy core and must be killed by the suite.

    bin/test -m long tests/privacy/mutation_test.py -v

A mutant is one change of the source in a copy of the project; it is killed if the tests named beside it fail there.
That they pass on the unchanged copy is the control.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of one file of tf_dpdiff/ that some test must notice.

    Attributes:
      name: What is broken.
      file: In tf_dpdiff/.
      before: A piece of the source that occurs exactly once.
      after: What takes its place.
      tests: What is run, in tests/.
    """
    name: str
    file: str
    before: str
    after: str
    tests: str


CLIPPING, NOISE, PLAN = 'privacy/clipping_test.py', 'privacy/noise_test.py', 'privacy/plan_test.py'
ACCOUNTING, CONTRACT = 'privacy/accounting_test.py', 'contract_test.py'
REPLICAS = 'privacy/replicas_test.py'
FEATURES = 'privacy/feature_means_test.py'
OPTIMIZER, STEP = 'privacy/optimizer_test.py', 'training/train_step_test.py'
OPTIMIZER_CONTRACT = 'privacy/optimizer_contract_test.py'
STRATEGIES = 'training/strategies_test.py'
MUTANTS = (
    Mutant('no clipping', 'privacy/clipping.py',
           'tf.where(layer_norms > bound, bound / layer_norms, tf.ones_like(layer_norms))',
           'tf.ones_like(layer_norms)', CLIPPING),
    Mutant('clipping after the sum', 'privacy/clipping.py',
           'sums = [s + c for s, c in zip(sums, clipped.sums)]',
           'sums = tf.clip_by_global_norm([s + tf.reduce_sum(g, 0) for s, g in zip(sums, gradients)], '
           'self.l2_norm_clip)[0]', CLIPPING),
    Mutant('bound without a margin for rounding', 'privacy/clipping.py', '(1.0 - margin)', '(1.0 + margin)', CLIPPING),
    Mutant('squares added up in float32 however many there are', 'privacy/clipping.py',
           'if gradient.shape.rank > 1 and _float32_terms(gradient.shape[1:]) == gradient.shape[-1]:',
           'if gradient.shape.rank > 1:', CLIPPING),
    Mutant('a norm whose squares underflow', 'privacy/clipping.py', 'SMALLEST_NORM <= l2_norm_clip',
           '0.0 < l2_norm_clip', CLIPPING),
    Mutant('per-layer bounds that do not share the whole', 'privacy/clipping.py', ' / len(set(names))**0.5', '',
           CLIPPING),
    Mutant('sensitivity of replacing one is that of removing one', 'privacy/clipping.py',
           "2.0 if neighboring_relation == 'replace_one' else 1.0", '1.0', CLIPPING),
    Mutant('padding counted', 'privacy/clipping.py',
           'is_kept = tf.logical_and(tf.math.is_finite(norms), tf.logical_not(is_padding))',
           'is_kept = tf.math.is_finite(norms)', CLIPPING),
    Mutant('a unit that is not finite poisons the sum', 'privacy/clipping.py',
           'tf.math.multiply_no_nan(gradient, _along_units(scales[name], gradient))',
           '_along_units(scales[name], gradient) * gradient', CLIPPING),
    Mutant('chunks of views added instead of averaged', 'privacy/clipping.py', 'total + part / num_chunks',
           'total + part', CLIPPING),
    Mutant('the last chunk is lost', 'privacy/clipping.py', 'tf.maximum(1, -(-num_units // units_per_chunk))',
           'tf.maximum(1, num_units // units_per_chunk)', CLIPPING),
    Mutant('chunks are counted instead of looked at', 'privacy/clipping.py',
           'tf.where(holds_unit, tf.range(1, tf.shape(is_padding)[0] + 1), 0)',
           'tf.reduce_sum(tf.cast(holds_unit, tf.int32))', CLIPPING),
    Mutant('chunks of padding are computed', 'privacy/clipping.py', 'holds_unit = tf.logical_not(',
           'holds_unit = tf.ones_like(', CLIPPING),
    Mutant('noise x 2/3', 'privacy/noise.py', 'self.stddev * normal_from', '2.0 / 3.0 * self.stddev * normal_from',
           NOISE),
    Mutant('noise that XLA changes', 'privacy/noise.py', 'normal_from_bits(bits)[',
           "tf.random.stateless_normal([2 * pairs], draw_seed, alg='philox')[", NOISE),
    Mutant('a radius of 32 bits cuts the tail', 'privacy/noise.py', 'for word in (low, high):', 'for word in (high,):',
           NOISE),
    Mutant('both numbers of a pair are the same', 'privacy/noise.py', 'radius * tf.sin(angle)',
           'radius * tf.cos(angle)', NOISE),
    Mutant('cryptographic noise x 2/3', 'privacy/noise.py', '(self.stddev * cryptographic_normal',
           '(2.0 / 3.0 * self.stddev * cryptographic_normal', NOISE),
    Mutant('noise reused on two steps', 'privacy/noise.py', 'tf.cast(step, tf.int64) * len(sums)',
           'tf.cast(step // 2, tf.int64) * len(sums)', NOISE),
    Mutant('noise reused for two variables', 'privacy/noise.py', 'tf.cast(step, tf.int64) * len(sums)',
           'tf.cast(step, tf.int64)', NOISE),
    Mutant('noise that drowns in the rounding of the sum', 'privacy/noise.py', '0.0 < noise_multiplier < least',
           'False', NOISE),
    Mutant('the cut tail is not counted', 'privacy/noise.py', 'return min(1.0, num_draws *',
           'return min(1.0, 0.0 *', NOISE),
    Mutant('noise from a public seed', 'privacy/noise.py', 'tf.constant(seed.derive(PURPOSE), tf.int64)',
           'tf.constant(5, tf.int64)', NOISE),
    Mutant('each replica goes by its own sum', 'training/train_step.py',
           'strategies.sum_over_replicas(tuple(clipped))', 'clipped', STRATEGIES),
    Mutant('noise added before the reduction, by each replica', 'training/train_step.py',
           'strategies.sum_over_replicas(tuple(clipped))',
           'strategies.sum_over_replicas((plan.noise.add(clipped.sums, seed=private_seed, step=step), '
           'clipped.diagnostics))', STRATEGIES),
    Mutant('each replica samples all units', 'training/stages.py', 'num_replicas=replicas.count) for replica',
           'num_replicas=1) for replica in [0] for _', STRATEGIES),
    Mutant('keras adds up the updates of replicas again', 'training/train_step.py',
           'zip(gradients, variables), skip_gradients_aggregation=True)\n        return diagnostics',
           'zip(gradients, variables))\n        return diagnostics', STRATEGIES),
    Mutant('noise added per chunk', 'training/train_step.py',
           'noisy_sums = plan.noise.add(sums, seed=private_seed, step=step)',
           'noisy_sums = plan.noise.add(sums, seed=private_seed, step=step)\n'
           '        for i in range(2):\n'
           '            noisy_sums = plan.noise.add(noisy_sums, seed=private_seed, step=step + 1000 + i)', STEP),
    Mutant('noise per replica: two replicas add a whole draw each', 'privacy/noise.py', 'flat + draw(',
           'flat + 2.0**0.5 * draw(', NOISE),
    Mutant('K multiplies the sensitivity', 'training/train_step.py', 'plan.noise.add(sums, seed=private_seed',
           'plan.noise.add([chunk_sizes.views * s for s in sums], seed=private_seed', STEP),
    Mutant('divide by the sampled batch', 'training/train_step.py', 's / plan.config.expected_batch_size for',
           "s / tf.maximum(clipped.diagnostics['num_units'], 1.0) for", STEP),
    Mutant('optimizer divides by the sampled batch', 'privacy/optimizer.py', 'gradient / float(divisor)',
           'gradient / float(self.num_microbatches or 3)', OPTIMIZER),
    Mutant('optimizer adds no noise', 'privacy/optimizer.py',
           'noisy = self._noise.add_at(sums, seed=self._private_seed, first_draw=first_draw)', 'noisy = sums',
           OPTIMIZER),
    Mutant('optimizer counts draws by steps', 'privacy/optimizer.py', 'first_draw=first_draw)',
           'first_draw=self.iterations * len(sums))', OPTIMIZER_CONTRACT),
    Mutant('a restored checkpoint sets the draws back', 'privacy/optimizer.py',
           'tf.maximum(self._num_draws.read_value(), self._least_draw.read_value())', 'self._num_draws.read_value()',
           OPTIMIZER_CONTRACT),
    Mutant('a checkpoint forgets the draws', 'privacy/optimizer.py',
           'tf.maximum(self._num_draws.read_value(), self._least_draw.read_value())', 'self._least_draw.read_value()',
           OPTIMIZER_CONTRACT),
    Mutant('draws of two calls overlap', 'privacy/optimizer.py', 'counter.assign(first_draw + len(sums))',
           'counter.assign(first_draw + 1)', OPTIMIZER_CONTRACT),
    Mutant('raw gradients pass once private ones were made', 'privacy/optimizer.py',
           'pairs is None or not all(self._is_private(gradient) for gradient, _ in pairs)', 'pairs is None',
           OPTIMIZER_CONTRACT),
    Mutant('the loss may change variables', 'privacy/model_check.py', 'if assignment is not None:', 'if False:',
           OPTIMIZER_CONTRACT),
    Mutant('models behind a loss are not looked at', 'privacy/optimizer.py', 'if not references <= self._checked:',
           'if False:', OPTIMIZER_CONTRACT),
    Mutant('loss scaling is let through', 'privacy/optimizer.py', 'del value\n        raise ValueError(',
           'return\n        raise ValueError(', OPTIMIZER_CONTRACT),
    Mutant('an optimizer may be copied with its secret', 'privacy/seeds.py', 'def __reduce__(self):',
           'def _unused(self):', OPTIMIZER_CONTRACT),
    Mutant('each replica adds a draw of its own', 'privacy/optimizer.py', 'first_draw=first_draw)',
           'first_draw=first_draw + 1000 * tf.cast('
           'tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64))', REPLICAS),
    Mutant('replicas do not add up', 'privacy/optimizer.py', 'if num_replicas > 1:\n            if not',
           'if num_replicas > 9:\n            if not', REPLICAS),
    Mutant('divisor of one replica', 'privacy/optimizer.py', 'self.num_microbatches * num_replicas',
           'self.num_microbatches', REPLICAS),
    Mutant('any strategy is let through', 'privacy/optimizer.py',
           'if not isinstance(strategy, tf.distribute.MirroredStrategy):', 'if False:', REPLICAS),
    Mutant('noise ignores the sensitivity', 'privacy/plan.py',
           'noise_multiplier * clipper.sensitivity(config.neighboring_relation)', 'noise_multiplier', PLAN),
    Mutant('sampling without replacement accounted as Poisson', 'privacy/plan.py',
           "return getattr(self.sampler, 'sampling_probability', None)",
           'return self.config.expected_batch_size / self.num_units', PLAN),
    Mutant('Poisson sampling that shuffles', 'privacy/sampling.py',
           'np.flatnonzero(numbers < self.sampling_probability)',
           'np.sort(np.argsort(numbers)[:int(self.sampling_probability * len(numbers))])', 'privacy/sampling_test.py'),
    Mutant('the same units in every step', 'privacy/sampling.py', 'key=np.array([seed, step], np.uint64)',
           'key=np.array([seed, 0], np.uint64)', 'privacy/sampling_test.py'),
    Mutant('replicas draw from the whole data set', 'privacy/sampling.py',
           'first, end = shard_bounds(num_units, replica, num_replicas)\n        bits',
           'first, end = 0, num_units\n        bits', 'privacy/sampling_test.py'),
    Mutant('a relation that has no accountant is claimed for', 'privacy/relations.py',
           'if neighboring_relation not in ACCOUNTED:', 'if False:', 'privacy/relations_test.py'),
    Mutant('more units than planned: the sampling probability is doubled', 'privacy/plan.py',
           'sampler = sampling.PoissonSampler(config.expected_batch_size / num_units)',
           'sampler = sampling.PoissonSampler(min(1.0, 2.0 * config.expected_batch_size / num_units))', PLAN),
    Mutant('delta ignored', 'privacy/epsilon_bounds.py', 'composed.get_epsilon_for_delta(delta)',
           'composed.get_epsilon_for_delta(1e-2)', ACCOUNTING),
    Mutant('delta ignored by the second accountant', 'privacy/epsilon_bounds.py',
           'rdp.compute_epsilon(orders, total, delta)', 'rdp.compute_epsilon(orders, total, 1e-2)', ACCOUNTING),
    Mutant('rounding of the convolution taken for privacy', 'privacy/epsilon_bounds.py',
           'rounding = 0.0 if for_a_search else _PLD_ROUNDING * num_composed', 'rounding = 0.0', ACCOUNTING),
    Mutant('a delta below the rounding left to the convolution', 'privacy/epsilon_bounds.py',
           'if delta < max(_SMALLEST_PLD_DELTA, _SMALLEST_PLD_DELTA_PER_STEP * num_composed):', 'if False:',
           ACCOUNTING),
    Mutant('rounding of a Renyi divergence taken for privacy', 'privacy/epsilon_bounds.py',
           '(of_a_step + _RDP_ROUNDING / (np.array(orders) - 1.0))', 'of_a_step', ACCOUNTING),
    Mutant('a grid as large as the question is extreme', 'privacy/epsilon_bounds.py',
           'composed_span / 5.0) > max_points * interval:', 'composed_span / 5.0) > 8 * max_points * interval:',
           ACCOUNTING),
    Mutant('equal steps of two runs counted once', 'privacy/epsilon_bounds.py',
           'counts[key] = counts.get(key, 0) + count', 'counts[key] = count', 'privacy/budget_test.py'),
    Mutant('calibration 1% too low', 'privacy/accounting.py', 'return _nearest_that_fits(make_event, found, 1e-4,',
           'return 0.99 * _nearest_that_fits(make_event, found, 1e-4,', ACCOUNTING),
    Mutant('calibration 1% too high', 'privacy/accounting.py', 'return _nearest_that_fits(make_event, found, 1e-4,',
           'return 1.01 * _nearest_that_fits(make_event, found, 1e-4,', ACCOUNTING),
    Mutant('budget may be passed', 'privacy/budget.py', 'if charged.overdrawn_by():', 'if False:',
           'privacy/budget_test.py'),
    Mutant('budget forgets the runs before', 'privacy/budget.py',
           'entries = {known.run_id: known for known in self.entries}', 'entries = {}', 'privacy/budget_test.py'),
    Mutant('an overdrawn budget lets runs go on', 'privacy/budget.py', 'if self.overdrawn_by():', 'if False:',
           'privacy/budget_test.py'),
    Mutant('a run that does not fit stays off the record', 'privacy/budget.py',
           'return self._with(BudgetEntry(run_id, dataset, SETTLED, released, time), data_fingerprint, unit)',
           'return self.reserve(run_id, released, dataset=dataset, data_fingerprint=data_fingerprint, unit=unit, '
           'time=time).settle(run_id, released)', 'privacy/budget_test.py'),
    Mutant('a run that is settled again forgets what it released', 'privacy/budget.py',
           'released = known.ledger.union(released)', 'pass', 'privacy/budget_test.py'),
    Mutant('a delta at which whole images may go out is let through', 'privacy/cautions.py',
           'if caution and not accepted:', 'if False:', PLAN),
    Mutant('delta ignored by the plan', 'privacy/plan.py', '(event, self.config.target_delta, **options)',
           '(event, 1e-2, **options)', PLAN),
    Mutant('epsilon of the planned instead of the run steps', 'privacy/plan.py',
           '(self.planned_ledger() if ledger is None else ledger)', 'self.planned_ledger()', PLAN),
    Mutant('a step more than planned', 'privacy/plan.py', 'ledger.count(DP_SGD_STEP) >= self.config.num_steps',
           'ledger.count(DP_SGD_STEP) > self.config.num_steps', PLAN),
    Mutant('budget not checked for a given noise multiplier', 'privacy/plan.py',
           'if config.target_epsilon is not None and plan.epsilon() > config.target_epsilon:', 'if False:', PLAN),
    Mutant('release of the warm start forgotten by the accountant', 'privacy/plan.py',
           'planned = self.record_warm_start_release(planned)', 'pass', PLAN),
    Mutant('class means without clipping', 'privacy/class_means.py',
           'np.maximum(self.l2_norm_clip, np.linalg.norm(flat, axis=1, keepdims=True))', 'self.l2_norm_clip',
           'privacy/class_means_test.py'),
    Mutant('an owner counts once for each image', 'privacy/class_means.py', 'owners_lib.shares(len(images), owners)',
           'np.ones([len(images)])', 'privacy/class_means_test.py'),
    Mutant('an image of an owner counts as one', 'privacy/owners.py', 'return 1.0 / np.bincount(owners)[owners]',
           'return np.ones([num_images])', 'privacy/owners_test.py'),
    Mutant('class means with noise x 2/3', 'privacy/class_means.py', 'vector = vector + stddev *',
           'vector = vector + 2.0 / 3.0 * stddev *', 'privacy/class_means_test.py'),
    Mutant('only the first round of the class means is recorded', 'privacy/plan.py',
           'for _ in range(release.num_rounds):', 'for _ in range(1):', PLAN),
    Mutant('class means that differ share their noise', 'privacy/class_means.py', 'hashlib.sha256(vector.tobytes())',
           'hashlib.sha256()', 'privacy/class_means_test.py'),
    Mutant('an image joins every mean of its class', 'privacy/class_means.py',
           'np.add.at(vector, (labels[part], nearest), contributions * (finite * shares[part])[:, None])',
           'np.add.at(vector, labels[part], (contributions * (finite * shares[part])[:, None])[:, None])',
           'privacy/class_means_test.py'),
    Mutant('the weight of the count is not in the sensitivity', 'privacy/class_means.py',
           'math.sqrt(1.0 + self.count_weight**2)', '1.0', 'privacy/class_means_test.py'),
    Mutant('feature means with noise x 2/3', 'privacy/feature_means.py', 'return vector + self.noise_stddev',
           'return vector + 2.0 / 3.0 * self.noise_stddev', FEATURES),
    Mutant('feature means of features of any length', 'privacy/feature_means.py', 'np.pad(directions(features), ',
           'np.pad(np.nan_to_num(features), ', FEATURES),
    Mutant('features without the 1 that all share', 'privacy/feature_means.py', 'constant_values=1.0',
           'constant_values=0.0', FEATURES),
    Mutant('an owner adds to the feature means once for each image', 'privacy/feature_means.py',
           'owners_lib.shares(len(features), owners)', 'np.ones([len(features)])', FEATURES),
    Mutant('feature means that differ share their noise', 'privacy/feature_means.py',
           'hashlib.sha256(vector.tobytes())', 'hashlib.sha256()', FEATURES),
    Mutant('a resumed run does not find its feature means', 'training/warm_start.py',
           "if str(stored['run_id']) != run_id:\n                return", 'if True:\n                return',
           'training/public_images_test.py'),
    Mutant('samples are chosen by what another run released', 'training/warm_start.py',
           "if str(stored['run_id']) != run_id:\n                raise", 'if False:\n                raise',
           'training/public_images_test.py'),
    Mutant('feature means are released again where they are lost', 'training/warm_start.py',
           'if state.ledger.count(mechanism):', 'if False:', 'training/public_images_test.py'),
    Mutant('a resumed run does not find its class means', 'training/warm_start.py', 'if of_run != run_id:', 'if True:',
           'training/class_means_release_test.py'),
    Mutant('class means are released again where they are lost', 'training/warm_start.py',
           'if state.ledger.count(mechanism):', 'if False:', 'training/class_means_release_test.py'),
    Mutant('accuracy with the noise of one classifier', 'privacy/accuracy_release.py',
           'return math.sqrt(num_classifiers)', 'return 1.0', 'privacy/accuracy_release_test.py'),
    Mutant('an owner counts once for each image in the accuracy', 'privacy/accuracy_release.py',
           'owners_lib.shares(len(correct), owners)', 'np.ones([len(correct)])',
           'privacy/accuracy_release_test.py'),
    Mutant('resume resets the ledger', 'training/checkpoints.py',
           "state.ledger = ledger_lib.Ledger.from_json(record['ledger'])", 'pass', CONTRACT),
    Mutant('resume draws a new secret', 'training/checkpoints.py',
           "seeds.PrivateSeed(bytes.fromhex(secret))", 'seeds.PrivateSeed(bytes(32))', CONTRACT),
    Mutant('a repeated release is recorded as the same one', 'privacy/ledger.py',
           'dataclasses.replace(last, count=last.count + 1)', 'last', PLAN),
    Mutant('two purposes share one seed', 'privacy/seeds.py', "purpose.encode('utf-8')", "b'all'",
           'privacy/seeds_test.py'),
    Mutant('batch normalization is let through', 'privacy/model_check.py',
           'if _MIXES_EXAMPLES.intersection(kinds):', 'if False:', 'privacy/model_check_test.py'),
    Mutant('mixing behind zeros is not seen', 'privacy/model_check.py', 'w + 0.1 * generator', 'w + 0.0 * generator',
           'privacy/model_check_test.py'),
    Mutant('statement claims an epsilon without noise', 'privacy/accounting.py',
           'if noise_multiplier == 0:\n        return dp_accounting.NonPrivateDpEvent()',
           'if noise_multiplier == 0:\n        return dp_accounting.NoOpDpEvent()', ACCOUNTING),
)  # yapf: disable


def run_tests(project, tests):
    """Runs tests in a copy of the project; returns the exit code of pytest and the last lines that it printed."""
    arguments = ['-x', '-q', '--no-header', '-p', 'no:cacheprovider', f'tests/{tests}']
    result = subprocess.run([sys.executable, '-m', 'pytest', *arguments],
                            cwd=project,
                            env={**os.environ, 'PYTHONPATH': str(project), 'TF_CPP_MIN_LOG_LEVEL': '3'},
                            stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT,
                            text=True,
                            check=False)  # yapf: disable
    return result.returncode, '\n'.join(result.stdout.splitlines()[-4:])


@pytest.fixture(name='project')
def fixture_project(tmp_path):
    """A copy of the project."""
    for name in ('tf_dpdiff', 'tests', 'gin'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'setup.cfg', tmp_path)
    return tmp_path


def test_each_mutant_names_one_place_of_the_source():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert (ROOT / 'tf_dpdiff' / mutant.file).read_text().count(mutant.before) == 1, mutant.name
        assert (ROOT / 'tests' / mutant.tests).exists()


@pytest.mark.long
@pytest.mark.parametrize('tests', sorted({mutant.tests for mutant in MUTANTS}))
def test_control_unchanged_project_passes(project, tests):
    code, output = run_tests(project, tests)
    assert code == 0, output


@pytest.mark.long
@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(project, mutant):
    path = project / 'tf_dpdiff' / mutant.file
    path.write_text(path.read_text().replace(mutant.before, mutant.after))
    code, output = run_tests(project, mutant.tests)
    print(output)
    assert code == 1, f'the mutant survived, or did not run: {output}'
