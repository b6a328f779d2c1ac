#!/usr/bin/env bash
# Installs and trains on the first machine of a TPU slice; README.md says how to make one. Not run on a TPU yet.
# From the folder of the project: TPU_NAME=NAME bash examples/tpu/train_on_tpu_vm.sh
set -euo pipefail
: "${TPU_NAME:?name of the TPU, or local for a slice of one machine}"
workdir=${WORKDIR:-runs/cifar10}
venv=$HOME/tf_dpdiff_venv

python3 -c 'import sys, tensorflow as tf
python = sys.version.split()[0]
if tf.__version__.split(".")[:2] != ["2", "21"] or not (3, 11) <= sys.version_info < (3, 14):
  sys.exit(f"needs TensorFlow 2.21 on Python 3.11 to 3.13; this machine has {tf.__version__} on {python}")'

# TensorFlow itself comes with the machine, built for its TPU, and PyPI's is not: all of the lock but that.
if [[ ! -x $venv/bin/tf_dpdiff_train ]]; then
  python3 -m venv --system-site-packages "$venv"
  awk '/^[a-z]/ { keep = !/^tensorflow==/ } keep' requirements.lock >"$venv/requirements.lock"
  # setuptools comes first: it builds promise and jsonpath-rw, which have no wheels.
  awk '/^[a-z]/ { keep = /^setuptools==/ } keep' requirements.lock >"$venv/setuptools.lock"
  "$venv/bin/python" -m pip install --no-deps --require-hashes --requirement "$venv/setuptools.lock"
  # What tensorflow-privacy says of Pythons is out of date.
  "$venv/bin/python" -m pip install --no-deps --no-build-isolation --ignore-requires-python --require-hashes \
    --requirement "$venv/requirements.lock"
  "$venv/bin/python" -m pip install --no-deps --no-build-isolation .
fi

# In a slice of several machines the TPU belongs to the servers that run on each of them, and not to this process; on one
# machine this process loads its driver.
if [[ $TPU_NAME == local ]]; then
  export NEXT_PLUGGABLE_DEVICE_USE_C_API=true TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so
else
  export TPU_LOAD_LIBRARY=0
fi

exec "$venv/bin/tf_dpdiff_train" --gin_file=gin/cifar10.gin --workdir="$workdir" --strategy=tpu \
  --gin_param="StrategyConfig.tpu = '$TPU_NAME'" --gin_param="StrategyConfig.preemption_notice = 'gce'"
