"""Long: would the tests notice? Each mutant breaks one promise of the privacy core and must be killed by the suite.

    bin/test -m long tests/privacy/mutation_test.py -v

A mutant is one change of the source in a copy of the project; it is killed if the tests named beside it fail there.
That they pass on the unchanged copy is the control.
"""

import ast
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
FEATURES, MATCHING = 'privacy/feature_means_test.py', 'training/matching_test.py'
TEACHER, TEACHER_STAGE = 'privacy/teacher_test.py', 'training/teacher_test.py'
OPTIMIZER, STEP = 'privacy/optimizer_test.py', 'training/train_step_test.py'
OPTIMIZER_CONTRACT = 'privacy/optimizer_contract_test.py'
STRATEGIES = 'training/strategies_test.py'
TRAINER, PRIVATE_STAGE = 'training/trainer_test.py', 'training/private_stage_test.py'
CLASS_MEANS, PUBLIC_IMAGES = 'training/class_means_release_test.py', 'training/public_images_test.py'
DIVERGENCE, PROGRESS = 'training/divergence_test.py', 'training/progress_test.py'
SUMMARIES, SECRET = 'training/summaries_test.py', 'cli/secret_test.py'
RENYI = 'privacy/renyi_test.py'
MEANING = 'privacy/meaning_test.py'
BEST, TUNE = 'privacy/best_of_runs_test.py', 'cli/tune_test.py'
BUDGET, SEEDS = 'privacy/budget_test.py', 'privacy/seeds_test.py'
SAMPLING, TRUNCATION = 'privacy/sampling_test.py', 'privacy/truncation_test.py'
CANARIES, REPLAY = 'evaluation/gradient_canaries_test.py', 'privacy/replay_test.py'
_PRIVATE_STEP = """        ledger = plan.record_step(state.ledger)
        # Sample units, each replica those of its own shard, or of its part of a truncated batch.
        sampled = [
            plan.sampler.sample(
                plan.num_units, seed=sampling_seed, step=step, replica=replica, num_replicas=replicas.count
            )
            for replica in replicas.local
        ]
        sampled = sampling.pad_batches(sampled, padded_to, equally=replicas.is_compiled)
        batches = [
            pipelines.gather_units(private, units, num_views=num_views, seed=owner_seed, step=step) for units in sampled
        ]
        # Clip, add noise and descend: `replica_step` below.
        diagnostics = clip_and_descend(batches, tf.constant(step, tf.int64))
        state.ledger = ledger
"""
MUTANTS = (
    Mutant(
        'no clipping',
        'privacy/clipping.py',
        'tf.where(layer_norms > bound, bound / layer_norms, tf.ones_like(layer_norms))',
        'tf.ones_like(layer_norms)',
        CLIPPING,
    ),
    Mutant(
        'clipping after the sum',
        'privacy/clipping.py',
        'sums = [s + c for s, c in zip(sums, clipped.sums)]',
        'sums = tf.clip_by_global_norm([s + tf.reduce_sum(g, 0) for s, g in zip(sums, gradients)], '
        'self.l2_norm_clip)[0]',
        CLIPPING,
    ),
    Mutant(
        'normalized gradients that are long again where they are short',
        'privacy/clipping.py',
        'scale = bound / (layer_norms + STABILITY)',
        'scale = bound / tf.minimum(layer_norms, STABILITY)',
        CLIPPING,
    ),
    Mutant(
        'gradients of zero are divided by nothing',
        'privacy/clipping.py',
        'scale = bound / (layer_norms + STABILITY)',
        'scale = bound / layer_norms',
        CLIPPING,
    ),
    Mutant(
        'normalized plans only clip',
        'privacy/plan.py',
        "normalized=config.clipping == 'normalized'",
        'normalized=False',
        PLAN,
    ),
    Mutant('bound without a margin for rounding', 'privacy/clipping.py', '(1.0 - margin)', '(1.0 + margin)', CLIPPING),
    Mutant(
        'squares added up in float32 however many there are',
        'privacy/clipping.py',
        'if gradient.shape.rank > 1 and _float32_terms(gradient.shape[1:]) == gradient.shape[-1]:',
        'if gradient.shape.rank > 1:',
        CLIPPING,
    ),
    Mutant(
        'a norm whose squares underflow',
        'privacy/clipping.py',
        'SMALLEST_NORM <= l2_norm_clip',
        '0.0 < l2_norm_clip',
        CLIPPING,
    ),
    Mutant(
        'per-layer bounds that do not share the whole', 'privacy/clipping.py', ' / len(set(names)) ** 0.5', '', CLIPPING
    ),
    Mutant(
        'sensitivity of replacing one is that of removing one',
        'privacy/clipping.py',
        "2.0 if neighboring_relation == 'replace_one' else 1.0",
        '1.0',
        CLIPPING,
    ),
    Mutant(
        'padding counted',
        'privacy/clipping.py',
        'is_kept = tf.logical_and(tf.math.is_finite(norms), tf.logical_not(is_padding))',
        'is_kept = tf.math.is_finite(norms)',
        CLIPPING,
    ),
    Mutant(
        'a unit that is not finite poisons the sum',
        'privacy/clipping.py',
        'tf.math.multiply_no_nan(gradient, _along_units(scales[name], gradient))',
        '_along_units(scales[name], gradient) * gradient',
        CLIPPING,
    ),
    Mutant(
        'chunks of views added instead of averaged',
        'privacy/clipping.py',
        'total + part / num_chunks',
        'total + part',
        CLIPPING,
    ),
    Mutant(
        'the last chunk is lost',
        'privacy/clipping.py',
        'tf.maximum(1, -(-num_units // units_per_chunk))',
        'tf.maximum(1, num_units // units_per_chunk)',
        CLIPPING,
    ),
    Mutant(
        'chunks are counted instead of looked at',
        'privacy/clipping.py',
        'tf.where(holds_unit, tf.range(1, tf.shape(is_padding)[0] + 1), 0)',
        'tf.reduce_sum(tf.cast(holds_unit, tf.int32))',
        CLIPPING,
    ),
    Mutant(
        'chunks of padding are computed',
        'privacy/clipping.py',
        'holds_unit = tf.logical_not(',
        'holds_unit = tf.ones_like(',
        CLIPPING,
    ),
    Mutant(
        'noise x 2/3', 'privacy/noise.py', 'self.stddev * normal_from', '2.0 / 3.0 * self.stddev * normal_from', NOISE
    ),
    Mutant(
        'noise that XLA changes',
        'privacy/noise.py',
        'normal_from_bits(bits)[',
        "tf.random.stateless_normal([2 * pairs], draw_seed, alg='philox')[",
        NOISE,
    ),
    Mutant(
        'a radius of 32 bits cuts the tail',
        'privacy/noise.py',
        'for word in (low, high):',
        'for word in (high,):',
        NOISE,
    ),
    Mutant(
        'both numbers of a pair are the same',
        'privacy/noise.py',
        'radius * tf.sin(angle)',
        'radius * tf.cos(angle)',
        NOISE,
    ),
    Mutant(
        'cryptographic noise x 2/3',
        'privacy/noise.py',
        '(self.stddev * cryptographic_normal',
        '(2.0 / 3.0 * self.stddev * cryptographic_normal',
        NOISE,
    ),
    Mutant(
        'noise reused on two steps',
        'privacy/noise.py',
        'tf.cast(step, tf.int64) * len(sums)',
        'tf.cast(step // 2, tf.int64) * len(sums)',
        NOISE,
    ),
    Mutant(
        'noise reused for two variables',
        'privacy/noise.py',
        'tf.cast(step, tf.int64) * len(sums)',
        'tf.cast(step, tf.int64)',
        NOISE,
    ),
    Mutant(
        'noise that drowns in the rounding of the sum',
        'privacy/noise.py',
        '0.0 < noise_multiplier < least',
        'False',
        NOISE,
    ),
    Mutant(
        'the cut tail is not counted', 'privacy/noise.py', 'return min(1.0, num_draws *', 'return min(1.0, 0.0 *', NOISE
    ),
    Mutant(
        'noise from a public seed',
        'privacy/noise.py',
        'tf.constant(seed.derive(PURPOSE), tf.int64)',
        'tf.constant(5, tf.int64)',
        NOISE,
    ),
    Mutant(
        'each replica goes by its own sum',
        'training/train_step.py',
        'strategies.sum_over_replicas(tuple(clipped))',
        'clipped',
        STRATEGIES,
    ),
    Mutant(
        'noise added before the reduction, by each replica',
        'training/train_step.py',
        'strategies.sum_over_replicas(tuple(clipped))',
        'strategies.sum_over_replicas((plan.noise.add(clipped.sums, seed=private_seed, step=step), '
        'clipped.diagnostics))',
        STRATEGIES,
    ),
    Mutant(
        'each replica samples all units',
        'training/train_step.py',
        'replica=replica, num_replicas=replicas.count\n',
        'replica=0, num_replicas=1\n',
        STRATEGIES,
    ),
    Mutant(
        'keras adds up the updates of replicas again',
        'training/train_step.py',
        'zip(gradients, variables), skip_gradients_aggregation=True)\n        return diagnostics',
        'zip(gradients, variables))\n        return diagnostics',
        STRATEGIES,
    ),
    Mutant(
        'noise added per chunk',
        'training/train_step.py',
        'noisy_sums = plan.noise.add(sums, seed=private_seed, step=step)',
        'noisy_sums = plan.noise.add(sums, seed=private_seed, step=step)\n'
        '        for i in range(2):\n'
        '            noisy_sums = plan.noise.add(noisy_sums, seed=private_seed, step=step + 1000 + i)',
        STEP,
    ),
    Mutant(
        'noise per replica: two replicas add a whole draw each',
        'privacy/noise.py',
        'flat + draw(',
        'flat + 2.0**0.5 * draw(',
        NOISE,
    ),
    Mutant(
        'K multiplies the sensitivity',
        'training/train_step.py',
        'plan.noise.add(sums, seed=private_seed',
        'plan.noise.add([chunk_sizes.views * s for s in sums], seed=private_seed',
        STEP,
    ),
    Mutant(
        'divide by the sampled batch',
        'training/train_step.py',
        's / plan.config.expected_batch_size for',
        "s / tf.maximum(clipped.diagnostics['num_units'], 1.0) for",
        STEP,
    ),
    Mutant(
        'optimizer divides by the sampled batch',
        'privacy/optimizer.py',
        'gradient / float(divisor)',
        'gradient / float(self.num_microbatches or 3)',
        OPTIMIZER,
    ),
    Mutant(
        'optimizer adds no noise',
        'privacy/optimizer.py',
        'noisy = self._noise.add_at(sums, seed=self._private_seed, first_draw=first_draw)',
        'noisy = sums',
        OPTIMIZER,
    ),
    Mutant(
        'optimizer counts draws by steps',
        'privacy/optimizer.py',
        'first_draw=first_draw)',
        'first_draw=self.iterations * len(sums))',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'a restored checkpoint sets the draws back',
        'privacy/optimizer.py',
        'tf.maximum(self._num_draws.read_value(), self._least_draw.read_value())',
        'self._num_draws.read_value()',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'a checkpoint forgets the draws',
        'privacy/optimizer.py',
        'tf.maximum(self._num_draws.read_value(), self._least_draw.read_value())',
        'self._least_draw.read_value()',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'draws of two calls overlap',
        'privacy/optimizer.py',
        'counter.assign(first_draw + len(sums))',
        'counter.assign(first_draw + 1)',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'raw gradients pass once private ones were made',
        'privacy/optimizer.py',
        'pairs is None or not all(self._is_private(gradient) for gradient, _ in pairs)',
        'pairs is None',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'the loss may change variables',
        'privacy/model_check.py',
        'if assignment is not None:',
        'if False:',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'models behind a loss are not looked at',
        'privacy/optimizer.py',
        'if not references <= self._checked:',
        'if False:',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'loss scaling is let through',
        'privacy/optimizer.py',
        'del value\n        raise ValueError(',
        'return\n        raise ValueError(',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'an optimizer may be copied with its secret',
        'privacy/seeds.py',
        'def __reduce__(self):',
        'def _unused(self):',
        OPTIMIZER_CONTRACT,
    ),
    Mutant(
        'each replica adds a draw of its own',
        'privacy/optimizer.py',
        'first_draw=first_draw)',
        'first_draw=first_draw + 1000 * tf.cast('
        'tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64))',
        REPLICAS,
    ),
    Mutant(
        'replicas do not add up',
        'privacy/optimizer.py',
        'if num_replicas > 1:\n            if not',
        'if num_replicas > 9:\n            if not',
        REPLICAS,
    ),
    Mutant(
        'divisor of one replica',
        'privacy/optimizer.py',
        'self.num_microbatches * num_replicas',
        'self.num_microbatches',
        REPLICAS,
    ),
    Mutant(
        'any strategy is let through',
        'privacy/optimizer.py',
        'if not isinstance(strategy, tf.distribute.MirroredStrategy):',
        'if False:',
        REPLICAS,
    ),
    Mutant(
        'noise ignores the sensitivity',
        'privacy/plan.py',
        'noise_multiplier * clipper.sensitivity(config.neighboring_relation)',
        'noise_multiplier',
        PLAN,
    ),
    Mutant(
        'sampling without replacement accounted as Poisson',
        'privacy/plan.py',
        "return getattr(self.sampler, 'sampling_probability', None)",
        'return self.config.expected_batch_size / self.num_units',
        PLAN,
    ),
    Mutant(
        'Poisson sampling that shuffles',
        'privacy/sampling.py',
        'first + np.flatnonzero(numbers < self.sampling_probability)',
        'first + np.sort(np.argsort(numbers)[:int(self.sampling_probability * len(numbers))])',
        SAMPLING,
    ),
    Mutant(
        'the same units in every step',
        'privacy/sampling.py',
        'key=np.array([seed, step], np.uint64)',
        'key=np.array([seed, 0], np.uint64)',
        SAMPLING,
    ),
    Mutant(
        'replicas draw from the whole data set',
        'privacy/sampling.py',
        'first, end = shard_bounds(num_units, replica, num_replicas)\n        numbers',
        'first, end = 0, num_units\n        numbers',
        SAMPLING,
    ),
    Mutant(
        'a relation that has no accountant is claimed for',
        'privacy/relations.py',
        'if neighboring_relation not in ACCOUNTED:',
        'if False:',
        'privacy/relations_test.py',
    ),
    Mutant(
        'more units than planned: the sampling probability is doubled',
        'privacy/plan.py',
        'return sampling.PoissonSampler(probability)',
        'return sampling.PoissonSampler(min(1.0, 2.0 * probability))',
        PLAN,
    ),
    Mutant(
        'delta ignored',
        'privacy/epsilon_bounds.py',
        'composed.get_epsilon_for_delta(delta)',
        'composed.get_epsilon_for_delta(1e-2)',
        ACCOUNTING,
    ),
    Mutant(
        'delta ignored by the second accountant',
        'privacy/epsilon_bounds.py',
        'rdp.compute_epsilon(orders, _renyi(steps, orders), delta)',
        'rdp.compute_epsilon(orders, _renyi(steps, orders), 1e-2)',
        ACCOUNTING,
    ),
    Mutant(
        'rounding of the convolution taken for privacy',
        'privacy/epsilon_bounds.py',
        'rounding = 0.0 if for_a_search else _PLD_ROUNDING * _num_composed(plain)',
        'rounding = 0.0',
        ACCOUNTING,
    ),
    Mutant(
        'a delta below the rounding left to the convolution',
        'privacy/epsilon_bounds.py',
        'if delta < max(_SMALLEST_PLD_DELTA, _SMALLEST_PLD_DELTA_PER_STEP * num_composed):',
        'if False:',
        ACCOUNTING,
    ),
    Mutant(
        'rounding of a Renyi divergence taken for privacy',
        'privacy/epsilon_bounds.py',
        '(of_a_step + _RDP_ROUNDING * np.maximum(of_a_step, 1.0))',
        'of_a_step',
        ACCOUNTING,
    ),
    Mutant(
        'a grid as large as the question is extreme',
        'privacy/epsilon_bounds.py',
        'while spans > max_points * interval:',
        'while spans > 8 * max_points * interval:',
        ACCOUNTING,
    ),
    Mutant(
        'equal steps of two runs counted once',
        'privacy/epsilon_bounds.py',
        'counts[key] = counts.get(key, 0) + count',
        'counts[key] = count',
        'privacy/budget_test.py',
    ),
    Mutant(
        'calibration 1% too low',
        'privacy/accounting.py',
        'return _nearest_that_fits(tries, found, 1e-4)',
        'return 0.99 * _nearest_that_fits(tries, found, 1e-4)',
        ACCOUNTING,
    ),
    Mutant(
        'calibration 1% too high',
        'privacy/accounting.py',
        'return _nearest_that_fits(tries, found, 1e-4)',
        'return 1.01 * _nearest_that_fits(tries, found, 1e-4)',
        ACCOUNTING,
    ),
    Mutant(
        'budget may be passed', 'privacy/budget.py', 'if charged.overdrawn_by():', 'if False:', 'privacy/budget_test.py'
    ),
    Mutant(
        'budget forgets the runs before',
        'privacy/budget.py',
        'entries = {known.run_id: known for known in self.entries}',
        'entries = {}',
        'privacy/budget_test.py',
    ),
    Mutant(
        'an overdrawn budget lets runs go on',
        'privacy/budget.py',
        'if self.overdrawn_by():',
        'if False:',
        'privacy/budget_test.py',
    ),
    Mutant(
        'a run that does not fit stays off the record',
        'privacy/budget.py',
        'return self._with(BudgetEntry(run_id, dataset, SETTLED, released, time), data_fingerprint, unit)',
        'return self.reserve(run_id, released, dataset=dataset, data_fingerprint=data_fingerprint, unit=unit, '
        'time=time).settle(run_id, released)',
        'privacy/budget_test.py',
    ),
    Mutant(
        'a run that is settled again forgets what it released',
        'privacy/budget.py',
        'released = known.ledger.union(released)',
        'pass',
        'privacy/budget_test.py',
    ),
    Mutant(
        'a delta at which whole images may go out is let through',
        'privacy/cautions.py',
        'if caution and not accepted:',
        'if False:',
        PLAN,
    ),
    Mutant(
        'delta ignored by the plan',
        'privacy/plan.py',
        '(event, self.config.target_delta, **options)',
        '(event, 1e-2, **options)',
        PLAN,
    ),
    Mutant(
        'epsilon of the planned instead of the run steps',
        'privacy/plan.py',
        '(self.planned_ledger() if ledger is None or self.tuning else ledger)',
        'self.planned_ledger()',
        PLAN,
    ),
    Mutant(
        'a step more than planned',
        'privacy/plan.py',
        'ledger.count(ledger_lib.DP_SGD_STEP) >= self.config.num_steps',
        'ledger.count(ledger_lib.DP_SGD_STEP) > self.config.num_steps',
        PLAN,
    ),
    Mutant(
        'budget not checked for a given noise multiplier',
        'privacy/plan.py',
        'if config.target_epsilon is not None and plan.epsilon() > config.target_epsilon:',
        'if False:',
        PLAN,
    ),
    Mutant(
        'releases before the steps forgotten by the accountant',
        'privacy/plan.py',
        'planned = self.record_release(planned, release)',
        'pass',
        PLAN,
    ),
    Mutant(
        'class means without clipping',
        'privacy/class_means.py',
        'np.maximum(self.l2_norm_clip, np.linalg.norm(flat, axis=1, keepdims=True))',
        'self.l2_norm_clip',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'an owner counts once for each image',
        'privacy/class_means.py',
        'owners_lib.shares(len(images), owners)',
        'np.ones([len(images)])',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'an image of an owner counts as one',
        'privacy/owners.py',
        'return 1.0 / np.bincount(owners)[owners]',
        'return np.ones([num_images])',
        'privacy/owners_test.py',
    ),
    Mutant(
        'class means with noise x 2/3',
        'privacy/class_means.py',
        'vector, stddev, seed=seed',
        'vector, 2.0 / 3.0 * stddev, seed=seed',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'only the first round of the class means is recorded',
        'privacy/class_means.py',
        'count=self.num_rounds',
        'count=1',
        PLAN,
    ),
    Mutant(
        'class means that differ share their noise',
        'privacy/noise.py',
        'hashlib.sha256(vector.tobytes())',
        'hashlib.sha256()',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'an image joins every mean of its class',
        'privacy/class_means.py',
        'np.add.at(vector, (labels[part], nearest), contributions * (finite * shares[part])[:, None])',
        'np.add.at(vector, labels[part], (contributions * (finite * shares[part])[:, None])[:, None])',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'class means are seen from their center after clipping',
        'privacy/class_means.py',
        'np.maximum(self.l2_norm_clip, np.linalg.norm(flat, axis=1, keepdims=True))',
        'np.maximum(self.l2_norm_clip, np.linalg.norm(flat + self.center, axis=1, keepdims=True))',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'the weight of the count is not in the sensitivity',
        'privacy/class_means.py',
        'math.sqrt(1.0 + self.count_weight**2)',
        '1.0',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'feature means with noise x 2/3',
        'privacy/feature_means.py',
        'noise.add_to_release(vector, stddev,',
        'noise.add_to_release(vector, 2.0 / 3.0 * stddev,',
        FEATURES,
    ),
    Mutant(
        'feature means of features of any length',
        'privacy/feature_means.py',
        'self._feature_weight * directions(block)',
        'self._feature_weight * np.nan_to_num(block)',
        FEATURES,
    ),
    Mutant(
        'features without the 1 that all share',
        'privacy/feature_means.py',
        'constant_values=self.count_weight',
        'constant_values=0.0',
        FEATURES,
    ),
    Mutant(
        'an owner adds to the feature means once for each image',
        'privacy/feature_means.py',
        'owners_lib.shares(len(labels), owners)',
        'np.ones([len(labels)])',
        FEATURES,
    ),
    Mutant(
        'each block of features has the shares of the first images',
        'privacy/feature_means.py',
        'shares[rows]',
        'shares[: len(block)]',
        FEATURES,
    ),
    Mutant(
        'the count comes on top of features of length 1',
        'privacy/feature_means.py',
        'return math.sqrt(1.0 - self.count_weight**2)',
        'return 1.0',
        FEATURES,
    ),
    Mutant(
        'replacing features of little count costs as much as of much',
        'privacy/feature_means.py',
        'max(math.sqrt(2.0), 2.0 * self._feature_weight)',
        'math.sqrt(2.0)',
        FEATURES,
    ),
    Mutant(
        'what images match is forgotten by the accountant',
        'privacy/plan.py',
        'releases = (self.teacher, self.warm_start_release, self.matching)',
        'releases = (self.teacher, self.warm_start_release)',
        MATCHING,
    ),
    Mutant(
        'a run releases two kinds of feature means with one noise',
        'privacy/plan.py',
        'if matching and isinstance(warm_start_release, feature_means.FeatureMeansConfig):',
        'if False:',
        MATCHING,
    ),
    Mutant(
        'images match a release with less noise than the plan',
        'runs/build.py',
        'if _matched_release(recipe) != plan.matching:',
        'if False:',
        MATCHING,
    ),
    Mutant(
        'an owner counts once for each image in what images match',
        'training/released_files.py',
        "'owners': private.owners",
        "'owners': None",
        MATCHING,
    ),
    Mutant(
        'images match exact means',
        'training/matching.py',
        'means = config.release.means(noisy_sums, plan.config.neighboring_relation)',
        'exact = features.blocks(private.images_uint8), private.labels, private.num_classes, private.owners\n'
        '    means = config.release.means(config.release.exact_vector(*exact), plan.config.neighboring_relation)',
        MATCHING,
    ),
    Mutant(
        'features relative to the other images of the batch',
        'training/matching.py',
        '(features - center) / spread',
        '(features - tf.reduce_mean(features, 0)) / spread',
        MATCHING,
    ),
    Mutant(
        'a teacher with noise x 2/3',
        'privacy/teacher.py',
        'return noise.add_to_release(total, stddev,',
        'return noise.add_to_release(total, 2.0 / 3.0 * stddev,',
        TEACHER,
    ),
    Mutant(
        'noise of the gradients on the mean of the teacher',
        'privacy/teacher.py',
        'self.sensitivity(neighboring_relation, is_first=number == 0)',
        'self.sensitivity(neighboring_relation)',
        TEACHER,
    ),
    Mutant(
        'gradients of the teacher without clipping',
        'privacy/teacher.py',
        'shares[part] / np.maximum(1.0, norms / self.l2_norm_clip)',
        'shares[part]',
        TEACHER,
    ),
    Mutant(
        'gradients of the teacher clipped by half of their norm',
        'privacy/teacher.py',
        'np.linalg.norm(residuals, axis=1) * np.linalg.norm(inputs[part], axis=1)',
        'np.linalg.norm(residuals, axis=1) / 2.0',
        TEACHER,
    ),
    Mutant(
        'an owner adds to the gradients of the teacher once for each image',
        'privacy/teacher.py',
        'owners_lib.shares(len(inputs), owners)',
        'np.ones([len(inputs)])',
        TEACHER,
    ),
    Mutant(
        'an owner adds to the mean of the teacher once for each image',
        'privacy/teacher.py',
        'owners_lib.shares(len(features), owners)',
        'np.ones([len(features)])',
        TEACHER,
    ),
    Mutant(
        'the mean of the teacher is of features of any length',
        'privacy/teacher.py',
        'shares[part] @ feature_means.directions(features[part])',
        'shares[part] @ np.nan_to_num(features[part])',
        TEACHER,
    ),
    Mutant(
        'the teacher is centred by the exact mean',
        'privacy/teacher.py',
        'center = with_noise(self.exact_directions(features, owners), 0) / num_units',
        'center = self.exact_directions(features, owners) / num_units',
        TEACHER,
    ),
    Mutant(
        'one round of the teacher too few on the ledger',
        'privacy/teacher.py',
        '1.0, count=self.num_rounds)',
        '1.0, count=self.num_rounds - 1)',
        TEACHER,
    ),
    Mutant(
        'the rounds of the teacher share their noise',
        'privacy/teacher.py',
        'total = with_noise(self.exact_gradient(inputs, labels, weights, owners), number)',
        'exact = self.exact_gradient(inputs, labels, weights, owners)\n'
        '            total = exact + with_noise(0.0 * exact, 1)',
        TEACHER,
    ),
    Mutant(
        'the teacher forgotten by the accountant',
        'privacy/plan.py',
        'releases = (self.teacher, self.warm_start_release, self.matching)',
        'releases = (self.warm_start_release, self.matching)',
        TEACHER_STAGE,
    ),
    Mutant(
        'an owner counts once for each image in the teacher of a run',
        'training/released_files.py',
        "'owners': private.owners",
        "'owners': None",
        TEACHER_STAGE,
    ),
    Mutant(
        'a teacher is released again where it is lost',
        'training/released_files.py',
        'if state.ledger.count(mechanism):',
        'if False:',
        TEACHER_STAGE,
    ),
    Mutant(
        'a resumed run does not find its teacher',
        'training/teacher.py',
        "if str(stored['run_id']) != run_id:",
        'if True:',
        TEACHER_STAGE,
    ),
    Mutant(
        'a teacher of another run is read',
        'training/teacher.py',
        "if str(stored['run_id']) != run_id:",
        'if False:',
        TEACHER_STAGE,
    ),
    Mutant(
        'feature means that differ share their noise',
        'privacy/noise.py',
        'hashlib.sha256(vector.tobytes())',
        'hashlib.sha256()',
        FEATURES,
    ),
    Mutant(
        'a resumed run does not find its feature means',
        'training/warm_start.py',
        "if str(stored['run_id']) != run_id:\n                return",
        'if True:\n                return',
        'training/public_images_test.py',
    ),
    Mutant(
        'samples are chosen by what another run released',
        'training/warm_start.py',
        "if str(stored['run_id']) != run_id:\n                raise",
        'if False:\n                raise',
        'training/public_images_test.py',
    ),
    Mutant(
        'feature means are released again where they are lost',
        'training/released_files.py',
        'if state.ledger.count(mechanism):',
        'if False:',
        'training/public_images_test.py',
    ),
    Mutant(
        'a resumed run does not find its class means',
        'training/warm_start.py',
        'if of_run != run_id:',
        'if True:',
        'training/class_means_release_test.py',
    ),
    Mutant(
        'class means are released again where they are lost',
        'training/released_files.py',
        'if state.ledger.count(mechanism):',
        'if False:',
        'training/class_means_release_test.py',
    ),
    Mutant(
        'accuracy with the noise of one classifier',
        'privacy/accuracy_release.py',
        'return math.sqrt(num_classifiers)',
        'return 1.0',
        'privacy/accuracy_release_test.py',
    ),
    Mutant(
        'an owner counts once for each image in the accuracy',
        'privacy/accuracy_release.py',
        'owners_lib.shares(len(correct), owners)',
        'np.ones([len(correct)])',
        'privacy/accuracy_release_test.py',
    ),
    Mutant(
        'resume resets the ledger',
        'training/checkpoints.py',
        "state.ledger = ledger_lib.Ledger.from_json(record['ledger'])",
        'pass',
        CONTRACT,
    ),
    Mutant(
        'resume draws a new secret',
        'training/checkpoints.py',
        'seeds.PrivateSeed(bytes.fromhex(secret))',
        'seeds.PrivateSeed(bytes(32))',
        CONTRACT,
    ),
    Mutant(
        'a repeated release is recorded as the same one',
        'privacy/ledger.py',
        'dataclasses.replace(last, count=last.count + count)',
        'last',
        PLAN,
    ),
    Mutant(
        'two purposes share one seed', 'privacy/seeds.py', "purpose.encode('utf-8')", "b'all'", 'privacy/seeds_test.py'
    ),
    Mutant(
        'batch normalization is let through',
        'privacy/model_check.py',
        'if _MIXES_EXAMPLES.intersection(kinds):',
        'if False:',
        'privacy/model_check_test.py',
    ),
    Mutant(
        'mixing behind zeros is not seen',
        'privacy/model_check.py',
        'w + 0.1 * generator',
        'w + 0.0 * generator',
        'privacy/model_check_test.py',
    ),
    Mutant(
        'statement claims an epsilon without noise',
        'privacy/ledger.py',
        'return dp_accounting.NonPrivateDpEvent()',
        'return dp_accounting.NoOpDpEvent()',
        'privacy/ledger_test.py',
    ),
    Mutant(
        'per-layer plans have half the noise',
        'privacy/plan.py',
        'noise_multiplier * clipper.sensitivity(config.neighboring_relation)',
        'noise_multiplier * clipper.sensitivity(config.neighboring_relation) * (0.5 if clipper.per_layer else 1.0)',
        PLAN,
    ),
    Mutant(
        'per-layer steps draw half the noise',
        'training/train_step.py',
        'noisy_sums = plan.noise.add(sums, seed=private_seed, step=step)',
        'noisy_sums = plan.noise.add(sums, seed=private_seed, step=step)\n'
        '        if plan.clipper.per_layer:\n'
        '            noisy_sums = [0.5 * (s + n) for s, n in zip(sums, noisy_sums)]',
        STEP,
    ),
    Mutant(
        'rows of padding are taken for units by the step', 'training/train_step.py', 'units < 0,', 'units < -1,', STEP
    ),
    Mutant(
        'rows of padding are counted as units',
        'privacy/clipping.py',
        'num_units = tf.reduce_sum(1.0 - tf.cast(is_padding, tf.float32))',
        'num_units = tf.cast(tf.size(is_padding), tf.float32)',
        CLIPPING,
    ),
    Mutant(
        'rounds of class means begin from exact sums',
        'privacy/class_means.py',
        'vector = noise.add_to_release(',
        'vector = vector if number + 1 < self.num_rounds else noise.add_to_release(',
        'privacy/class_means_test.py',
    ),
    Mutant(
        'the moving average does not take in the noise',
        'training/train_step.py',
        'zip(gradients, variables), skip_gradients_aggregation=True)\n        return diagnostics',
        'zip(gradients, variables), skip_gradients_aggregation=True)\n'
        '        decay = ema.ema_decay(max_ema_decay, step)\n'
        '        for a, s, n in zip(average.trainable_variables, sums, noisy_sums):\n'
        '            a.assign_add((1.0 - decay) / decay * (n - s) / plan.config.expected_batch_size)\n'
        '        return diagnostics',
        STEP,
    ),
    Mutant(
        'the last weights are released in place of the average',
        'training/loop.py',
        'model = self._build_network()\n        model.set_weights(self.average.get_weights())',
        'model = self._build_network()\n        model.set_weights(self.model.get_weights())',
        PRIVATE_STAGE,
    ),
    Mutant(
        'the last weights are sampled and exported later',
        'training/checkpoints.py',
        'checkpoint = tf.train.Checkpoint(average=model)',
        'checkpoint = tf.train.Checkpoint(model=model)',
        PRIVATE_STAGE,
    ),
    Mutant(
        'the configuration holds the secret',
        'runs/run.py',
        'files.write_text(workdir / folder.OPERATIVE_CONFIG, configuration)',
        'files.write_text(workdir / folder.OPERATIVE_CONFIG, configuration + (\n'
        "                f'# {training.trainer.state.private_seed.reveal().hex()}' if recipe.is_private else ''))",
        SECRET,
    ),
    Mutant(
        'the configuration holds the seed of the noise',
        'runs/run.py',
        'files.write_text(workdir / folder.OPERATIVE_CONFIG, configuration)',
        'files.write_text(workdir / folder.OPERATIVE_CONFIG, configuration + (\n'
        "                f'# {training.trainer.state.private_seed.derive(\"noise\")}' if recipe.is_private else ''))",
        SECRET,
    ),
    Mutant(
        'TensorBoard holds the secret',
        'runs/tensorboard_events.py',
        'numbers, trainer.state.run_id)',
        'numbers, str(trainer.state.private_seed and trainer.state.private_seed.reveal()))',
        SECRET,
    ),
    Mutant(
        'the name of a run is a piece of its secret',
        'training/checkpoints.py',
        'self.run_id = run_id or new_run_id()',
        'self.run_id = run_id or (private_seed.reveal().hex()[:16] if private_seed else new_run_id())',
        SECRET,
    ),
    Mutant(
        'folders of this machine are released',
        'runs/run.py',
        'released_configuration = outcome.cut_paths(configuration)',
        'released_configuration = configuration',
        SECRET,
    ),
    Mutant(
        'units are drawn by a public seed',
        'training/train_step.py',
        'sampling_seed, owner_seed = (state.private_seed.derive(purpose) for purpose in '
        "('sampling', 'images_of_owners'))",
        "sampling_seed, owner_seed = 0, state.private_seed.derive('images_of_owners')",
        PRIVATE_STAGE,
    ),
    Mutant(
        'images of owners are picked by a public seed',
        'training/train_step.py',
        'sampling_seed, owner_seed = (state.private_seed.derive(purpose) for purpose in '
        "('sampling', 'images_of_owners'))",
        "sampling_seed, owner_seed = state.private_seed.derive('sampling'), 0",
        PRIVATE_STAGE,
    ),
    Mutant(
        'a run begins without its secret on disk',
        'training/loop.py',
        'self._write_checkpoint()  # The seed is on disk before anything is drawn from it.',
        'pass',
        PRIVATE_STAGE,
    ),
    Mutant(
        'each worker has a secret of its own',
        'training/checkpoints.py',
        'state = RunState.from_json(workers.broadcast(found).decode())\n',
        'state = RunState.from_json(workers.broadcast(found).decode())\n'
        '    if is_private and not workers.is_first:\n'
        '        state.private_seed = seeds.PrivateSeed.from_os_entropy()\n',
        PRIVATE_STAGE,
    ),
    Mutant(
        'a step is computed before the plan is asked',
        'training/train_step.py',
        _PRIVATE_STEP,
        _PRIVATE_STEP.replace('        ledger = plan.record_step(state.ledger)\n', '').replace(
            'state.ledger = ledger', 'state.ledger = plan.record_step(state.ledger)'
        ),
        PRIVATE_STAGE,
    ),
    Mutant(
        'an owner counts once for each image in the class means of a run',
        'training/released_files.py',
        "'owners': private.owners",
        "'owners': None",
        CLASS_MEANS,
    ),
    Mutant(
        'an owner counts once for each image in the feature means of a run',
        'training/released_files.py',
        "'owners': private.owners",
        "'owners': None",
        PUBLIC_IMAGES,
    ),
    Mutant(
        'public images are chosen by exact feature means',
        'training/warm_start.py',
        'means = release.means(noisy_sums, plan.config.neighboring_relation)',
        'exact = features(private.images_uint8), private.labels, private.num_classes, private.owners\n'
        '        means = release.means(release.exact_vector(*exact), plan.config.neighboring_relation)',
        PUBLIC_IMAGES,
    ),
    Mutant(
        'a warm start releases with less noise than the plan',
        'runs/build.py',
        'if recipe.warm_start and recipe.warm_start.release != plan.warm_start_release:',
        'if False:',
        PUBLIC_IMAGES,
    ),
    Mutant('a plan for other data', 'runs/build.py', 'if plan.num_units != private.num_units:', 'if False:', TRAINER),
    Mutant(
        'pictures of weights that the ledger does not hold',
        'training/loop.py',
        'return recorded and math.isfinite(',
        'return math.isfinite(',
        SUMMARIES,
    ),
    Mutant(
        'pictures of private training without noise',
        'training/loop.py',
        'return recorded and math.isfinite(',
        'return recorded or math.isfinite(',
        SUMMARIES,
    ),
    Mutant(
        'private numbers are logged unasked',
        'runs/build.py',
        'if recipe.loop.log_non_private and is_first else None',
        'if is_first else None',
        TRAINER,
    ),
    Mutant(
        'private numbers are filed among those to be released',
        'training/finetuning.py',
        'summaries.non_private_scalars(\n                {',
        "summaries.scalars(\n                'finetuning', {",
        CONTRACT,
    ),
    Mutant(
        'a private stage tells its loss',
        'training/finetuning.py',
        "'ema_decay': stage_lib.ema_decay(config.max_ema_decay, step)",
        "'ema_decay': stage_lib.ema_decay(config.max_ema_decay, step), 'loss': float(diagnostics['loss_sum'])",
        TRAINER,
    ),
    Mutant(
        'a private stage stops where its loss is not finite',
        'training/finetuning.py',
        'diagnostics = private_step(step)\n',
        'diagnostics = private_step(step)\n'
        "        if float(diagnostics['num_nonfinite']):\n"
        "            raise FloatingPointError('diverged')\n",
        DIVERGENCE,
    ),
    Mutant(
        'the trace of a private stage is to be released',
        'training/loop.py',
        'if plan is None else summaries.private_folder',
        'if plan is None else summaries.released_folder',
        SUMMARIES,
    ),
    Mutant(
        'events tell when a step was taken',
        'training/summaries.py',
        'tf.compat.v1.Event(wall_time=self._wall_time, step=step',
        'tf.compat.v1.Event(wall_time=time.time(), step=step',
        SUMMARIES,
    ),
    Mutant(
        'checkpoints are readable for all',
        'training/checkpoints.py',
        'mode=0o700 if is_private else 0o777',
        'mode=0o777',
        TRAINER,
    ),
    Mutant(
        'a run is resumed under another configuration',
        'training/checkpoints.py',
        'if differing:',
        'if False:',
        CONTRACT,
    ),
    Mutant(
        'weights of one checkpoint and the ledger of another',
        'training/checkpoints.py',
        "if state is not None and json.loads(self._record.numpy())['state'] != state.to_json():",
        'if False:',
        'training/checkpoints_test.py',
    ),
    Mutant(
        'a damaged checkpoint is restored',
        'training/checkpoint_folders.py',
        'if _hash(folder / name) != digest:',
        'if False:',
        'training/checkpoints_test.py',
    ),
    Mutant(
        'views of an owner look at images of others',
        'data/pipelines.py',
        'indices[row] = order[starts[units[row]] + picks]',
        'indices[row] = picks',
        'data/pipelines_test.py',
    ),
    Mutant(
        'the rows that fill up a batch repeat a unit',
        'privacy/sampling.py',
        'padded = np.full([padded_size], PADDING_INDEX, np.int64)',
        'padded = np.full([padded_size], indices[-1] if len(indices) else PADDING_INDEX, np.int64)',
        SAMPLING,
    ),
    Mutant(
        'shards of replicas overlap',
        'privacy/sampling.py',
        'num_units * (replica + 1) // num_replicas',
        'min(num_units, num_units * (replica + 1) // num_replicas + 1)',
        SAMPLING,
    ),
    Mutant(
        'all units of a step have the same views',
        'training/views.py',
        'step * 2**32 + tf.maximum(unit, 0))',
        'step * 2**32)',
        'training/views_test.py',
    ),
    Mutant(
        'a unit has the same views in every step',
        'training/views.py',
        'step * 2**32 + tf.maximum(unit, 0))',
        'tf.maximum(unit, 0))',
        'training/views_test.py',
    ),
    Mutant(
        'the views of a unit are one view, K times',
        'training/views.py',
        'return self._draw([num_views], image_shape, seed, step * 2**32 + tf.maximum(unit, 0))',
        'return tf.nest.map_structure(lambda x: tf.repeat(x, num_views, axis=0),\n'
        '                                         self._draw([1], image_shape, seed, '
        'step * 2**32 + tf.maximum(unit, 0)))',
        'training/views_test.py',
    ),
    Mutant(
        'budgets mix data sets',
        'privacy/budget.py',
        'if self.data_fingerprint not in (None, data_fingerprint):',
        'if False:',
        BUDGET,
    ),
    Mutant(
        'what ends early leaves the budget, whatever it released',
        'privacy/budget.py',
        'if not released.releases:',
        'if True:',
        BUDGET,
    ),
    Mutant(
        'a settled run is settled again with less',
        'privacy/budget.py',
        'released = known.ledger.union(released)',
        'pass',
        BUDGET,
    ),
    Mutant(
        'the statement counts planned steps',
        'privacy/statement.py',
        "'steps_run': self.ledger.count(ledger_lib.DP_SGD_STEP)",
        "'steps_run': self.plan.config.num_steps",
        'privacy/statement_test.py',
    ),
    Mutant(
        'the exported model holds what training used',
        'serving/export.py',
        'self._variables = model.variables',
        'self._model = model',
        'serving/export_test.py',
    ),
    Mutant(
        'the secret is shown where a seed is printed',
        'privacy/seeds.py',
        "return 'PrivateSeed(<secret>)'",
        "return f'PrivateSeed({self._secret.hex()})'",
        SEEDS,
    ),
    Mutant(
        'all runs have one secret',
        'privacy/seeds.py',
        'cls(secrets.token_bytes(_NUM_BYTES))',
        'cls(bytes(_NUM_BYTES))',
        SEEDS,
    ),
    Mutant('a run that has diverged goes on', 'training/loop.py', 'if diverged:', 'if False:', DIVERGENCE),
    Mutant(
        'weights that are of no use are saved',
        'training/loop.py',
        'self._stop_if_diverged(problem or self._find_problem())',
        'pass',
        DIVERGENCE,
    ),
    Mutant(
        'a stage begins with weights that are of no use',
        'training/loop.py',
        'self._stop_if_diverged(self._find_problem())  # Before a stage releases anything.',
        'pass',
        DIVERGENCE,
    ),
    Mutant('the last good weights are lost', 'training/loop.py', 'self._checkpoint.restore()\n', 'pass\n', DIVERGENCE),
    Mutant(
        'a run that has diverged is sampled and exported',
        'runs/source.py',
        'folder_lib.check_not_diverged(workdir)',
        'pass',
        'cli/divergence_test.py',
    ),
    Mutant(
        'a run that has diverged may be resumed',
        'training/checkpoints.py',
        'if state.stage == DIVERGED:',
        'if False:',
        DIVERGENCE,
    ),
    Mutant(
        'weights that overflow pass for finite ones',
        'training/divergence.py',
        'return bool(all_finite([denoiser.denoise(network, *self._view) for network in self._networks]))',
        'return True',
        DIVERGENCE,
    ),
    Mutant(
        'a series of Renyi divergences is cut behind a negative term',
        'privacy/renyi.py',
        'if signs[-1] < 0.0:',
        'if signs[-1] > 0.0:',
        RENYI,
    ),
    Mutant(
        'the other part of a Renyi divergence is left out',
        'privacy/renyi.py',
        'signs * np.exp(sizes - largest)).sum()',
        'signs * np.exp(sizes - largest))[0].sum()',
        RENYI,
    ),
    Mutant(
        'between orders the divergence is that of the order below',
        'privacy/renyi.py',
        'return np.interp(orders, *_lower_convex_envelope([1.0, *orders], [0.0, *found]))',
        'return np.concatenate([[0.0], found])[:-1]',
        RENYI,
    ),
    Mutant(
        'the bar moves before its epsilon',
        'training/loop.py',
        'self._show(bar, scalars)  # Before the bar moves: it may show itself when it does.\n'
        '                bar.update()',
        'bar.update()\n                self._show(bar, scalars)',
        PROGRESS,
    ),
    Mutant(
        'the bar shows the epsilon of steps before',
        'privacy/curves.py',
        '-(-steps_run // stride) * stride',
        'steps_run // stride * stride',
        'privacy/curves_test.py',
    ),
    Mutant(
        'epsilon is rounded to nearest',
        'privacy/rounding.py',
        'decimal.ROUND_CEILING',
        'decimal.ROUND_HALF_EVEN',
        'privacy/rounding_test.py',
    ),
    Mutant(
        'epsilon is cut off to float32',
        'privacy/rounding.py',
        'if float(rounded) < value else rounded',
        'if False else rounded',
        'privacy/rounding_test.py',
    ),
    Mutant(
        'the statement protects each image where an owner is the unit',
        'runs/build.py',
        'has_owners=self.spec.has_owners',
        'has_owners=False',
        TRAINER,
    ),
    Mutant('a run begins before it is charged', 'runs/run.py', 'account.reserve()', 'pass', 'cli/account_test.py'),
    Mutant(
        'a recipe made in Python tells how many images the owners have',
        'runs/recipe.py',
        '{value.spec.num_units:,} units of',
        '{value.spec.num_images:,} units of',
        'runs/library_test.py',
    ),
    Mutant(
        'the private configuration lies beside the exported model',
        'runs/folder.py',
        'return statement_paths(workdir) + [workdir / MODEL]',
        'return statement_paths(workdir) + [workdir / MODEL, workdir / OPERATIVE_CONFIG]',
        SECRET,
    ),
    Mutant(
        'the noise and the views come from one seed',
        'privacy/noise.py',
        "PURPOSE = 'noise'",
        "PURPOSE = 'views'",
        SECRET,
    ),
    Mutant(
        'samples of units and of their images come from one seed',
        'training/train_step.py',
        "('sampling', 'images_of_owners')",
        "('sampling', 'sampling')",
        SECRET,
    ),
    Mutant(
        'workers of other data take part',
        'training/checkpoints.py',
        "workers.check_same(json.dumps(configuration, sort_keys=True), 'the configuration or the data')",
        'pass',
        PRIVATE_STAGE,
    ),
    Mutant(
        'workers go on from weights of their own',
        'training/loop.py',
        'self.replicas.copy_from_first_worker(self._checkpoint.variables)',
        'pass',
        'training/loop_test.py',
    ),
    Mutant(
        'each worker makes a release of class means',
        'training/warm_start.py',
        'if workers.is_first:\n        shape',
        'if True:\n        shape',
        CLASS_MEANS,
    ),
    Mutant(
        'samples that another run left get the statement of the run that begins beside them',
        'runs/folder.py',
        'if found is None:\n        # Without',
        'if False:\n        # Without',
        'cli/run_identity_test.py',
    ),
    Mutant(
        'an image of which overflown weights say nothing makes the gradient of the teacher that of no other',
        'privacy/teacher.py',
        'residuals[~np.isfinite(residuals).all(axis=1)] = 0.0',
        'pass',
        TEACHER,
    ),
    Mutant(
        'a release that a killed process had half written stays beside the one that is made anew',
        'training/released_files.py',
        'shutil.rmtree(left)',
        'del left',
        'training/teacher_test.py',
    ),
    Mutant(
        'the statement forgets the cut tail of what is released once',
        'privacy/statement.py',
        "(release.mechanism == ledger_lib.DP_SGD_STEP or generator != 'philox')",
        'release.mechanism == ledger_lib.DP_SGD_STEP',
        'privacy/statement_test.py',
    ),
    Mutant(
        'samples are joined whatever they promise',
        'sampling/store.py',
        'if samples.statement_text != first.statement_text:',
        'if False:',
        'sampling/store_test.py',
    ),
    Mutant(
        'a released run whose checkpoints fell back is trained again',
        'runs/folder.py',
        'if _count(_releases_of(statement)) > _count(found.ledger):',
        'if False:',
        'cli/run_identity_test.py',
    ),
    Mutant(
        'what a run that diverged has spent is not written down',
        'runs/run.py',
        'if trainer.replicas.workers.is_first and trainer.state.ledger.releases:',
        'if False:',
        'cli/divergence_test.py',
    ),
    Mutant(
        'numbers that are no images are rounded to black',
        'diffusion/samplers.py',
        'prediction = tf.debugging.check_numerics(predict(x_t, t), _NOT_FINITE)',
        'prediction = predict(x_t, t)',
        'diffusion/samplers_test.py',
    ),
    Mutant(
        'how often an attacker can be right without what delta permits',
        'privacy/meaning.py',
        'steep = np.exp(epsilons) * false_positive_rate + deltas',
        'steep = np.exp(epsilons) * false_positive_rate',
        MEANING,
    ),
    Mutant(
        'the images of one person move a sum as one image does',
        'privacy/meaning.py',
        'noise_multiplier *= (1.0 - _ROUNDING) / num_units',
        'noise_multiplier *= 1.0 - _ROUNDING',
        MEANING,
    ),
    Mutant(
        'models that are of no use are exported',
        'runs/outcome.py',
        'divergence.check_released(average, model.image_shape, len(model.class_names))',
        'pass',
        'cli/divergence_test.py',
    ),
    Mutant(
        'a public classifier that has diverged is trained on',
        'training/public_classifier.py',
        'if not math.isfinite(loss):',
        'if False:',
        DIVERGENCE,
    ),
    Mutant(
        'a public classifier that diverged in its last step chooses images',
        'training/public_classifier.py',
        'if not divergence.all_finite([*model.weights, model(public.images_uint8[:1])]):',
        'if False:',
        DIVERGENCE,
    ),
    Mutant(
        'a choice among runs is charged as one run',
        'privacy/ledger.py',
        'dp_event_lib.RepeatAndSelectDpEvent(of_a_run, self.num_runs.mean, self.num_runs.eta)',
        'of_a_run',
        BEST,
    ),
    Mutant(
        'what the losing runs tell is free',
        'privacy/best_of_runs.py',
        'of_hat = (1.0 + self.eta) * np.min(',
        'of_hat = self.eta * np.min(',
        BEST,
    ),
    Mutant(
        'how many runs there are on average is free',
        'privacy/best_of_runs.py',
        'found = of_a_run + of_hat + log_mean / (orders - 1.0)',
        'found = of_a_run + of_hat',
        BEST,
    ),
    Mutant(
        'the number of runs is no draw',
        'privacy/best_of_runs.py',
        "uniform = (decimal.Decimal(uniform_bits) + decimal.Decimal('0.5')) / 2**256",
        "uniform = decimal.Decimal('0.5') + 0 * decimal.Decimal(uniform_bits)",
        BEST,
    ),
    Mutant(
        'the number of runs is drawn from another distribution than is accounted for',
        'privacy/best_of_runs.py',
        'num_runs, probability = 1, _probability_of_one(self.gamma, self.eta)',
        'num_runs, probability = 1, _probability_of_one(1.3 * self.gamma, self.eta)',
        BEST,
    ),
    Mutant(
        'all runs take the candidate of the first one',
        'privacy/best_of_runs.py',
        "f'{_CANDIDATE} {run}'",
        '_CANDIDATE',
        BEST,
    ),
    Mutant(
        'orders that the theorem is not about are let through',
        'privacy/best_of_runs.py',
        'np.all(orders > 1.0) and',
        '',
        BEST,
    ),
    Mutant(
        'distributions that the theorem is not about are let through',
        'privacy/best_of_runs.py',
        'if not (self.eta == 0.0 or SMALLEST_ETA <= self.eta <= LARGEST_ETA):',
        'if False:',
        BEST,
    ),
    Mutant(
        'a choice among runs has no part in a privacy loss distribution',
        'privacy/epsilon_bounds.py',
        'return steps if len(steps) == len(parts) else None',
        'return steps',
        BEST,
    ),
    Mutant(
        'the score of a run is free',
        'privacy/plan.py',
        'if not of_a_run.releases and self.tuning.score_noise_multiplier is not None:',
        'if False:',
        BEST,
    ),
    Mutant(
        'a choice costs what one run has cost so far',
        'privacy/plan.py',
        'if ledger is None or self.tuning else ledger',
        'if ledger is None else ledger',
        BEST,
    ),
    Mutant(
        'runs without a guarantee are chosen among',
        'privacy/plan.py',
        "if tuning and (config.sampling != 'poisson' or config.noise_multiplier == 0.0):",
        'if False:',
        BEST,
    ),
    Mutant(
        'a score has noise x 2/3',
        'privacy/accuracy_release.py',
        'self.noise_multiplier * self.sensitivity(len(vector)),',
        '2.0 / 3.0 * self.noise_multiplier * self.sensitivity(len(vector)),',
        BEST,
    ),
    Mutant(
        'scores of two runs share their noise',
        'privacy/noise.py',
        'hashlib.sha256(vector.tobytes())',
        'hashlib.sha256()',
        BEST,
    ),
    Mutant(
        'the cut tail counts for one of the runs',
        'privacy/meaning.py',
        'release.count * release.num_runs.mean * (1.0 + 1e-9)',
        'release.count',
        BEST,
    ),
    Mutant(
        'several units of one person move each of the runs as one does',
        'privacy/meaning.py',
        'of_a_run = _grouped_steps(step.of_a_run, num_units)',
        'of_a_run = _grouped_steps(step.of_a_run, 1)',
        BEST,
    ),
    Mutant(
        'candidates that release something else are let in',
        'runs/tune.py',
        'if build.plan.planned_ledger() != first.plan.planned_ledger():',
        'if False:',
        TUNE,
    ),
    Mutant(
        'candidates on other images are let in',
        'runs/tune.py',
        'if other.train.fingerprint() != fingerprint or',
        'if False and fingerprint or',
        TUNE,
    ),
    Mutant(
        'a score on images without owners stands for owners',
        'runs/tune.py',
        'if uses_held_out and data.held_out.unit != data.spec.unit:',
        'if False:',
        TUNE,
    ),
    Mutant(
        'of equal scores the first is the best',
        'runs/tune.py',
        "(score, tie) > (best['score'], best['tie'])",
        "score > best['score']",
        TUNE,
    ),
    Mutant(
        'a choice goes on under another configuration',
        'runs/tune.py',
        "if state['fingerprint'] != fingerprint:",
        'if False:',
        TUNE,
    ),
    Mutant(
        'a choice that was killed before it was written down judges twice',
        'runs/tune.py',
        'self._save()  # From here on it is decided, also where the process is killed.',
        'pass',
        TUNE,
    ),
    Mutant(
        'the secret of a choice stays on disk',
        'runs/tune.py',
        'self._state.update(phase=phase, secret=None, num_judged=None, best=None)',
        'self._state.update(phase=phase)',
        TUNE,
    ),
    Mutant(
        'the folder of a choice stays on disk',
        'runs/tune.py',
        '(self.directory / _STATE).unlink()\n        _delete(self.directory)',
        'pass',
        TUNE,
    ),
    Mutant(
        'a choice that goes on is charged as another one',
        'runs/tune.py',
        "run_id = begun['run_id'] if begun else 'not begun yet'",
        "run_id = 'not begun yet'",
        TUNE,
    ),
    Mutant(
        'of too many units the first ones are kept',
        'privacy/sampling.py',
        "units[np.argsort(numbers[units], kind='stable')[: self.truncated_batch_size]]",
        'units[: self.truncated_batch_size]',
        SAMPLING,
    ),
    Mutant(
        'a bound on the batch that does not bind',
        'privacy/sampling.py',
        'if len(units) > self.truncated_batch_size:',
        'if False:',
        SAMPLING,
    ),
    Mutant(
        'each replica takes the whole truncated batch',
        'privacy/sampling.py',
        'first, end = shard_bounds(len(units), replica, num_replicas)',
        'first, end = 0, len(units)',
        SAMPLING,
    ),
    Mutant(
        'truncated batches are charged as whole ones',
        'privacy/plan.py',
        'self.noise_multiplier, self.sampling_probability, count, self.truncation',
        'self.noise_multiplier, self.sampling_probability, count',
        PLAN,
    ),
    Mutant(
        'the ledger charges truncated batches as whole ones',
        'privacy/ledger.py',
        'if truncation is not None:',
        'if False:',
        TRUNCATION,
    ),
    Mutant(
        'Renyi divergences of whole batches stand for truncated ones',
        'privacy/truncation.py',
        'if is_met == 0.0:',
        'if True:',
        TRUNCATION,
    ),
    Mutant(
        'the privacy loss of whole batches stands for truncated ones',
        'privacy/epsilon_bounds.py',
        'if isinstance(step, TruncatedSteps) and step.probabilities[0]:',
        'if False:',
        TRUNCATION,
    ),
    Mutant(
        'a unit is drawn and kept less often than it is',
        'privacy/truncation.py',
        'stats.binom.sf(bound, num_units, q)',
        'stats.binom.sf(bound + 1, num_units, q)',
        TRUNCATION,
    ),
    Mutant(
        'the bound is met less often than it is',
        'privacy/truncation.py',
        'stats.binom.sf(bound - 1, num_units - 1, q)',
        'stats.binom.sf(bound, num_units - 1, q)',
        TRUNCATION,
    ),
    Mutant(
        'epsilon of truncated batches leaves out the rounding of their probabilities',
        'privacy/epsilon_bounds.py',
        '_pld_epsilon(plain, left, grid) + shift',
        '_pld_epsilon(plain, left, grid)',
        TRUNCATION,
    ),
    Mutant(
        'bounds that are met rarely are forgotten',
        'privacy/epsilon_bounds.py',
        '- rounding - _never_met(plain)',
        '- rounding',
        TRUNCATION,
    ),
    Mutant(
        'truncated batches are claimed for data sets of different sizes',
        'privacy/plan.py',
        'if self.neighboring_relation != relations.REPLACE_WITH_ZERO:',
        'if False:',
        PLAN,
    ),
    Mutant(
        'a run goes on with another bound on its batches',
        'privacy/plan.py',
        'if fields[setting] == unset:',
        'if True:',
        PLAN,
    ),
    Mutant(
        'runs with truncated batches are chosen among',
        'privacy/plan.py',
        'if tuning and config.truncated_batch_size is not None:',
        'if False:',
        PLAN,
    ),
    Mutant(
        'several units of a truncated batch are taken as drawn independently',
        'privacy/meaning.py',
        '_grouped_steps((step,), num_units) if isinstance(step, epsilon_bounds.Steps) else None',
        '_grouped_steps((epsilon_bounds.Steps(*step[:2], step.times),), num_units)',
        MEANING,
    ),
    Mutant(
        'gradient canaries take truncated batches for whole ones',
        'evaluation/gradient_canaries.py',
        'if plan.truncation:',
        'if False:',
        CANARIES,
    ),
    Mutant(
        'truncated batches have no one shape', 'training/finetuning.py', 'if not plan.truncation:', 'if True:', REPLAY
    ),
)


def run_tests(project, tests):
    """Runs tests in a copy of the project; returns the exit code of pytest and the last lines that it printed."""
    arguments = ['-x', '-q', '--no-header', '-p', 'no:cacheprovider', f'tests/{tests}']
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', *arguments],
        cwd=project,
        env={**os.environ, 'PYTHONPATH': str(project), 'TF_CPP_MIN_LOG_LEVEL': '3'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, '\n'.join(result.stdout.splitlines()[-4:])


@pytest.fixture(name='project')
def fixture_project(tmp_path):
    """A copy of the project."""
    for name in ('tf_dpdiff', 'tests', 'gin'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'setup.cfg', tmp_path)
    return tmp_path


def test_each_mutant_names_one_place_of_the_source_and_leaves_a_program():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        source = (ROOT / 'tf_dpdiff' / mutant.file).read_text()
        assert source.count(mutant.before) == 1, mutant.name
        ast.parse(source.replace(mutant.before, mutant.after), mutant.name)
        assert (ROOT / 'tests' / mutant.tests).exists()


@pytest.mark.long(in_share=False)  # bin/test has just run these.
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
