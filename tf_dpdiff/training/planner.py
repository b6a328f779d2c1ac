"""How long a run takes on given devices, and what of their memory: arithmetic on what is known before it begins."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from tf_dpdiff.training import memory

DEFAULT_UTILIZATION = 0.3
# Left to the allocator, to the libraries and to what the estimate of the activations does not see.
SHARE_OF_MEMORY = 0.9
# While a chunk is added: the sums so far and those of the chunk. While the weights are updated: the sums, what is
# reduced over the devices, the noise, and the sums with noise.
_SUMS_OF_A_CHUNK, _SUMS_OF_AN_UPDATE = 2, 4


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a run shall be planned for.

    Attributes:
      devices: GPUs, TPU replicas or CPUs that compute its steps together, >= 1.
      device_memory_gib: Of each, > 0. None: what is needed is said, and not whether it fits.
      views_per_second: Measured in private training, of one device, > 0; of a run on public images alone, in that.
      public_views_per_second: Measured in pre-training and warm start, > 0. None: the same.
      device_tflops: Peak of a device for the compute type, > 0, as its maker says: in place of a measured rate.
      utilization: With it, the share of the peak that training reaches, in (0, 1]. None: DEFAULT_UTILIZATION.
      scaling_efficiency: Share of the devices' added-up rate that is left after what is not counted here, in (0, 1].
      network_gbps: Gigabits a second that each device sends and receives in an all-reduce, > 0. None: its time is left
        out.
      price_per_device_hour: In any currency, > 0.
    """

    devices: int = 1
    device_memory_gib: float | None = None
    views_per_second: float | None = None
    public_views_per_second: float | None = None
    device_tflops: float | None = None
    utilization: float | None = None
    scaling_efficiency: float = 1.0
    network_gbps: float | None = None
    price_per_device_hour: float | None = None

    def __post_init__(self):
        if self.devices < 1:
            raise ValueError(f'devices must be at least 1, got {self.devices}.')
        for name in (
            'device_memory_gib',
            'views_per_second',
            'public_views_per_second',
            'device_tflops',
            'network_gbps',
            'price_per_device_hour',
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f'{name} must be a number > 0, got {value:g}.')
        for name in ('utilization', 'scaling_efficiency'):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ValueError(f'{name} must be in (0, 1], got {value:g}.')
        self._check_fit_together()

    def _check_fit_together(self):
        if self.views_per_second is not None and self.device_tflops is not None:
            raise ValueError(
                f'views_per_second={self.views_per_second:g} is measured and '
                f'device_tflops={self.device_tflops:g} an estimate in its place: give one of them.'
            )
        for name, other in (('public_views_per_second', 'views_per_second'), ('utilization', 'device_tflops')):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(f'{name}={getattr(self, name):g} means something beside {other} only.')
        for name in ('price_per_device_hour', 'network_gbps'):
            if getattr(self, name) is not None and not self.has_rate:
                raise ValueError(
                    f'{name}={getattr(self, name):g} needs a rate: give views_per_second or device_tflops.'
                )
        if self.devices == 1 and (self.scaling_efficiency < 1.0 or self.network_gbps is not None):
            raise ValueError('scaling_efficiency and network_gbps are for several devices, got devices=1.')

    @property
    def has_rate(self) -> bool:
        """Whether there is something to compute times from."""
        return self.views_per_second is not None or self.device_tflops is not None

    @property
    def is_measured(self) -> bool:
        """Whether the rate was measured."""
        return self.views_per_second is not None


def rate(hardware: Hardware, flops_per_view: float | None, *, is_public: bool) -> float:
    """Returns the views a second of one device.

    Args:
      hardware: With a rate.
      flops_per_view: Of training, see `flops.flops_per_view`; None where the rate was measured.
      is_public: Whether the stage is plain training.
    """
    if hardware.views_per_second is not None:
        of_public = hardware.public_views_per_second if is_public else None
        return hardware.views_per_second if of_public is None else of_public
    assert hardware.device_tflops is not None and flops_per_view is not None
    share = DEFAULT_UTILIZATION if hardware.utilization is None else hardware.utilization
    return hardware.device_tflops * 1e12 * share / flops_per_view


