"""Throughput and latency of bin/serve under load, with and without joining requests, and whether any answer is wrong.

    .venv/bin/python -I benchmarks/serving_load.py --model saved_models/digits --output benchmarks/serving_load.json

Requests ask for one image each, over gRPC on this machine, from as many threads as `--concurrency` says; client and
server share the cores. Afterwards `--checked` requests with seeds of their own are compared with what the model draws
in this process: an answer is wrong if it is further off than one grey level, which is what another batch size may do.
Without --model a network of the digits' size with random weights is exported first.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Joined as by default, and one by one.
BATCHING = {'on': [], 'off': ['--max_batch_size=1', '--batch_timeout_ms=0']}
NUM_CLASSES = 10


@contextlib.contextmanager
def serving(model: pathlib.Path, flags):
    """Starts bin/serve and yields its gRPC address, and what returns its resident memory in MiB."""
    command = [
        sys.executable,
        '-m',
        'tf_dpdiff.cli',
        'serve',
        str(model),
        '--rest_port=0',
        '--grpc_port=0',
        '--max_queue=1024',
        *flags,
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}
    )
    try:
        head = [process.stdout.readline() for _ in range(3)]
        address = re.search(r'grpc://([^/\s]+)/', ''.join(head)).group(1)
        yield address, lambda: _resident_mib(process.pid)
    finally:
        process.terminate()
        if process.wait(60):
            raise RuntimeError(f'bin/serve ended with exit code {process.returncode}')


def _resident_mib(pid: int) -> float:
    pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def load(address: str, name: str, seeds, concurrency: int, on_answer=lambda seed, image: None):
    """Sends a request a seed; returns the seconds that each took, how long all took, and the errors."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    waiting, latencies, errors, lock = iter(seeds), [], [], threading.Lock()

    def work():
        with grpc.insecure_channel(address, options=[('grpc.use_local_subchannel_pool', 1)]) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while True:
                with lock:
                    seed = next(waiting, None)
                if seed is None:
                    return
                request = predict_pb2.PredictRequest()
                request.model_spec.name = name
                request.inputs['labels'].CopyFrom(tf.make_tensor_proto([seed % NUM_CLASSES], tf.int32))
                request.inputs['seeds'].CopyFrom(tf.make_tensor_proto([seed], tf.int64))
                started = time.monotonic()
                try:
                    answer = stub.Predict(request, timeout=120)
                except grpc.RpcError as error:
                    errors.append(f'{error.code().name}: {error.details()}')
                    continue
                latencies.append(time.monotonic() - started)
                on_answer(seed, tf.make_ndarray(answer.outputs['images'])[0])

    started = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, time.monotonic() - started, errors


def measure(address: str, name: str, concurrency: int, num_requests: int) -> dict:
    """Returns throughput and latency at one concurrency."""
    import numpy as np

    load(address, name, range(2 * concurrency), concurrency)  # Threads, connections and batch sizes that are new.
    latencies, seconds, errors = load(address, name, range(num_requests), concurrency)
    return {
        'concurrency': concurrency,
        'requests': num_requests,
        'errors': len(errors),
        'requests_per_sec': round(len(latencies) / seconds, 1),
        'p50_ms': round(1000.0 * float(np.percentile(latencies, 50)), 1),
        'p99_ms': round(1000.0 * float(np.percentile(latencies, 99)), 1),
    }


def check(address: str, name: str, model: pathlib.Path, num_requests: int, concurrency: int, resident_mib) -> dict:
    """Compares every answer with what the model draws here."""
    import numpy as np
    import tensorflow as tf

    from tf_dpdiff.serving import export

    answers, repeated = {}, []

    def keep(seed, image):
        if seed in answers:
            repeated.append(seed)
        answers[seed] = image

    before = resident_mib()
    _, seconds, errors = load(address, name, range(num_requests), concurrency, keep)
    after = resident_mib()
    sample_fn, differences = export.load_sample_fn(model), []
    for start in range(0, num_requests, 250):
        seeds = np.arange(start, min(start + 250, num_requests))
        drawn = sample_fn(tf.constant(seeds % NUM_CLASSES, tf.int32), tf.constant(seeds, tf.int64)).numpy()
        differences += [
            int(np.abs(answers[seed].astype(int) - image).max())
            for seed, image in zip(seeds.tolist(), drawn)
            if seed in answers
        ]
    return {
        'requests': num_requests,
        'concurrency': concurrency,
        'requests_per_sec': round(num_requests / seconds, 1),
        'lost': num_requests - len(answers),
        'errors': errors[:5],
        'repeated': len(repeated),
        'wrong': sum(difference > 1 for difference in differences),
        'one_grey_level_off': sum(difference == 1 for difference in differences),
        'server_mib_before': round(before),
        'server_mib_after': round(after),
    }


def export_untrained(folder: pathlib.Path) -> pathlib.Path:
    """Exports a network of the digits' size with random weights, whose images differ from seed to seed."""
    import numpy as np

    from tf_dpdiff.diffusion import process
    from tf_dpdiff.diffusion import samplers
    from tf_dpdiff.diffusion import schedules
    from tf_dpdiff.networks import denoiser
    from tf_dpdiff.networks import unet
    from tf_dpdiff.serving import export

    network = denoiser.build(
        unet.UNetConfig(base_channels=8, channel_multipliers=(1, 2), middle_attention=False, groups=2),
        (8, 8, 1),
        NUM_CLASSES,
    )
    generator = np.random.default_rng(0)
    for variable in network.trainable_variables:
        variable.assign(generator.normal(0.0, 0.2, variable.shape))
    sampler = export.ImageSampler(
        network, process.DiffusionProcess(schedules.Schedule('cosine', 1000), 'v'), samplers.SamplerConfig('ddim', 40)
    )
    export.export_saved_model(sampler, folder, [])
    return folder


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=pathlib.Path, help='folder of an exported model of ten classes')
    parser.add_argument('--concurrency', type=int, nargs='+', default=[1, 4, 16, 64])
    parser.add_argument('--requests', type=int, default=200, help='at each concurrency, without joining')
    parser.add_argument('--checked', type=int, default=10000)
    parser.add_argument('--output', type=pathlib.Path)
    flags = parser.parse_args()
    import tensorflow as tf

    tf.get_logger().setLevel('ERROR')
    with tempfile.TemporaryDirectory() as folder:
        model = (flags.model or export_untrained(pathlib.Path(folder) / 'digits')).resolve()
        result = {
            'machine': f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}',
            'versions': f'Python {platform.python_version()}, TensorFlow {tf.__version__}',
            'batching': {},
        }
        for name, options in BATCHING.items():
            with serving(model, options) as (address, resident_mib):
                rows = result['batching'][name] = []
                for concurrency in flags.concurrency:
                    count = flags.requests * (max(1, concurrency // 4) if name == 'on' else 1)
                    rows.append(measure(address, model.name, concurrency, count))
                    print(f'batching {name}:', rows[-1], flush=True)
                if name == 'on' and flags.checked:
                    result['checked'] = check(
                        address, model.name, model, flags.checked, max(flags.concurrency), resident_mib
                    )
                    print('checked:', result['checked'], flush=True)
    pairs = zip(*(result['batching'][name] for name in ('on', 'off')))
    result['throughput_on_over_off'] = {
        str(on['concurrency']): round(on['requests_per_sec'] / off['requests_per_sec'], 2) for on, off in pairs
    }
    print('throughput, joined over one by one:', result['throughput_on_over_off'])
    if flags.output:
        flags.output.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
