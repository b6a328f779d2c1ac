"""bin/init: from a folder of one's own images to a configuration that runs as it is."""

import dataclasses
import math
import os
import pathlib
import shlex
import sys
import tempfile
from typing import NamedTuple

from tf_dpdiff import files
from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import dry_run
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.data import classes
from tf_dpdiff.data import datasets
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import problems as problems_lib
from tf_dpdiff.data import splitting
from tf_dpdiff.data import survey as survey_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import relations
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import forecast as forecast_lib
from tf_dpdiff.runs import own_images
from tf_dpdiff.runs import recipe as recipe_lib

_IMAGE = 'image'
_WHITE, _BLACK = 255, 0
# Images with a shorter side than this keep their size; larger ones come to that of a public model.
_SMALLEST_FOR_A_MODEL = 12
_MODELS = {1: ('grey28', (28, 28)), 3: ('colour32', (32, 32))}
# Of height and width: up to it a centred square is cut out, beyond it the whole image is put on a border.
_MOST_CROPPED = 1.25
_OBLONG_SHARE = 0.1  # Of the images: where more are so oblong, all of them get a border.
_COMMENT_COLUMN = 48
_MOST_OVERTIME = 1.5  # Of the hours that were asked for; beyond it, it is said.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person asks for; see `configure`."""

    epsilon: float = 10.0
    delta: float | None = None
    hours: float = 1.0
    unit: str | None = None
    image_size: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    label_column: str | None = None
    held_out_fraction: float | None = None

    @property
    def unit_word(self) -> str | None:
        """The unit without 'one', or None."""
        word = self.unit.strip().removeprefix('one ').strip() if self.unit else None
        return _IMAGE if word and word.casefold() == _IMAGE else word

    def __post_init__(self):
        for name in ('epsilon', 'hours'):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f'{name} must be finite and > 0, got {getattr(self, name)}.')
        if self.delta is not None and not 0.0 < self.delta < 1.0:
            raise ValueError(f'delta must be in (0, 1), got {self.delta}.')
        if self.unit is not None:
            classes.check_text('unit', self.unit)
            if not self.unit.strip() or any(map(str.isdigit, self.unit)):
                raise ValueError("unit must be 'image' or a word for who owns images, such as 'patient'.")
        if self.held_out_fraction is not None:
            splitting.check_fraction(self.held_out_fraction)
        if self.image_size is not None and any(side < 4 or side % 2 for side in self.image_size):
            raise ValueError(
                f'image_size must be even numbers of pixels from 4 on, got {"x".join(map(str, self.image_size))}: '
                'networks halve images.'
            )
        images_lib.Fit(window=self.window)  # Refuses what no source takes.


def configure(
    path: str | os.PathLike,
    *,
    epsilon: float = 10.0,
    delta: float | None = None,
    hours: float = 1.0,
    unit: str | None = None,
    image_size: tuple[int, int] | None = None,
    window: tuple[float, float] | None = None,
    label_column: str | None = None,
    held_out_fraction: float | None = None,
) -> str:
    """Returns a configuration for a folder of one's own images, which runs as it is.

    It goes by public facts alone: the number of images or owners, the classes, the sizes that are in the headers, the
    budget, and the speed of this machine, measured for some seconds on random numbers. No pixel is read, and nothing
    is counted a class.

    Args:
      path: A folder, a table or an .npz file, as `survey` reads them.
      epsilon: The privacy budget, > 0.
      delta: In (0, 1); None: at most 1 / (10 N), rounded down to one digit.
      hours: That the run may take on this machine, > 0.
      unit: What is protected: 'image', or a word for the owner of several images, such as 'patient'; None: an image,
        but where the images name their owners.
      image_size: (height, width) to bring images to, in pixels; None: those of the public model.
      window: (low, high): the grey levels of 16-bit images that become 0 and 255; such images need it.
      label_column: Of the table that lists the images: their class; None: the one that looks like it.
      held_out_fraction: About the share of the units that is held out, in (0, 1), where there is no test part; None:
        that of the source.

    Returns:
      The text of a configuration file.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if the images can't be read so, or the budget can't be met; says what to do.
    """
    asked = Wishes(
        epsilon=epsilon,
        delta=delta,
        hours=hours,
        unit=unit,
        image_size=image_size,
        window=window,
        label_column=label_column,
        held_out_fraction=held_out_fraction,
    )
    return _configure(path, asked).text


