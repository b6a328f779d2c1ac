"""TensorBoard summaries: what may be released, and, apart from it, what may not."""

import pathlib
from typing import Dict, Optional

import numpy as np
import tensorflow as tf


class Summaries:
    """Writes TensorBoard events of a run.

    What may be released goes to `tensorboard/`. Numbers computed from private data without noise go, only when asked
    for, to `non_private/tensorboard/` with names that begin with `non_private/`.

    Args:
      workdir: The run's folder.
    """

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self._writer = tf.summary.create_file_writer(str(workdir / 'tensorboard'))
        self._private_writer: Optional[tf.summary.SummaryWriter] = None

    def scalars(self, prefix: str, values: Dict[str, float], step: int) -> None:
        """Writes releasable scalars under `prefix/`."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f'{prefix}/{name}', value)

    def image(self, name: str, image_uint8: np.ndarray, step: int) -> None:
        """Writes a releasable picture, uint8 [height, width, channels]."""
        with self._writer.as_default(step=step):
            tf.summary.image(name, image_uint8[None])

    def text(self, name: str, markdown: str) -> None:
        """Writes releasable text."""
        with self._writer.as_default(step=0):
            tf.summary.text(name, markdown)

    def non_private_scalars(self, values: Dict[str, float], step: int) -> None:
        """Writes scalars computed from private data without noise."""
        if self._private_writer is None:
            self._private_writer = tf.summary.create_file_writer(str(self._workdir / 'non_private' / 'tensorboard'))
        with self._private_writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f'non_private/{name}', value)

    def flush(self) -> None:
        """Brings everything to disk."""
        for writer in (self._writer, self._private_writer):
            if writer is not None:
                writer.flush()