@dataclasses.dataclass(frozen=True)
class StageWork:
    """What a stage computes.

    Attributes:
      name: Of the stage.
      num_steps: Steps, >= 1.
      batch_size: Units or images expected a step, of all devices together.
      num_views: K, views of each.
      largest_share: Units or images that the device with the most of them computes a step, on average, padding
        included: all others wait for it.
      num_reduced: Float32 numbers that are added up over the devices a step.
    """

    name: str
    num_steps: int
    batch_size: int
    num_views: int
    largest_share: float
    num_reduced: int

    def __post_init__(self):
        for name in ('num_steps', 'batch_size', 'num_views', 'num_reduced'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} of {self.name} must be at least 1, got {getattr(self, name)}.')
        if not self.largest_share > 0.0:
            raise ValueError(f'largest_share of {self.name} must be > 0, got {self.largest_share}.')

    @property
    def views(self) -> int:
        """Views of all steps."""
        return self.num_steps * self.batch_size * self.num_views

    def imbalance(self, devices: int) -> float:
        """Returns the time of a step relative to one with equal shares and no padding, at least 1."""
        return self.largest_share * devices / self.batch_size


def step_seconds(work: StageWork, hardware: Hardware, views_per_second: float) -> float:
    """Returns the seconds of a step.

    Args:
      work: The stage.
      hardware: The devices.
      views_per_second: Of one device.
    """
    seconds = work.largest_share * work.num_views / (views_per_second * hardware.scaling_efficiency)
    return seconds + reduction_seconds(work, hardware)


def reduction_seconds(work: StageWork, hardware: Hardware) -> float:
    """Returns the seconds of the all-reduce of a step, which begins when the last gradient is there.

    Args:
      work: The stage.
      hardware: The devices; where they have no network_gbps it is 0.
    """
    if hardware.network_gbps is None:
        return 0.0
    return ring_bytes(work.num_reduced, hardware.devices) * 8.0 / (hardware.network_gbps * 1e9)


def ring_bytes(num_reduced: int, devices: int) -> float:
    """Returns the bytes that each device sends to add up float32 numbers over a ring: 2 (N - 1) / N of their size.

    Example:
        >>> ring_bytes(1000, 4)
        6000.0
    """
    return 4.0 * num_reduced * 2.0 * (devices - 1) / devices


def poisson_stddev(num_units: int, batch_size: int, devices: int) -> float:
    """Returns the standard deviation of the units that a device gets in a step of Poisson sampling.

    Args:
      num_units: Of the data set, cut into equal shards.
      batch_size: Units expected a step, of all devices together.
      devices: At least 1.

    Example:
        >>> round(poisson_stddev(50000, 16384, 8), 1)
        37.1
    """
    return math.sqrt(batch_size / devices * (1.0 - batch_size / num_units))