class _Configured(NamedTuple):
    """A configuration, what it builds, and what was measured for it."""

    text: str
    build: build_lib.Build
    model: keras.Model
    speed: forecast_lib.Speed
    told: forecast_lib.Forecast


def _configure(path: str | os.PathLike, asked: Wishes) -> _Configured:
    with progress.working('init', f'looking at {path}'):
        found = survey_lib.survey(pathlib.Path(path).expanduser().absolute())
        found.check()
    if found.problems:
        problems = problems_lib.Problems(str(found.path))
        for problem in found.problems:
            problems.add(problem)
        problems.check()
    lines = _lines_of_images(found, asked)
    recipe = _recipe([*lines, *_UNDECIDED])
    assert recipe.data is not None and recipe.finetuning is not None
    spec = recipe.data.spec
    delta = asked.delta or own_images.choose_delta(spec.num_units)
    model = denoiser.build(recipe.network, spec.image_shape, spec.num_classes)
    with progress.working('init', 'measuring the speed of this machine'):
        speed = forecast_lib.measure_speed(model, recipe.finetuning.trainable)
    assert speed is not None  # The models are small.
    facts = own_images.Facts(
        spec.num_units, spec.num_classes, spec.image_shape, asked.epsilon, delta, asked.hours, speed
    )
    with progress.working('init', 'dividing the budget'):
        choice = own_images.choose(facts)
    lines += [*_start_lines(spec), *_decided(facts, choice, asked)]
    recipe = _recipe(lines)
    with progress.working('init', 'calibrating the noise'):
        build = build_lib.Build(recipe)  # Refuses a budget that makes no sense.
    hours = forecast_lib.training_secs(recipe, speed) / 3600.0
    # What gin/own_images.gin says of the means is what the rules reckoned with.
    assert recipe.warm_start is not None and recipe.warm_start.release == choice.release
    told = forecast_lib.forecast_of(build, model)
    return _Configured(_text([*_head(found, build, told, asked, hours), *lines]), build, model, speed, told)


def _recipe(lines: list) -> recipe_lib.Recipe:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / 'draft.gin'
        file.write_text(_text([_INCLUDE, *lines]), encoding='utf-8')
        return gin_config.recipe(str(file))


_INCLUDE = "include 'own_images.gin'"


_UNDECIDED = [
    'TARGET_EPSILON = 1.0',
    'TARGET_DELTA = 1e-30',
    'EXPECTED_BATCH_SIZE = 1',
    'ClassMeansConfig.noise_multiplier = 1.0',
    'ClassMeansConfig.l2_norm_clip = 1.0',
    'WarmStartConfig.num_steps = 1',
]


def _head(
    found: survey_lib.Survey, build: build_lib.Build, told: forecast_lib.Forecast, asked: Wishes, hours: float
) -> list[str]:
    spec, works = build.spec, 'It runs as it is'
    if told.is_hopeless:
        works = 'Its noise hides all, see --dry_run, and this asks for --anyway'
    but = f', and takes about {hours:.1g} all the same' if hours > _MOST_OVERTIME * asked.hours else ''
    is_hashed = found.source == 'npz' and not spec.has_owners
    seen = 'Pixels had no say but in which images are held out' if is_hashed else 'No pixel was read'
    return [
        f'# Made by bin/init for {asked.hours:g} hour(s) on the machine that it ran on{but}. {works}:',
        '#     bin/train --gin_file=FILE --workdir=runs/mine',
        f'# Treated as public: the number of units ({spec.num_units:,}, each {spec.unit}), the classes, the sizes in',
        f'# the headers. {seen}, and nothing was counted a class.',
        _INCLUDE,
    ]


