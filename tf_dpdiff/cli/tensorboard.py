"""bin/tensorboard: a look at one run or at several, in TensorBoard, with a layout for private training."""

import contextlib
import pathlib
import sys
import tempfile
import time
import warnings

from tf_dpdiff.cli import command
from tf_dpdiff.runs import tensorboard_server
from tf_dpdiff.serving import security
from tf_dpdiff.training import interruption

_RESCAN_SECS = 0.5
# The page that the layout is on, without smoothing: a smoothed epsilon is below what was spent.
_PAGE = '?smoothing=0#custom_scalars&_smoothingWeight=0'


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # TensorBoard imports it.
    if flags.port is not None and not 0 <= flags.port < 2**16:
        raise command.UsageError(f'--port must be from 0 to 65535, got {flags.port}.')
    if flags.private and not security.is_loopback(flags.host):
        raise command.UsageError(
            f'--private shows what must not be released, and TensorBoard asks nobody who they '
            f'are: it is for this machine alone, not for --host={flags.host}.'
        )
    workdirs = [pathlib.Path(workdir).expanduser() for workdir in flags.workdir or ['runs/latest']]
    events = tensorboard_server.find_events(workdirs, private=flags.private)
    with tempfile.TemporaryDirectory(prefix='tf_dpdiff_tensorboard_') as folder, interruption.StopRequest() as stop:
        logdir = pathlib.Path(folder)
        tensorboard_server.link(events, logdir)
        tensorboard_server.write_layout(logdir, private=flags.private)
        url = tensorboard_server.serve(logdir, host=flags.host, port=flags.port)
        if flags.private:
            print(
                'tensorboard: PRIVATE: shows numbers computed from private images without noise; do not release them.',
                file=sys.stderr,
            )
        print(url + _PAGE, flush=True)
        while not stop.requested:
            time.sleep(_RESCAN_SECS)
            with contextlib.suppress(ValueError):  # Runs may be deleted while they are looked at.
                # Runs of a sweep that began since.
                tensorboard_server.link(tensorboard_server.find_events(workdirs, private=flags.private), logdir)
    return command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/tensorboard."""
    parser = command.Parser('tensorboard', __doc__)
    parser.add_argument(
        '--workdir',
        action='append',
        help='folder of a run, or of runs to compare; may be given several times (default: runs/latest)',
    )
    parser.add_argument(
        '--private',
        action='store_true',
        help='show non_private/ too, which must not be released; on this machine alone',
    )
    parser.add_argument('--host', default='127.0.0.1', help='address to listen at (default: %(default)s)')
    parser.add_argument('--port', type=int, help='0: any free one (default: the first free one from 6006)')
    sys.exit(command.run(parser, main, argv))
