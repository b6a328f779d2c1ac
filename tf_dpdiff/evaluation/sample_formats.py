"""How the images of a shard are written and read: TFRecords, PNG files in class folders, arrays."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import pathlib
import zipfile

import numpy as np
from PIL import Image

from tf_dpdiff.data import tfds_writer
from tf_dpdiff.evaluation import generate
from tf_dpdiff.evaluation import sample_plan

AddFn = Callable[[generate.Piece], None]

_DIGITS = 7  # Of a seed in the name of a file, at least.


def paths(plan: sample_plan.SamplePlan, shard: int) -> list[str]:
    """Returns the files of a shard, in the order of their seeds, relative to the folder of the set."""
    if plan.format == 'tfds':
        return [f'{dataset_folder(plan)}/{tfds_writer.shard_name(plan.name, shard, plan.num_shards)}']
    if plan.format == 'npz':
        return [f'samples-{shard:05d}-of-{plan.num_shards:05d}.npz']
    seeds = np.arange(*plan.seeds_of(shard), dtype=np.int64)
    return [_png_path(plan, label, seed) for label, seed in zip(plan.choice.labels(seeds), seeds)]


def title(plan: sample_plan.SamplePlan, shard: int) -> str:
    """Returns what a shard is called."""
    if plan.format != 'png':
        return paths(plan, shard)[0]
    first, end = plan.seeds_of(shard)
    return f'{_png_name(plan, first)} to {_png_name(plan, end - 1)}'


def dataset_folder(plan: sample_plan.SamplePlan) -> str:
    """Returns where the files of a TensorFlow data set lie, relative to the folder of the set."""
    return f'{plan.name}/{tfds_writer.VERSION}'


@contextlib.contextmanager
def writing(plan: sample_plan.SamplePlan, shard: int, folder: pathlib.Path) -> Iterator[AddFn]:
    """Yields what adds images to a shard; its files are whole when the block ends without an error.

    Args:
      plan: Of the set.
      shard: Which one.
      folder: The files' paths are relative to it.
    """
    for parent in {(folder / path).parent for path in paths(plan, shard)}:
        parent.mkdir(parents=True, exist_ok=True)
    with {'tfds': _records, 'png': _png_files, 'npz': _arrays}[plan.format](plan, shard, folder) as add:
        yield add


@contextlib.contextmanager
def _records(plan, shard, folder) -> Iterator[AddFn]:
    with tfds_writer.RecordWriter(folder / paths(plan, shard)[0]) as add:

        def add_piece(piece: generate.Piece) -> None:
            labels = np.where(piece.labels < len(plan.class_names), piece.labels, -1)
            add([generate.encode_png(image) for image in piece.images], labels, piece.seeds)

        yield add_piece


@contextlib.contextmanager
def _png_files(plan, shard, folder) -> Iterator[AddFn]:
    del shard

    def add(piece: generate.Piece) -> None:
        for seed, label, image in zip(*piece):
            (folder / _png_path(plan, label, seed)).write_bytes(generate.encode_png(image))

    yield add


@contextlib.contextmanager
def _arrays(plan, shard, folder) -> Iterator[AddFn]:
    pieces = []
    yield pieces.append
    seeds, labels, images = (np.concatenate(columns) for columns in zip(*pieces))
    np.savez_compressed(
        folder / paths(plan, shard)[0],
        images=images,
        labels=labels,
        seeds=seeds,
        class_names=np.array(plan.class_names),
    )


def _png_path(plan, label, seed) -> str:
    return f'{plan.name_of(label)}/{_png_name(plan, seed)}'


def _png_name(plan, seed) -> str:
    digits = max(_DIGITS, len(str(plan.seed + plan.num_images - 1)))
    return f'{seed:0{digits}d}.png'


def read(plan: sample_plan.SamplePlan, shard: int, folder: pathlib.Path) -> generate.Piece:
    """Reads a shard.

    Raises:
      OSError, ValueError: if it is not there, or is damaged.
    """
    first, *_ = shard_paths = [folder / path for path in paths(plan, shard)]
    if plan.format == 'npz':
        return generate.Piece(*read_arrays(first))
    if plan.format == 'tfds':
        images, labels, seeds = tfds_writer.read_records(first, plan.image_shape)
        labels = np.where(labels >= 0, labels, len(plan.class_names)).astype(np.int32)
        return generate.Piece(seeds, labels, images)
    seeds = np.arange(*plan.seeds_of(shard), dtype=np.int64)
    images = np.empty([len(seeds), *plan.image_shape], np.uint8)
    for row, path in enumerate(shard_paths):
        with Image.open(path) as image:
            images[row] = np.asarray(image, np.uint8).reshape(plan.image_shape)
    return generate.Piece(seeds, plan.choice.labels(seeds), images)


def read_arrays(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns seeds, labels and images of an .npz file."""
    with np.load(path) as arrays:
        return arrays['seeds'], arrays['labels'], arrays['images']


def join_arrays(plan: sample_plan.SamplePlan, folder: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the shards of a set in the format 'npz' as one .npz file, holding one of them at a time.

    Args:
      plan: Of the set.
      folder: With all shards.
      target: The file to write.
    """
    size = plan.num_images
    columns = {
        'images': ((size, *plan.image_shape), np.uint8),
        'labels': ((size,), np.int32),
        'seeds': ((size,), np.int64),
    }
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, dtype) in columns.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                _write_array(
                    file,
                    shape,
                    np.dtype(dtype),
                    (_column(plan, shard, folder, name) for shard in range(plan.num_shards)),
                )
        names = np.array(plan.class_names)
        with archive.open('class_names.npy', 'w', force_zip64=True) as file:
            _write_array(file, names.shape, names.dtype, [names])


def _write_array(file, shape: Sequence[int], dtype: np.dtype, parts) -> None:
    """Writes an array in NumPy's format, its rows part by part."""
    np.lib.format.write_array_header_1_0(
        file, {'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False, 'shape': tuple(shape)}
    )
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype).tobytes())


def _column(plan, shard, folder, name) -> np.ndarray:
    with np.load(folder / paths(plan, shard)[0]) as arrays:
        return arrays[name]
