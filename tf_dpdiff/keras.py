"""Keras: whoever needs it takes it from here, so that a move to another Keras begins in this file.

It is Keras 2, by the package tf-keras: KerasCV's layers and tensorflow-privacy's optimizers, which ours stand beside,
are made for it. From TensorFlow 2.16 on `tf.keras` is Keras 3, unless TF_USE_LEGACY_KERAS is set before it is first
used, as `import tf_dpdiff` does. Models and layers of the two do not mix.

What Keras 3 would change beside this file:

*   Variables are named by their `path`, not by their `name`: patterns of trainable parameters and checkpoints of runs
    hold names such as 'conv_in/kernel:0' (`networks/denoiser.py`, `networks/transfer.py`,
    `training/public_checkpoint.py`, `privacy/clipping.py`, `privacy/model_check.py`, `runs/source.py`).
*   `apply_gradients(skip_gradients_aggregation=...)` is gone: `training/train_step.py`, `privacy/optimizer.py`, where
    optimizers also keep their state, meet `compile` and `fit`, and are wrapped by LossScaleOptimizer in other ways.
*   `add_weight(experimental_autocast=...)` is called `autocast`: `networks/layers.py`.
*   Models are tracked by `tf.train.Checkpoint` under other names: `training/checkpoints.py`.
"""

import sys

import tensorflow as tf
import tf_keras
from tf_keras import activations
from tf_keras import callbacks
from tf_keras import initializers
from tf_keras import Input
from tf_keras import layers
from tf_keras import losses
from tf_keras import mixed_precision
from tf_keras import Model
from tf_keras import models
from tf_keras import optimizers
from tf_keras import Sequential
from tf_keras import utils

if tf.keras.Model is not tf_keras.Model:
    raise ImportError(
        'tf_dpdiff works with Keras 2, and this program uses tf.keras as Keras 3: import tf_dpdiff '
        'before anything that uses tf.keras, or start the program with TF_USE_LEGACY_KERAS=1.'
    )
# Whoever imported TensorFlow before us would find Keras 3 by this name: KerasCV does, and its layers then fail.
sys.modules['tensorflow.keras'] = tf.keras
