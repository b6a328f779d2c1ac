"""bin/evaluate: what samples are worth, measured on held-out real images. The result is private."""

import json
import pathlib
import sys
from typing import List, Optional

import gin  # pylint: disable=wrong-import-order
from tf_dpdiff import files
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.data import datasets
from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import utility as utility_lib


@gin_config.root
def evaluate(*,
             workdir: pathlib.Path,
             samples_path: pathlib.Path,
             data: datasets.PrivateData = gin.REQUIRED,
             utility: utility_lib.UtilityConfig = gin.REQUIRED) -> int:
    """Trains a classifier on samples and the same on real images, and writes both accuracies to non_private/.

    Args:
      workdir: The run's folder.
      samples_path: An .npz file of samples.
      data: The private images, and real images held out from them.
      utility: Which classifier.

    Returns:
      The exit code.
    """
    images, labels = generate.read_npz(samples_path)
    if tuple(images.shape[1:]) != data.spec.image_shape:
        raise ValueError(f'{samples_path} holds images of shape {tuple(images.shape[1:])}, {data.spec.name!r} of '
                         f'{data.spec.image_shape}.')
    results = utility_lib.compare(utility, images, labels, data.train, data.held_out)
    path = workdir / 'non_private' / f'utility_{samples_path.stem}_{utility.classifier}.json'
    files.write_text(path, json.dumps(results, indent=2) + '\n')
    for source, value in results['accuracy'].items():
        trained_on = source.replace('_', ' ')
        print(f"{results['classifier']} on {trained_on}: {value:.1%} of {results['num_test']} held-out real images")
    print(f'Written to {path}; measured on private images, so not to be released.')
    return command.DONE


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    gin_config.parse(flags.gin_file, flags.gin_param)
    workdir = command.prepare_workdir(flags.workdir)
    samples_path = pathlib.Path(flags.samples) if flags.samples else workdir / 'samples.npz'
    return gin_config.call(evaluate, workdir=workdir, samples_path=samples_path)


def run(argv: Optional[List[str]] = None) -> None:
    """Entry point of bin/evaluate."""
    parser = command.Parser('evaluate', __doc__)
    parser.add_gin_flags()
    parser.add_argument('--workdir', default='runs/latest', help='folder of the run (default: %(default)s)')
    parser.add_argument('--samples', help="an .npz file of samples (default: the run's samples.npz)")
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
