"""bin/sample: images without limit, from a run, an exported model or a server.

The privacy statement goes with them. A set is written in shards; after a kill or Ctrl-C the same command completes
it. The same seed gives the same image, however many are drawn, in shards of any size, on one device or several, by
one process or several.
"""

import collections
from collections.abc import Iterator, Sequence
import contextlib
import fractions
import json
import pathlib
import re
import sys

from tf_dpdiff import progress
from tf_dpdiff import workers as workers_lib
from tf_dpdiff.cli import command
from tf_dpdiff.cli import sample_source
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import sample_files
from tf_dpdiff.evaluation import sample_plan
from tf_dpdiff.evaluation import sample_writing
from tf_dpdiff.evaluation import shared_work
from tf_dpdiff.runs import folder
from tf_dpdiff.training import interruption

_SHOWN_CLASSES = 20


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    workers = strategy_flags.start(flags).workers
    output, plan, source = shared_work.all_or_none(workers, lambda: _prepare(flags))
    workers.check_same(json.dumps(plan.to_json(), sort_keys=True), 'what is to be sampled (flags, or the model)')
    with interruption.StopRequest() as stop, contextlib.ExitStack() as opened:
        # The first worker alone touches the files; the others draw for it.
        files = shared_work.at_first(
            workers, lambda: opened.enter_context(sample_writing.open_for_writing(output, plan, source.statements))
        )
        if not _complete(output, plan, files, source, stop, workers):
            return command.FAILED
    if workers.is_first:
        kinds = len(plan.choice.classes)
        print(
            f'{plan.num_images:,} images of {kinds} {"class" if kinds == 1 else "classes"} in {output} ({plan.format}).'
        )
        print(sample_files.describe(source.statements[1]))
    return command.DONE


def _prepare(flags) -> tuple[pathlib.Path, sample_plan.SamplePlan, sample_source.Source]:
    """Returns where images go, which ones, and where they come from."""
    saved_model = _path(flags.saved_model)
    workdir = _path(flags.workdir or (None if saved_model else 'runs/latest'))
    source = sample_source.find(workdir, saved_model, flags.endpoint, sample_source.sampler_changes(flags))
    output = _path(flags.output) or _default_output(flags, workdir)
    kind = flags.format or ('npz' if sample_files.is_single_file(output) else 'png')
    if flags.name and kind != 'tfds':
        raise command.UsageError(f'--name={flags.name} is for --format=tfds.')
    plan = sample_plan.SamplePlan(
        num_images=flags.num_images,
        seed=flags.seed,
        choice=_choose_classes(flags, source.description),
        image_shape=source.description.image_shape,
        class_names=source.description.class_names,
        format=kind,
        name=(flags.name or _default_name(workdir, saved_model)) if kind == 'tfds' else None,
        origin=source.origin,
        shard_size=flags.shard_size,
    )
    return output, plan, source


def _complete(
    output: pathlib.Path,
    plan: sample_plan.SamplePlan,
    files: sample_writing.SampleFiles | None,
    source: sample_source.Source,
    stop: interruption.StopRequest,
    workers: workers_lib.Workers,
) -> bool:
    """Draws and, at the first worker, writes what is not there yet; returns whether the set is complete."""
    if files:
        for problem in files.problems:
            print(f'sample: {problem}.', file=sys.stderr)
        if files.complete:
            print(f'sample: {output} is complete; nothing is drawn.', file=sys.stderr)
        elif len(files.pending) < plan.num_shards:
            then = 'going on with the others' if files.pending else 'putting them together'
            print(f'sample: {_progress(plan, files)}; {then}.', file=sys.stderr)
    state = workers.broadcast(json.dumps([files.complete, files.ranges()]).encode() if files else None)
    complete, ranges = json.loads(state)
    if complete:
        return True
    left = sum(end - first for first, end in ranges)
    sample_fns = shared_work.all_or_none(workers, source.load) if left else []
    pieces = generate.draw(
        sample_fns, plan.choice, ranges, plan.chunk_size, workers=workers, should_stop=lambda: stop.requested
    )
    with (
        contextlib.closing(pieces),
        progress.bar(
            plan.num_images, 'sampling', 'image', initial=plan.num_images - left, disable=not workers.is_first
        ) as bar,
    ):
        try:
            whole = files.write(pieces, lambda: stop.requested, bar.update) if files else _take_all(pieces)
            # Asked by all: the others have to know whether the first one wrote everything.
            whole = not workers.any(not whole)
        except shared_work.Stopped:
            whole = False
    if files and not whole:
        print(f'sample: stopped; {_progress(plan, files)} and kept. The same command goes on.', file=sys.stderr)
    return whole


def _take_all(pieces: Iterator[generate.Piece]) -> bool:
    collections.deque(pieces, maxlen=0)
    return True


def _progress(plan: sample_plan.SamplePlan, files: sample_writing.SampleFiles) -> str:
    return f'{plan.num_shards - len(files.pending)} of {plan.num_shards} shards are complete'


