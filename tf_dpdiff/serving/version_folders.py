"""A servable's folder: its versions are sub-folders with numbers for names."""

import pathlib
import re

from google.protobuf import message
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.core.protobuf import saved_model_pb2

LARGEST = 2**63 - 1  # The protocol's.
_VERSION = re.compile('0|[1-9][0-9]{0,18}')


def numbers(directory: pathlib.Path) -> list[int]:
    """Returns the versions in a servable's folder, whole or not, the newest first."""
    found = (int(path.name) for path in directory.glob('*') if _VERSION.fullmatch(path.name))
    return sorted((number for number in found if number <= LARGEST), reverse=True)


def is_whole(version: pathlib.Path) -> bool:
    """Returns False for a folder without a SavedModel, or with one whose copy is still under way or was broken off."""
    return (version / 'saved_model.pb').exists() and (version / 'variables' / 'variables.index').exists()


def read_signature_defs(version: pathlib.Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Reads the signatures of a SavedModel by name, without its weights.

    Raises:
      FileNotFoundError: if there is no SavedModel.
      ValueError: if it is damaged, or is not for serving.
    """
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString((version / 'saved_model.pb').read_bytes())
    except message.DecodeError as error:
        raise ValueError('saved_model.pb is damaged.') from error
    for graph in saved_model.meta_graphs:
        if tf.saved_model.SERVING in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise ValueError(f'no graph is tagged {tf.saved_model.SERVING!r}.')
