"""bin/export: a finished run's model as a servable for TF Serving."""

import dataclasses
import pathlib
import sys
from typing import List, Optional

from tf_dpdiff.cli import command
from tf_dpdiff.cli import run_files
from tf_dpdiff.cli import run_output
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.networks import unet
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    workdir = pathlib.Path(flags.workdir).expanduser()
    description = run_files.read_model(workdir)
    statements = run_files.statement_paths(workdir)
    if not all(path.exists() for path in statements):
        raise command.UsageError(
            f'the run in {workdir} is not complete: it has no privacy statement yet; finish bin/train first.')
    given = {'name': flags.sampler, 'num_steps': flags.num_steps, 'guidance_scale': flags.guidance_scale}
    sampler = dataclasses.replace(description.sampler, **{k: v for k, v in given.items() if v is not None})
    description = description.with_sampler(sampler)
    model = unet.build_unet(description.network, description.image_shape, len(description.class_names))
    checkpoints.load_average(workdir / 'checkpoints', model)
    directory = command.prepare_workdir(flags.output or f'saved_models/{workdir.resolve().name}')
    image_sampler = run_output.make_image_sampler(model, description.network, description.process, sampler)
    version = export.export_saved_model(image_sampler, directory, statements)
    print(f'exported to {version} ({sampler.name}, {sampler.num_steps} steps)')
    return command.DONE


def run(argv: Optional[List[str]] = None) -> None:
    """Entry point of bin/export."""
    parser = command.Parser('export', __doc__)
    parser.add_argument('--workdir', default='runs/latest', help='folder of a finished run (default: %(default)s)')
    parser.add_argument('--output', help="the servable's folder (default: saved_models/NAME OF THE RUN)")
    parser.add_argument('--sampler', choices=samplers.SAMPLERS, help="sampler (default: the run's)")
    parser.add_argument('--num_steps',
                        type=int,
                        help="sampler's steps, fixed in the exported model (default: the run's)")
    parser.add_argument('--guidance_scale',
                        type=float,
                        help='of classifier-free guidance, 1 for none (default: the run\'s)')
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
