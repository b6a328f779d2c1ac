"""Any source of images as public images: of the size, the channels and the classes that a private task needs."""

from collections.abc import Callable, Sequence
import functools

import numpy as np

from tf_dpdiff.data import datasets
from tf_dpdiff.data import images as images_lib

_BATCH = 1024  # Images converted at a time.


class PublicImages:
    """Public images that are read when they are first asked for.

    Args:
      spec: What is known of them before.
      read: Reads them.
      look_at: Raises what reading them would, as far as can be told without decoding images.
    """

    def __init__(
        self,
        spec: datasets.DatasetSpec,
        read: Callable[[], datasets.ImageDataset],
        look_at: Callable[[], None] = lambda: None,
    ):
        self.spec = spec
        self.look_at = look_at
        self._read = read

    @functools.cached_property
    def images(self) -> datasets.ImageDataset:
        """The images."""
        return self._read()


def public_images(
    data: datasets.PrivateData,
    *,
    image_shape: Sequence[int] | None = None,
    resize: str = 'stretch',
    background: int | tuple[int, int, int] | None = None,
    labels: str = 'keep',
    num_classes: int | None = None,
    max_images: int | None = None,
) -> PublicImages:
    """Makes the training part of any source fit for public pre-training; its held-out part is not read.

    NOT for images that need protection: what is trained on these is not covered by the guarantee.

    Args:
      data: The source.
      image_shape: (height, width, channels). An image is brought to the channels first (grey by the luma of ITU-R
        BT.601, colour by repetition) and then to the height and width (the mean over the area of a pixel where an axis
        shrinks, bilinear where it grows). None: as they are.
      resize: How an image of other proportions comes to image_shape: 'stretch', 'crop' or 'pad', see `image_folder`.
      background: Around images that are padded.
      labels: 'keep', or 'drop': every image is of no class (label num_classes).
      num_classes: Number of classes of the private task. None: that of the source. Kept labels need at least that of
        the source; the classes beyond have no images.
      max_images: At most so many images, evenly spaced over the source. None: all.

    Returns:
      The images, read when they are first asked for; owners are dropped.

    Raises:
      ValueError: if an argument is out of range; gives its name and value.
    """
    spec = data.spec
    image_shape = tuple(image_shape or spec.image_shape)
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f'image_shape must be (height, width, channels), got {image_shape}.')
    fit = images_lib.Fit(image_shape[:2], image_shape[2], resize=resize, background=background)
    fit.check_border()
    if labels not in ('keep', 'drop'):
        raise ValueError(f"labels must be 'keep' or 'drop', got {labels!r}.")
    for name, value in (('num_classes', num_classes), ('max_images', max_images)):
        if value is not None and value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}.')
    names = spec.class_names
    if num_classes is not None:
        if labels == 'keep' and num_classes < len(names):
            raise ValueError(
                f'num_classes={num_classes}, but {spec.name!r} has {len(names)} classes: give at least '
                "that, or labels='drop'."
            )
        dropped = tuple(map(str, range(num_classes)))
        names = dropped if labels == 'drop' else names + tuple(f'unused {i}' for i in range(len(names), num_classes))
    num_images = min(max_images or spec.num_images, spec.num_images)
    planned = datasets.DatasetSpec(
        f'{spec.name} (public)',
        image_shape,
        names,
        num_images,
        num_images,
        note=spec.note,
        preparation=spec.preparation,
    )

    def read() -> datasets.ImageDataset:
        train = data.train
        rows = np.arange(num_images) * len(train) // num_images
        kept = train.labels[rows] if labels == 'keep' else np.full([num_images], len(names), np.int32)
        return datasets.ImageDataset(planned.name, _convert(train.images_uint8, rows, image_shape, fit), kept, names)

    return PublicImages(planned, read, lambda: data.look_at('train'))


def _convert(images_uint8: np.ndarray, rows: np.ndarray, image_shape, fit: images_lib.Fit) -> np.ndarray:
    """Returns images of a shape; the array itself where there is nothing to do."""
    if images_uint8.shape[1:] == image_shape and len(rows) == len(images_uint8):
        return images_uint8
    converted = np.empty([len(rows), *image_shape], np.uint8)
    for start in range(0, len(rows), _BATCH):
        converted[start : start + _BATCH] = fit.apply(images_uint8[rows[start : start + _BATCH]])
    return converted
