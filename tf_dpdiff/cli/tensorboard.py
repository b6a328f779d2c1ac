"""bin/tensorboard: a look at one run or at several, in TensorBoard, with a layout for private training."""

from collections.abc import Sequence
import contextlib
import pathlib
import socket
import sys
import tempfile
import time
import warnings

from tf_dpdiff.cli import command
from tf_dpdiff.serving import security
from tf_dpdiff.training import finetuning
from tf_dpdiff.training import interruption
from tf_dpdiff.training import pretraining
from tf_dpdiff.training import warm_start

_RELOAD_SECS, _RESCAN_SECS = 5.0, 0.5
# The page that the layout is on, without smoothing: a smoothed epsilon is below what was spent.
_PAGE = '?smoothing=0#custom_scalars&_smoothingWeight=0'
_PUBLIC = f'({pretraining.NAME}|{warm_start.NAME})'
# Category, chart and the tags in it, as regular expressions.
_LAYOUT = (
    ('Privacy', 'epsilon over private steps', (r'privacy/epsilon', rf'{finetuning.NAME}/epsilon_spent')),
    ('Privacy', 'epsilon before them', (rf'{warm_start.NAME}/epsilon_spent',)),
    ('Private training', 'learning rate', (rf'{finetuning.NAME}/learning_rate',)),
    ('Private training', 'decay of the moving average', (rf'{finetuning.NAME}/ema_decay',)),
    ('Public stages', 'loss', (rf'{_PUBLIC}/loss',)),
    ('Public stages', 'learning rate', (rf'{_PUBLIC}/learning_rate',)),
    ('Public stages', 'decay of the moving average', (rf'{_PUBLIC}/ema_decay',)),
)
_PRIVATE_LAYOUT = (
    ('PRIVATE, not to be released', 'loss on private images', (r'non_private/loss',)),
    ('PRIVATE, not to be released', 'clipped fraction', (r'non_private/clipped_fraction',)),
    ('PRIVATE, not to be released', 'gradient norm', (r'non_private/gradient_norm',)),
)


def find_events(workdirs: Sequence[pathlib.Path], *, private: bool = False) -> dict[str, pathlib.Path]:
    """Returns the folders of events to be shown, by the names that TensorBoard shows them under.

    Args:
      workdirs: Folders of runs, or folders in which such folders lie.
      private: Whether to show what must not be released too.

    Raises:
      command.UsageError: if a folder holds no run.
    """
    found = {}
    for workdir in workdirs:
        candidates = [workdir] if (workdir / 'tensorboard').is_dir() else sorted(workdir.glob('*'))
        # What must not be released looks like a run inside of a run.
        runs = [run for run in candidates if (run / 'tensorboard').is_dir() and run.resolve().name != 'non_private']
        if not runs:
            raise command.UsageError(
                f'{workdir} holds no run with TensorBoard events, nor folders of such runs; train '
                'first, or name another --workdir.'
            )
        for run in runs:
            name, number = run.resolve().name, 2
            while name in found:
                name, number = f'{run.resolve().name}_{number}', number + 1
            found[name] = (run / 'tensorboard').resolve()
            if private and (run / 'non_private' / 'tensorboard').is_dir():
                found[f'{name}_non_private'] = (run / 'non_private' / 'tensorboard').resolve()
    return found


def link(events: dict[str, pathlib.Path], logdir: pathlib.Path) -> None:
    """Makes a folder that TensorBoard shows out of links: nothing is written to the runs."""
    for name, folder in events.items():
        if not (logdir / name).is_symlink():
            (logdir / name).symlink_to(folder, target_is_directory=True)


def write_layout(logdir: pathlib.Path, *, private: bool = False) -> None:
    """Writes which charts the tab "Custom Scalars" shows."""

    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.custom_scalar import summary
    import tensorflow as tf

    categories: dict[str, list[layout_pb2.Chart]] = {}
    for category, title, tags in _LAYOUT + (_PRIVATE_LAYOUT if private else ()):
        chart = layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f'{t}$' for t in tags]))
        categories.setdefault(category, []).append(chart)
    layout = layout_pb2.Layout(
        category=[layout_pb2.Category(title=title, chart=charts) for title, charts in categories.items()]
    )
    with tf.summary.create_file_writer(str(logdir)).as_default(step=0):
        tf.summary.experimental.write_raw_pb(summary.pb(layout).SerializeToString())


def serve(logdir: pathlib.Path, *, host: str, port: int | None) -> str:
    """Starts TensorBoard in a thread of its own and returns its address.

    Args:
      logdir: What is shown.
      host: Address to listen at.
      port: 0: any free one; None: the first free one from 6006.

    Raises:
      command.UsageError: if it cannot listen there.
    """
    from tensorboard import program

    board = program.TensorBoard()
    # Of TensorBoard's two loaders, the one that withdraws what a resumed run repeats.
    board.configure(
        argv=[''], logdir=str(logdir), host=host, port=port, load_fast='false', reload_interval=_RELOAD_SECS
    )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()  # TensorBoard would end the process.
        return board.launch()
    except (program.TensorBoardServerException, OSError) as error:
        where = f'{host}:{port}' if port else host
        reason = getattr(error, 'strerror', None) or getattr(error, 'msg', None) or error
        raise command.UsageError(
            f'cannot listen at {where}: {reason}; name another --port (0: any free one) or --host.'
        ) from error


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
    events = find_events(workdirs, private=flags.private)
    with tempfile.TemporaryDirectory(prefix='tf_dpdiff_tensorboard_') as folder, interruption.StopRequest() as stop:
        logdir = pathlib.Path(folder)
        link(events, logdir)
        write_layout(logdir, private=flags.private)
        url = serve(logdir, host=flags.host, port=flags.port)
        if flags.private:
            print(
                'tensorboard: PRIVATE: shows numbers computed from private images without noise; do not release them.',
                file=sys.stderr,
            )
        print(url + _PAGE, flush=True)
        while not stop.requested:
            time.sleep(_RESCAN_SECS)
            with contextlib.suppress(command.UsageError):  # Runs may be deleted while they are looked at.
                link(find_events(workdirs, private=flags.private), logdir)  # Runs of a sweep that began since.
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
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
