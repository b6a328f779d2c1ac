"""Noise schedules: alphas_cumprod as a function of the timestep."""

import dataclasses

import numpy as np

SCHEDULES = ('linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete variance-preserving noise schedule.

    q(x_t | x_start) = N(sqrt(alphas_cumprod[t]) x_start, (1 - alphas_cumprod[t]) I), for t = 0 (least noise) to
    num_timesteps - 1.

    Attributes:
      name: 'linear' (Ho et al. 2020) or 'cosine' (Nichol and Dhariwal 2021; better on small images).
      num_timesteps: T, at least 2.

    Example:
        >>> Schedule('linear').alphas_cumprod.shape
        (1000,)

    References: Ho et al. 2020, arXiv:2006.11239, section 4; Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17.
    """

    name: str = 'cosine'
    num_timesteps: int = 1000

    def __post_init__(self):
        if self.name not in SCHEDULES:
            raise ValueError(f'the name of a schedule must be one of {SCHEDULES}, got {self.name!r}.')
        if self.num_timesteps < 2:
            raise ValueError(f'num_timesteps must be at least 2, got {self.num_timesteps}.')

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """The share of the signal's variance that is left at each timestep, float64 [num_timesteps], decreasing in (0,
        1)."""
        if self.name == 'linear':
            # The paper's betas for T = 1000, kept at the same total for another T.
            scale = 1000.0 / self.num_timesteps
            return np.cumprod(1.0 - np.minimum(np.linspace(1e-4 * scale, 0.02 * scale, self.num_timesteps), 0.999))
        offset = 0.008
        positions = (np.arange(self.num_timesteps + 1) / self.num_timesteps + offset) / (1.0 + offset)
        f = np.cos(positions * np.pi / 2.0) ** 2
        betas = np.minimum(1.0 - f[1:] / f[:-1], 0.999)
        return np.cumprod(1.0 - betas)

    @property
    def sigmas(self) -> np.ndarray:
        """Noise over signal at each timestep, sqrt((1 - alphas_cumprod) / alphas_cumprod), float64 [num_timesteps]: the
        sigma of Karras et al. 2022 (arXiv:2206.00364)."""
        alphas_cumprod = self.alphas_cumprod
        return np.sqrt((1.0 - alphas_cumprod) / alphas_cumprod)
