"""Draws a batch of images as bin/sample does, when asked to; a case of sampling.py, see measuring.py."""

import argparse
import functools
import itertools
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def make_sample_fns(kind, name, config):
    """Returns the samplers of a network, one a device: of its weights, or of an exported model."""
    from benchmarks import networks
    from tf_dpdiff.diffusion import process
    from tf_dpdiff.networks import denoiser
    from tf_dpdiff.sampling import shared_work
    from tf_dpdiff.serving import export

    def make_sampler():
        network, image_shape = networks.NETWORKS[name]
        model = denoiser.build(network, image_shape, networks.NUM_CLASSES)
        return model.count_params(), export.ImageSampler(model, process.DiffusionProcess(), config)

    if kind == 'exported':
        with tempfile.TemporaryDirectory() as folder:
            parameters, sampler = make_sampler()
            version = export.export_saved_model(sampler, pathlib.Path(folder), [], warmup_batch_sizes=())
            return parameters, shared_work.on_each_device(functools.partial(export.load_sample_fn, version))
    samplers = []

    def load():
        samplers.append(make_sampler())
        return lambda labels, seeds: samplers[-1][1].sample(labels, seeds)['images']

    sample_fns = shared_work.on_each_device(load)
    return samplers[0][0], sample_fns


def main():
    """Makes the sampler and serves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('kind', choices=('library', 'exported'))
    parser.add_argument('--network', default='1.1M')
    parser.add_argument('--sampler', required=True)
    parser.add_argument('--num_steps', type=int, required=True)
    parser.add_argument('--batch_size', type=int, required=True)
    flags = parser.parse_args()
    from benchmarks import measuring
    from benchmarks import networks
    from tf_dpdiff.diffusion import samplers
    from tf_dpdiff.sampling import draw as draw_lib

    config = samplers.SamplerConfig(flags.sampler, flags.num_steps)
    parameters, sample_fns = make_sample_fns(flags.kind, flags.network, config)
    choice = draw_lib.ClassChoice(tuple(range(networks.NUM_CLASSES)))
    first_seeds = itertools.count(0, flags.batch_size)

    def draw():
        first = next(first_seeds)
        pieces = draw_lib.in_pieces(sample_fns, choice, [(first, first + flags.batch_size)], flags.batch_size)
        if sum(len(piece.images) for piece in pieces) != flags.batch_size:
            raise RuntimeError('not all images were drawn')

    evaluations = 2 * flags.num_steps - 1 if flags.sampler == 'edm_heun' else flags.num_steps
    measuring.serve(draw, parameters=parameters, evaluations=evaluations)


if __name__ == '__main__':
    main()
