"""bin/release: what is handed over of a finished run, and nothing else: a folder and a zip of it.

Generator, samples, statement, report, model card, data sheet, deployment record and digests of all files. --verify
checks what has arrived; it needs no run.
"""

import pathlib
import sys

from tf_dpdiff import files
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.data import datasets
from tf_dpdiff.runs import curator
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import handover

_OF_RELEASES = ('workdir', 'output', 'curator', 'num_images', 'budget_file', 'without_guarantee', 'audit')


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    for alone in ('template', 'verify'):
        others = [name for name in (*_OF_RELEASES, 'template', 'verify') if name != alone and getattr(flags, name)]
        if getattr(flags, alone) and others:
            raise command.UsageError(f'--{alone} stands alone; drop --{", --".join(others)}.')
    if flags.template:
        return _write_template(pathlib.Path(flags.template).expanduser())
    if flags.verify:
        return _verify(pathlib.Path(flags.verify).expanduser())
    if not flags.output:
        raise command.UsageError('name an --output, a new folder (or --template=FILE, or --verify=RELEASE).')
    return _release(flags)


def _release(flags) -> int:
    workdir = pathlib.Path(flags.workdir or 'runs/latest').expanduser()
    answers = curator.read(flags.curator) if flags.curator else None
    private_data, reason = _private_data(workdir)
    made = handover.make(
        workdir,
        pathlib.Path(flags.output).expanduser(),
        answers=answers,
        num_images=flags.num_images,
        budget_path=flags.budget_file,
        without_guarantee=flags.without_guarantee,
        audit_path=pathlib.Path(flags.audit).expanduser() if flags.audit else None,
        private_data=private_data,
    )
    unread = [f'they could not be read: {reason}'] if reason and made.not_checked else []
    command.say('release', [*made.not_checked, *unread, *(f'CAUTION: {caution}' for caution in made.cautions)])
    if made.missing:
        keys = ', '.join(question.key for question in made.missing)
        command.say(
            'release', [f'not stated by the curator, and listed so: {keys} (--template=FILE writes the questions)']
        )
    print(f'{made.directory} and {made.archive}: {made.num_samples:,} samples and the generator.')
    print(f'SHA-256 of {folder_lib.SHA256SUMS}: {made.digest} (tell the receiver by another channel)')
    return command.DONE


def _private_data(workdir: pathlib.Path) -> tuple[datasets.PrivateData | None, str]:
    """Returns the private images of a run by its configuration, or why they cannot be read."""
    configuration = workdir / folder_lib.OPERATIVE_CONFIG
    if not configuration.exists():
        return None, ''
    try:
        gin_config.parse([str(configuration)], [], 'train')
        gin_config.leave_out('train', 'pretraining', 'warm_start', 'utility', 'budget_file')
        data = gin_config.make('train').data
        if data is not None:
            data.train, data.held_out  # noqa: B018  # They are read here.
        return data, ''
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        return None, ' '.join(str(error).split()).rstrip('.')


def _verify(path: pathlib.Path) -> int:
    checks = handover.verify(path)
    for check in checks:
        print(f'{"good" if check.is_good else "BAD "}  {check.text}')
    digest = handover.digest_of(path)
    if digest:
        print(f'SHA-256 of {folder_lib.SHA256SUMS}: {digest} (compare it with what the sender says)')
    if all(check.is_good for check in checks):
        print(handover.claim_of(path))
        print(f'{path} is complete and consistent.')
        return command.DONE
    print(f'{path} cannot be trusted: ask for a new copy.')
    return command.FAILED


def _write_template(path: pathlib.Path) -> int:
    if path.exists():
        raise command.UsageError(f'{path} exists; name a new file.')
    files.write_text(path, curator.template())
    print(f'{path}: answer what you can, then bin/release --curator={path} ...')
    return command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/release."""
    parser = command.Parser('release', __doc__)
    parser.add_argument('--workdir', help='folder of a finished run (default: runs/latest)')
    parser.add_argument('--output', help='a new folder; the zip of it is called the same and .zip')
    parser.add_argument('--curator', metavar='FILE', help='what only you know: purpose, people, contact, licence, ...')
    parser.add_argument(
        '--num_images',
        type=int,
        metavar='N',
        help="draw N samples from the released model, with seeds from 0 (default: the run's own samples)",
    )
    parser.add_argument('--budget_file', metavar='FILE', help='budget of the data, of which the total is told')
    parser.add_argument(
        '--without_guarantee',
        action='store_true',
        help='hand over a run that has no privacy guarantee; its card says so first',
    )
    parser.add_argument(
        '--audit', metavar='FILE', help='audit_summary.json of bin/audit, which says of itself that it is public'
    )
    parser.add_argument('--template', metavar='FILE', help='write an example of a --curator file, and nothing else')
    parser.add_argument('--verify', metavar='RELEASE', help='check a folder or zip that has arrived, and nothing else')
    sys.exit(command.run(parser, main, argv))
