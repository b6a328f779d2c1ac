"""Peak memory of one private step of the 80.4M-parameter network at 32x32, for several batch sizes.

    .venv/bin/python -I benchmarks/private_step_memory.py --units 4 32 --output benchmarks/private_step_memory.json

Each batch runs in a process of its own; what is measured is the largest resident size that the operating system saw
(Linux and macOS). The claim under test: memory is that of a chunk, whatever the batch.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def measure(num_units: int, num_views: int, memory_budget_gib: float) -> dict:
    """Takes one step of num_units units in this process and returns what it took."""
    import numpy as np
    import tensorflow as tf

    from tf_dpdiff.diffusion import process
    from tf_dpdiff.networks import unet
    from tf_dpdiff.privacy import plan as plan_lib
    from tf_dpdiff.privacy import seeds
    from tf_dpdiff.training import stages
    from tf_dpdiff.training import train_step
    from tf_dpdiff.training import views
    tf.get_logger().setLevel('ERROR')
    network = unet.UNetConfig(base_channels=192,
                              channel_multipliers=(1, 2, 2, 2),
                              num_res_blocks=2,
                              attention_resolutions=(16,),
                              head_channels=64)
    model, average = (unet.build_unet(network, (32, 32, 3), 10) for _ in range(2))
    finetuning = stages.FinetuningConfig(stages.OptimizationConfig(1e-3),
                                         views.ViewsConfig(num_views),
                                         memory_budget_gib=memory_budget_gib)
    plan = plan_lib.make_plan(
        plan_lib.DpSgdConfig(target_delta=1e-5,
                             expected_batch_size=num_units,
                             num_steps=1,
                             l2_norm_clip=1e-3,
                             noise_multiplier=2.451), 50000)
    chunk_sizes = finetuning.choose_chunk_sizes(model, num_units)
    private_step = train_step.make_private_step(model,
                                                average,
                                                model.trainable_variables,
                                                finetuning.optimization.make_optimizer(1),
                                                plan,
                                                views.make_view_sampler(process.DiffusionProcess(), finetuning.views,
                                                                        network, 10),
                                                seeds.PrivateSeed.from_os_entropy(),
                                                images_per_unit=1,
                                                max_ema_decay=0.99,
                                                chunk_sizes=chunk_sizes)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, [num_units, 1, 32, 32, 3]).astype(np.uint8)
    labels = generator.integers(0, 10, [num_units, 1]).astype(np.int32)
    arguments = [(images, labels, np.arange(num_units))], tf.constant(0, tf.int64)
    started = time.monotonic()
    private_step.get_concrete_function()
    traced = time.monotonic()
    diagnostics = private_step(*arguments)
    assert float(diagnostics['num_units']) == num_units and float(diagnostics['num_nonfinite']) == 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    return {
        'parameters': model.count_params(),
        'units': num_units,
        'views_per_unit': num_views,
        'units_at_a_time': chunk_sizes.units,
        'views_at_a_time': chunk_sizes.views,
        'peak_memory_gib': round(peak / 2**30, 2),
        'trace_secs': round(traced - started, 1),
        'step_secs': round(time.monotonic() - traced, 1),
    }


def main() -> None:
    """Measures each batch size in a process of its own and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--units', type=int, nargs='+', default=[4, 32], help='units a step (default: 4 32)')
    parser.add_argument('--views', type=int, default=8, help='views a unit, K (default: %(default)s)')
    parser.add_argument('--memory_budget_gib', type=float, default=4.0, help='of the chunks (default: %(default)s)')
    parser.add_argument('--output', help='a JSON file (default: print only)')
    parser.add_argument('--in_this_process', action='store_true', help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.in_this_process:
        print(json.dumps(measure(flags.units[0], flags.views, flags.memory_budget_gib)))
        return
    rows = []
    for num_units in flags.units:
        command = [
            sys.executable, '-I',
            str(pathlib.Path(__file__).resolve()), '--in_this_process', '--units',
            str(num_units), '--views',
            str(flags.views), '--memory_budget_gib',
            str(flags.memory_budget_gib)
        ]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(child.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    if flags.output:
        machine = {'machine': platform.machine(), 'cores': os.cpu_count(), 'python': platform.python_version()}
        from tf_dpdiff import files
        files.write_text(pathlib.Path(flags.output), json.dumps({'machine': machine, 'steps': rows}, indent=2) + '\n')


if __name__ == '__main__':
    main()
