"""Configurations of a network and its process read back from JSON, where tuples have become lists."""

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import unet


def network_from_json(fields: dict) -> unet.UNetConfig:
    """Inverse of dataclasses.asdict for a UNetConfig, also after a way through JSON."""
    return unet.UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def process_from_json(fields: dict) -> process_lib.DiffusionProcess:
    """Inverse of dataclasses.asdict for a DiffusionProcess, also after a way through JSON."""
    return process_lib.DiffusionProcess(**{**fields, 'schedule': schedules.Schedule(**fields['schedule'])})
