"""Replays of a program's private steps on data sets that differ in one unit, with the same noise and from the same
weights: all that differs in what is released is the unit's contribution.

python -m tests.privacy.replay OUTPUT.npz CASE ... replays on two devices.
"""

import sys

import numpy as np

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.evaluation import gradient_canaries
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import views as views_lib

NUM_UNITS, NUM_STEPS, CLIP_NORM, NOISE_MULTIPLIER = 9, 4, 1e-3, 2.0
NETWORK = unet.UNetConfig(base_channels=8, groups=2)
# What is replayed on two devices.
CASES = {
    **{clipping: {'clipping': clipping} for clipping in plan_lib.CLIPPINGS},
    'truncated': {'truncated_batch_size': 6},
}


class _Present:
    """A data set of which some units are null records: who is there can change between the steps of one program."""

    def __init__(self, images_per_unit):
        generator = np.random.default_rng(0)
        owners = np.repeat(np.arange(NUM_UNITS), images_per_unit)
        self._images = generator.integers(0, 256, [len(owners), 4, 4, 1]).astype(np.uint8)
        self._owners = owners
        self.set(np.ones([NUM_UNITS], bool))

    def set(self, present):
        # Of nobody there is one image left, whose owner is beyond all units that are sampled.
        kept = np.flatnonzero(present[self._owners])
        rows, owners = (kept, self._owners[kept]) if len(kept) else (np.array([0]), np.array([NUM_UNITS]))
        self._now = datasets.ImageDataset(
            'toy',
            self._images[rows],
            (rows % 2).astype(np.int32),
            ('a', 'b'),
            unit='one owner',
            owners=owners,
            num_owners=NUM_UNITS + 1,
        )

    def __getattr__(self, name):
        return getattr(self._now, name)


class Steps:
    """The private stage of a run, step by step.

    Args:
      clipping: Of the plan.
      images_per_unit: That each owner has.
      replicas: What computes the steps.
      truncated_batch_size: Of the plan.
    """

    def __init__(
        self, clipping='flat', images_per_unit=1, replicas=strategies.ONE, num_views=2, truncated_batch_size=None
    ):
        keras.utils.set_random_seed(1)
        with replicas.scope():
            self._model, average = (denoiser.build(NETWORK, (4, 4, 1), 2) for _ in range(2))
        for model in (self._model, average):  # Layers that begin at zero hide gradients.
            generator = np.random.default_rng(0)
            model.set_weights([w + 0.2 * generator.standard_normal(w.shape) for w in model.get_weights()])
        config = plan_lib.DpSgdConfig(
            target_delta=1e-3,
            expected_batch_size=6,
            num_steps=NUM_STEPS,
            l2_norm_clip=CLIP_NORM,
            noise_multiplier=NOISE_MULTIPLIER,
            clipping=clipping,
            truncated_batch_size=truncated_batch_size,
        )
        self._plan, self._data = plan_lib.make_plan(config, NUM_UNITS), _Present(images_per_unit)
        self._state = checkpoints.RunState(seeds.PrivateSeed(bytes(range(32))))
        finetuning = finetuning_lib.FinetuningConfig(
            gradient_canaries.Listening(learning_rate=0.01),
            views_lib.ViewsConfig(augmentation_multiplicity=num_views),
            units_per_chunk=2,
        )

        def make_view_maker(views):
            return views_lib.make_view_maker(process_lib.DiffusionProcess(), views, NETWORK, 2)

        with replicas.scope():
            training = stage_lib.Training(self._model, average, make_view_maker, replicas)
            self._stage = finetuning_lib.make_stage(finetuning, training, self._plan, self._data, self._state)
        self._start = self._model.get_weights()

    def released(self, present):
        """Returns what the steps release to their optimizer, float64 [steps, parameters], each from the same weights.

        Args:
          present: bool [units], who is no null record.
        """
        self._data.set(np.asarray(present))
        self._state.ledger = ledger_lib.Ledger()
        sums = []
        for step in range(NUM_STEPS):
            self._model.set_weights(self._start)
            self._stage.run_step(step)
            sums.append(np.concatenate([np.ravel(kept.numpy()) for kept in self._stage.optimizer.heard]))
        return self._plan.config.expected_batch_size * np.array(sums, np.float64)

    @property
    def charged(self):
        """The release that the ledger charges the steps as."""
        (release,) = self._state.ledger.releases
        return release

    def drawn(self):
        """Returns the units of each step."""
        seed = self._state.private_seed.derive('sampling')
        return [self._plan.sampler.sample(NUM_UNITS, seed=seed, step=step) for step in range(NUM_STEPS)]


def replay(steps):
    """Returns what the steps of a program show.

    Returns:
      The noise of each step, float64 [steps, parameters]: what is released of null records alone; the largest
      contribution of each unit, [units], in L2 norm; and the noise multiplier that is charged.
    """
    noise, whole = steps.released(np.zeros([NUM_UNITS], bool)), steps.released(np.ones([NUM_UNITS], bool))
    contributions = [
        np.linalg.norm(whole - steps.released(np.arange(NUM_UNITS) != unit), axis=1).max() for unit in range(NUM_UNITS)
    ]
    return noise, np.array(contributions), steps.charged.noise_multiplier


def main(output, *names):
    replicas = strategies.start(strategies.StrategyConfig(strategies.MIRRORED, logical_cpus=2))
    found = {}
    for name in names:
        noise, contributions, charged = replay(Steps(**CASES[name], replicas=replicas))
        found |= {f'noise {name}': noise, f'contributions {name}': contributions, 'charged': charged}
    np.savez(output, num_replicas=replicas.count, **found)


if __name__ == '__main__':
    from tests import conftest

    denoiser.build = conftest.build_small_network
    main(*sys.argv[1:])
