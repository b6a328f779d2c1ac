"""The best of several candidates: images that look like their class, where the network alone does not see to it."""

from collections.abc import Callable

import tensorflow as tf

SampleImages = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def choose_among_candidates(
    sample_images: SampleImages, score_classes: Callable[[tf.Tensor], tf.Tensor], num_candidates: int
) -> SampleImages:
    """Returns a sampler that draws several candidates for an image and returns the one most clearly of its class.

    That is the one with the widest gap between the score of its class and the best score of another one. The candidates
    of seed s have the seeds num_candidates * s + 0, 1, ...; an image still depends on its own label and seed alone. Of
    "no class" the first candidate is taken.

    Args:
      sample_images: Maps labels, int32 [batch], and seeds, int64 [batch], to images, uint8 [batch, height, width,
        channels].
      score_classes: Maps such images to scores, float32 [batch, num_classes], the higher the likelier; for each image
        by itself. What it knows of private images must have been released.
      num_candidates: At least 1.

    Returns:
      A function like sample_images, for num_candidates times the cost.

    References: best-of-N sampling, Stiennon et al. 2020, arXiv:2009.01325; here with a score that was paid for already.
    """

    def sample_best(labels: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:

        def draw(number: tf.Tensor):
            images = sample_images(labels, seeds * num_candidates + number)
            scores = score_classes(images)
            is_own = tf.one_hot(labels, scores.shape[-1], on_value=True, off_value=False)
            own, other = (
                tf.reduce_max(tf.where(mask, scores, scores.dtype.min), axis=-1) for mask in (is_own, ~is_own)
            )
            # Of "no class" no score is its own: the candidates are alike, and the first one is taken.
            return images, tf.where(tf.reduce_any(is_own, axis=-1), own - other, 0.0)

        # One after the other: as much memory as for one.
        images, gaps = tf.map_fn(
            draw,
            tf.range(num_candidates, dtype=tf.int64),
            fn_output_signature=(tf.uint8, tf.float32),
            parallel_iterations=1,
        )
        best = tf.argmax(gaps, axis=0, output_type=tf.int32)
        return tf.gather_nd(images, tf.stack([best, tf.range(tf.size(labels))], axis=1))

    return sample_best
