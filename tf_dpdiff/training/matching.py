"""Images made so that random networks see in them what one noisy release says that they see in the private ones."""

from collections.abc import Callable, Iterator
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import public_features
from tf_dpdiff.training import released_files
from tf_dpdiff.training import stage as stage_lib

NAME = 'matching'
FILE = 'matching.npz'
_CHANNELS = 32
_MOST_LAYERS, _SMALLEST_SIDE = 3, 3
_LARGEST_SHIFT = 2  # In pixels: networks look at shifted images, so that no grid of theirs is seen in what matches.
_NUM_REFERENCE_IMAGES = 512
_LEAST_SPREAD = 0.1  # Beside that of a typical feature: there are some that hardly vary.
_IMAGES_AT_A_TIME = 64
# Images that are made together, whose average is what matches.
_GROUP = 512
_LEARNING_RATE = 0.02  # Images are in [-1, 1].
# How much more than what all classes have in common counts what tells them apart.
_CONTRAST_WEIGHT = 5.0
STEPS_A_CALL = 20

LabelFn = Callable[[np.ndarray, np.ndarray], np.ndarray]  # From images and the classes they match to labels.


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
    """Images whose features match noisy class means, made of variations of the noisy class means.

    Use it where there are some hundred private images of a class, or more: the mean of a class is blurred, and shows
    nothing of what lies in another place in each image, while features of random networks have means that still tell of
    edges, textures and spots.

    Attributes:
      release: The Gaussian release of the features' class means, charged to the same budget as DP-SGD.
      num_images: Images that are made, >= 1; rounded up to whole groups of the same number of each class.
      num_networks: Random networks, >= 1. Of each the same part of the release tells: with more of them images match in
        more ways, and each of these less surely.
      num_steps: Steps of gradient descent for a group of images, >= 1.
      seed: Public: of the networks, and of the order in which they are asked.

    References: Zhao and Bilen 2023, "Dataset Condensation with Distribution Matching", arXiv:2110.04181 (the loss);
      Harder et al. 2021, DP-MERF, arXiv:2002.11603 (one noisy mean embedding, and a generator that matches it).
    """

    release: feature_means.FeatureMeansConfig
    num_images: int
    num_networks: int = 60
    num_steps: int = 600
    seed: int = 1

    def __post_init__(self):
        stage_lib.check_at_least_one(self, 'num_images', 'num_networks', 'num_steps')


