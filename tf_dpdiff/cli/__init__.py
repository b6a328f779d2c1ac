"""The command line: gin_config and one thin module a verb (train, sample, evaluate, select, tune, audit, release)."""

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from typing import Any

# Before TensorFlow is imported, which the modules of most verbs do: it speaks of missing GPUs at length.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


@contextlib.contextmanager
def _log_level_kept():
    """Drops what TensorFlow's C++ logs below TF_CPP_MIN_LOG_LEVEL: it reads the level only once it has been loaded."""
    dropped = 'IWE'[: int(os.environ['TF_CPP_MIN_LOG_LEVEL'])]
    notes = re.compile(
        rb'(?m)^(?:WARNING: All log messages before absl::InitializeLog\(\) .*|[%s]\d{4} \d\d:.*)\n' % dropped.encode()
    )
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            os.write(2, notes.sub(b'', said.read()))


class _QuietFinder:
    """Finds TensorFlow for the first who imports it, and has it keep to its log level while it is loaded."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Returns the import spec of TensorFlow; None for any other module."""
        del path, target
        if name != 'tensorflow':
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            loader: Any = spec.loader
            load = loader.exec_module
            loader.exec_module = lambda module: _log_level_kept()(load)(module)
        return spec


if os.environ['TF_CPP_MIN_LOG_LEVEL'] in ('1', '2', '3'):
    sys.meta_path.insert(0, _QuietFinder)