def _path(given: str | None) -> pathlib.Path | None:
    return pathlib.Path(given).expanduser() if given else None


def _default_output(flags, workdir: pathlib.Path | None) -> pathlib.Path:
    if workdir is None:
        raise command.UsageError('name an --output: an .npz file, or a folder.')
    ending = '.npz' if flags.format in (None, 'npz') else f'_{flags.format}'
    return workdir / f'samples_{flags.num_images}_seed_{flags.seed}{ending}'


def _default_name(workdir: pathlib.Path | None, saved_model: pathlib.Path | None) -> str:
    """Returns synthetic_ and what the run, or the servable of which this may be a version, is called."""
    path = (saved_model if workdir is None else workdir).resolve()
    name = path.parent.name if path.name.isdigit() else path.name
    return re.sub('[^a-z0-9]+', '_', f'synthetic_{name.lower()}').strip('_')


def _choose_classes(flags, description: folder.ModelDescription) -> sample_plan.ClassChoice:
    if flags.classes is not None and flags.class_weights is not None:
        raise command.UsageError('give --classes or --class_weights, not both.')
    names = description.class_names
    if flags.classes is not None:
        return sample_plan.ClassChoice(_labels('--classes', flags.classes.split(','), description))
    if flags.class_weights is not None:
        given, weights = [], []
        for pair in flags.class_weights.split(','):
            form = re.fullmatch(r'(.+)=\s*(-?[0-9]{1,12}(\.[0-9]{1,12}|/[1-9][0-9]{0,11})?)\s*', pair, re.DOTALL)
            if not form:
                raise command.UsageError(
                    f'--class_weights={flags.class_weights}: {pair.strip()!r} is not of the form '
                    'CLASS=NUMBER, as in 3=0.5.'
                )
            given.append(form.group(1))
            weights.append(fractions.Fraction(form.group(2)))
        return sample_plan.ClassChoice(_labels('--class_weights', given, description), tuple(weights))
    return sample_plan.ClassChoice(tuple(range(len(names))) if description.labelled else (len(names),))


def _labels(flag: str, given: Sequence[str], description: folder.ModelDescription) -> Sequence[int]:
    names, trained = description.class_names, description.labels
    known, labels = [*names, sample_plan.NO_CLASS], []
    for name in map(str.strip, given):
        if name != sample_plan.NO_CLASS and not description.labelled:
            raise command.UsageError(
                f'{flag}: the model was trained without labels, so it draws only {sample_plan.NO_CLASS}, not {name!r}.'
            )
        if name == sample_plan.NO_CLASS and len(names) not in trained:
            raise command.UsageError(
                f'{flag}: the model was never trained without labels (its label_drop_probability '
                f'was 0), so it cannot draw {name}.'
            )
        if name not in known:
            more = '' if len(names) <= _SHOWN_CLASSES else f', ... ({len(names)} in all)'
            others = f', and {sample_plan.NO_CLASS}' if len(names) in trained else ''
            raise command.UsageError(
                f'{flag}: there is no class {name!r}; there are {", ".join(names[:_SHOWN_CLASSES])}{more}{others}.'
            )
        if known.index(name) in labels:
            raise command.UsageError(f'{flag} names the class {name!r} twice.')
        labels.append(known.index(name))
    return tuple(labels)


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/sample."""
    parser = command.Parser('sample', __doc__)
    parser.add_argument('--workdir', help='folder of a finished run (default, without --saved_model: runs/latest)')
    parser.add_argument('--saved_model', help="an exported model (default: the run's newest)")
    parser.add_argument(
        '--endpoint',
        metavar='URL',
        help='draw on this server instead: http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME '
        '(https and grpcs with TLS, a token in TF_DPDIFF_TOKEN); the model here is what its images '
        'are checked against',
    )
    strategy_flags.add(parser)
    sample_source.add_sampler_flags(parser)
    parser.add_argument('--num_images', type=int, default=5000, help='how many (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='image i has seed SEED + i (default: %(default)s)')
    parser.add_argument(
        '--classes',
        help='names, as in 3,7: equal parts of these (default: equal parts of all); no_class too, where '
        'the model was trained with a label_drop_probability above 0',
    )
    parser.add_argument('--class_weights', help='as in 3=2,7=0.5: four times as many of class 3 as of class 7')
    parser.add_argument('--output', help='an .npz file, or a folder (default: in the workdir)')
    parser.add_argument(
        '--format',
        choices=sample_plan.FORMATS,
        help='tfds: a data set for tfds.load(NAME, data_dir=OUTPUT); png: a folder a class; npz: arrays '
        '(default: npz if OUTPUT ends in .npz, else png)',
    )
    parser.add_argument(
        '--name', help='of the data set, with --format=tfds (default: synthetic_ and the name of the run)'
    )
    parser.add_argument(
        '--shard_size',
        type=int,
        default=10000,
        help='images a shard, and what a kill loses at most (default: %(default)s)',
    )
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
