"""The command line: gin_config and one thin module a verb (train, sample, evaluate, select, audit, export)."""

import os

# Before TensorFlow is imported, which the modules of most verbs do: it speaks of missing GPUs at length.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
