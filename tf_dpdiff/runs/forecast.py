"""Whether a private run can work, told before it is paid for: two numbers, a verdict in words, and what would help.

Both numbers are of public facts alone: how many units and classes there are, the size of the images, the network, the
budget. Neither says that the samples will be good; below their bounds it is noise that is learnt.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import time

import numpy as np
import tensorflow as tf

from tf_dpdiff import keras
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import scattering
from tf_dpdiff.privacy import cautions
from tf_dpdiff.privacy import class_means
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import relations
from tf_dpdiff.privacy import rounding
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.training import matching as matching_lib

# Standard deviation of the noise on a pixel in [0, 1] of a mean, up to which it hides little of it, and from which
# on it hides the classes. Measured on public images, one mean per class, by which held-out images are told apart
# (the share of them put right, of exact means and of noisy ones):
#   smoothed            exact   0.03   0.1    0.2    0.4    0.8    1.6
#   digits 8x8          0.91    0.91   0.89   0.74   0.32   0.15   0.11
#   MNIST               0.82    0.82   0.80   0.76   0.60   0.24   0.12
#   CIFAR-10            0.28    0.28   0.27   0.26   0.25   0.23   0.19
#   blood cells 32x32   0.63    0.64   0.66   0.64   0.60   0.49   0.45
#   as released
#   digits 8x8          0.91    0.91   0.77   0.36   0.14   0.11   0.11
#   MNIST               0.82    0.82   0.74   0.43   0.15   0.13   0.10
#   CIFAR-10            0.28    0.28   0.27   0.26   0.16   0.10   0.10
#   blood cells 32x32   0.63    0.63   0.60   0.48   0.47   0.47   0.47
_CLEAR_MEAN, _HIDDEN_MEAN = 0.15, 0.5
_CLEAR_UNSMOOTHED_MEAN, _HIDDEN_UNSMOOTHED_MEAN = 0.07, 0.3
# Of `gradient_share`: below the first, private steps learn less than half of what they learn without noise, from the
# second on most of it. Measured by the loss on held-out digits, which is 0.60 before 60 private steps of 350 units and
# 0.47 after them (normalizations and embeddings, 5,640 parameters) or 0.36 (all 40,841); of that gain with noise:
#   gradient_share     72    27    18    6.7   4.5   1.7   1.1   0.4   0.3
#   few parameters     96%         90%         79%         64%         43%
#   all                      95%         88%         79%         65%
# That is how images look in general; what sets classes apart takes more.
HIDDEN_STEPS, CLEAR_STEPS = 0.3, 15.0
# Of `teacher_noise`. Measured by the share of held-out images that a teacher puts right, whose learning rate was chosen
# for the noise:
#   noise                          0.002   0.02    0.04    0.08    0.16
#   digits 8x8, 1,437 images       0.98    0.97    0.95    0.91    0.8
#   MNIST, 8,000 images            0.97    0.97    0.96    0.95    0.89
#   blood cells, 5,000 images      0.88    0.87    0.82    0.74    0.73
_CLEAR_TEACHER, HIDDEN_TEACHER = 0.03, 0.2
# Of `matching_noise`. Measured by the share of held-out clothes that a network puts right which was trained on 510
# images, made to match what 60 networks see in 10,000 (20 networks with 0.17: 0.80):
#   variations of the means   matched, noise 0.1   0.3    0.6
#   0.57                      0.81                 0.80   0.78
CLEAR_FEATURES = 0.6

_MEASURED_VIEWS = 16
_MEASURED_SECS = 2.0
_LARGEST_MEASURED = 20_000_000  # Parameters; a larger network is not tried out on whatever machine plans the run.
# Channels of 32x32 pixels of which two cores compute the scattering features in a second.
_TEACHER_CHANNELS_PER_SEC = 500.0
# Pixels that a random network sees in the time in which one pixel of an image is changed to match.
_SEEN_PER_CHANGED = 3.3
_MEASURED_IMAGES, _MEASURED_CALLS = 64, 3
_START_SECS = 90.0  # Of imports, calibration, tracing, export and report.
# Steps of a warm start of 128 images below which classes are hardly told apart. Seen with 200 and 240 steps (pictures
# of hands and of faces: accuracy of chance), while 400 taught the digits of MNIST (docs/ablations.md).
_SHORT_WARM_START = 400
FORWARD_SHARE = 1.0 / 3.0  # Of the time of forward and backward pass.
# Of the speed of plain passes that private steps reach with several views per unit; see benchmarks/.
_PRIVATE_EFFICIENCY = 0.85


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast this machine computes a network, measured on images of random numbers.

    Attributes:
      public: Views a second of plain training.
      private: Views a second of DP-SGD on the variables that are trained privately.
      changed_pixels: Of images that are changed to match, a second; where it is not measured, about that of two cores.
    """

    public: float
    private: float
    changed_pixels: float = 6e6

    @property
    def seen_pixels(self) -> float:
        """Pixels that a random network sees in a second."""
        return _SEEN_PER_CHANGED * self.changed_pixels


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What the noise leaves of what a run could learn from private images.

    Attributes:
      mean_noise: Standard deviation of the noise on a pixel in [0, 1] of each noisy mean, as released, where all means
        have the same number of images; None: no means are released.
      num_classes: How many classes there are.
      num_means: How many means a class has; 0: none.
      smooth: Whether that noise is then reduced.
      matching_noise: Length of the noise on the mean features of a class that images are made to match, beside the
        length of the features of an image; None: there is no such release.
      warm_start_steps: Steps of plain training on variations of the means, or images that match; 0: none.
      teacher_noise: Length of the noise on the teacher beside the longest that its gradients could be; None: there is
        no teacher.
      gradient_share: The longest that the sum of all clipped gradients of the private steps could be, which takes that
        all of them point the same way, beside the expected length of all their noise; infinite without noise.
      cures: What would help, the cheapest first; empty where nothing is wrong.
    """

    mean_noise: float | None
    num_classes: int
    num_means: int
    smooth: bool
    matching_noise: float | None
    warm_start_steps: int
    teacher_noise: float | None
    gradient_share: float
    cures: tuple[str, ...]

    @property
    def means_hidden(self) -> bool:
        """Whether the noise on the means hides them, so that the warm start would train on noise."""
        limit = _HIDDEN_MEAN if self.smooth else _HIDDEN_UNSMOOTHED_MEAN
        return self.mean_noise is not None and self.mean_noise > limit

    @property
    def means_clear(self) -> bool:
        """Whether the noise on the means hides little of them."""
        limit = _CLEAR_MEAN if self.smooth else _CLEAR_UNSMOOTHED_MEAN
        return self.mean_noise is not None and self.mean_noise <= limit

    @property
    def details_clear(self) -> bool:
        """Whether images are made to match features that the noise hides little of."""
        return self.matching_noise is not None and self.matching_noise <= CLEAR_FEATURES

    @property
    def steps_hidden(self) -> bool:
        """Whether the private steps would learn next to nothing."""
        return self.gradient_share < HIDDEN_STEPS

    @property
    def is_short(self) -> bool:
        """Whether the warm start is too short to teach the classes that the means show."""
        return self.mean_noise is not None and self.warm_start_steps < _SHORT_WARM_START

    @property
    def is_hopeless(self) -> bool:
        """Whether the budget would be spent for noise."""
        return self.means_hidden or (self.mean_noise is None and self.steps_hidden)

    def numbers(self) -> Iterator[tuple[str, str]]:
        """Yields both numbers, each with what it means."""
        if self.mean_noise is not None:
            seen = 'the classes show clearly' if self.means_clear else 'only coarse shapes and colours show'
            seen = 'NOTHING OF A CLASS SHOWS' if self.means_hidden else seen
            yield 'noise on the means', f'{self.mean_noise:.2g} a pixel, on pixels in [0, 1]: {seen}'
        if self.matching_noise is not None:
            seen = 'details of each class show' if self.details_clear else 'IT HIDES THE DETAILS OF EACH CLASS'
            yield 'noise on the features', f'{self.matching_noise:.2g} times their length: {seen}'
        if self.teacher_noise is not None:
            tells = 'it tells classes apart as well as it can'
            if self.teacher_noise > _CLEAR_TEACHER:
                tells = 'it tells classes apart less well than without noise'
            if self.teacher_noise > HIDDEN_TEACHER:
                tells = 'ITS LABELS ARE MOSTLY NOISE'
            yield 'noise on the teacher', f'{self.teacher_noise:.2g} times its gradients: {tells}'
        times = f'the gradients add up to at most {self.gradient_share:.2g} times its length'
        times = 'there is none' if math.isinf(self.gradient_share) else times
        hides = 'it hides little' if self.gradient_share >= CLEAR_STEPS else 'it hides a part of what is learnt'
        hides = 'IT HIDES MOST OF WHAT IS LEARNT' if self.steps_hidden else hides
        yield 'noise on the steps', f'{times}: {hides}'

    def verdict(self) -> str:
        """Returns what to expect, in a sentence or two, and the cheapest cure where something is wrong."""
        cure = f' {self.cures[0]}' if self.cures else ''
        if self.is_hopeless:
            return f'This cannot work: the budget would buy noise.{cure}'
        added = 'detail from the private steps'
        if self.steps_hidden:
            added = 'almost no detail from the private steps'
        elif self.gradient_share < CLEAR_STEPS:
            added = 'some detail and some grain from the private steps'
        if self.mean_noise is None:
            taught = 'to tell the classes apart' if self.num_classes > 1 else 'anything else'
            return f'Expect {added}. Without a warm start they hardly learn {taught}.{cure}'
        shown = 'coarse shapes and colours of each class'
        if self.is_short:
            steps = f'{self.warm_start_steps:,} steps'
            learnt = 'classes that are hardly told apart' if self.num_classes > 1 else 'images that are hardly learnt'
            shown = f'{learnt}, since a warm start of {steps} is too short'
        elif self.details_clear:
            shown = 'shapes, textures and details of each class'
        elif self.means_clear:
            shown = (
                f'{self.num_means} variants of each class'
                if self.num_means > 1
                else 'one blurred average of each class'
            )
        return f'Expect {shown}, and {added}.{cure}'


def forecast(build: build_lib.Build, num_trained: int) -> Forecast:
    """Returns what the noise of a planned run leaves of what it could learn.

    Args:
      build: Of a private run.
      num_trained: Parameters that are trained privately.
    """
    plan, spec = build.plan, build.spec
    assert plan is not None
    release, warm_start = plan.warm_start_release, build.recipe.warm_start
    mean_noise, num_means, smooth = None, 0, False
    if isinstance(release, class_means.ClassMeansConfig):
        mean_noise = noise_on_means(release, spec.num_units, spec.num_classes, plan.config.neighboring_relation)
        num_means, smooth = release.means_per_class, release.smooth
    config = plan.config
    share = gradient_share(plan.noise_multiplier, config.num_steps, config.expected_batch_size, num_trained)
    teacher_noise = None
    if plan.teacher:
        teacher_noise = noise_on_teacher(plan.teacher, spec.num_units, spec.num_classes, spec.image_shape)
    matching_noise = None
    if warm_start and warm_start.matching:
        matching_noise = noise_on_features(
            warm_start.matching, spec.num_units, spec.num_classes, spec.image_shape, plan.config.neighboring_relation
        )
    steps = warm_start.num_steps if warm_start else 0
    told = Forecast(mean_noise, spec.num_classes, num_means, smooth, matching_noise, steps, teacher_noise, share, ())
    return dataclasses.replace(told, cures=tuple(_cures(told, build, num_trained)))


def forecast_of(build: build_lib.Build, model: keras.Model | None = None) -> Forecast:
    """Returns `forecast` of a private run, for the parameters of its network; model: it, where it is there already."""
    finetuning = build.recipe.finetuning
    assert finetuning is not None
    trained = denoiser.select_variables(model or build.make_network(), finetuning.trainable)
    return forecast(build, count_parameters(trained))


def gradient_share(noise_multiplier: float, num_steps: int, expected_batch_size: int, num_trained: int) -> float:
    """Returns the longest that the sum of all clipped gradients could be beside the expected length of all noise.

    The gradients of T steps of B units, clipped to C, add up to T B C at most; T draws of noise in P parameters to
    sqrt(T P) sigma C.
    """
    if not noise_multiplier:
        return math.inf
    return expected_batch_size * math.sqrt(num_steps) / (noise_multiplier * math.sqrt(num_trained))


def noise_on_means(
    release: class_means.ClassMeansConfig, num_units: int, num_classes: int, neighboring_relation: str
) -> float:
    """Returns the standard deviation of the noise on a pixel in [0, 1] of each mean, of classes of the same size."""
    stddev = release.noise_multiplier * release.sensitivity(neighboring_relation) * release.l2_norm_clip
    return stddev * num_classes * release.means_per_class / num_units


def noise_on_features(
    matching: matching_lib.MatchingConfig,
    num_units: int,
    num_classes: int,
    image_shape: tuple[int, int, int],
    neighboring_relation: str = relations.REPLACE_WITH_ZERO,
) -> float:
    """Returns the length of the noise on the mean features of a class beside that of the features of an image."""
    num_features = matching.num_networks * matching_lib.count_features(image_shape)
    return matching.release.noise_on_mean(num_units / num_classes, neighboring_relation) * math.sqrt(num_features)


def matching_secs(
    matching: matching_lib.MatchingConfig, num_units: int, image_shape: tuple[int, int, int], speed: Speed
) -> float:
    """Returns about how many seconds a release of features and the images that match it take."""
    num_pixels = math.prod(image_shape[:2])
    return num_pixels * (
        num_units * matching.num_networks / speed.seen_pixels
        + matching.num_images * matching.num_steps / speed.changed_pixels
    )


def noise_on_teacher(
    teacher: teacher_lib.TeacherConfig, num_units: int, num_classes: int, image_shape: tuple[int, int, int]
) -> float:
    """Returns the length of the noise on a teacher beside the longest that its gradients could be."""
    num_parameters = num_classes * (scattering.Scattering(image_shape).num_features + 1)
    return teacher.noise_share(num_units, num_parameters)


def _cures(told: Forecast, build: build_lib.Build, num_trained: int) -> Iterator[str]:
    """Yields what would help, the cheapest first, where the noise hides something."""
    means = told.mean_noise is not None and not told.means_clear
    if told.is_short:
        yield (
            f'Give the run more time: from {_SHORT_WARM_START:,} steps on a warm start begins to tell classes apart '
            '(WarmStartConfig.num_steps; bin/init by --hours).'
        )
    if not means and told.gradient_share >= CLEAR_STEPS:
        return
    # By which factor there is too much noise; more units and, up to epsilon 10 or so, more epsilon count as much.
    factor = CLEAR_STEPS / told.gradient_share
    if means:
        assert told.mean_noise is not None
        factor = told.mean_noise / (_CLEAR_MEAN if told.smooth else _CLEAR_UNSMOOTHED_MEAN)
        release = build.plan.warm_start_release if build.plan else None
        if isinstance(release, class_means.ClassMeansConfig) and not release.smooth:
            yield 'Smooth the means, which costs nothing: ClassMeansConfig.smooth = True.'
        if min(build.spec.image_shape[:2]) / factor >= 8.0 and factor <= 2.0:
            height, width, _ = build.spec.image_shape
            yield (
                f'Make the images smaller: {math.floor(height / factor)}x{math.floor(width / factor)} pixels in place '
                f'of {height}x{width}.'
            )
    finetuning = build.recipe.finetuning
    if not means and finetuning is not None and not finetuning.trainable:
        yield "Train fewer weights: FinetuningConfig.trainable = ('norm', 'embedding')."
    yield f'Gather about {math.ceil(10.0 * factor) / 10.0:g} times as many units, so that noise hides little.'
    if build.spec.has_owners:
        yield (
            f'One image as the unit in place of {build.spec.unit} would take less noise. But the statement would then '
            'promise little or nothing to anyone with several images.'
        )
    target = build.plan.config.target_epsilon if build.plan else None
    if target is not None and target < cautions.LARGE_EPSILON:
        larger = min(cautions.LARGE_EPSILON, math.ceil(target * factor))
        yield f'Allow a larger epsilon: about {rounding.exact(larger)}.'


def check_can_work(told: Forecast) -> None:
    """Refuses a run that would spend its budget for noise.

    Raises:
      ValueError: says why, and what would help.
    """
    if told.is_hopeless:
        numbers = '; '.join(f'{name}: {meaning}' for name, meaning in told.numbers())
        raise ValueError(f'{told.verdict()} ({numbers}.) Or say --anyway (in Python: anyway=True).')


def count_parameters(variables: Sequence[tf.Variable]) -> int:
    """Returns the total number of values in some variables."""
    return sum(variable.shape.num_elements() for variable in variables)


def measure_speed(model: keras.Model, trainable: tuple[str, ...], *, has_matching: bool = False) -> Speed | None:
    """Returns how fast this machine computes a network; takes some seconds. None: it is too large to be tried out.

    Args:
      model: From `denoiser.build`.
      trainable: As FinetuningConfig has it.
      has_matching: Whether to measure too how fast images are changed to match.
    """
    if model.count_params() > _LARGEST_MEASURED:
        return None
    trained = denoiser.select_variables(model, trainable)
    public = _views_per_second(model, model.trainable_variables)
    private = public
    if len(trained) < len(model.trainable_variables):
        private = _views_per_second(model, trained)
    speed = Speed(public, _PRIVATE_EFFICIENCY * private)
    return dataclasses.replace(speed, changed_pixels=_changed_pixels(model)) if has_matching else speed


def _views_per_second(model: keras.Model, variables) -> float:
    shape = [_MEASURED_VIEWS, *model.inputs[0].shape[1:]]
    numbers = tf.zeros([_MEASURED_VIEWS], tf.int32)
    inputs = [tf.random.stateless_normal(shape, [0, 1]), numbers + 500, numbers, numbers][: len(model.inputs)]

    @tf.function
    def differentiate():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs)))
        return [tf.reduce_sum(gradient) for gradient in tape.gradient(loss, variables)]

    differentiate()  # Traced.
    num_calls, started = 0, time.monotonic()
    while time.monotonic() - started < _MEASURED_SECS or num_calls < 2:
        differentiate()[0].numpy()
        num_calls += 1
    return num_calls * _MEASURED_VIEWS / (time.monotonic() - started)


def _changed_pixels(model: keras.Model) -> float:
    """Returns how many pixels of images of a network's size are changed in a second to match."""
    shape = tuple(model.inputs[0].shape[1:])
    starts = np.random.default_rng(0).integers(0, 256, [1, _MEASURED_IMAGES, *shape], np.uint8)
    features = matching_lib.RandomFeatures(starts[0], 1, seed=0)
    means = feature_means.NoisyFeatureMeans(np.zeros([1, features.num_features]), np.zeros([1]))
    times: list[float] = []
    matching_lib.match(
        features,
        means,
        starts,
        num_steps=_MEASURED_CALLS * matching_lib.STEPS_A_CALL,
        seed=0,
        on_steps=lambda unused_count: times.append(time.monotonic()),
    )
    # Of the first call most is tracing.
    num_steps = (_MEASURED_CALLS - 1) * matching_lib.STEPS_A_CALL
    return num_steps * _MEASURED_IMAGES * math.prod(shape[:2]) / (times[-1] - times[0])


def training_secs(recipe: recipe_lib.Recipe, speed: Speed) -> float:
    """Returns about how many seconds a run takes on one device, samples included, evaluation not."""
    seconds = _START_SECS
    if recipe.privacy and recipe.finetuning:
        units = recipe.privacy.num_steps * recipe.privacy.expected_batch_size
        seconds += units * recipe.finetuning.views.augmentation_multiplicity / speed.private
    for config in (recipe.pretraining, recipe.warm_start):
        if config:
            seconds += config.num_steps * config.batch_size * config.views.augmentation_multiplicity / speed.public
    if recipe.matching and recipe.data:
        seconds += matching_secs(recipe.matching, recipe.data.spec.num_images, recipe.data.spec.image_shape, speed)
    if recipe.teacher and recipe.data:
        spec = recipe.data.spec
        seconds += (spec.num_units + recipe.samples.num_images) * spec.image_shape[-1] / _TEACHER_CHANNELS_PER_SEC
    evaluations = recipe.samples.num_images * recipe.sampler.evaluations_per_image
    return seconds + evaluations * FORWARD_SHARE / speed.public
