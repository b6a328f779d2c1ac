"""The configuration of a diffusion process read back from JSON."""

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import schedules


def process_from_json(fields: dict) -> process_lib.DiffusionProcess:
    """Inverse of dataclasses.asdict for a DiffusionProcess, also after a way through JSON."""
    return process_lib.DiffusionProcess(**{**fields, 'schedule': schedules.Schedule(**fields['schedule'])})
