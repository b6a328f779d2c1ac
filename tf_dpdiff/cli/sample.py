"""bin/sample: images without limit, from a run, an exported model or a server.

The privacy statement goes with them. A set is written in shards; after a kill or Ctrl-C the same command completes
it. The same seed gives the same image, however many are drawn, in shards of any size, on one device or several, by
one process or several.
"""

from collections.abc import Sequence
import contextlib
import fractions
import json
import pathlib
import re
import sys
import zipfile

import numpy as np

from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import sampler_flags
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import source as source_lib
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats
from tf_dpdiff.sampling import shared_work
from tf_dpdiff.sampling import store
from tf_dpdiff.sampling import writer as writer_lib
from tf_dpdiff.training import interruption


def main(flags) -> int:
    """Runs the verb."""
    command.quieten_libraries()
    workers = strategy_flags.start(flags).workers
    with progress.working('sample', 'loading the model'):
        output, spec, source = shared_work.all_or_none(workers, lambda: _prepare(flags))
    workers.check_same(json.dumps(spec.to_json(), sort_keys=True), 'what is to be sampled (flags, or the model)')
    with interruption.StopRequest() as stop, contextlib.ExitStack() as opened:
        # The first worker alone touches the files; the others draw for it.
        writer = shared_work.at_first(
            workers, lambda: opened.enter_context(writer_lib.open_for_writing(output, spec, source.statements))
        )
        if writer:
            command.say('sample', _found(output, spec, writer))
        if not writer_lib.complete(
            writer,
            spec,
            source.load,
            label_images=source.label_images,
            workers=workers,
            should_stop=lambda: stop.requested,
        ):
            if writer:
                command.say('sample', [f'stopped; {writer.progress} and kept. The same command goes on'])
            return command.FAILED
    if workers.is_first:
        kinds = len(spec.choice.classes)
        print(
            f'{spec.num_images:,} images of {kinds} {"class" if kinds == 1 else "classes"} in {output} ({spec.format}).'
        )
        print(store.describe(source.statements[1]))
        if note := _note_on_seeds(flags, spec):
            print(note)
    return command.DONE


def _run_folder(flags) -> pathlib.Path | None:
    return _path(flags.workdir or (None if flags.saved_model else 'runs/latest'))


def _note_on_seeds(flags, spec: formats.Spec) -> str:
    """Returns how images differ from those that the run has drawn itself, if some of these may be among them; or ''."""
    folder = _run_folder(flags)
    if folder is None or sampler_flags.changes(flags):  # Another sampler makes other images of the same seeds.
        return ''
    try:
        with np.load(folder / folder_lib.SAMPLES) as arrays:
            num_drawn = len(arrays['labels'])  # The images are not read.
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # Of no matter to what was drawn here.
        return ''
    if spec.seed >= num_drawn:
        return ''
    return (
        f'The first of these may be in {folder_lib.SAMPLES} of the run too: it holds the seeds below {num_drawn:,}, '
        'unless GenerateConfig.seed said otherwise, and the same class and seed are the same image. '
        f'--seed={num_drawn} draws others.'
    )


def _prepare(flags) -> tuple[pathlib.Path, formats.Spec, source_lib.Source]:
    """Returns the output, the images that are to be there, and the model that they come from."""
    saved_model, workdir = _path(flags.saved_model), _run_folder(flags)
    source = source_lib.find(workdir, saved_model, flags.endpoint, sampler_flags.changes(flags))
    output = _path(flags.output) or _default_output(flags, workdir)
    # A file in the folder of a class has its label before a teacher could give it one.
    kind = flags.format or ('npz' if store.is_single_file(output) or source.label_images else 'png')
    if kind == 'png' and source.label_images:
        raise command.UsageError(
            'the teacher of the run labels its samples, and folders of PNG files are for labels that are known before: '
            'say --format=npz or --format=tfds.'
        )
    if flags.name and kind != 'tfds':
        raise command.UsageError(f'--name={flags.name} is for --format=tfds.')
    spec = formats.Spec(
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
    return output, spec, source


def _found(output: pathlib.Path, spec: formats.Spec, writer: writer_lib.Writer) -> list[str]:
    """Returns sentences on what is there already."""
    if writer.complete:
        return [*writer.problems, f'{output} is complete; nothing is drawn']
    if len(writer.pending) == spec.num_shards:
        return writer.problems
    then = 'going on with the others' if writer.pending else 'putting them together'
    return [*writer.problems, f'{writer.progress}; {then}']


def _path(given: str | None) -> pathlib.Path | None:
    return pathlib.Path(given).expanduser() if given else None


def _default_output(flags, workdir: pathlib.Path | None) -> pathlib.Path:
    if workdir is None:
        raise command.UsageError('name an --output: an .npz file, or a folder.')
    ending = '.npz' if flags.format in (None, 'npz') else f'_{flags.format}'
    return workdir / f'samples_{flags.num_images}_seed_{flags.seed}{ending}'


def _default_name(workdir: pathlib.Path | None, saved_model: pathlib.Path | None) -> str:
    """Returns synthetic_ and what the run, or the servable of which this may be a version, is called."""
    folder = saved_model if workdir is None else workdir
    assert folder is not None  # One of the two is given.
    path = folder.resolve()
    name = path.parent.name if path.name.isdigit() else path.name
    return re.sub('[^a-z0-9]+', '_', f'synthetic_{name.lower()}').strip('_')


def _choose_classes(flags, description: folder_lib.ModelDescription) -> draw.ClassChoice:
    if flags.classes is not None and flags.class_weights is not None:
        raise command.UsageError('give --classes or --class_weights, not both.')
    if flags.classes is not None:
        return draw.ClassChoice(_labels('--classes', flags.classes.split(','), description))
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
        return draw.ClassChoice(_labels('--class_weights', given, description), tuple(weights))
    return draw.ClassChoice(description.named_labels)


def _labels(flag: str, given: Sequence[str], description: folder_lib.ModelDescription) -> tuple[int, ...]:
    names = [name.strip() for name in given]
    try:
        labels = description.labels_of(names)
    except ValueError as error:
        raise command.UsageError(f'{flag}: {error}') from error
    if twice := [name for position, name in enumerate(names) if name in names[:position]]:
        raise command.UsageError(f'{flag} names the class {twice[0]!r} twice.')
    return labels


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
    sampler_flags.add(parser)
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
        choices=formats.FORMATS,
        help='tfds: a data set for tfds.load(NAME, data_dir=OUTPUT); png: one folder per class; npz: arrays '
        '(default: npz if OUTPUT ends in .npz or a teacher labels the samples, else png)',
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
    sys.exit(command.run(parser, main, argv))
