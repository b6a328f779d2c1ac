"""Draws a batch of images with diffusers, when asked to; a case of sampling.py, see measuring.py.

The network is UNet2DModel of the size of ours; the schedulers have the settings that ours are compared with in
tests/diffusion/diffusers_test.py, and timesteps of their own choice.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

import diffusers
import torch

_SCHEDULERS = {
    'ddim': (diffusers.DDIMScheduler, {'clip_sample': True}),
    'ancestral': (diffusers.DDPMScheduler, {'clip_sample': True, 'variance_type': 'fixed_small'}),
    'dpmpp_2m': (diffusers.DPMSolverMultistepScheduler, {'algorithm_type': 'dpmsolver++', 'solver_order': 2}),
    'edm_heun': (diffusers.HeunDiscreteScheduler, {'clip_sample': True}),
}


def make_network(config, image_shape, num_classes):
    """Returns UNet2DModel with the levels, blocks and attention of a UNetConfig, given as a dict."""
    height, _, channels = image_shape
    widths = [config['base_channels'] * multiplier for multiplier in config['channel_multipliers']]
    attends = [height // 2**level in config['attention_resolutions'] for level in range(len(widths))]
    kind = ('DownBlock2D', 'AttnDownBlock2D'), ('UpBlock2D', 'AttnUpBlock2D')
    return diffusers.UNet2DModel(
        sample_size=height,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=config['num_res_blocks'],
        down_block_types=tuple(kind[0][attention] for attention in attends),
        up_block_types=tuple(kind[1][attention] for attention in reversed(attends)),
        add_attention=config['middle_attention'],
        attention_head_dim=config['head_channels'],
        norm_num_groups=config['groups'],
        num_class_embeds=num_classes + 1,
    )


def main():
    """Makes network and scheduler and serves them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--network', required=True, help='JSON: config, image_shape, num_classes')
    parser.add_argument('--sampler', required=True, choices=_SCHEDULERS)
    parser.add_argument('--num_steps', type=int, required=True)
    parser.add_argument('--batch_size', type=int, required=True)
    flags = parser.parse_args()
    from benchmarks import measuring

    described = json.loads(flags.network)
    height, width, channels = described['image_shape']
    network = make_network(**described).eval()
    make, options = _SCHEDULERS[flags.sampler]
    scheduler = make(
        num_train_timesteps=1000, beta_schedule='squaredcos_cap_v2', prediction_type='v_prediction', **options
    )
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(flags.batch_size) % described['num_classes']

    @torch.inference_mode()
    def draw():
        scheduler.set_timesteps(flags.num_steps)
        x = torch.randn([flags.batch_size, channels, height, width], generator=generator)
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            prediction = network(scheduler.scale_model_input(x, t), t, class_labels=labels).sample
            # Only 'ancestral' draws more noise; HeunDiscreteScheduler has no such argument.
            noise = {'generator': generator} if flags.sampler == 'ancestral' else {}
            x = scheduler.step(prediction, t, x, **noise).prev_sample
        if not x.isfinite().all():
            raise RuntimeError('images are not finite')
        images = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        if images.shape != (flags.batch_size, height, width, channels):
            raise RuntimeError('not all images were drawn')

    scheduler.set_timesteps(flags.num_steps)
    measuring.serve(
        draw,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        evaluations=len(scheduler.timesteps),
        threads=torch.get_num_threads(),
        versions=measuring.versions('diffusers', 'torch'),
    )


if __name__ == '__main__':
    main()
