"""bin/init: from a folder of one's own images to a configuration that runs as it is."""

import os
import pathlib
import shlex
import sys

from tf_dpdiff import files
from tf_dpdiff.cli import command
from tf_dpdiff.cli import configure
from tf_dpdiff.cli import dry_run
from tf_dpdiff.data import classes
from tf_dpdiff.runs import init_source
from tf_dpdiff.runs import outlook


def _read_pair(text: str | None, flag: str, separator: str, kind: type) -> tuple | None:
    if text is None:
        return None
    parts = text.split(separator)
    try:
        values = tuple(kind(part) for part in parts)
    except ValueError:
        values = ()
    if kind is int and len(values) == 1:
        values *= 2
    if len(values) != 2:
        raise command.UsageError(
            f'--{flag} must be such as {"32 or 48x40" if kind is int else "0,4095"}, got {text!r}.'
        )
    return values


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    output = pathlib.Path(flags.output).expanduser()
    classes.check_text('--output', str(output))  # It stands in a comment.
    if output.exists():
        raise command.UsageError(f'{output} exists; name another --output.')
    place, data = output.resolve().parent, pathlib.Path(flags.path).expanduser().resolve()
    if data in place.parents:
        raise command.UsageError(f'{output} lies among the images of {data}; name another --output.')
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise command.UsageError(f'{parent} is no folder that can be written to; name another --output.')
    asked = init_source.Wishes(
        epsilon=flags.epsilon,
        delta=flags.delta,
        hours=flags.hours,
        unit=flags.unit,
        image_size=_read_pair(flags.image_size, 'image_size', 'x', int),
        window=_read_pair(flags.window, 'window', ',', float),
        label_column=flags.label_column,
        held_out_fraction=flags.held_out_fraction,
    )
    text, build, model, speed, told = configure.configured(flags.path, asked)
    dry_run.show_in_short(build, model, told, outlook.describe_time(build.recipe, speed))
    quoted = shlex.quote(str(output))
    files.write_text(output, text.replace('--gin_file=FILE', f'--gin_file={quoted}'))
    then = f'bin/train --gin_file={quoted} --workdir=runs/mine'
    if told.is_hopeless:
        then = 'change what the verdict says, or the budget buys noise'
    print(f'Written to {output}; read it, then: {then}')
    return command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/init."""
    defaults = init_source.Wishes()
    parser = command.Parser('init', __doc__)
    parser.add_argument(
        'path', help='folder of images (class folders, a table beside them, or DICOM), .npz file or table'
    )
    parser.add_argument('--output', required=True, metavar='FILE', help='the configuration to write, such as mine.gin')
    parser.add_argument('--epsilon', type=float, default=defaults.epsilon, help='privacy budget (default: %(default)g)')
    parser.add_argument('--delta', type=float, help='default: at most 1 / (10 x units), rounded down')
    parser.add_argument(
        '--hours',
        type=float,
        default=defaults.hours,
        help='hours that the run may take on this machine (default: %(default)g)',
    )
    parser.add_argument(
        '--unit',
        metavar='WORD',
        help="what is protected: 'image', or a word for who owns several, such as 'patient' (default: one image, "
        'unless the images name their owners)',
    )
    parser.add_argument('--image_size', metavar='HxW', help='default: the size of the public model, 28x28 or 32x32')
    parser.add_argument('--window', metavar='LOW,HIGH', help='grey levels of 16-bit images that become black and white')
    parser.add_argument('--label_column', metavar='NAME', help='of a table: the class (default: what looks like it)')
    parser.add_argument(
        '--held_out_fraction',
        type=float,
        help='share of the units for evaluation, where there is no test part (default: 0.2)',
    )
    sys.exit(command.run(parser, main, argv))
