"""A folder as WILDS lays Camelyon17 out, small and of random patches, for tests."""

import csv
import pathlib

import numpy as np
from PIL import Image

# As in the real metadata.csv: an index without a name first.
COLUMNS = ('', 'patient', 'node', 'x_coord', 'y_coord', 'tumor', 'slide', 'center', 'split')


def write(root, *, centers=(0, 1, 2), patients=2, slides=1, patches=6, seed=0):
    """Writes patches and metadata.csv; returns the rows of metadata.csv as dictionaries of texts.

    Patches of one slide take turns to be without and with tumour; the last two of each slide are of the split id_val.

    Args:
      root: Where camelyon17_v1.0 is put.
      centers: Numbers of the hospitals; 1 is the split val, 2 is the split test.
      patients: A hospital.
      slides: A patient.
      patches: A slide, >= 4.
      seed: Of the pixels.
    """
    generator = np.random.default_rng(seed)
    rows, slide_number = [], 0
    for center in centers:
        for patient in range(patients):
            name = f'{20 * center + patient:03d}'
            for node in range(slides):
                for patch in range(patches):
                    rows.append(
                        {
                            '': str(len(rows)),
                            'patient': name,
                            'node': str(node),
                            'x_coord': str(3328 + 96 * patch),
                            'y_coord': '21792',
                            'tumor': str(patch % 2),
                            'slide': str(slide_number),
                            'center': str(center),
                            'split': str(int(patch >= patches - 2)),
                        }
                    )
                    pixels = generator.integers(0, 256, [96, 96, 3]).astype(np.uint8)
                    file = patch_file(root, rows[-1])
                    file.parent.mkdir(parents=True, exist_ok=True)
                    # With an alpha channel, as readers of slides write it.
                    Image.fromarray(pixels).convert('RGBA').save(file, compress_level=1)
                slide_number += 1
    write_metadata(root, rows)
    return rows


def patch_file(root, row):
    """Returns the file of a row."""
    stem = f'patient_{row["patient"]}_node_{row["node"]}'
    return (
        pathlib.Path(root)
        / 'camelyon17_v1.0'
        / 'patches'
        / stem
        / f'patch_{stem}_x_{row["x_coord"]}_y_{row["y_coord"]}.png'
    )


def write_metadata(root, rows, columns=COLUMNS):
    """Writes metadata.csv with some of the columns."""
    with open(pathlib.Path(root) / 'camelyon17_v1.0' / 'metadata.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, columns, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
