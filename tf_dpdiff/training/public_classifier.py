"""A classifier of public images, which gives an image features by which private and public ones are compared."""

import dataclasses

import numpy as np
import tensorflow as tf

from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.networks import classifiers

_IMAGES_AT_A_TIME = 256
# Probabilities below it are told apart no more.
_SMALLEST_PROBABILITY = 1e-4
# Of the mean variance, added to that of each direction: there are some in which public images hardly vary.
_RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class PublicClassifierConfig:
    """How the classifier is trained, on public images alone.

    Attributes:
      num_epochs: How often each public image is seen, >= 1.
      batch_size: Images a step, >= 1.
      learning_rate: Of Adam, > 0; it falls to 0 along half a cosine.
      seed: Public.
    """
    num_epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 2

    def __post_init__(self):
        for name in ('num_epochs', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of the public classifier must be at least 1, got {getattr(self, name)}.')
        if not self.learning_rate > 0.0:
            raise ValueError(f'learning_rate of the public classifier must be > 0, got {self.learning_rate}.')


def train(config: PublicClassifierConfig, public: datasets.ImageDataset) -> tf.keras.Model:
    """Trains a small network to name the class of public images.

    Args:
      config: How.
      public: Labelled public images, at least one of each class.

    Returns:
      A model from images, uint8 [batch, height, width, channels], to logits, float32 [batch, classes].
    """
    model = classifiers.small_cnn(public.image_shape, public.num_classes, seed=config.seed)
    batches = _MirroredBatches(config, public)
    rate = tf.keras.optimizers.schedules.CosineDecay(config.learning_rate, config.num_epochs * len(batches))
    model.compile(tf.keras.optimizers.Adam(rate), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with progress.bar(config.num_epochs * len(batches), 'classifier', 'step') as bar:
        # Keras would shuffle the batches by a global seed.
        model.fit(batches,
                  epochs=config.num_epochs,
                  shuffle=False,
                  verbose=0,
                  callbacks=[tf.keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: bar.update())])
    return model


class PublicFeatures:
    """What a classifier of public images says of an image: features that depend on that image and on public ones alone.

    They are the logarithms of the probabilities of the public classes, of which the mean over the public images is
    subtracted, in coordinates in which these vary alike in all directions (whitened): a distance then does not count
    what all images have in common, or what two public classes say twice.

    The network does not mix the images of a batch where it does not learn, and all batches have one size, the last one
    padded: were there sizes that follow from the number of images, each would be computed in its own way, and round in
    its own way.

    Args:
      model: From images to logits, see `train`.
      public: The images that it was trained on.

    Attributes:
      of_public: float32 [public images, classes], the features of the public images.
    """

    def __init__(self, model: tf.keras.Model, public: datasets.ImageDataset):
        num_features = model.outputs[0].shape[-1]
        self._model = model
        self._mean = tf.Variable(tf.zeros([num_features]), trainable=False)
        self._whiten = tf.Variable(tf.eye(num_features), trainable=False)
        self._of_batch = tf.function(
            self._compute, input_signature=[tf.TensorSpec([_IMAGES_AT_A_TIME, *public.image_shape], tf.uint8)])
        unwhitened = self(public.images_uint8).astype(np.float64)
        mean = np.mean(unwhitened, axis=0)
        covariance = (unwhitened - mean).T @ (unwhitened - mean) / len(unwhitened)
        variances, axes = np.linalg.eigh(covariance +
                                         _RIDGE * np.trace(covariance) / num_features * np.eye(num_features))
        self._mean.assign(mean)
        self._whiten.assign(axes / np.sqrt(variances))
        self.of_public = self(public.images_uint8)

    def _compute(self, batch):
        probabilities = tf.nn.softmax(self._model(batch, training=False))
        return (tf.math.log(probabilities + _SMALLEST_PROBABILITY) - self._mean) @ self._whiten

    def __call__(self, images_uint8: np.ndarray) -> np.ndarray:
        """Returns the features of images, float32 [images, classes]: PRIVATE where the images are.

        Args:
          images_uint8: uint8 [images, height, width, channels].
        """
        features = np.zeros([len(images_uint8), self._mean.shape[0]], np.float32)
        for start in range(0, len(images_uint8), _IMAGES_AT_A_TIME):
            part = images_uint8[start:start + _IMAGES_AT_A_TIME]
            padded = np.zeros([_IMAGES_AT_A_TIME, *part.shape[1:]], np.uint8)
            padded[:len(part)] = part
            features[start:start + len(part)] = self._of_batch(tf.constant(padded)).numpy()[:len(part)]
        return features


class _MirroredBatches(tf.keras.utils.Sequence):
    """Batches of public images in an order drawn anew for each epoch, half of the images mirrored left to right."""

    def __init__(self, config: PublicClassifierConfig, public: datasets.ImageDataset):
        self._public, self._batch_size = public, min(config.batch_size, len(public))
        self._generator = np.random.default_rng(config.seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self._public) // self._batch_size

    def __getitem__(self, number: int):
        rows = self._order[number * self._batch_size:(number + 1) * self._batch_size]
        images = self._public.images_uint8[rows]
        mirrored = self._is_mirrored[rows][:, None, None, None]
        return np.where(mirrored, images[:, :, ::-1], images), self._public.labels[rows]

    def on_epoch_end(self) -> None:
        self._order = self._generator.permutation(len(self._public))
        self._is_mirrored = self._generator.random(len(self._public)) < 0.5
