"""What a person asks bin/init for."""

import dataclasses
import math

from tf_dpdiff.data import classes
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting

IMAGE = 'image'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person asks for; see `configure`."""

    epsilon: float = 10.0
    delta: float | None = None
    hours: float = 1.0
    unit: str | None = None
    image_size: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    label_column: str | None = None
    held_out_fraction: float | None = None

    @property
    def unit_word(self) -> str | None:
        """The unit without 'one', or None."""
        word = self.unit.strip().removeprefix('one ').strip() if self.unit else None
        return IMAGE if word and word.casefold() == IMAGE else word

    def __post_init__(self):
        for name in ('epsilon', 'hours'):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f'{name} must be finite and > 0, got {getattr(self, name)}.')
        if self.delta is not None and not 0.0 < self.delta < 1.0:
            raise ValueError(f'delta must be in (0, 1), got {self.delta}.')
        if self.unit is not None:
            classes.check_text('unit', self.unit)
            if not self.unit.strip() or any(map(str.isdigit, self.unit)):
                raise ValueError("unit must be 'image' or a word for who owns images, such as 'patient'.")
        if self.held_out_fraction is not None:
            splitting.check_fraction(self.held_out_fraction)
        if self.image_size is not None and any(side < 4 or side % 2 for side in self.image_size):
            raise ValueError(
                f'image_size must be even numbers of pixels from 4 on, got {"x".join(map(str, self.image_size))}: '
                'networks halve images.'
            )
        images_lib.Fit(window=self.window)  # Refuses what no source takes.
