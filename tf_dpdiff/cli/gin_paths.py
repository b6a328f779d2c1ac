"""A path in a configuration means the same from any working folder.

- A path that begins with / or ~ is taken as it is.
- In a file a relative path is relative to the folder of that file. Where nothing is there, it is relative to the root
  of the project, the folder above gin/, where saved_models/ lies; in the project's own files always to the root.
  Where both are there and are not the same, the path is refused. One that begins with ./ or ../ is relative to the
  file alone.
- In a flag a relative path is relative to the working folder, as all paths in flags are.

The files of an installed package have no root beside them: for them the working folder stands for it.
"""

import glob
import os
import pathlib

from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_usage
from tf_dpdiff.evaluation import features

# The parameters that are paths; patterns match several files.
_PATHS = {
    'npz_images': ('path',),
    'npy_images': ('path',),
    'image_folder': ('path', 'owners'),
    'csv_images': ('path', 'root'),
    'dicom_folder': ('path', 'labels'),
    'tfds_images': ('data_dir',),
    'tfrecord_images': ('pattern', 'held_out_pattern'),
    'wilds_camelyon17': ('root', 'cache_dir'),
    'FinetuningConfig': ('init_from',),
    'FeaturesConfig': ('source',),
    'train': ('budget_file',),
    'evaluate': ('budget_file',),
}
_PATTERNS = ('pattern', 'held_out_pattern')
_NAMES = {'source': (features.CLASSIFIER, features.INCEPTION)}  # What stands for no path.


def absolute(reached: gin_usage.Reached) -> dict[gin_files.Key, str]:
    """Returns the absolute paths of the bindings that are read and are relative ones.

    Raises:
      command.UsageError: if a path may mean two things that are there.
    """
    found = {}
    for binding in reached.bindings:
        if binding.parameter in _PATHS.get(gin_files.short_name(binding.selector), ()):
            source = reached.configuration.source(binding)  # Whose file counts, not that of a line that names a macro.
            names = _NAMES.get(binding.parameter, ())
            if isinstance(source.value, str) and source.value not in names:
                path = _absolute(source.value, source, binding.parameter in _PATTERNS)
                if not names or os.path.exists(path):  # Or it is a misspelt name.
                    found[binding.key] = path
    return found


def _absolute(path: str, source: gin_files.Binding, is_pattern: bool) -> str:
    if not path or os.path.isabs(path) or path.startswith('~') or '://' in path:
        return path
    here = _join(pathlib.Path.cwd(), path, is_pattern)
    if source.folder is None:
        return here
    own, below_root = (_join(folder, path, is_pattern) for folder in (source.folder, gin_files.root()))
    if path.split('/')[0] in ('.', '..'):
        return own
    there = [candidate for candidate in (own, below_root) if _match(candidate, is_pattern)]
    if len({tuple(_match(candidate, is_pattern)) for candidate in there}) > 1:
        raise command.UsageError(
            f'{source} may mean {own} or {below_root}, which are both there: write the one that '
            f"is meant in full, or './{path}' for the first."
        )
    if there:
        return there[0]
    is_ours = gin_files.gin_folder() in (source.folder.resolve(), *source.folder.resolve().parents)
    if _match(here, is_pattern):
        raise command.UsageError(
            f'{source} is not in {gin_files.root() if is_ours else source.folder}. It is in the working '
            'folder, which a path in a file is not relative to: write it in full, or give it by '
            'a flag.'
        )
    return below_root if is_ours else own


def _join(folder: pathlib.Path, path: str, is_pattern: bool) -> str:
    # Brackets in the name of a folder are no pattern.
    return os.path.join(glob.escape(str(folder)) if is_pattern else str(folder), path)


def _match(path: str, is_pattern: bool) -> list[str]:
    """Returns the files and folders that are there, their links followed."""
    return sorted(map(os.path.realpath, glob.glob(path) if is_pattern else filter(os.path.exists, [path])))
