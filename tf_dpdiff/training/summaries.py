"""TensorBoard summaries: what may be released, and, apart from it, what may not."""

from collections.abc import Sequence
import pathlib
import time
from typing import NamedTuple

import numpy as np
from tensorboard.plugins.histogram import summary_v2 as histogram_summary
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import summary_v2 as scalar_summary
from tensorboard.plugins.text import summary_v2 as text_summary
import tensorflow as tf

Number = bool | int | float | str
# In the folder of a run: what was computed from private images without noise, never to be released. Tags begin so too.
NON_PRIVATE = 'non_private'
_FOLDER = 'tensorboard'  # In the folder of a run, and in that of what must not be released.
_HISTOGRAM_BUCKETS = 50
_EVENTS = 'events.out.tfevents.'


def released_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Returns where the events of a run go that may be released."""
    return workdir / _FOLDER


def private_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Returns where the events of a run go that may not."""
    return workdir / NON_PRIVATE / _FOLDER


class Metric(NamedTuple):
    """A scalar that is shown beside the settings of a run.

    Attributes:
      name: As it is shown.
      tag: Of the scalar.
      stage: Which it belongs to; None: the whole run.
    """

    name: str
    tag: str
    stage: str | None = None


class Summaries:
    """Writes TensorBoard events of a run.

    What may be released goes to `tensorboard/`, what belongs to a stage to a folder of the stage in it, where steps are
    those of the stage. Numbers computed from private data without noise go, only when asked for, to
    `non_private/tensorboard/` with names that begin with `non_private/`.

    Steps of a folder must not fall within a process. The first event that a process writes to a folder withdraws those
    that earlier processes wrote to it at that step or later: a resumed run repeats its lost steps, and shows them once.

    All events of all processes bear the time at which the run began: how long a private step takes tells how many units
    it drew, which no statement covers. Names of files do not tell which machine it ran on.

    Args:
      workdir: The run's folder.
    """

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        seconds = [_second_of(path) for path in workdir.glob(f'**/{_FOLDER}/**/{_EVENTS}*')]
        self._wall_time = float(min(seconds, default=int(time.time())))
        self._files: dict[pathlib.Path, _EventFile] = {}

    @property
    def released_folder(self) -> pathlib.Path:
        """Where that goes which may be released."""
        return released_folder(self._workdir)

    @property
    def private_folder(self) -> pathlib.Path:
        """Where that goes which may not."""
        return private_folder(self._workdir)

    def scalars(self, stage: str, values: dict[str, float], step: int) -> None:
        """Writes releasable scalars of a stage under `stage/`."""
        for name, value in values.items():
            self._write(self.released_folder / stage, step, scalar_summary.scalar_pb(f'{stage}/{name}', value))

    def stage_image(self, stage: str, name: str, image_uint8: np.ndarray, step: int) -> None:
        """Writes a releasable picture of a stage, uint8 [height, width, channels], under `stage/`."""
        self._write(self.released_folder / stage, step, _image_summary(f'{stage}/{name}', image_uint8))

    def image(self, name: str, image_uint8: np.ndarray) -> None:
        """Writes a releasable picture of the whole run, uint8 [height, width, channels]."""
        self._write(self.released_folder, 0, _image_summary(name, image_uint8))

    def text(self, name: str, markdown: str) -> None:
        """Writes releasable text."""
        self._write(self.released_folder, 0, text_summary.text_pb(name, markdown))

    def histogram(self, name: str, values: np.ndarray) -> None:
        """Writes a releasable histogram of numbers."""
        self._write(self.released_folder, 0, histogram_summary.histogram_pb(name, values, _HISTOGRAM_BUCKETS))

    def curve(self, name: str, points: dict[int, float]) -> None:
        """Writes a releasable curve of the whole run: numbers by step."""
        for step, value in sorted(points.items()):
            self._write(self.released_folder, step, scalar_summary.scalar_pb(name, value))

    def hparams(self, numbers: dict[str, Number], metrics: Sequence[Metric], run_id: str) -> None:
        """Writes what tells the run apart from others of a sweep.

        Args:
          numbers: Releasable settings by name.
          metrics: What is shown beside them.
          run_id: The run's public name.
        """
        shown = [hparams_api.Metric(metric.tag, group=metric.stage, display_name=metric.name) for metric in metrics]
        settings = [hparams_api.HParam(name) for name in numbers]
        self._write(self.released_folder, 0, hparams_api.hparams_config_pb(settings, shown))
        self._write(self.released_folder, 0, hparams_api.hparams_pb(numbers, run_id, self._wall_time))

    def non_private_scalars(self, values: dict[str, float], step: int) -> None:
        """Writes scalars computed from private data without noise."""
        for name, value in values.items():
            self._write(self.private_folder, step, scalar_summary.scalar_pb(f'{NON_PRIVATE}/{name}', value))

    def flush(self) -> None:
        """Brings everything to disk."""
        for file in self._files.values():
            file.flush()

    def _write(self, folder: pathlib.Path, step: int, summary) -> None:
        if folder not in self._files:
            self._files[folder] = _EventFile(folder, self._wall_time, step)
        self._files[folder].write(step, summary=tf.compat.v1.Summary.FromString(summary.SerializeToString()))


class _EventFile:
    """A file of events, read after those that are in the folder already, which withdraws their events from a step on.

    TensorBoard understands the second and later session starts of a folder so. Writers of TensorFlow 2 write none.
    """

    def __init__(self, folder: pathlib.Path, wall_time: float, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names, which begin with a second: one later than the last one's.
        second = max([int(wall_time), *(_second_of(path) + 1 for path in folder.glob(f'{_EVENTS}*'))])
        self._wall_time = wall_time
        self._writer = tf.io.TFRecordWriter(str(folder / f'{_EVENTS}{second:010d}.run'))
        self.write(0, file_version='brain.Event:2')
        self.write(first_step, session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START))

    def write(self, step: int, **content) -> None:
        """Writes an event."""
        self._writer.write(tf.compat.v1.Event(wall_time=self._wall_time, step=step, **content).SerializeToString())

    def flush(self) -> None:
        """Brings everything to disk."""
        self._writer.flush()


def _second_of(path: pathlib.Path) -> int:
    return int(path.name[len(_EVENTS) :].split('.')[0])


def _image_summary(tag: str, image_uint8: np.ndarray) -> tf.compat.v1.Summary:
    height, width, _ = image_uint8.shape
    tensor = tf.make_tensor_proto([str(width), str(height), tf.io.encode_png(image_uint8).numpy()], tf.string)
    # TensorBoard's message has the same bytes as TensorFlow's, but is another class.
    metadata = image_metadata.create_summary_metadata(display_name=tag, description='', converted_to_tensor=True)
    metadata = tf.compat.v1.SummaryMetadata.FromString(metadata.SerializeToString())
    return tf.compat.v1.Summary(value=[tf.compat.v1.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])
