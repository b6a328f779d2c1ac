"""Settings for images that no recipe was made for, by rules from public facts alone.

The facts are the number of units and classes, the size of the images, the budget, the time and the speed of the
machine. Nothing here sees an image, and nothing was fitted to one data set: each rule says where its number comes from.
"""

import dataclasses
import math

import dp_accounting

from tf_dpdiff.networks import scattering
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.runs import forecast as forecast_lib
from tf_dpdiff.training import matching as matching_lib

COUNT_WEIGHT, CENTER = 0.2, 0.5  # Of the noisy means.
# The clip norm of an image beside the root of the number of its pixels and channels, seen from mid-grey. None is longer
# than 0.5 of it. Of public images: photographs and blood cells 0.25 to 0.35, digits 0.4 to 0.5, which lose contrast.
_CLIP_SHARE = 0.3
# The noise that means may have for there to be more of them; means of MNIST are best with as much (gin/mnist_cpu.gin).
_MEAN_NOISE = 0.13
_MOST_MEANS, _ROUNDS = 40, 5
# Of what one Gaussian release of the whole budget would be: the warm start's part where it buys many means, and else.
# MNIST at epsilon 10 and at 1 is so in its own recipes: what tells classes apart comes from the means first.
_WARM_START_SHARES, _MANY_MEANS = (0.3, 0.65), 10
# Where images can be made to match the features of random networks: that release's part, and the part of the means,
# which those images are only begun from. Private steps have the rest.
MATCHING_SHARE, _MEANS_BEFORE_MATCHING_SHARE = 0.45, 0.15
# As many networks as leave so little of `forecast.Forecast.matching_noise`, which hides nothing yet. Fewer than 20 were
# not tried.
_MATCHING_NOISE, _FEWEST_NETWORKS, _MOST_NETWORKS = 0.3, 20, 60
_FEATURES_TIME, _MATCHING_TIME, _MOST_MATCHED = 0.1, 0.2, 10000
# The teacher's part. From 0.02 of `forecast.Forecast.teacher_noise` on, less noise hardly makes it better.
TEACHER_SHARE = 0.15
# Private steps: fewer where time permits no large batches, since a large batch costs less noise than many steps.
_FEWEST_STEPS, _MOST_STEPS = 20, 100
_LARGEST_BATCH, _BATCH_SHARE = 4096, 0.5
_FEWEST_VIEWS, _MOST_VIEWS = 4, 16  # Of a unit, where time permits.
# The learning rate of the recipes for two cores, whose private steps have so much of `forecast.Forecast.gradient_share`
# and more. Below that Adam follows the noise: at 7.6 this rate left confetti, and a tenth of it cells without grain.
_FULL_RATE, _FULL_RATE_SHARE = 3e-3, 30.0
# Parts of the time; the rest is a margin. The warm start comes first: private steps do not teach classes that it has
# not taught. What it does not need is theirs.
_WARM_START_TIME, _TRAINING_TIME, _SAMPLES_TIME = 0.45, 0.65, 0.2
WARM_START_BATCH, EVALUATIONS_PER_SAMPLE = 128, 20
_FEWEST_WARM_START_STEPS, _MOST_WARM_START_STEPS = 200, 3000
_FEWEST_SAMPLES, _MOST_SAMPLES = 500, 20000


