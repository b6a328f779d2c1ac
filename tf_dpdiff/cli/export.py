"""bin/export: a finished run's model as a servable for TF Serving."""

import pathlib
import sys
import tempfile
from typing import List, Optional

from tf_dpdiff.cli import command
from tf_dpdiff.cli import run_files
from tf_dpdiff.cli import sample_source
from tf_dpdiff.serving import export


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    workdir = pathlib.Path(flags.workdir).expanduser()
    description = sample_source.describe_run(workdir, sample_source.sampler_changes(flags))
    image_sampler = sample_source.load_run(workdir, description)
    directory = command.prepare_workdir(flags.output or f'saved_models/{workdir.resolve().name}')
    with tempfile.TemporaryDirectory() as folder:
        # Not the run's own description: the sampler may be another one.
        description.write(pathlib.Path(folder))
        beside = run_files.statement_paths(workdir) + [pathlib.Path(folder) / run_files.MODEL]
        version = export.export_saved_model(image_sampler, directory, beside)
    print(f'exported to {version} ({description.sampler.name}, {description.sampler.num_steps} steps)')
    return command.DONE


def run(argv: Optional[List[str]] = None) -> None:
    """Entry point of bin/export."""
    parser = command.Parser('export', __doc__ + ' The sampler is fixed in it.')
    parser.add_argument('--workdir', default='runs/latest', help='folder of a finished run (default: %(default)s)')
    parser.add_argument('--output', help="the servable's folder (default: saved_models/NAME OF THE RUN)")
    sample_source.add_sampler_flags(parser)
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
