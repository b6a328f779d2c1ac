"""Keras layers and models: layers, unet, ema. Nothing here draws randomness or mixes the examples of a batch."""