class RandomFeatures(tf.Module):
    """What random convolutional networks see in an image: features that depend on it and on public things alone.

    Each network shifts the image by some pixels and has up to three layers: a convolution with random weights, the
    scale of each channel as it is over the reference images, ReLU, and averages over 2x2 pixels. Its features are the
    mean, standard deviation and largest value of each channel in each layer, and all of what the last layer sees, each
    relative to how it varies among the reference images. They are scaled to length 1 network by network.

    Args:
      reference: uint8 [images, height, width, channels], public, or released: they set the scales.
      num_networks: Random networks.
      seed: Public.

    Attributes:
      num_networks: As given.
      num_features: Of each network.
    """

    def __init__(self, reference: np.ndarray, num_networks: int, seed: int):
        super().__init__()
        generator = np.random.default_rng(seed)
        channels, num_layers = reference.shape[-1], _count_layers(reference.shape[1:])
        kernels = [
            generator.normal(0.0, math.sqrt(2.0 / (9 * number)), [num_networks, 3, 3, number, _CHANNELS])
            for number in [channels, *[_CHANNELS] * (num_layers - 1)]
        ]
        shifts = generator.integers(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, [num_networks, 2])
        images = to_range(tf.constant(reference[:_NUM_REFERENCE_IMAGES]))
        fitted = [
            self._fit(
                images, tf.constant(shifts[number], tf.int32), [tf.constant(k[number], tf.float32) for k in kernels]
            )
            for number in range(num_networks)
        ]
        self.num_networks, self.num_features = num_networks, count_features(reference.shape[1:])
        # Of each network: by how much it shifts, kernels and biases of its layers, center and spread of its features.
        self._networks = tf.nest.map_structure(lambda *of_networks: tf.stack(of_networks), *fitted)

    @tf.function(reduce_retracing=True)
    def _fit(self, images, shift, kernels):
        """Returns a network whose channels and features are on the scale on which they vary among images."""
        scaled, biases, inputs = [], [], tf.roll(images, shift, [1, 2])
        for of_layer in kernels:
            mean, variance = tf.nn.moments(tf.nn.conv2d(inputs, of_layer, 1, 'SAME'), [0, 1, 2])
            scale = tf.math.rsqrt(variance + 1e-3)
            scaled.append(of_layer * scale)
            biases.append(-mean * scale)
            inputs = _apply(inputs, scaled[-1], biases[-1])
        centers, spreads = [], []
        for features in _see(images, shift, scaled, biases):
            center, variance = tf.nn.moments(features, [0])
            least = _LEAST_SPREAD**2 * tf.reduce_mean(variance) + 1e-12
            centers.append(center)
            # So that both parts count alike, however many features there are in each.
            spreads.append(tf.sqrt((variance + least) * tf.cast(tf.shape(features)[1], tf.float32)))
        return shift, scaled, biases, tf.concat(centers, 0), tf.concat(spreads, 0)

    def compute(self, images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """Returns what one network sees in images, float32 [images, features], each of length 1 or 0.

        Args:
          images: float32 [images, height, width, channels] in [-1, 1].
          number: Of the network.
        """
        shift, kernels, biases, center, spread = tf.nest.map_structure(lambda array: array[number], self._networks)
        features = tf.concat(_see(images, shift, kernels, biases), 1)
        return tf.math.l2_normalize((features - center) / spread, axis=-1)

    def _compute_all(self, images_uint8: tf.Tensor) -> tf.Tensor:
        """Returns what all networks see in images, float32 [images, networks * features]; uint8 [images, ...]."""
        images = to_range(images_uint8)
        features = tf.map_fn(
            lambda number: self.compute(images, number),
            tf.range(self.num_networks),
            fn_output_signature=tf.float32,
            parallel_iterations=1,
        )
        return tf.reshape(tf.transpose(features, [1, 0, 2]), [-1, self.num_networks * self.num_features])

    def blocks(self, images_uint8: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the features of any number of images in blocks, float32 [images, networks * features]: PRIVATE.

        All blocks are computed with one size, the last one padded: of another size an image's might be rounded in
        another way.

        Args:
          images_uint8: uint8 [images, height, width, channels].
        """
        return public_features.blocks(self._compute_all, images_uint8, _IMAGES_AT_A_TIME, name=NAME)


def _apply(inputs, kernels, bias):
    """Returns what a layer makes of its inputs."""
    return tf.nn.avg_pool2d(tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(inputs, kernels, 1, 'SAME'), bias)), 2, 2, 'VALID')


def _see(images, shift, kernels, biases):
    """Returns features of the whole image, and of places in it; arguments as in `RandomFeatures._networks`."""
    outputs, of_image = tf.roll(images, shift, [1, 2]), []
    for of_layer, bias in zip(kernels, biases):
        outputs = _apply(outputs, of_layer, bias)
        mean, variance = tf.nn.moments(outputs, [1, 2])
        of_image += [mean, tf.sqrt(variance + 1e-4), tf.reduce_max(outputs, [1, 2])]
    return tf.concat(of_image, 1), tf.reshape(outputs, [tf.shape(images)[0], math.prod(outputs.shape[1:])])


def count_features(image_shape: tuple[int, ...]) -> int:
    """Returns how many features a random network has of an image of (height, width, channels)."""
    num_layers = _count_layers(image_shape)
    places = math.prod(side // 2**num_layers for side in image_shape[:2])
    return _CHANNELS * (3 * num_layers + places)


def _count_layers(image_shape: tuple[int, ...]) -> int:
    sides = [min(image_shape[:2]) // 2 ** (number + 1) for number in range(_MOST_LAYERS)]
    return max(1, sum(side >= _SMALLEST_SIDE for side in sides))


def to_range(images_uint8: tf.Tensor) -> tf.Tensor:
    """Returns images in [-1, 1], float32."""
    return tf.cast(images_uint8, tf.float32) / 127.5 - 1.0


def make_images(
    config: MatchingConfig,
    plan: plan_lib.DpSgdPlan,
    private: datasets.ImageDataset,
    variations: datasets.ImageDataset,
    state: checkpoints.RunState,
    *,
    workdir: pathlib.Path,
    save: stage_lib.Save,
    label_images: LabelFn | None = None,
) -> datasets.ImageDataset:
    """Makes images that match the noisy feature means, which are released once in the life of a run.

    The release is in a file before anything is made from it, and so is each group of images before the next: what a run
    that is interrupted has made is not made again. See `released_files`.

    Args:
      config: The release, and how images are made.
      plan: The privacy plan, which the release is part of.
      private: The private images.
      variations: Of the noisy class means, which the images are made of.
      state: Where the run stands; its ledger holds the release in the end.
      workdir: The run's folder.
      save: Saves where the run stands.
      label_images: Labels the images anew, by what has been released; None: their labels are the classes they match.

    Raises:
      FileNotFoundError: if the ledger holds the release and its file is missing.
      ValueError: if the file is not as it was written.
    """
    path = workdir / FILE
    num_of_class = max(1, _GROUP // private.num_classes)
    num_groups = -(-config.num_images // (num_of_class * private.num_classes))
    shape = (private.num_classes, num_of_class, *private.image_shape)
    sums_shape = (private.num_classes, config.num_networks * count_features(private.image_shape) + 1)
    noisy_sums, made, labels = _read(path, state.run_id, sums_shape, shape)
    if len(made) < num_groups:
        features = RandomFeatures(variations.images_uint8, config.num_networks, config.seed)
    if noisy_sums is None:
        released_files.check_not_released(
            config.release.mechanism, state, f'the noisy feature means of this run are not in {path}'
        )
        noisy_sums = config.release.release(
            features.blocks(private.images_uint8), **released_files.given(plan, private, state)
        )
        _write(path, state.run_id, noisy_sums, made)
    released_files.record_once(plan, config.release, state, save)
    means = config.release.means(noisy_sums, plan.config.neighboring_relation)
    starts = _starts(variations, num_groups, shape)
    total = num_groups * config.num_steps
    with progress.bar(total, NAME, 'step', initial=len(made) * config.num_steps, delay_secs=1.0) as bar:
        for group in range(len(made), num_groups):
            images = match(
                features,
                means,
                starts[group],
                num_steps=config.num_steps,
                seed=[config.seed, group],
                on_steps=bar.update,
            )
            made = np.concatenate([made, images[None]])
            _write(path, state.run_id, noisy_sums, made)
    images, matched = _flatten(made)
    if labels is None and label_images:
        labels = label_images(images, matched)
        _write(path, state.run_id, noisy_sums, made, labels=labels)
    name = 'images that match noisy feature means'
    return datasets.ImageDataset(name, images, matched if labels is None else labels, variations.class_names)


def read_images(workdir: pathlib.Path, run_id: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the images that a run has made, and their labels; None where it has made none.

    Args:
      workdir: The run's folder.
      run_id: Of the run: what another one released is not covered by this one's statement.

    Raises:
      ValueError: if the file is not as it was written.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    with released_files.telling_of_damage(path, ': put it back from a copy.'):
        with np.load(path, allow_pickle=False) as stored:
            if str(stored['run_id']) != run_id:
                return None
            images, matched = _flatten(stored['images'])
            return images, stored['labels'] if 'labels' in stored else matched


def _flatten(made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of groups, [groups, num_classes, images, ...], in one row, and the classes that they match."""
    labels = np.broadcast_to(np.arange(made.shape[1], dtype=np.int32)[:, None], made.shape[:3])
    return made.reshape([-1, *made.shape[3:]]), labels.ravel()


def _starts(variations: datasets.ImageDataset, num_groups: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns what the images are made of, uint8 [groups, *shape]: of each class its variations, again and again."""
    num_classes, number = shape[:2]
    starts = [
        np.resize(variations.images_uint8[variations.labels == label], [num_groups, number, *shape[2:]])
        for label in range(num_classes)
    ]
    return np.stack(starts, axis=1)


def _write(path: pathlib.Path, run_id: str, noisy_sums: np.ndarray, made: np.ndarray, **labels: Any) -> None:
    with released_files.replacing(path) as temporary:
        np.savez(temporary, run_id=run_id, noisy_sums=noisy_sums, images=made, **labels)


def _read(
    path: pathlib.Path, run_id: str, sums_shape: tuple[int, ...], group_shape: tuple[int, ...]
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Returns the noisy sums of a run, its groups of images, and their labels if they were given any others."""
    nothing = None, np.zeros([0, *group_shape], np.uint8), None
    if not path.exists():
        return nothing
    with released_files.telling_of_damage(path, f', and holds a release: {released_files.CURE}'):
        with np.load(path, allow_pickle=False) as stored:
            if str(stored['run_id']) != run_id:
                return nothing
            noisy_sums, made = stored['noisy_sums'], stored['images']
            labels = stored['labels'] if 'labels' in stored else None
        if noisy_sums.shape != sums_shape:
            raise ValueError(f'the sums have the shape {noisy_sums.shape}, not {sums_shape}')
        if made.shape[1:] != group_shape or made.dtype != np.uint8:
            raise ValueError(f'groups of images have the shape {made.shape[1:]}, not {group_shape}')
        if labels is not None and labels.shape != (math.prod(made.shape[:3]),):
            raise ValueError(f'labels have the shape {labels.shape}, for {math.prod(made.shape[:3]):,} images')
        return noisy_sums, made, labels


def match(
    features: RandomFeatures,
    means: feature_means.NoisyFeatureMeans,
    starts: np.ndarray,
    *,
    num_steps: int,
    seed,
    on_steps: Callable[[int], object] = lambda unused_count: None,
) -> np.ndarray:
    """Returns images whose average features are the noisy means of their classes: post-processing, at no further cost.

    Args:
      features: Those that the means are of.
      means: As released. Images of a class without one stay as they are.
      starts: uint8 [num_classes, images, height, width, channels], what the images are made of.
      num_steps: Of gradient descent.
      seed: Public: a number, or several.
      on_steps: Called with the number of steps that were taken since.

    Returns:
      uint8, of the shape of the starts.
    """
    num_classes, number = starts.shape[:2]
    has_mean = tf.constant(np.isfinite(means.noise_variance), tf.float32)[:, None]
    # Of features of length 1 network by network the release has a part each, which together have length 1.
    targets = means.means.reshape([num_classes, features.num_networks, features.num_features])
    targets = tf.constant(targets * math.sqrt(features.num_networks), tf.float32)
    images = tf.Variable(to_range(tf.constant(starts.reshape([-1, *starts.shape[2:]]))))
    first, second = tf.Variable(tf.zeros_like(images)), tf.Variable(tf.zeros_like(images))

    @tf.function
    def take_steps(numbers, learning_rates):
        for index in tf.range(len(numbers)):
            network = numbers[index]
            with tf.GradientTape() as tape:
                seen = tf.reshape(features.compute(images, network), [num_classes, number, features.num_features])
                missing = has_mean * (tf.reduce_mean(seen, 1) - targets[:, network])
                common = tf.reduce_mean(missing, 0, keepdims=True)
                loss = num_classes * tf.reduce_sum(common**2)
                loss += _CONTRAST_WEIGHT * tf.reduce_sum((missing - common) ** 2)
            gradients = tape.gradient(loss, images)
            # Adam, of short memory, without its correction of the first steps.
            first.assign(0.5 * first + 0.5 * gradients)
            second.assign(0.999 * second + 0.001 * gradients**2)
            change = learning_rates[index] * first / (tf.sqrt(second) + 1e-12)
            images.assign(tf.clip_by_value(images - change, -1.0, 1.0))

    order = np.random.default_rng(seed).integers(features.num_networks, size=num_steps).astype(np.int32)
    steps = np.arange(1, num_steps + 1)
    rates = _LEARNING_RATE * (1.0 - (steps - 1) / num_steps) * np.sqrt(1.0 - 0.999**steps)
    for start in range(0, num_steps, STEPS_A_CALL):
        part = slice(start, start + STEPS_A_CALL)
        take_steps(tf.constant(order[part]), tf.constant(rates[part], tf.float32))
        on_steps(len(order[part]))
    made = np.round((images.numpy() + 1.0) * 127.5).astype(np.uint8)
    return made.reshape(starts.shape)
