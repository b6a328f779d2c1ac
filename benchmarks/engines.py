"""The engines that dp_step.py compares: what is started for a case, and how much memory it will take."""

import dataclasses
import os
import pathlib

from benchmarks import measuring


@dataclasses.dataclass(frozen=True)
class Cell:
    """What every engine is measured at.

    Attributes:
      network: Of networks.py.
      units: In a batch.
      views: K, of a unit.
    """

    network: str
    units: int
    views: int

    @property
    def views_of_step(self):
        """All views of a step."""
        return self.units * self.views

    def __str__(self):
        return f'{self.network}, {self.units} units x {self.views} views'


@dataclasses.dataclass(frozen=True)
class Engine:
    """A way to make a step.

    Attributes:
      label: For tables.
      framework: Whose plain step it is compared with.
      program: Of this folder.
      modes: First argument of the program; the fastest is taken.
      views_at_a_time: Sizes of physical batches, in views; the fastest is taken. None: it has no choice.
      environment: Of peers/; None: ours.
      is_private: Whether it clips and adds noise.
    """

    label: str
    framework: str
    program: str
    modes: tuple[str, ...]
    views_at_a_time: tuple[int, ...] | None = None
    environment: str | None = None
    is_private: bool = True


UNETS = ('0.26M', '1.1M', '4.24M')
NETWORKS = (*UNETS, 'DiT-1.1M')  # Of networks.py; in other frameworks there are UNets alone.
OUR_PROGRAM = 'our_step.py'
_PLAIN, _PRIVATE = (32, 64, 256), (16, 64, 256)
ENGINES = {
    'ours': Engine('tf_dpdiff', 'TensorFlow', OUR_PROGRAM, ('private',)),
    'tf_privacy': Engine('TensorFlow Privacy', 'TensorFlow', 'peers/tf_privacy_step.py', ('vectorized',)),
    'opacus': Engine('Opacus', 'PyTorch', 'peers/torch_step.py', ('hooks',), _PRIVATE, 'torch'),
    'torch_by_hand': Engine('PyTorch by hand', 'PyTorch', 'peers/torch_step.py', ('vmap', 'loop'), _PRIVATE, 'torch'),
    'jax_privacy': Engine('jax_privacy', 'JAX', 'peers/jax_step.py', ('private',), _PRIVATE, 'jax'),
    'ours_plain': Engine('tf_dpdiff, plain', 'TensorFlow', OUR_PROGRAM, ('plain',), _PLAIN, is_private=False),
    'torch_plain': Engine('PyTorch, plain', 'PyTorch', 'peers/torch_step.py', ('plain',), _PLAIN, 'torch', False),
    'jax_plain': Engine('JAX, plain', 'JAX', 'peers/jax_step.py', ('plain',), _PLAIN, 'jax', False),
}
PLAIN_OF = {engine.framework: key for key, engine in ENGINES.items() if not engine.is_private}


@dataclasses.dataclass(frozen=True)
class Choice:
    """How an engine is run.

    Attributes:
      mode: First argument of its program.
      views_at_a_time: Upper end of its physical batches; None: it has no choice.
    """

    mode: str
    views_at_a_time: int | None = None

    def units_per_chunk(self, cell):
        """Returns the units of a physical batch: a divisor of the units, and at least one unit."""
        if self.views_at_a_time is None:
            return cell.units
        return divide(cell.units, self.views_at_a_time // cell.views)


def divide(units, most):
    """Returns the largest divisor of units that is not above most, or 1."""
    return max(size for size in range(1, max(1, min(units, most)) + 1) if units % size == 0)


def choices(engine, cell):
    """Returns the ways to run an engine that differ at a cell."""
    if engine.views_at_a_time is None:
        return [Choice(mode) for mode in engine.modes]
    found = {}
    for mode in engine.modes:
        for views in engine.views_at_a_time:
            choice = Choice(mode, views)
            # A loop over units holds one of them, whatever is drawn at a time.
            found.setdefault((mode, None if mode == 'loop' else choice.units_per_chunk(cell)), choice)
    return list(found.values())


def start(key, choice, cell, *, reference, python, timeout_secs):
    """Starts an engine and returns its case, whose name is the engine's key."""
    engine = ENGINES[key]
    arguments = [choice.mode, f'--units={cell.units}', f'--views={cell.views}']
    if engine.program == OUR_PROGRAM:
        arguments.append(f'--network={cell.network}')
        if choice.views_at_a_time is not None:
            arguments.append(f'--views_per_chunk={choice.units_per_chunk(cell) * cell.views}')
    else:
        arguments += [f'--reference={reference}', f'--units_per_chunk={choice.units_per_chunk(cell)}']
    return measuring.Case(key, engine.program, *arguments, python=python, timeout_secs=timeout_secs)


def check(key, mode, *, reference, python):
    """Returns how far a peer's prediction and gradient are from ours."""
    arguments = [mode, f'--reference={reference}', '--units=1', '--views=1', '--units_per_chunk=1', '--check']
    with measuring.Case(key, ENGINES[key].program, *arguments, python=python) as case:
        return case.facts['differences']


def size(key, choice, cell):
    """Returns the number that an engine's memory grows with, in proportion."""
    if key == 'ours':
        return cell.views  # It keeps to a budget.
    if key == 'tf_privacy':
        # The Jacobian carries the activations of all views once for each unit.
        return cell.units * cell.units * cell.views
    return choice.units_per_chunk(cell) * cell.views


def predict_memory_gib(measured, wanted):
    """Returns the memory that a size will take, or None where nothing was measured.

    Args:
      measured: GiB of a process by size.
      wanted: Size to be predicted for.

    Example:
        >>> predict_memory_gib({100: 1.5, 200: 2.5}, 400)
        4.5
    """
    if wanted in measured:
        return measured[wanted]
    if not measured:
        return None
    low, high = ([0] + sorted(measured))[-2:]
    base = measured.get(low, 0.0)  # Of the process alone little is known: taken to be nothing.
    slope = max(0.0, (measured[high] - base) / (high - low))
    return max(0.0, measured[high] + slope * (wanted - high))


def available_memory_gib():
    """Returns the memory that processes can be given without swapping; where that isn't known, all memory."""
    information = pathlib.Path('/proc/meminfo')
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) / 2**20
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
