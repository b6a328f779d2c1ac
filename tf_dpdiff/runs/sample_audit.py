"""An audit of samples alone: of a run, of a release, or of an exported model that they were drawn from. PRIVATE."""

import json
import pathlib

import tensorflow as tf

from tf_dpdiff import files
from tf_dpdiff import progress
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import sample_attacks
from tf_dpdiff.runs import folder
from tf_dpdiff.sampling import store
from tf_dpdiff.training import checkpoints

_PB = tf.saved_model.SAVED_MODEL_FILENAME_PB
_NOTE = (
    'Attacks on samples, measured on private images without noise: not to be released. They are weak: they can find a '
    'fault, and prove nothing.'
)


def attack_samples(
    path: pathlib.Path,
    data: datasets.PrivateData,
    config: sample_attacks.SampleAttackConfig,
    *,
    workdir: pathlib.Path | None,
    default_workdir: pathlib.Path,
) -> tuple[sample_attacks.SampleAttacks, pathlib.Path]:
    """Attacks samples by what they look like, and writes what was found to non_private/; trains no model of images.

    Args:
      path: What bin/train or bin/sample wrote, a file or folder; or the folder of a run or of a release, whose samples
        are then taken.
      data: The images that the model was trained on, and real images held out from them.
      config: How samples are attacked.
      workdir: The folder whose non_private/ is written to; None: that of the run that the samples lie in.
      default_workdir: The same where they lie in none.

    Returns:
      What the attacks tell, PRIVATE, and the file that holds it.

    Raises:
      FileNotFoundError: if there are no samples.
      ValueError: if the samples do not fit the images, or are of a run that was trained on others.
    """
    path = path.expanduser()
    if (path / _PB).exists() or next(path.glob(f'*/{_PB}'), None):  # Of a version, or of the folder of its versions.
        raise ValueError(
            f'{path} is an exported model: draw samples from it (bin/sample --saved_model={path} --output=FILE.npz), '
            'and name these.'
        )
    inside = path / folder.SAMPLES
    samples_path = inside if inside.exists() else path
    # A set of samples lies in the folder of its run, or in a folder of its own there.
    run = next((place for place in (path, path.parent) if (place / checkpoints.FOLDER).is_dir()), None)
    if run is not None and samples_path == run:
        folder.check_not_diverged(run)
        raise FileNotFoundError(f'the run in {run} has no {folder.SAMPLES} yet; train first, or draw with bin/sample.')
    samples = store.read(samples_path)
    samples.check_like(data.spec, samples_path)
    folder.check_same_data(run or workdir or samples_path.parent, data.train)
    workdir = folder.prepare(workdir or run or default_workdir)
    name = folder.samples_name(workdir, [samples_path])
    written = workdir / folder.NON_PRIVATE / f'sample_attacks_{name}.json'
    with progress.working('audit', 'attacking the samples'):
        found = sample_attacks.attack(
            config,
            samples=datasets.ImageDataset('samples', samples.images, samples.labels, samples.class_names),
            members=data.train,
            non_members=data.held_out,
            claim=_claim(samples.statement_json, samples_path),
            cache=workdir / folder.NON_PRIVATE / f'features_of_{name}',
        )
    fields = {'note': _NOTE, 'samples': str(samples_path), **found.to_dict()}
    files.write_text(written, json.dumps(fields, indent=2) + '\n')
    return found, written


def _claim(statement: str | None, path: pathlib.Path) -> tuple[float, float] | None:
    """Returns epsilon and delta of the privacy statement that came with samples."""
    if statement is None:
        return None
    try:
        fields = json.loads(statement)
        return (float(fields['epsilon']), float(fields['delta'])) if fields['guarantee_claimed'] else None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'the privacy statement of {path} is damaged or of another version: {error!r}.') from error
