"""DICOM files as tests need them."""

import numpy as np
import pydicom
from pydicom import uid

SECRET = 'Q7X'  # In every PatientID and PatientName, and nowhere else.


def write(file, pixels=None, patient=f'{SECRET}1', **tags):
    """Writes a grey image of 16 bits, with a window from 0 to 255, or what the tags say."""
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5) if pixels is None else pixels
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid.generate_uid()
    dataset.PatientName = f'{SECRET}^Jane'
    if patient is not None:
        dataset.PatientID = patient
    bits, is_colour = 8 * pixels.dtype.itemsize, pixels.ndim == 3
    fields = {
        'Rows': pixels.shape[0],
        'Columns': pixels.shape[1],
        'SamplesPerPixel': 3 if is_colour else 1,
        'PhotometricInterpretation': 'RGB' if is_colour else 'MONOCHROME2',
        'BitsAllocated': bits,
        'BitsStored': bits,
        'HighBit': bits - 1,
        'PixelRepresentation': int(pixels.dtype.kind == 'i'),
        **({'PlanarConfiguration': 0} if is_colour else {'WindowCenter': 128, 'WindowWidth': 256}),
        **tags,
    }
    for name, value in fields.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with pydicom.config.disable_value_validation():
        dataset.save_as(file, enforce_file_format=True)
    return file