def largest_sampled_share(
    num_units: int, batch_size: int, devices: int, units_per_chunk: int = 1, *, is_poisson: bool = True
) -> float:
    """Returns the expected units of the device that has the most of them in a step, in whole chunks.

    The maximum of independent binomials, one a shard: E[max] is the sum over j >= 0 of 1 - P(no shard is above j).

    Args:
      num_units: Of the data set.
      batch_size: Units expected a step, of all devices together.
      devices: At least 1; each has its own shard of the units.
      units_per_chunk: A device computes whole chunks, one at least; what is missing in the last is padding.
      is_poisson: Whether each unit takes part independently; else the batch has a fixed size, and the shards' parts of
        it are taken as independent, which is nearly so.

    Example:
        >>> round(largest_sampled_share(50000, 16384, 8), 1)
        2100.9
    """
    bounds = [num_units * device // devices for device in range(devices + 1)]
    sizes = [end - first for first, end in zip(bounds, bounds[1:])]
    limits = np.arange(units_per_chunk, max(sizes) + units_per_chunk, units_per_chunk)
    none_above, probability = np.ones(len(limits)), batch_size / num_units
    for size in set(sizes):
        of_shard = stats.binom(size, probability) if is_poisson else stats.hypergeom(num_units, batch_size, size)
        none_above *= of_shard.cdf(limits) ** sizes.count(size)
    return units_per_chunk * (1.0 + float((1.0 - none_above).sum()))


def largest_equal_share(batch_size: int, devices: int, images_per_chunk: int | None = None) -> int:
    """Returns the images of the device that has the most of them of a batch in equal parts, in whole chunks.

    Args:
      batch_size: Images a step, of all devices together.
      devices: At least 1.
      images_per_chunk: None: all that a device has are one chunk.
    """
    share = -(-batch_size // devices)
    chunk = min(images_per_chunk or share, share)
    return -(-share // chunk) * chunk


class StepMemory(NamedTuple):
    """What a private step holds on a device, in bytes.

    Attributes:
      weights: The network and its moving average.
      optimizers: Two numbers a variable, of each stage: all are made at the start of a run.
      sums: Of clipped gradients, in the course of a chunk.
      gradients: Of the units of a chunk.
      activations: Of the views that are held at a time.
      update: What reduction and noise need, when the gradients of the last chunk are gone.
    """

    weights: int
    optimizers: int
    sums: int
    gradients: int
    activations: int
    update: int

    @property
    def total(self) -> int:
        """The most that is held at a time."""
        return self.weights + self.optimizers + max(self.sums + self.gradients + self.activations, self.update)

    @property
    def least(self) -> int:
        """What is held even if no gradient or activation is."""
        return self.weights + self.optimizers + max(self.sums, self.update)


def private_memory(
    *, num_parameters: int, num_trained: int, num_optimizer_states: int, chunk: memory.ChunkSizes, activation_bytes: int
) -> StepMemory:
    """Returns the memory that a private step takes on each device.

    Args:
      num_parameters: Of the network.
      num_trained: Of them trained privately.
      num_optimizer_states: Variables of the optimizers of all stages of the run, added up.
      chunk: Units and views held at a time.
      activation_bytes: Of a view.
    """
    return StepMemory(
        weights=8 * num_parameters,
        optimizers=4 * num_optimizer_states,
        sums=4 * _SUMS_OF_A_CHUNK * num_trained,
        gradients=4 * memory.GRADIENT_COPIES * num_trained * chunk.units,
        activations=chunk.units * chunk.views * activation_bytes,
        update=4 * _SUMS_OF_AN_UPDATE * num_trained,
    )


def public_memory(
    *, num_parameters: int, num_optimizer_states: int, views_at_a_time: int, activation_bytes: int
) -> StepMemory:
    """Returns the memory that a step of plain training takes on each device.

    Args:
      num_parameters: Of the network.
      num_optimizer_states: Variables of the optimizers of all stages of the run, added up.
      views_at_a_time: Whose activations are held.
      activation_bytes: Of a view.
    """
    return StepMemory(
        weights=8 * num_parameters,
        optimizers=4 * num_optimizer_states,
        sums=4 * num_parameters,
        gradients=4 * num_parameters,
        activations=views_at_a_time * activation_bytes,
        update=4 * 2 * num_parameters,
    )


def memory_budget_gib(held: StepMemory, device_memory_gib: float) -> float:
    """Returns the GiB of a device that are left for gradients and activations, rounded down to a tenth."""
    usable = SHARE_OF_MEMORY * device_memory_gib * 2**30
    if held.least > usable:
        return 0.0
    return math.floor(10.0 * (usable - held.weights - held.optimizers - held.sums) / 2**30) / 10.0
