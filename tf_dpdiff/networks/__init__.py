"""Keras layers and models: layers, adapters, dropout, unet, transfer, ema.

Nothing here draws randomness while it runs (dropout gets its seeds as data) or mixes the examples of a batch.
"""
