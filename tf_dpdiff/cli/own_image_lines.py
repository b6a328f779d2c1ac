"""What bin/init writes of the images: where they are, whose they are, their size, and what the network starts from."""

from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import wishes
from tf_dpdiff.data import datasets
from tf_dpdiff.data import survey as survey_lib

_WHITE, _BLACK = 255, 0
# Images with a shorter side than this keep their size; larger ones come to that of a public model.
_SMALLEST_FOR_A_MODEL = 12
_MODELS = {1: ('grey28', (28, 28)), 3: ('colour32', (32, 32))}
# Of height and width: up to it a centred square is cut out, beyond it the whole image is put on a border.
_MOST_CROPPED = 1.25
_OBLONG_SHARE = 0.1  # Of the images: where more are so oblong, all of them get a border.


def of_images(found: survey_lib.Survey, asked: wishes.Wishes) -> list:
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


def of_start(spec: datasets.DatasetSpec) -> list:
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


def _public_model(size: tuple[int, int], channels: int) -> str:
    """Returns the public model that images of a size can start from, or ''."""
    name, model_size = _MODELS[channels]
    # The grey model has no attention that depends on the size.
    fits = size == model_size or (name == 'grey28' and min(size) >= 20 and not any(side % 4 for side in size))
    return name if fits else ''


def _source_lines(found: survey_lib.Survey, asked: wishes.Wishes) -> list:
    """Returns the lines that name the source of the images, and their owners where these are protected."""
    source = survey_lib.SOURCES[found.source]
    lines: list = [f'DATA = @{source}()', f'{source}.path = {str(found.path)!r}']
    if found.passed_over:
        read = 'train and test' if found.source.startswith('train') else 'the class folders'
        lines[1] = (lines[1], f'CHECK: images beside {read} are not read.')
    lines += [*_label_lines(found, source, asked.label_column), *_split_lines(found, source, asked)]
    always_owned = found.source == 'dicom' or (found.source in ('npz', 'npy') and found.has_owners)
    unit = asked.unit_word or ({'dicom': 'patient'}.get(found.source, 'owner') if always_owned else wishes.IMAGE)
    if unit == wishes.IMAGE:
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


def _split_lines(found: survey_lib.Survey, source: str, asked: wishes.Wishes) -> list:
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
    if not is_listed or not (found.label_columns or (found.source == 'table' and found.one_hot_columns)):
        if label_column is not None:
            raise ValueError(
                f'the classes of {found.path} are not from a table: drop --label_column, or give the table as the path.'
            )
        return lines
    binding, why = _choose_label(found, label_column)
    if found.source == 'dicom':
        lines.append(f'{source}.labels = {str(found.table)!r}')
    if found.file_columns:
        lines.append((f'{source}.file_column = {found.file_columns[0]!r}', 'The column whose values are files.'))
    else:
        column = max(found.owner_columns, key=lambda name: found.owner_columns[name])
        lines.append((f'{source}.patient_column = {column!r}', 'CHECK: the column taken for the PatientID.'))
    lines.append((f'{source}.{binding}', why))
    if found.has_unlisted:
        lines.append((f"{source}.unlisted = 'pass_over'", 'CHECK: some images are not in the table.'))
    return lines


def _choose_label(found: survey_lib.Survey, label_column: str | None) -> tuple[str, str]:
    """Returns the binding that names the column of the class, or a column for each class, and how it is known.

    Raises:
      ValueError: if nothing tells which of several it is; names them.
    """
    likely = [name for name in found.label_columns if survey_lib.is_label(name)] or found.label_columns
    if label_column is not None:
        if label_column not in found.columns:
            raise ValueError(f'{found.table} has no column {label_column!r}; it has {", ".join(found.columns)}.')
        return f'label_column = {label_column!r}', 'As given.'
    if found.one_hot_columns:
        return f'label_columns = {found.one_hot_columns}', 'CHECK: taken for a column of each class.'
    if len(likely) > 1:
        raise ValueError(
            f'which column of {found.table} is the class? Say it by --label_column: {", ".join(map(repr, likely))}.'
        )
    return f'label_column = {likely[0]!r}', 'CHECK: the column taken for the class.'


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
    if found.unprefixed:
        raise ValueError(
            f'{found.unprefixed} does not say of which {unit} it is, as most files in {found.path} do by '
            f'{unit.upper()}_ANYTHING: rename it and others like it, or say --unit=image.'
        )
    raise ValueError(
        f'nothing in {found.path} says of which {unit} each image is: name every file {unit.upper()}_ANYTHING, several '
        f'of one {unit} and of several, or put a table with a column of owners beside them; or say --unit=image.'
    )


def _fit_lines(found: survey_lib.Survey, asked: wishes.Wishes, size: tuple[int, int], channels: int) -> list:
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
