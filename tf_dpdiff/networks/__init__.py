"""Keras layers and models. Nothing here draws randomness while it runs, or mixes the examples of a batch.

    denoiser          the seam: what a denoising network offers, and all that the other packages know of one
    kinds             which kinds of denoising network there are, and their configurations as JSON
    unet, dit         the kinds, a file each
    layers            their blocks; with adapters (low-rank), convolution, dropout (its seeds are data), precision
    transfer, ema     weights taken from another network, merged with their adapters, averaged over steps
    classifiers, feature_network
                      what judges images

To add a kind of denoising network, write a file with a frozen dataclass that inherits from `denoiser.DenoiserConfig`,
whose `connect` says what the layers are, and name the dataclass in `kinds.CONFIGS`. Then gin knows it, runs record it,
and `tests/networks/denoiser_test.py` asks for an example of it, which it holds to the contract of `connect`.
"""
