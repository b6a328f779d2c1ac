"""Keras: whoever needs it takes it from here, so that a move to another Keras begins in this file.

It is Keras 2, by the package tf-keras: KerasCV's layers and tensorflow-privacy's optimizers, which ours stand beside,
are made for it. From TensorFlow 2.16 on `tf.keras` is Keras 3, unless TF_USE_LEGACY_KERAS is set before it is first
used, as `import tf_dpdiff` does. Models and layers of the two do not mix.

Keras 3 would also change, beside this file:

*   `networks/layers.py`, `networks/adapters.py`: `add_weight(experimental_autocast=...)`.
*   `privacy/optimizer.py`: `apply_gradients(skip_gradients_aggregation=...)`, optimizers' own variables, how `fit` and
    `compile` call an optimizer, `LossScaleOptimizer`.
*   Names of variables ('conv_in/kernel:0'), which patterns of trainable parameters are matched with and checkpoints of
    old runs hold: `variable.path` takes their place.
*   `training/checkpoints.py`: how a model is tracked within `tf.train.Checkpoint`.
"""

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
    raise ImportError('tf_dpdiff works with Keras 2, and this program uses tf.keras as Keras 3: import tf_dpdiff '
                      'before anything that uses tf.keras, or start the program with TF_USE_LEGACY_KERAS=1.')
