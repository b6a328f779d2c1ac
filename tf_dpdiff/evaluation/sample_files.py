"""Sets of samples on disk: read back whole, or refused by name."""

import pathlib
from typing import NamedTuple, Optional, Tuple, Union

import numpy as np

from tf_dpdiff.evaluation import generate


class SampleSet(NamedTuple):
    """Samples in memory, in the order of their seeds.

    Attributes:
      images: uint8 [images, height, width, channels].
      labels: int32 [images]; the number of classes stands for "no class".
      class_names: One a class.
      statement_text: The privacy statement that came with them, or None where none did.
    """
    images: np.ndarray
    labels: np.ndarray
    class_names: Tuple[str, ...]
    statement_text: Optional[str]


def read(path: Union[str, pathlib.Path], limit: Optional[int] = None) -> SampleSet:
    """Reads samples that bin/train or bin/sample wrote.

    Args:
      path: An .npz file.
      limit: Read the first ones only.

    Returns:
      The samples.

    Raises:
      FileNotFoundError: if nothing is there.
      ValueError: if it is damaged or holds no samples.
    """
    path = pathlib.Path(path).expanduser()
    images, labels = generate.read_npz(path)
    with np.load(path) as arrays:
        names = arrays['class_names'] if 'class_names' in arrays else range(int(labels.max()) + 1)
    return SampleSet(images[:limit], labels[:limit].astype(np.int32), tuple(map(str, names)), _statement_of_file(path))


def _statement_of_file(path: pathlib.Path) -> Optional[str]:
    """Returns the statement beside an .npz file: its own one or, of a run's samples.npz, the run's."""
    beside = [path.with_name(f'{path.stem}.privacy_statement.txt')]
    if path.name == 'samples.npz':
        beside.append(path.with_name('privacy_statement.txt'))
    return next((candidate.read_text(encoding='utf-8') for candidate in beside if candidate.exists()), None)
