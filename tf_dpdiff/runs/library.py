"""What a Python program makes of runs: `tf_dpdiff.train`, `tf_dpdiff.load` and what they return."""

from collections.abc import Sequence
import math
import os
import pathlib
from typing import Any

import numpy as np

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.runs import curator as curator_lib
from tf_dpdiff.runs import evaluate as evaluate_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import handover
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.runs import run as run_lib
from tf_dpdiff.runs import source as source_lib
from tf_dpdiff.sampling import draw
from tf_dpdiff.training import strategies


class Statement:
    """The privacy statement of a run, as it was written.

    Attributes:
      fields: All that it says, as plain JSON values; see `PrivacyStatement.to_dict`.
      text: The page of English.
    """

    def __init__(self, fields: dict[str, Any], text: str):
        self.fields, self.text = fields, text

    @property
    def epsilon(self) -> float:
        """Epsilon of all that the run releases; infinite where no guarantee is claimed."""
        return self.fields['epsilon'] if self.fields['guarantee_claimed'] else math.inf

    @property
    def delta(self) -> float | None:
        """Delta at which epsilon is meant; None where no private image was read."""
        return self.fields.get('delta')

    def __str__(self):
        return self.text


class Run:
    """A finished run in its folder.

    Args:
      workdir: The folder.

    Attributes:
      workdir: The folder.

    Raises:
      FileNotFoundError: if there is no run.
      ValueError: if it is not finished.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir).expanduser()
        source_lib.check_complete(self.workdir)

    @property
    def statement(self) -> Statement:
        """What is promised about everything that the run releases."""
        text = (self.workdir / folder.STATEMENT_TEXT).read_text(encoding='utf-8')
        return Statement(folder.read_statement(self.workdir), text)

    def evaluate(
        self,
        recipe: evaluate_lib.EvaluationRecipe,
        samples: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    ) -> dict[str, Any]:
        """Measures what samples are worth, and writes a report to non_private/.

        Args:
          recipe: What is measured, on which images.
          samples: What bin/sample wrote; several sets are joined; None: the run's samples, and its matched images
            with them where it has any.

        Returns:
          What was measured, as plain JSON values. PRIVATE: made from private images without noise.

        Raises:
          ValueError: if the samples or the data do not fit, or if a release is refused; says what to do.
        """
        named = [samples] if isinstance(samples, str | os.PathLike) else samples or []
        paths = [pathlib.Path(path).expanduser() for path in named]
        return evaluate_lib.evaluate(recipe, self.workdir, paths)[0]

    def release(
        self,
        output: str | os.PathLike,
        *,
        curator: str | os.PathLike | None = None,
        num_images: int | None = None,
        budget_file: str | os.PathLike | None = None,
        without_guarantee: bool = False,
        audit: str | os.PathLike | None = None,
        data: datasets.PrivateData | None = None,
    ) -> pathlib.Path:
        """Writes what is handed over, and nothing else, to a new folder and a zip of it, as `bin/release` does.

        These are the generator, samples, the statement, the report, a model card, a data sheet, a deployment record and
        digests of all files. They are searched for what must stay: the secret seed, files of checkpoints/ and
        non_private/, paths of this machine, private images where `data` is given.

        Args:
          output: The folder; the zip is called the same and .zip.
          curator: A file of what only a curator knows; `bin/release --template=FILE` writes an example.
          num_images: How many samples to draw from the released model; None: those of the run.
          budget_file: The budget of the data, of which the total is told.
          without_guarantee: Whether a run without a guarantee may go out; its card says so first.
          audit: The summary of an audit (audit_summary.json) that goes out too.
          data: The run's private images, read only to look for them.

        Returns:
          The folder.

        Raises:
          FileExistsError: if there is something in its place.
          ValueError: if the run has no guarantee, or would let out what must stay; says what to do.
        """
        made = handover.make(
            self.workdir,
            pathlib.Path(output).expanduser(),
            answers=curator_lib.read(curator) if curator is not None else None,
            num_images=num_images,
            budget_path=budget_file,
            without_guarantee=without_guarantee,
            audit_path=pathlib.Path(audit).expanduser() if audit is not None else None,
            private_data=data,
        )
        return made.directory


class Generator:
    """A released model that images are drawn from; they are covered by its statement, however many they are.

    Args:
      source: Where the images come from.

    Attributes:
      class_names: The names of the classes; label i is the i-th.
      image_shape: (height, width, channels).
      statement: The privacy statement of the model.
    """

    def __init__(self, source: source_lib.Source):
        self._source, self._sample_fns = source, source.load()
        self.class_names, self.image_shape = source.description.class_names, source.description.image_shape
        text, fields = source.statements
        self.statement = Statement(files.read_json(fields), text.read_text(encoding='utf-8'))

    def sample(
        self, num_images: int, *, seed: int = 0, classes: tuple[str, ...] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws images; the same seed gives the same images, as `bin/sample` gives them.

        Args:
          num_images: How many, in equal parts of each class up to one.
          seed: Image i has the seed seed + i.
          classes: Names of the classes to draw, 'no_class' among them where the model draws that; None: all.

        Returns:
          Images, uint8 [num_images, height, width, channels], and labels, int32 [num_images]; the number of classes
          stands for "no class", which a model that was trained without labels draws. Where the run's teacher labels its
          samples, it labels these too.

        Raises:
          ValueError: if a number is out of range, if there is no such class, or if the model was not trained on it.
        """
        description = self._source.description
        labels = description.named_labels if classes is None else description.labels_of(classes)
        config = draw.GenerateConfig(num_images=num_images, seed=seed)
        drawn = draw.at_once(
            self._sample_fns, config, choice=draw.ClassChoice(labels), label_images=self._source.label_images
        )
        assert drawn is not None  # Nobody asks it to stop.
        return drawn

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Returns what the released teacher takes real images for; post-processing, which costs no privacy.

        Args:
          images: uint8 [images, height, width, channels], of `image_shape`, brought to that size in the same way as the
            images that the run was trained on.

        Returns:
          Probabilities of the classes, float32 [images, classes]; each row adds up to 1. They are not calibrated.

        Raises:
          ValueError: if the run has no teacher, or if the images have another type or shape.
        """
        if self._source.classify is None:
            raise ValueError(
                'the model has no classifier: train with train.teacher = @TeacherConfig(), or export a run that was.'
            )
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != tuple(self.image_shape):
            raise ValueError(
                f'images must be uint8 [images, {", ".join(map(str, self.image_shape))}], got {images.dtype} '
                f'{list(images.shape)}.'
            )
        return self._source.classify(images)['probabilities']


def train(
    recipe: recipe_lib.Recipe,
    workdir: str | os.PathLike,
    *,
    strategy: strategies.StrategyConfig | None = None,
    anyway: bool = False,
) -> Run:
    """Trains, samples, exports and evaluates, as `bin/train` does; goes on where the folder holds an unfinished run.

    Args:
      recipe: What was chosen.
      workdir: The run's folder.
      strategy: On which devices to compute; None: on this machine's first one.
      anyway: Whether to go on where the noise would hide all that could be learnt.

    Returns:
      The run.

    Raises:
      ValueError: if the recipe, the folder or the budget refuses the run; says what to do.
      tf_dpdiff.Interrupted: if the process was asked to stop; everything is saved, and the same call goes on.
      FloatingPointError: if the run diverged; what it had released is on record.
    """
    replicas = strategies.start(strategy) if strategy else strategies.ONE
    if replicas.workers.count > 1:
        raise ValueError('a program trains in one process; start bin/train on each machine for more.')
    with folder.training_in(workdir) as held:
        run_lib.train(recipe, held, replicas=replicas, anyway=anyway)
    return Run(held)


def load(path: str | os.PathLike) -> Generator:
    """Opens a released model: the folder of a finished run, or of an exported model.

    Args:
      path: The folder; of an exported model also the one that holds its versions, of which the newest is taken.

    Raises:
      FileNotFoundError: if there is no model.
      ValueError: if it carries no privacy statement.
    """
    path = pathlib.Path(path).expanduser()
    if (path / folder.MODEL).exists():
        return Generator(source_lib.find(path, None))
    return Generator(source_lib.find(None, path))
