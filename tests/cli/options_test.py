"""Test of a run with all that is off by default."""

import json
import pathlib

import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export
from tf_dpdiff.cli import train
from tf_dpdiff.runs import folder as folder_lib

TINY = pathlib.Path(__file__).resolve().parent / 'tiny_digits.gin'


@pytest.mark.long
def test_dropout_bfloat16_adapters_label_drop_and_guidance_go_through_a_whole_run(tmp_path):
    bindings = [
        'UNetConfig.dropout = 0.1',
        'UNetConfig.compute_dtype = "mixed_bfloat16"',
        'UNetConfig.adapter_rank = 2',
        'UNetConfig.adapter_targets = ("residual",)',
        'FinetuningConfig.trainable = ("adapter", "class_embedding")',
        'finetuning/ViewsConfig.label_drop_probability = 0.2',
        'SamplerConfig.guidance_scale = 2.0',
        'SamplerConfig.name = "edm_heun"',
        'SamplerConfig.thresholding = "dynamic"',
        'train.utility = None',
        'finetuning/ViewsConfig.timesteps = @LogNormalSigma()',
        'train.pretraining = None',
        'train.warm_start = None',
    ]
    workdir = tmp_path / 'run'
    flags = [f'--gin_file={TINY}', f'--workdir={workdir}', *(f'--gin_param={b}' for b in bindings)]
    assert verbs.call(train, *flags) == command.DONE
    assert json.loads((workdir / 'privacy_statement.json').read_text())['epsilon'] <= 10.0
    described = folder_lib.read_model(workdir)
    assert described.label_drop_probability == 0.2 and described.network.dropout == 0.1
    # The released model holds no adapters: they are merged.
    graph = (workdir / 'saved_model' / '1' / 'saved_model.pb').read_bytes()
    assert b'class_embedding' in graph and b'adapter' not in graph
    # Guidance can be chosen anew at export.
    flags = [f'--workdir={workdir}', f'--output={tmp_path / "servable"}', '--guidance_scale=1', '--num_steps=3']
    assert verbs.call(export, *flags) == command.DONE
    signature = tf.saved_model.load(str(tmp_path / 'servable' / '1')).signatures['serving_default']
    images = signature(labels=tf.constant([1, 2]), seeds=tf.constant([3, 4], tf.int64))['images']
    assert images.shape == (2, 8, 8, 1) and images.dtype == tf.uint8
