"""What the programs of peers' steps share: their flags, what they are given, and how they are checked."""

import argparse
import json

import numpy as np

from benchmarks import measuring

NOISE_MULTIPLIER = 2.0
LEARNING_RATE = 1e-3


class Given:
    """What reference.py wrote.

    Attributes:
      config: The network's configuration, as `kinds.to_json` writes it.
      image_shape: (height, width, channels).
      parameters: How many the network has.
      signal_rates: float32 [timesteps].
      noise_rates: float32 [timesteps].
      l2_norm_clip: To clip to.
      weights: Arrays by the names of the Keras variables.
      views: Arrays [units, K, ...] to check with, by name.
      prediction: [views, ...], what the network says of them.
      clipped_sum: As the weights: the sum over units of clipped gradients.
      mean: As the weights: the gradient of plain training.
    """

    def __init__(self, path):
        with np.load(path) as arrays:
            description = json.loads(str(arrays['description']))
            self.config, self.image_shape = description['config'], tuple(description['image_shape'])
            self.parameters = description['parameters']
            alphas_cumprod = arrays['alphas_cumprod']
            self.l2_norm_clip, self.prediction = float(arrays['l2_norm_clip']), arrays['prediction']
            groups = {'weights': {}, 'views': {}, 'clipped_sum': {}, 'mean': {}}
            for key in arrays.files:
                group, _, name = key.partition('/')
                if name:
                    groups[group][name] = arrays[key]
        self.signal_rates = np.sqrt(alphas_cumprod).astype(np.float32)
        self.noise_rates = np.sqrt(1.0 - alphas_cumprod).astype(np.float32)
        self.weights, self.views = groups['weights'], groups['views']
        self.clipped_sum, self.mean = groups['clipped_sum'], groups['mean']

    def draw_images(self, units):
        """Returns images uint8 [units, height, width, channels] and labels int32 [units]."""
        generator = np.random.default_rng(0)
        return (
            generator.integers(0, 256, [units, *self.image_shape]).astype(np.uint8),
            generator.integers(0, 10, units).astype(np.int32),
        )


def run(description, engines):
    """Serves the step of an engine, or checks it, as the flags say.

    Args:
      description: Of the program.
      engines: Classes by name. Made of (given, units, views, units_per_chunk, noise_multiplier); with `parameters`,
        `is_private`, `step()`, `predict(x_t, t, labels)` and `gradient(views)`, which returns arrays by the names of
        the Keras variables: without noise, the sum of clipped gradients where it is private and else their mean.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('engine', choices=engines)
    parser.add_argument('--reference', required=True, help='what reference.py wrote')
    parser.add_argument('--units', type=int, required=True)
    parser.add_argument('--views', type=int, required=True)
    parser.add_argument('--units_per_chunk', type=int, required=True)
    parser.add_argument('--check', action='store_true', help='compare with ours; measure nothing')
    flags = parser.parse_args()
    given = Given(flags.reference)
    if flags.check:
        measuring.serve(lambda: None, differences=_check(given, engines[flags.engine]))
        return
    engine = engines[flags.engine](given, flags.units, flags.views, flags.units_per_chunk, NOISE_MULTIPLIER)
    measuring.serve(engine.step)


def _check(given, engine_class):
    """Returns how far predictions and gradients are from ours, as shares of ours (L2 norms)."""
    units, num_views = given.views['t'].shape
    engine = engine_class(given, units, num_views, max(1, units // 2), 0.0)
    if engine.parameters != given.parameters:
        raise ValueError(f'the network has {engine.parameters} parameters, ours {given.parameters}')
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in given.views.items()}
    prediction = engine.predict(flat['x_t'], flat['t'], flat['labels'])
    ours, theirs = given.clipped_sum if engine.is_private else given.mean, engine.gradient(given.views)
    return {
        'prediction': _difference([prediction], [given.prediction]),
        'gradient': _difference([theirs[name] for name in ours], ours.values()),
    }


def _difference(theirs, ours):
    theirs, ours = (
        np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays]) for arrays in (theirs, ours)
    )
    return float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
