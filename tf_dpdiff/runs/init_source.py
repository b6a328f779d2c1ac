"""What a person asks for, and how a source is to read their images: where they are, their classes, owners and size."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

from tf_dpdiff.data import classes
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import splitting
from tf_dpdiff.data import survey as survey_lib

_WHITE, _BLACK = 255, 0
# Images with a shorter side than this keep their size; larger ones come to that of a public model.
_SMALLEST_FOR_A_MODEL = 12
_MODELS = {1: ('grey28', (28, 28)), 3: ('colour32', (32, 32))}
# Images of other sizes start from a public model too where its network can halve them and they are not much smaller.
_HALVED_TO, _SMALLEST_BESIDE_A_MODEL = {1: 4, 3: 8}, 20
# Of height and width: up to it a centred square is cut out, beyond it the whole image is put on a border.
_MOST_CROPPED = 1.25
_OBLONG_SHARE = 0.1  # Of the images: where more are so oblong, all of them get a border.
_IMAGE = 'image'  # What is protected where images have no owners.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person asks for; see `tf_dpdiff.configure`."""

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


class Setting(NamedTuple):
    """What a parameter of the source is to be, and why, where there is something to say."""

    parameter: str
    value: Any
    why: str = ''


def choose_shape(found: survey_lib.Survey, asked: Wishes) -> tuple[int, int, int]:
    """Returns (height, width, channels) that the network is to see."""
    channels = 3 if found.has_colour else 1
    if asked.image_size:
        return (*asked.image_size, channels)
    shortest = min(map(min, found.sizes))
    if shortest >= _SMALLEST_FOR_A_MODEL:
        _, model_size = _MODELS[channels]
        return (*model_size, channels)
    own = max(4, shortest // 4 * 4)  # Networks halve it twice.
    return own, own, channels


def public_model(image_shape: tuple[int, int, int]) -> str:
    """Returns the public model that images of (height, width, channels) can start from, or ''."""
    *size, channels = image_shape
    name, model_size = _MODELS[channels]
    can_halve = not any(side % _HALVED_TO[channels] for side in size)
    return name if tuple(size) == model_size or (can_halve and min(size) >= _SMALLEST_BESIDE_A_MODEL) else ''


def model_shape(channels: int) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the images that the public model of so many channels was trained on."""
    _, (height, width) = _MODELS[channels]
    return height, width, channels


def settings(found: survey_lib.Survey, asked: Wishes, image_shape: tuple[int, int, int]) -> list[Setting]:
    """Returns the settings of the source that reads the images.

    Args:
      found: What there is.
      asked: What a person asks for.
      image_shape: (height, width, channels) that the network is to see.

    Raises:
      ValueError: if the images cannot be read so; says what to do.
    """
    why = ''
    if found.passed_over:
        read = 'train and test' if found.source.startswith('train') else 'the class folders'
        why = f'CHECK: images beside {read} are not read.'
    return [
        Setting('path', str(found.path), why),
        *_of_labels(found, asked),
        *_of_split(found, asked),
        *_of_unit(found, asked),
        *_of_fit(found, asked, image_shape),
    ]


def _of_labels(found: survey_lib.Survey, asked: Wishes) -> list[Setting]:
    """Returns what says where the classes are named, where it is not in folders or in the file itself."""
    is_listed = found.source == 'table' or (found.source == 'dicom' and found.table is not None)
    if found.source == 'dicom' and not found.class_names and not (is_listed and found.label_columns):
        raise ValueError(
            f'nothing says of which class each image in {found.path} is: put them in class folders, or a table of '
            'labels beside them.'
        )
    if not is_listed or not (found.label_columns or (found.source == 'table' and found.one_hot_columns)):
        if asked.label_column is not None:
            raise ValueError(
                f'the classes of {found.path} are not from a table: drop --label_column, or give the table as the path.'
            )
        return []
    of_class = _choose_label(found, asked)
    chosen = [Setting('labels', str(found.table))] if found.source == 'dicom' else []
    if found.file_columns:
        chosen.append(Setting('file_column', found.file_columns[0], 'The column whose values are files.'))
    else:
        chosen.append(Setting('patient_column', _owner_column(found), 'CHECK: the column taken for the PatientID.'))
    chosen.append(of_class)
    if found.has_unlisted:
        chosen.append(Setting('unlisted', 'pass_over', 'CHECK: some images are not in the table.'))
    return chosen


def _choose_label(found: survey_lib.Survey, asked: Wishes) -> Setting:
    """Returns the setting that names the column of the class, or a column for each class, and how it is known.

    Raises:
      ValueError: if nothing tells which of several it is; names them.
    """
    others = [name for name in found.label_columns if not _is_called(name, asked.unit_word)] or found.label_columns
    likely = [name for name in others if survey_lib.is_label(name)] or others
    if asked.label_column is not None:
        if asked.label_column not in found.columns:
            raise ValueError(f'{found.table} has no column {asked.label_column!r}; it has {", ".join(found.columns)}.')
        return Setting('label_column', asked.label_column, 'As given.')
    if found.one_hot_columns:
        return Setting('label_columns', found.one_hot_columns, 'CHECK: taken for a column of each class.')
    if len(likely) > 1:
        raise ValueError(
            f'which column of {found.table} is the class? Say it by --label_column: {", ".join(map(repr, likely))}.'
        )
    return Setting('label_column', likely[0], 'CHECK: the column taken for the class.')


def _owner_column(found: survey_lib.Survey) -> str | None:
    """Returns the column that names the most owners, or None."""
    return max(found.owner_columns, key=lambda name: found.owner_columns[name], default=None)


def _is_called(column: str, unit: str | None) -> bool:
    """Returns whether a column is called as the unit is: 'shop', 'Shop' and 'shop_id' for 'shop'."""
    name, word = (re.sub(r'[\W_]', '', text.casefold()) for text in (column, unit or ''))
    return bool(word) and name in (word, f'{word}id')


def _of_split(found: survey_lib.Survey, asked: Wishes) -> list[Setting]:
    if asked.held_out_fraction is None:
        return []
    if found.source == 'npy':
        raise ValueError(f'{found.path} says itself which images are held out: drop --held_out_fraction.')
    return [Setting('held_out_fraction', asked.held_out_fraction)]


def _of_unit(found: survey_lib.Survey, asked: Wishes) -> list[Setting]:
    """Returns what is protected, and where it is not an image, whose the images are."""
    always_owned = found.source == 'dicom' or (found.source in ('npz', 'npy') and found.has_owners)
    unit = asked.unit_word or ({'dicom': 'patient'}.get(found.source, 'owner') if always_owned else _IMAGE)
    if unit != _IMAGE:
        return [*_of_owners(found, unit), Setting('unit', f'one {unit}')]
    if always_owned:
        raise ValueError(
            f'{found.path} names the owner of each image, and they are protected: drop --unit=image, or say '
            '--unit=patient.'
        )
    owners = found.num_prefix_owners or max(found.owner_columns.values(), default=0)
    why = f'CHECK: one image, not someone with several. --unit=patient: {owners:,} owners in all.'
    return [Setting('unit', 'one image', why)] if owners else []


def _of_owners(found: survey_lib.Survey, unit: str) -> list[Setting]:
    """Returns what says whose the images are.

    Raises:
      ValueError: if nothing does.
    """
    if found.has_owners or found.source == 'dicom':
        return []
    in_folders = survey_lib.SOURCES[found.source] == 'image_folder'
    called = (name for name in found.columns if _is_called(name, unit) and name not in found.file_columns)
    column = next(called, _owner_column(found))
    if column is not None:
        chosen = [Setting('owner_column', column, f'CHECK: the column taken for the {unit}.')]
        if in_folders:
            chosen = [Setting('owners', str(found.table)), Setting('file_column', found.file_columns[0]), *chosen]
        return chosen
    if in_folders and found.num_prefix_owners:
        return [Setting('owner_from', 'prefix', f'The {unit} of NAME_anything.png is NAME.')]
    if found.unprefixed:
        raise ValueError(
            f'{found.unprefixed} does not say of which {unit} it is, as most files in {found.path} do by '
            f'{unit.upper()}_ANYTHING: rename it and others like it, or say --unit=image.'
        )
    where = f'put a table with a column {unit!r} beside them'
    if found.table:
        where = f'add a column {unit!r} to {found.table}'
    raise ValueError(
        f'nothing in {found.path} says of which {unit} each image is: name every file {unit.upper()}_ANYTHING, several '
        f'of one {unit} and of several, or {where}; or say --unit=image.'
    )


def _of_fit(found: survey_lib.Survey, asked: Wishes, image_shape: tuple[int, int, int]) -> list[Setting]:
    """Returns what brings images to one size and one number of channels."""
    height, width, channels = image_shape
    sizes = list(found.sizes)
    is_of_size = sizes == [(height, width)]
    if asked.window is not None and not found.takes_window:
        raise ValueError(f'{found.path} holds no grey images of 16 bits a channel: drop --window.')
    if found.source in ('npz', 'npy'):
        if not is_of_size:
            is_odd = any(side % 2 for side in sizes[0])
            raise ValueError(
                f'{found.path} holds images of {sizes[0][0]}x{sizes[0][1]}, which are taken as they are: bring them to '
                f'{height}x{width} first{"" if is_odd else f", or say --image_size={sizes[0][0]}x{sizes[0][1]}"}.'
            )
        return []
    chosen, needs_border = [], False
    if not is_of_size:
        heights, widths = (_spread([size[axis] for size in sizes]) for axis in (0, 1))
        size = height if height == width else (height, width)
        needs_border = _num_oblong(found, height / width) > _OBLONG_SHARE * found.num_images
        is_cut = not needs_border and any(own[0] * width != own[1] * height for own in sizes)
        cut = '; the centre is cut out' if is_cut else ''
        chosen.append(Setting('image_size', size, f'Images are {heights} pixels high and {widths} wide{cut}.'))
        if needs_border:
            chosen.append(Setting('resize', 'pad', 'Nothing is cut off oblong images; a border fills the rest.'))
    if found.has_alpha or needs_border:
        level = _WHITE if found.has_alpha else _BLACK
        what = 'Behind transparent pixels' if found.has_alpha else 'Of the border'
        chosen.append(Setting('background', level, f'{what}: {"white" if level else "black"}.'))
    if found.has_grey and found.has_colour:
        chosen.append(Setting('channels', channels, 'Some images are in colour.'))
    if found.needs_window and asked.window is None:
        what = 'have no window in their headers' if found.source == 'dicom' else 'have 16 bits a channel'
        raise ValueError(
            f'images in {found.path} {what}: say which grey levels become black and white, such as --window=0,4095.'
        )
    if asked.window is not None:
        chosen.append(Setting('window', asked.window, 'Grey levels that become 0 and 255.'))
    return chosen


def _num_oblong(found: survey_lib.Survey, wanted: float) -> int:
    """Returns of how many images more would be cut off than is bearable; wanted: height / width."""
    return sum(
        count
        for (height, width), count in found.sizes.items()
        if max(height / width / wanted, width / height * wanted) > _MOST_CROPPED
    )


def _spread(numbers: list[int]) -> str:
    return f'{min(numbers)}' if min(numbers) == max(numbers) else f'{min(numbers)} to {max(numbers)}'
