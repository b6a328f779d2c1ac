"""The diffusion process that a network is trained for: schedule and parameterization, kept together."""

import dataclasses

from tf_dpdiff.diffusion import parameterization as parameterization_lib
from tf_dpdiff.diffusion import schedules


@dataclasses.dataclass(frozen=True)
class DiffusionProcess:
    """What the network learns; training and sampling must use the same.

    Attributes:
      schedule: How much noise at which timestep.
      parameterization: What the network predicts: 'epsilon', 'v' or 'x_start'.
    """

    schedule: schedules.Schedule = schedules.Schedule()
    parameterization: str = 'v'

    def __post_init__(self):
        parameterization_lib.check(self.parameterization)


def from_json(fields: dict) -> DiffusionProcess:
    """Inverse of dataclasses.asdict for a DiffusionProcess, also after a way through JSON."""
    return DiffusionProcess(**{**fields, 'schedule': schedules.Schedule(**fields['schedule'])})
