"""The only place where sampler, clipper, noise and accountant are put together."""

from collections.abc import Callable
import dataclasses
import math

import dp_accounting

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import accuracy_release
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import clipping
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import sampling
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.privacy import truncation as truncation_lib

SAMPLINGS = ('poisson', 'shuffled_batches')
CLIPPINGS = ('flat', 'per_layer', 'normalized')

# Settings that came later, and what was done before there were such choices: runs that were begun then go on.
_ADDED_SETTINGS: dict[str, bool | None] = {'accept_large_delta': False, 'truncated_batch_size': None}
_ADDED_TO_RELEASES: dict[str, dict[str, float | bool]] = {
    class_means.ClassMeansConfig.mechanism: {'center': 0.0, 'smooth': False},
    feature_means.FeatureMeansConfig.mechanism: {'count_weight': feature_means.EQUAL_COUNT_WEIGHT},
}

# What may come before the first step, paid from the same budget.
WarmStartRelease = class_means.ClassMeansConfig | feature_means.FeatureMeansConfig
OtherRelease = WarmStartRelease | teacher_lib.TeacherConfig


@dataclasses.dataclass(frozen=True)
class DpSgdConfig:
    """The choices of a person about the private part of a run.

    Attributes:
      target_delta: In (0, 1), and below 1 / number of units unless accept_large_delta.
      expected_batch_size: Units per step on average, >= 1. The sampling probability is this divided by the number of
        units, and the noisy sum is divided by it.
      num_steps: Private steps, >= 1.
      l2_norm_clip: The bound C of each unit's gradient, in [1e-10, 1e10], where float32 carries it.
      target_epsilon: > 0. The noise multiplier is calibrated to it where none is given, and the plan is refused where
        the given one does not meet it. None only together with a noise_multiplier.
      noise_multiplier: Ratio of the noise's standard deviation to the sensitivity, >= 0 (0 trains without a guarantee).
      neighboring_relation: Which data sets the claim compares: 'replace_with_zero' (one unit replaced with a null
        record, at a public number of units) or 'add_or_remove_one'; see `relations`. Both cost the same.
      sampling: 'poisson', or 'shuffled_batches', which trains but claims no epsilon.
      clipping: 'flat' (the whole gradient to l2_norm_clip), 'per_layer' (each layer's to an equal part of it) or
        'normalized' (the whole gradient to nearly l2_norm_clip, also a shorter one); the sensitivity is the same.
      noise_generator: 'philox' or 'shake256'; see `noise.GaussianNoise`.
      truncated_batch_size: The most units of a step, at least expected_batch_size: where more are drawn, a uniformly
        random subset of that size is kept, so that steps have one shape (see `truncation`). The number of units counts
        as public. For sampling='poisson' and neighboring_relation='replace_with_zero', and no choice among runs. Five
        standard deviations (of about the root of expected_batch_size) above the expected number, it costs next to
        nothing. None: no bound.
      accept_large_delta: Accepts a target_delta of 1 / number of units or more: with probability up to delta anything
        may be released, which over N units may mean whole images of about delta * N people. The statement says so.
    """

    target_delta: float
    expected_batch_size: int
    num_steps: int
    l2_norm_clip: float
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    neighboring_relation: str = relations.REPLACE_WITH_ZERO
    sampling: str = 'poisson'
    clipping: str = 'flat'
    noise_generator: str = 'philox'
    accept_large_delta: bool = False
    truncated_batch_size: int | None = None

    def __post_init__(self):
        if not 0.0 < self.target_delta < 1.0:
            raise ValueError(f'target_delta must be in (0, 1), got {self.target_delta}.')
        for name in ('expected_batch_size', 'num_steps'):
            value = getattr(self, name)
            if int(value) != value or value < 1:
                raise ValueError(f'{name} must be a whole number of at least 1, got {value}.')
        clipping.check_norm(self.l2_norm_clip)
        if self.target_epsilon is None and self.noise_multiplier is None:
            raise ValueError('one of target_epsilon and noise_multiplier must be given.')
        if self.target_epsilon is not None and not 0.0 < self.target_epsilon < float('inf'):
            raise ValueError(f'target_epsilon must be finite and > 0, got {self.target_epsilon}.')
        if self.noise_multiplier is not None and not 0.0 <= self.noise_multiplier < float('inf'):
            raise ValueError(f'noise_multiplier must be finite and at least 0, got {self.noise_multiplier}.')
        relations.check_accounted(self.neighboring_relation)
        if self.sampling not in SAMPLINGS:
            raise ValueError(f'sampling must be one of {SAMPLINGS}, got {self.sampling!r}.')
        if self.clipping not in CLIPPINGS:
            raise ValueError(f'clipping must be one of {CLIPPINGS}, got {self.clipping!r}.')
        noise.check_generator(self.noise_generator)
        if self.truncated_batch_size is not None:
            self._check_truncation(self.truncated_batch_size)

    def _check_truncation(self, bound: int) -> None:
        if int(bound) != bound or bound < self.expected_batch_size:
            raise ValueError(
                'truncated_batch_size must be None or a whole number of at least '
                f'expected_batch_size={self.expected_batch_size}, got {bound}.'
            )
        if self.sampling != 'poisson':
            raise ValueError(
                f"truncated_batch_size={bound} goes with sampling='poisson' alone, got {self.sampling!r}, whose "
                'batches have one size: leave it out.'
            )
        if self.neighboring_relation != relations.REPLACE_WITH_ZERO:
            raise ValueError(
                f'truncated_batch_size={bound} is accounted for under neighboring_relation='
                f'{relations.REPLACE_WITH_ZERO!r} alone, got {self.neighboring_relation!r}: what it costs depends on '
                'the number of units, which must be the same in both data sets.'
            )


