"""The kinds of denoising network that there are, and how a configuration of any of them is written to a file."""

import dataclasses
from typing import Any

from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import dit
from tf_dpdiff.networks import unet

CONFIGS: tuple[type[denoiser.DenoiserConfig], ...] = (unet.UNetConfig, dit.DiTConfig)

# A file that names no kind describes one of these: there was no other once.
_UNNAMED = unet.UNetConfig.kind


def to_json(config: denoiser.DenoiserConfig) -> dict[str, Any]:
    """Returns the fields of a configuration as JSON values, with its kind unless it is a UNet."""
    fields = dataclasses.asdict(config)
    return fields if config.kind == _UNNAMED else {'kind': config.kind, **fields}


def from_json(fields: dict[str, Any]) -> denoiser.DenoiserConfig:
    """Returns the configuration that `to_json` wrote, also after a way through JSON, where tuples become lists.

    Raises:
      ValueError: for a kind that there is not, or a value that the configuration refuses.
      TypeError: for a field that its kind has not.

    Example:
        >>> from_json({'base_channels': 16, 'channel_multipliers': [1, 2]}).channel_multipliers
        (1, 2)
    """
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    kind = fields.pop('kind', _UNNAMED)
    by_kind = {config.kind: config for config in CONFIGS}
    if kind not in by_kind:
        raise ValueError(f'there is no network of kind {kind!r}: there are {", ".join(by_kind)}.')
    return by_kind[kind](**fields)