def _lines_of_images(found: survey_lib.Survey, asked: Wishes) -> list:
    """Returns the lines that say what the images are, and the public model that they start from."""
    channels = 3 if found.has_colour else 1
    heights, widths = ([size[axis] for size in found.sizes] for axis in (0, 1))
    shortest = min(min(heights), min(widths))
    _, model_size = _MODELS[channels]
    own = max(4, shortest // 4 * 4)  # Networks halve it twice.
    size = asked.image_size or (model_size if shortest >= _SMALLEST_FOR_A_MODEL else (own, own))
    return [
        (f"include 'models/{_public_model(size, channels) or 'digits'}.gin'", 'The network.'),
        *_source_lines(found, asked),
        *_fit_lines(found, asked, size, channels),
    ]


def _public_model(size: tuple[int, int], channels: int) -> str:
    """Returns the public model that images of a size can start from, or ''."""
    name, model_size = _MODELS[channels]
    # The grey model has no attention that depends on the size.
    fits = size == model_size or (name == 'grey28' and min(size) >= 20 and not any(side % 4 for side in size))
    return name if fits else ''


def _start_lines(spec: datasets.DatasetSpec) -> list:
    """Returns the lines that say what the network starts from."""
    height, width, channels = spec.image_shape
    model = _public_model((height, width), channels)
    if model and (gin_files.gin_folder().parent / 'saved_models' / model / 'pretrained.json').is_file():
        return [(f"FinetuningConfig.init_from = 'saved_models/{model}'", 'A public model of photographs.')]
    why = 'The public model of this size is not here' if model else 'No public model has this size'
    return [
        ("include 'stages/procedural.gin'", f'{why}: it begins on drawn images.'),
        f'random_shapes.image_size = {height if height == width else (height, width)}',
        f'random_shapes.num_classes = {spec.num_classes}',
        f'random_shapes.channels = {channels}',
    ]


def _source_lines(found: survey_lib.Survey, asked: Wishes) -> list:
    """Returns the lines that name the source of the images, and their owners where these are protected."""
    source = survey_lib.SOURCES[found.source]
    lines: list = [f'DATA = @{source}()', f'{source}.path = {str(found.path)!r}']
    if found.passed_over:
        read = 'train and test' if found.source.startswith('train') else 'the class folders'
        lines[1] = (lines[1], f'CHECK: images beside {read} are not read.')
    lines += [*_label_lines(found, source, asked.label_column), *_split_lines(found, source, asked)]
    always_owned = found.source == 'dicom' or (found.source in ('npz', 'npy') and found.has_owners)
    unit = asked.unit_word or ({'dicom': 'patient'}.get(found.source, 'owner') if always_owned else _IMAGE)
    if unit == _IMAGE:
        if always_owned:
            raise ValueError(
                f'{found.path} names the owner of each image, and they are protected: drop --unit=image, or say '
                '--unit=patient.'
            )
        owners = found.num_prefix_owners or max(found.owner_columns.values(), default=0)
        if owners:
            why = f'CHECK: one image, not someone with several. --unit=patient: {owners:,} owners in all.'
            lines.append((f"{source}.unit = 'one image'", why))
        return lines
    lines += _owner_lines(found, source, unit)
    return [*lines, f'{source}.unit = {f"one {unit}"!r}']


def _split_lines(found: survey_lib.Survey, source: str, asked: Wishes) -> list:
    if asked.held_out_fraction is None:
        return []
    if found.source == 'npy':
        raise ValueError(f'{found.path} says itself which images are held out: drop --held_out_fraction.')
    return [f'{source}.held_out_fraction = {asked.held_out_fraction!r}']


def _label_lines(found: survey_lib.Survey, source: str, label_column: str | None) -> list:
    """Returns the lines that say where the classes are named, where it is not in folders or in the file itself."""
    lines: list = []
    is_listed = found.source == 'table' or (found.source == 'dicom' and found.table is not None)
    if found.source == 'dicom' and not found.class_names and not (is_listed and found.label_columns):
        raise ValueError(
            f'nothing says of which class each image in {found.path} is: put them in class folders, or a table of '
            'labels beside them.'
        )
    if not is_listed or not found.label_columns:
        if label_column is not None:
            raise ValueError(
                f'the classes of {found.path} are not from a table: drop --label_column, or give the table as the path.'
            )
        return lines
    label, why = _choose_label(found, label_column)
    if found.source == 'dicom':
        lines.append(f'{source}.labels = {str(found.table)!r}')
    if found.file_columns:
        lines.append((f'{source}.file_column = {found.file_columns[0]!r}', 'The column whose values are files.'))
    else:
        column = max(found.owner_columns, key=lambda name: found.owner_columns[name])
        lines.append((f'{source}.patient_column = {column!r}', 'CHECK: the column taken for the PatientID.'))
    lines.append((f'{source}.label_column = {label!r}', why))
    if found.has_unlisted:
        lines.append((f"{source}.unlisted = 'pass_over'", 'CHECK: some images are not in the table.'))
    return lines


def _choose_label(found: survey_lib.Survey, label_column: str | None) -> tuple[str, str]:
    """Returns the column of the class, and how it is known.

    Raises:
      ValueError: if nothing tells which of several it is; names them.
    """
    likely = [name for name in found.label_columns if survey_lib.is_label(name)] or found.label_columns
    if label_column is not None:
        if label_column not in found.columns:
            raise ValueError(f'{found.table} has no column {label_column!r}; it has {", ".join(found.columns)}.')
        return label_column, 'As given.'
    if len(likely) > 1:
        raise ValueError(
            f'which column of {found.table} is the class? Say it by --label_column: {", ".join(map(repr, likely))}.'
        )
    return likely[0], 'CHECK: the column taken for the class.'


def _owner_lines(found: survey_lib.Survey, source: str, unit: str) -> list:
    """Returns the lines that say whose the images are.

    Raises:
      ValueError: if nothing does.
    """
    if found.has_owners or found.source == 'dicom':
        return []
    if found.owner_columns:
        column = max(found.owner_columns, key=lambda name: found.owner_columns[name])
        lines: list = [(f'{source}.owner_column = {column!r}', f'CHECK: the column taken for the {unit}.')]
        if source == 'image_folder':
            lines.insert(0, f'{source}.owners = {str(found.table)!r}')
            lines.insert(1, f'{source}.file_column = {found.file_columns[0]!r}')
        return lines
    if source == 'image_folder' and found.num_prefix_owners:
        return [(f"{source}.owner_from = 'prefix'", f'The {unit} of NAME_anything.png is NAME.')]
    raise ValueError(
        f'nothing in {found.path} says of which {unit} each image is: name every file {unit.upper()}_ANYTHING, several '
        f'of one {unit} and of several, or put a table with a column of owners beside them; or say --unit=image.'
    )


def _fit_lines(found: survey_lib.Survey, asked: Wishes, size: tuple[int, int], channels: int) -> list:
    """Returns the lines that bring images to one size and one number of channels."""
    source = survey_lib.SOURCES[found.source]
    sizes, lines = list(found.sizes), []
    if asked.window is not None and not found.takes_window:
        raise ValueError(f'{found.path} holds no grey images of 16 bits a channel: drop --window.')
    if found.source in ('npz', 'npy'):
        if sizes != [size]:
            is_odd = any(side % 2 for side in sizes[0])
            raise ValueError(
                f'{found.path} holds images of {sizes[0][0]}x{sizes[0][1]}, which are taken as they are: bring them to '
                f'{size[0]}x{size[1]} first{"" if is_odd else f", or say --image_size={sizes[0][0]}x{sizes[0][1]}"}.'
            )
        return []
    if sizes != [size]:
        shown = size[0] if size[0] == size[1] else size
        heights, widths = (_spread([each[axis] for each in sizes]) for axis in (0, 1))
        lines.append((f'{source}.image_size = {shown}', f'Images are {heights} pixels high and {widths} wide.'))
        wanted = size[0] / size[1]
        oblong = sum(
            count
            for (height, width), count in found.sizes.items()
            if max(height / width / wanted, width / height * wanted) > _MOST_CROPPED
        )
        if oblong > _OBLONG_SHARE * found.num_images:
            lines.append((f"{source}.resize = 'pad'", 'Nothing is cut off oblong images; a border fills the rest.'))
    needs_border = any('pad' in line[0] for line in lines)
    if found.has_alpha or needs_border:
        level = _BLACK if needs_border and not found.has_alpha else _WHITE
        what = 'Behind transparent pixels' if found.has_alpha else 'Of the border'
        lines.append((f'{source}.background = {level}', f'{what}: {"white" if level else "black"}.'))
    if found.has_grey and found.has_colour:
        lines.append((f'{source}.channels = {channels}', 'Some images are in colour.'))
    if found.needs_window and asked.window is None:
        what = 'have no window in their headers' if found.source == 'dicom' else 'have 16 bits a channel'
        raise ValueError(
            f'images in {found.path} {what}: say which grey levels become black and white, such as --window=0,4095.'
        )
    if asked.window is not None:
        lines.append((f'{source}.window = {asked.window}', 'Grey levels that become 0 and 255.'))
    return lines


def _spread(numbers: list[int]) -> str:
    return f'{min(numbers)}' if min(numbers) == max(numbers) else f'{min(numbers)} to {max(numbers)}'


def _decided(facts: own_images.Facts, choice: own_images.Choice, asked: Wishes) -> list:
    """Returns the lines that say what the budget buys."""
    release, num_units = choice.release, facts.num_units
    noise = forecast_lib.noise_on_means(release, num_units, facts.num_classes, relations.REPLACE_WITH_ZERO)
    rounds = f'in {release.num_rounds} rounds' if release.num_rounds > 1 else 'at once'
    height, width, channels = facts.image_shape
    lines: list = [
        f'TARGET_EPSILON = {facts.epsilon!r}',
        (
            f'TARGET_DELTA = {facts.delta!r}',
            'As given.' if asked.delta else f'At most 1 / (10 x {num_units:,}), rounded down.',
        ),
        (
            f'ClassMeansConfig.noise_multiplier = {release.noise_multiplier!r}',
            f'{choice.warm_start_share:.0%} of the budget, {rounds}; noise {noise:.2g} a pixel of a mean.',
        ),
        (
            f'ClassMeansConfig.l2_norm_clip = {release.l2_norm_clip!r}',
            f'0.3 of the root of {height} x {width} x {channels}; no image is above 0.5.',
        ),
    ]
    if release.num_rounds > 1:
        why = 'As many a class as the noise permits.'
        lines.append((f'ClassMeansConfig.means_per_class = {release.means_per_class}', why))
        lines.append(f'ClassMeansConfig.num_rounds = {release.num_rounds}')
    batch = choice.expected_batch_size
    lines += [
        (f'WarmStartConfig.num_steps = {choice.warm_start_steps}', 'A fifth of the time, within limits.'),
        (f'EXPECTED_BATCH_SIZE = {batch}', f'Of {num_units:,} units; large batches cost least noise.'),
        f'NUM_STEPS = {choice.num_steps}',
        (f'AUGMENTATION_MULTIPLICITY = {choice.num_views}', 'Views of a unit a step: they cost time, and no privacy.'),
        f'GenerateConfig.num_images = {choice.num_samples}',
    ]
    return lines


def _text(lines: list) -> str:
    """Returns lines as a file, each reason behind its binding."""
    written = []
    for line in lines:
        if isinstance(line, tuple):
            binding, why = line
            line = f'{binding:<{_COMMENT_COLUMN}}  # {why}'
        written.append(line)
    return '\n'.join(written) + '\n'


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
    wishes = Wishes(
        epsilon=flags.epsilon,
        delta=flags.delta,
        hours=flags.hours,
        unit=flags.unit,
        image_size=_read_pair(flags.image_size, 'image_size', 'x', int),
        window=_read_pair(flags.window, 'window', ',', float),
        label_column=flags.label_column,
        held_out_fraction=flags.held_out_fraction,
    )
    text, build, model, speed, told = _configure(flags.path, wishes)
    dry_run.show_in_short(build, model, speed, told)
    quoted = shlex.quote(str(output))
    files.write_text(output, text.replace('--gin_file=FILE', f'--gin_file={quoted}'))
    then = f'bin/train --gin_file={quoted} --workdir=runs/mine'
    if told.is_hopeless:
        then = 'change what the verdict says, or the budget buys noise'
    print(f'Written to {output}; read it, then: {then}')
    return command.DONE


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/init."""
    defaults = Wishes()
    parser = command.Parser('init', __doc__)
    parser.add_argument('path', help='folder of images (class folders, or a table beside them), .npz file or table')
    parser.add_argument('--output', required=True, metavar='FILE', help='the configuration to write, such as mine.gin')
    parser.add_argument('--epsilon', type=float, default=defaults.epsilon, help='privacy budget (default: %(default)g)')
    parser.add_argument('--delta', type=float, help='default: at most 1 / (10 x units), rounded down')
    parser.add_argument(
        '--hours',
        type=float,
        default=defaults.hours,
        help='that the run may take on this machine (default: %(default)g)',
    )
    parser.add_argument(
        '--unit',
        metavar='WORD',
        help="what is protected: 'image', or a word for who owns several, such as 'patient' (default: an image, but "
        'where the images name their owners)',
    )
    parser.add_argument('--image_size', metavar='HxW', help='default: the size of the public model, 28x28 or 32x32')
    parser.add_argument('--window', metavar='LOW,HIGH', help='grey levels of 16-bit images that become black and white')
    parser.add_argument('--label_column', metavar='NAME', help='of a table: the class (default: what looks like it)')
    parser.add_argument(
        '--held_out_fraction', type=float, help='share of the units for evaluation, where there is no test part (0.2)'
    )
    sys.exit(command.run(parser, main, sys.argv[1:] if argv is None else argv))