@dataclasses.dataclass(frozen=True)
class PublicFacts:
    """What the rules go by; all of it counts as public.

    Attributes:
      num_units: Units to train on.
      num_classes: Classes.
      image_shape: (height, width, channels) as the network sees them.
      epsilon: The budget, > 0.
      delta: In (0, 1).
      hours: That the run may take on this machine, > 0.
      speed: Of this machine.
    """

    num_units: int
    num_classes: int
    image_shape: tuple[int, int, int]
    epsilon: float
    delta: float
    hours: float
    speed: forecast_lib.Speed


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the rules choose.

    Attributes:
      teacher: The private classifier that labels the samples; None: it would be noise.
      matching: The images that match noisy means of features; None: too noisy, or too slow.
      release: The noisy class means.
      warm_start_share: Of one Gaussian release of the whole budget, the part that the means take.
      warm_start_steps: Steps of plain training on variations of the means.
      num_steps: Private steps.
      expected_batch_size: Units expected in each.
      num_views: K, views of each unit.
      num_samples: Samples drawn at the end.
    """

    teacher: teacher_lib.TeacherConfig | None
    matching: matching_lib.MatchingConfig | None
    release: class_means.ClassMeansConfig
    warm_start_share: float
    warm_start_steps: int
    num_steps: int
    expected_batch_size: int
    num_views: int
    num_samples: int


def choose_delta(num_units: int) -> float:
    """Returns the largest delta with one digit that is at most 1 / (10 N).

    Example:
        >>> choose_delta(21445), choose_delta(100000)
        (4e-06, 1e-06)
    """
    exponent = math.floor(math.log10(1.0 / (10.0 * num_units)) + 1e-12)
    digit = math.floor(1.0 / (10.0 * num_units) * 10.0**-exponent + 1e-9)
    return float(f'{digit}e{exponent}')


def choose(facts: PublicFacts) -> Choice:
    """Returns settings for private images of which only public facts are known.

    Raises:
      accounting.BudgetError: if the budget can't be met.
    """
    alone = accounting.calibrate_noise_multiplier(dp_accounting.GaussianDpEvent, facts.epsilon, facts.delta)
    secs, public = 3600.0 * facts.hours, facts.speed.public
    matching, share, release = _warm_start(facts, alone, secs)
    taken = forecast_lib.matching_secs(matching, facts.num_units, facts.image_shape, facts.speed) if matching else 0.0
    affordable = int((secs * _WARM_START_TIME - taken) * public / WARM_START_BATCH)
    warm_start_steps = _round_down(_between(affordable, _FEWEST_WARM_START_STEPS, _MOST_WARM_START_STEPS))
    rest = secs * _TRAINING_TIME - taken - warm_start_steps * WARM_START_BATCH / public
    least = secs * (_TRAINING_TIME - _WARM_START_TIME)
    num_steps, batch_size, num_views = _private_steps(facts, max(rest, least))
    num_samples = int(secs * _SAMPLES_TIME * public / (forecast_lib.FORWARD_SHARE * EVALUATIONS_PER_SAMPLE))
    return Choice(
        _teacher(facts, TEACHER_SHARE / alone**2),
        matching,
        release,
        share,
        warm_start_steps,
        num_steps,
        batch_size,
        num_views,
        _round_down(_between(num_samples, _FEWEST_SAMPLES, _MOST_SAMPLES)),
    )


def choose_learning_rate(gradient_share: float) -> float:
    """Returns the learning rate of the private steps.

    Args:
      gradient_share: What the noise leaves of the gradients; see `forecast.Forecast`.

    Example:
        >>> choose_learning_rate(7.6), choose_learning_rate(130.0)
        (0.00019, 0.003)
    """
    return _round_down(_FULL_RATE * min(1.0, gradient_share / _FULL_RATE_SHARE) ** 2)


def _teacher(facts: PublicFacts, squared_budget: float) -> teacher_lib.TeacherConfig | None:
    """Returns the teacher that a part of the budget buys; None where there is nothing to tell apart, or noise hides it.

    Args: as of `_class_means`.
    """
    if facts.num_classes < 2 or min(facts.image_shape[:2]) < scattering.MIN_IMAGE_SIDE:
        return None
    config = teacher_lib.TeacherConfig(1.0)
    config = dataclasses.replace(config, noise_multiplier=_round_up(math.sqrt(config.num_rounds / squared_budget)))
    noise = forecast_lib.noise_on_teacher(config, facts.num_units, facts.num_classes, facts.image_shape)
    return config if noise <= forecast_lib.HIDDEN_TEACHER else None


def _warm_start(
    facts: PublicFacts, alone: float, secs: float
) -> tuple[matching_lib.MatchingConfig | None, float, class_means.ClassMeansConfig]:
    """Returns what images are made to match, the part of the budget that the noisy means of images take, and them.

    Args:
      facts: What is known.
      alone: The noise multiplier of one Gaussian release of the whole budget.
      secs: Of the run.
    """
    matching = _matching(facts, MATCHING_SHARE / alone**2, secs)
    if matching:
        release = _class_means(facts, _MEANS_BEFORE_MATCHING_SHARE / alone**2)
        # Noise must leave means from which images can be made to match.
        if _noise_on_means(facts, release) <= _MEAN_NOISE:
            return matching, _MEANS_BEFORE_MATCHING_SHARE, release
    for share in _WARM_START_SHARES:
        release = _class_means(facts, share / alone**2)
        if release.means_per_class >= _MANY_MEANS:
            break
    return None, share, release


def _matching(facts: PublicFacts, squared_budget: float, secs: float) -> matching_lib.MatchingConfig | None:
    """Returns what images are made to match; None where noise hides it, or the time is too short for it.

    Args: as of `_class_means`, and the seconds of the run.
    """
    num_pixels = math.prod(facts.image_shape[:2])
    release = feature_means.FeatureMeansConfig(_round_up(1.0 / math.sqrt(squared_budget)), COUNT_WEIGHT)
    of_one = forecast_lib.noise_on_features(
        matching_lib.MatchingConfig(release, 1, num_networks=1), facts.num_units, facts.num_classes, facts.image_shape
    )
    affordable = secs * _FEATURES_TIME * facts.speed.seen_pixels / (facts.num_units * num_pixels)
    num_networks = min(_MOST_NETWORKS, math.floor(min((_MATCHING_NOISE / of_one) ** 2, affordable)))
    config = matching_lib.MatchingConfig(release, 1, num_networks=max(1, num_networks))
    pixel_steps = secs * _MATCHING_TIME * facts.speed.changed_pixels
    num_images = math.floor(pixel_steps / (config.num_steps * num_pixels))
    if num_networks < _FEWEST_NETWORKS or num_images < _FEWEST_SAMPLES:
        return None
    return dataclasses.replace(config, num_images=_round_down(min(num_images, _MOST_MATCHED)))


def _class_means(facts: PublicFacts, squared_budget: float) -> class_means.ClassMeansConfig:
    """Returns the release that spends a part of the budget: several means per class where there is room for them.

    Args:
      facts: What is known.
      squared_budget: The part, as 1 / noise multiplier^2 of one Gaussian release.
    """
    clip = _round_down(_CLIP_SHARE * math.sqrt(math.prod(facts.image_shape)))
    of_one, of_rounds = (_round_up(math.sqrt(rounds / squared_budget)) for rounds in (1, _ROUNDS))

    def release(noise_multiplier, num_means):
        return class_means.ClassMeansConfig(
            noise_multiplier,
            clip,
            num_means,
            1 if num_means == 1 else _ROUNDS,
            count_weight=COUNT_WEIGHT,
            center=CENTER,
            smooth=True,
        )

    noise = _noise_on_means(facts, release(of_rounds, 2))
    num_means = min(_MOST_MEANS, math.floor(2.0 * _MEAN_NOISE / noise))
    return release(of_rounds, num_means) if num_means > 2 else release(of_one, 1)


def _noise_on_means(facts: PublicFacts, release: class_means.ClassMeansConfig) -> float:
    return forecast_lib.noise_on_means(release, facts.num_units, facts.num_classes, relations.REPLACE_WITH_ZERO)


def _private_steps(facts: PublicFacts, secs: float) -> tuple[int, int, int]:
    """Returns the steps, the expected batch size and the views per unit that fit some seconds.

    A larger batch costs less noise than more steps, and more views cost none: the batch comes first, up to half of the
    units, then steps, up to 100, then K, up to 16.
    """
    views = secs * facts.speed.private
    most = max(1, min(_LARGEST_BATCH, math.floor(_BATCH_SHARE * facts.num_units)))
    num_steps = _between(math.floor(views / (most * _FEWEST_VIEWS)), _FEWEST_STEPS, _MOST_STEPS)
    views_a_step = views / num_steps
    batch_size = min(most, _round_down(max(1, math.floor(views_a_step / _FEWEST_VIEWS))))
    num_views = _between(math.floor(views_a_step / batch_size), 1, _MOST_VIEWS)
    return num_steps, batch_size, num_views


def _between(value: int, least: int, most: int) -> int:
    return max(least, min(most, value))


def _round_down(value):
    """Returns a positive number with two digits, not above it."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    rounded = float(f'{math.floor(value / scale + 1e-9) * scale:.2g}')
    return int(rounded) if isinstance(value, int) else rounded


def _round_up(value: float) -> float:
    """Returns a positive number with three digits, not below it."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f'{math.ceil(value / scale - 1e-9) * scale:.3g}')
