"""Keras layers and models. Nothing here draws randomness while it runs, or mixes the examples of a batch.

    denoiser          the seam: what a denoising network offers, and all that the other packages know of one
    kinds             which kinds of denoising network there are, and their configurations as JSON
    unet              the kinds, a file each
    layers            blocks of the above; with adapters (low-rank), convolution, dropout (seeds are data), precision
    transfer, ema     weights: of another network, with adapters merged, averaged over steps
    classifiers, feature_network
                      what judges images

To add a kind of denoising network, write one file here with a frozen dataclass that inherits from
`denoiser.DenoiserConfig`, whose `connect` says what the layers are, and name the dataclass in `kinds.CONFIGS`. With that
gin knows it, runs record and resume it, and `tests/networks/denoiser_test.py` asks for a small example, which it holds
to the contract of `connect`.
"""
