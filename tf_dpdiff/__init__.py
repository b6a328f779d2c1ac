"""Differentially private diffusion models in TensorFlow.

Turns a private image data set into a generator with a proven (epsilon, delta) guarantee, after "Differentially Private
Diffusion Models Generate Useful Synthetic Images" (Ghalebikesabi et al. 2023, arXiv:2302.13861).
"""

import os

# Read when TensorFlow's Keras is first used; see keras.py.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')

from tf_dpdiff.version import __version__
