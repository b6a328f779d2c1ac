"""The types that networks compute in."""

from tf_dpdiff import keras

COMPUTE_DTYPES = ('float32', 'mixed_bfloat16')


def check(compute_dtype: str) -> None:
    """Refuses a type that a denoising network cannot compute in.

    Raises:
      ValueError: names the type and those there are.
    """
    if compute_dtype == 'mixed_float16':
        raise ValueError(
            "compute_dtype='mixed_float16' needs loss scaling, which would scale gradients before they "
            "are clipped; use 'mixed_bfloat16', which does not."
        )
    if compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(f'compute_dtype must be one of {COMPUTE_DTYPES}, got {compute_dtype!r}.')


def policy(compute_dtype: str) -> keras.mixed_precision.Policy:
    """Returns the policy that is given to each layer, so that the one of the process is neither used nor changed."""
    return keras.mixed_precision.Policy(compute_dtype)
