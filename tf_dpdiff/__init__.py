"""Differentially private diffusion models in TensorFlow.

Turns a private image data set into a generator with a proven (epsilon, delta) guarantee, after "Differentially Private
Diffusion Models Generate Useful Synthetic Images" (Ghalebikesabi et al. 2023, arXiv:2302.13861).

What this package promises is `__all__`, listed in __init__.pyi. Each name is imported when it is first used, so that
importing the package does not import TensorFlow.
"""

import os

import lazy_loader

# Read when TensorFlow's Keras is first used; see keras.py.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
# Read when TensorFlow is loaded, which by itself uses oneDNN on processors with AVX-512 VNNI alone, and slower kernels
# on others.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