@dataclasses.dataclass(frozen=True)
class DpSgdPlan:
    """A calibrated run: the parts agree with one another since `make_plan` made them from one config.

    Guarantee: running all of it (num_steps steps and the other releases, where planned) on data sets that differ in
      one unit is (achieved_epsilon, target_delta)-indistinguishable, and achieved_epsilon <= target_epsilon where a
      target is set. Of a run that is chosen among several all of that is said of the choice as a whole.

    Attributes:
      config: What it was made from, with the noise multiplier filled in.
      num_units: Units of the private data set, treated as public.
      sampler: Draws the units of a step.
      clipper: Clips and sums.
      noise: Added once to the sum over all chunks and replicas.
      warm_start_release: The release of the warm start, or None.
      teacher: The release of the teacher, or None.
      matching: The release that images of the warm start are made to match, or None.
      tuning: The choice among runs, of which one is made by this plan; None: the run is released in any case.
    """

    config: DpSgdConfig
    num_units: int
    sampler: sampling.PoissonSampler | sampling.ShuffledBatches
    clipper: clipping.PerUnitClipper
    noise: noise.GaussianNoise
    warm_start_release: WarmStartRelease | None
    teacher: teacher_lib.TeacherConfig | None = None
    matching: feature_means.FeatureMeansConfig | None = None
    tuning: best_of_runs.Tuning | None = None

    @property
    def noise_multiplier(self) -> float:
        """Ratio of the noise's standard deviation to the sensitivity; 0 for no noise."""
        assert self.config.noise_multiplier is not None  # `make_plan` fills it in.
        return self.config.noise_multiplier

    @property
    def truncation(self) -> truncation_lib.Truncation | None:
        """What is kept of the units that are drawn; None: all of them."""
        bound = self.config.truncated_batch_size
        return None if bound is None else truncation_lib.Truncation(self.num_units, int(bound))

    @property
    def sampling_probability(self) -> float | None:
        """The probability of each unit in each step; None where units are not Poisson-sampled."""
        return getattr(self.sampler, 'sampling_probability', None)

    def dp_event(self, num_steps: int | None = None) -> dp_accounting.DpEvent:
        """Returns the event of the whole plan, or of its first num_steps steps where it is no choice among runs."""
        return self.planned_ledger(None if self.tuning else num_steps).dp_event()

    def planned_ledger(self, num_steps: int | None = None) -> ledger_lib.Ledger:
        """Returns the ledger that a run of the plan will end with."""
        count = self.config.num_steps if num_steps is None else num_steps
        planned = ledger_lib.Ledger()
        for release in self.other_releases:
            planned = self.record_release(planned, release)
        return self._record_steps(planned, count)

    @property
    def other_releases(self) -> tuple[OtherRelease, ...]:
        """What a run of the plan releases before its first step, in order."""
        releases = (self.teacher, self.warm_start_release, self.matching)
        return tuple(release for release in releases if release is not None)

    def record_release(self, ledger: ledger_lib.Ledger, release: OtherRelease) -> ledger_lib.Ledger:
        """Returns the ledger with all rounds of one of the other releases.

        Raises:
          ValueError: if it is none of them.
        """
        if release not in self.other_releases:
            raise ValueError(f'{release} is not among the releases of the plan: {self.other_releases}.')
        return self._record(ledger, release.record)

    def record_step(self, ledger: ledger_lib.Ledger) -> ledger_lib.Ledger:
        """Returns the ledger with one more step.

        Raises:
          accounting.BudgetError: if the plan's steps have all been run.
        """
        if ledger.count(ledger_lib.DP_SGD_STEP) >= self.config.num_steps:
            raise accounting.BudgetError(
                f'all {self.config.num_steps} planned steps have been run; one more is refused.'
            )
        return self._record_steps(ledger, 1)

    def _record_steps(self, ledger: ledger_lib.Ledger, count: int) -> ledger_lib.Ledger:
        return self._record(
            ledger,
            lambda of_a_run: of_a_run.record(
                ledger_lib.DP_SGD_STEP, self.noise_multiplier, self.sampling_probability, count, self.truncation
            ),
        )

    def _record(
        self, ledger: ledger_lib.Ledger, record: Callable[[ledger_lib.Ledger], ledger_lib.Ledger]
    ) -> ledger_lib.Ledger:
        """Returns the ledger with what a run releases: a choice among runs is charged for each of them.

        The score of a run is charged together with the first release: it comes last, and whether it does may depend on
        how far the run gets.
        """
        if self.tuning is None:
            return record(ledger)
        of_a_run = ledger.of_each_run(self.tuning.num_runs)
        if not of_a_run.releases and self.tuning.score_noise_multiplier is not None:
            of_a_run = of_a_run.record(accuracy_release.HELD_OUT_ACCURACY, self.tuning.score_noise_multiplier, 1.0)
        of_a_run = record(of_a_run)
        return of_a_run.best_of(self.tuning.num_runs) if of_a_run.releases else ledger

    def epsilon(self, ledger: ledger_lib.Ledger | None = None, **options) -> float:
        """Returns epsilon at target_delta of what is in the ledger, or of the whole plan; infinity: no guarantee.

        Args:
          ledger: What was released; the whole plan where None. Of a choice among runs it is that of the whole plan
            always: how far one run is says nothing of the others.
          **options: `accountant` and `discretization_interval` of `accounting.epsilon`.
        """
        event = (self.planned_ledger() if ledger is None or self.tuning else ledger).dp_event()
        return accounting.epsilon(event, self.config.target_delta, **options)

    def cautions(self, ledger: ledger_lib.Ledger | None = None) -> list[str]:
        """Returns the cautions that the claim needs, for a lay person; arguments as for `epsilon`."""
        return cautions.of_claim(self.epsilon(ledger), self.config.target_delta, self.num_units)

    def fingerprint(self) -> dict:
        """Returns the settings that a resumed run must not change, as plain JSON values."""
        fields = dataclasses.asdict(self.config)
        for setting, unset in _ADDED_SETTINGS.items():
            if fields[setting] == unset:
                del fields[setting]
        fields['num_units'] = self.num_units
        fields['sampling_probability'] = self.sampling_probability
        release = self.warm_start_release
        fields['warm_start_release'] = release and {'mechanism': release.mechanism, **dataclasses.asdict(release)}
        if self.teacher:
            fields['teacher'] = dataclasses.asdict(self.teacher)
        if self.matching:
            fields['matching'] = dataclasses.asdict(self.matching)
        if self.tuning:
            fields['tuning'] = dataclasses.asdict(self.tuning)
        for name, default in _ADDED_TO_RELEASES[release.mechanism].items() if release else ():
            if fields['warm_start_release'][name] == default:
                del fields['warm_start_release'][name]
        return fields


