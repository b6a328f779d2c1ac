"""bin/sample: images without limit from an exported model."""

import pathlib
import sys
from typing import List, Optional

from PIL import Image

from tf_dpdiff import files
from tf_dpdiff.cli import command
from tf_dpdiff.cli import run_files
from tf_dpdiff.evaluation import generate
from tf_dpdiff.serving import export
from tf_dpdiff.training import interruption


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    workdir = pathlib.Path(flags.workdir).expanduser()
    class_names = run_files.read_model(workdir).class_names
    output = pathlib.Path(
        flags.output) if flags.output else workdir / f'samples_{flags.num_images}_seed_{flags.seed}.npz'
    as_folder = output.suffix != '.npz'
    if as_folder and output.exists():
        raise command.UsageError(f'{output} exists; name another --output.')
    config = generate.GenerateConfig(num_images=flags.num_images, seed=flags.seed)
    sample_fn = export.load_sample_fn(pathlib.Path(flags.saved_model) if flags.saved_model else workdir / 'saved_model')
    with interruption.StopRequest() as stop:
        drawn = generate.generate(sample_fn, config, len(class_names), lambda: stop.requested)
    if drawn is None:
        print('sample: stopped; nothing was written.', file=sys.stderr)
        return command.FAILED
    if as_folder:
        _write_class_folders(output, *drawn, class_names)
    else:
        generate.write_npz(output, *drawn, class_names)
    print(f'{flags.num_images:,} images of {len(class_names)} classes in {output}')
    return command.DONE


def _write_class_folders(folder: pathlib.Path, images, labels, class_names) -> None:
    with files.replacing(folder) as temporary:
        for name in class_names:
            (temporary / name).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels)):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            picture.save(temporary / class_names[label] / f'{index:07d}.png')


def run(argv: Optional[List[str]] = None) -> None:
    """Entry point of bin/sample."""
    parser = command.Parser('sample', __doc__)
    parser.add_argument('--workdir', default='runs/latest', help='folder of a finished run (default: %(default)s)')
    parser.add_argument('--saved_model', help="an exported model (default: the run's newest)")
    parser.add_argument('--num_images', type=int, default=5000, help='how many (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='image i has seed SEED + i (default: %(default)s)')
    parser.add_argument('--output', help='an .npz file, or a folder for PNG files by class (default: in the workdir)')
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
