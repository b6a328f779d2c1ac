"""bin/export: a finished run's model as a servable for TF Serving."""

import argparse
import pathlib
import sys

from tf_dpdiff.cli import command
from tf_dpdiff.cli import sampler_flags
from tf_dpdiff.runs import export as export_lib
from tf_dpdiff.serving import warmup


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    workdir = pathlib.Path(flags.workdir).expanduser()
    changes = sampler_flags.changes(flags)
    step_counts = changes.pop('num_steps', ())
    version, description = export_lib.export_run(
        workdir,
        pathlib.Path(flags.output or f'saved_models/{workdir.resolve().name}').expanduser(),
        sampler=changes,
        step_counts=step_counts,
        warmup_batch_sizes=flags.warmup_batch_sizes,
        allow_incompatible=flags.allow_incompatible,
    )
    steps = ' or '.join(map(str, step_counts)) or description.sampler.num_steps
    print(f'exported to {version} ({description.sampler.name}, {steps} steps)')
    return command.DONE


def _batch_sizes(text: str) -> tuple[int, ...]:
    """Reads a flag; argparse says what is wrong with it."""
    try:
        sizes = tuple(int(part) for part in text.split(',')) if text != 'none' else ()
    except ValueError:
        sizes = (0,)
    if min(sizes, default=1) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is neither none nor whole numbers of at least 1, as in 1,8,250')
    return sizes


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/export."""
    parser = command.Parser('export', __doc__ + ' The sampler is fixed in it.')
    parser.add_argument('--workdir', default='runs/latest', help='folder of a finished run (default: %(default)s)')
    parser.add_argument('--output', help="the servable's folder (default: saved_models/NAME OF THE RUN)")
    sampler_flags.add(parser, several_step_counts=True)
    parser.add_argument(
        '--warmup_batch_sizes',
        type=_batch_sizes,
        default=warmup.BATCH_SIZES,
        metavar='SIZE[,SIZE...]',
        help='of the requests that a server sends itself before it takes any, or none; a large network '
        f'without an accelerator wants few (default: {",".join(map(str, warmup.BATCH_SIZES))})',
    )
    parser.add_argument(
        '--allow_incompatible',
        action='store_true',
        help='write a version although it breaks the clients of the one before, which sends or reads '
        'other inputs, outputs, labels or step counts',
    )
    sys.exit(command.run(parser, main, argv))