def make_plan(
    config: DpSgdConfig,
    num_units: int,
    warm_start_release: WarmStartRelease | None = None,
    *,
    teacher: teacher_lib.TeacherConfig | None = None,
    matching: feature_means.FeatureMeansConfig | None = None,
    tuning: best_of_runs.Tuning | None = None,
) -> DpSgdPlan:
    """Makes a plan, calibrating the noise where it is not given.

    Args:
      config: What was chosen.
      num_units: Units of the private data set, treated as public, >= 1.
      warm_start_release: Of the warm start, to be paid from the same budget, or None.
      teacher: Of the teacher, to be paid from the same budget, or None.
      matching: What images of the warm start are made to match, to be paid from the same budget, or None.
      tuning: The choice among runs that is paid from the budget as a whole, of which this is a run; None: there is one
        run.

    Raises:
      ValueError: if runs of which nothing is claimed, or with truncated batches, are to be chosen among, if feature
        means are to be released twice, if the batch is larger than the data set, if delta is 1 / num_units or more and
        was not accepted, or if float32 would lose the noise beside the sum.
      accounting.BudgetError: if the target cannot be met, or there is so little noise that no epsilon is known.
    """
    if tuning and (config.sampling != 'poisson' or config.noise_multiplier == 0.0):
        raise ValueError(
            'runs can be chosen among in private only where each has a guarantee: take noise, and '
            f"sampling='poisson', got noise_multiplier={config.noise_multiplier} and sampling={config.sampling!r}."
        )
    if tuning and config.truncated_batch_size is not None:
        raise ValueError(
            'runs can be chosen among in private only where their batches are whole: set truncated_batch_size=None, '
            f'got {config.truncated_batch_size}. A choice is accounted for by Renyi divergences alone.'
        )
    if matching and isinstance(warm_start_release, feature_means.FeatureMeansConfig):
        raise ValueError(
            'a run releases feature means once: leave out either those that choose public images or those that images '
            'are made to match.'
        )
    if config.expected_batch_size > num_units:
        raise ValueError(
            f'expected_batch_size={config.expected_batch_size} is larger than the data set of {num_units} units; '
            f'choose at most {num_units}.'
        )
    cautions.check_delta(
        f'target_delta={rounding.exact(config.target_delta)}',
        config.target_delta,
        num_units,
        accepted=config.accept_large_delta,
    )
    sampler = _make_sampler(config, num_units)
    clipper = clipping.PerUnitClipper(
        config.l2_norm_clip, per_layer=config.clipping == 'per_layer', normalized=config.clipping == 'normalized'
    )

    def plan_with(noise_multiplier: float) -> DpSgdPlan:
        stddev = 0.0
        if noise_multiplier:
            stddev = noise_multiplier * clipper.sensitivity(config.neighboring_relation)
        return DpSgdPlan(
            config=dataclasses.replace(config, noise_multiplier=noise_multiplier),
            num_units=num_units,
            sampler=sampler,
            clipper=clipper,
            noise=noise.GaussianNoise(stddev, config.noise_generator),
            warm_start_release=warm_start_release,
            teacher=teacher,
            matching=matching,
            tuning=tuning,
        )

    if config.noise_multiplier is not None:
        plan = plan_with(config.noise_multiplier)
    elif config.sampling != 'poisson':
        raise ValueError(
            f'sampling={config.sampling!r} has no epsilon to calibrate to: give a noise_multiplier and '
            'target_epsilon=None.'
        )
    else:
        assert config.target_epsilon is not None  # It or a noise multiplier is given.
        plan = plan_with(
            accounting.calibrate_noise_multiplier(
                lambda sigma: plan_with(sigma).dp_event(), config.target_epsilon, config.target_delta
            )
        )
    noise.check_is_not_lost(plan.noise_multiplier, config.expected_batch_size)
    if config.target_epsilon is not None and plan.epsilon() > config.target_epsilon:
        raise accounting.BudgetError(
            f'noise_multiplier={plan.noise_multiplier:g} over {config.num_steps} steps costs '
            f'epsilon={rounding.round_up(plan.epsilon())} at delta={rounding.exact(config.target_delta)}, more '
            f'than target_epsilon={rounding.exact(config.target_epsilon)}. Give more noise or fewer steps, leave '
            'noise_multiplier out to have it calibrated, or set target_epsilon=None to claim no target.'
        )
    if plan.noise_multiplier and config.sampling == 'poisson' and math.isinf(plan.epsilon()):
        raise accounting.BudgetError(
            f'no epsilon is known for a noise multiplier below {epsilon_bounds.SMALLEST_NOISE_MULTIPLIER}, of the '
            'steps or of what comes before them: it would hide nothing. Take more noise, or noise_multiplier=0 for no '
            'claim.'
        )
    return plan


def _make_sampler(config: DpSgdConfig, num_units: int) -> sampling.PoissonSampler | sampling.ShuffledBatches:
    if config.sampling != 'poisson':
        return sampling.ShuffledBatches(config.expected_batch_size)
    probability = config.expected_batch_size / num_units
    if config.truncated_batch_size is not None:
        return sampling.TruncatedPoissonSampler(probability, int(config.truncated_batch_size))
    return sampling.PoissonSampler(probability)
