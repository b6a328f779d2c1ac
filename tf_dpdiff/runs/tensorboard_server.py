"""A look at one run or at several in TensorBoard, with a layout for private training; writes nothing to the runs."""

from collections.abc import Sequence
import pathlib
import socket

from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary
import tensorflow as tf

from tf_dpdiff.training import finetuning
from tf_dpdiff.training import pretraining
from tf_dpdiff.training import summaries
from tf_dpdiff.training import warm_start

_RELOAD_SECS = 5.0
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
    ('PRIVATE, not to be released', 'loss on private images', (rf'{summaries.NON_PRIVATE}/loss',)),
    ('PRIVATE, not to be released', 'clipped fraction', (rf'{summaries.NON_PRIVATE}/clipped_fraction',)),
    ('PRIVATE, not to be released', 'gradient norm', (rf'{summaries.NON_PRIVATE}/gradient_norm',)),
)


def find_events(workdirs: Sequence[pathlib.Path], *, private: bool = False) -> dict[str, pathlib.Path]:
    """Returns the folders of events to be shown, by the names that TensorBoard shows them under.

    Args:
      workdirs: Folders of runs, or folders in which such folders lie.
      private: Whether to show what must not be released too.

    Raises:
      ValueError: if a folder holds no run.
    """
    found = {}
    for workdir in workdirs:
        candidates = [workdir] if summaries.released_folder(workdir).is_dir() else sorted(workdir.glob('*'))
        # What must not be released looks like a run inside of a run.
        candidates = [run for run in candidates if run.resolve().name != summaries.NON_PRIVATE]
        runs = [run for run in candidates if summaries.released_folder(run).is_dir()]
        if not runs:
            raise ValueError(
                f'{workdir} holds no run with TensorBoard events, nor folders of such runs; train '
                'first, or name another --workdir.'
            )
        for run in runs:
            name, number = run.resolve().name, 2
            while name in found:
                name, number = f'{run.resolve().name}_{number}', number + 1
            found[name] = summaries.released_folder(run).resolve()
            if private and summaries.private_folder(run).is_dir():
                found[f'{name}_{summaries.NON_PRIVATE}'] = summaries.private_folder(run).resolve()
    return found


def link(events: dict[str, pathlib.Path], logdir: pathlib.Path) -> None:
    """Makes a folder that TensorBoard shows out of links: nothing is written to the runs."""
    for name, folder in events.items():
        if not (logdir / name).is_symlink():
            (logdir / name).symlink_to(folder, target_is_directory=True)


def write_layout(logdir: pathlib.Path, *, private: bool = False) -> None:
    """Writes which charts the tab "Custom Scalars" shows."""
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
      ValueError: if it cannot listen there.
    """
    from tensorboard import program  # Not before it is wanted: it warns of its own libraries.

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
        raise ValueError(
            f'cannot listen at {where}: {reason}; name another --port (0: any free one) or --host.'
        ) from error
