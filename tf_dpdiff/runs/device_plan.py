"""What a run takes on given devices, in words: time, cost and memory, as rows of a name and a fact."""

import dataclasses

from tf_dpdiff import keras
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import sampling
from tf_dpdiff.runs import forecast as forecast_lib
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import flops as flops_lib
from tf_dpdiff.training import memory
from tf_dpdiff.training import planner
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import warm_start as warm_start_lib

Rows = list[tuple[str, str]]


def of_private_run(
    hardware: planner.Hardware,
    model: keras.Model,
    plan: plan_lib.DpSgdPlan,
    pretraining: pretraining_lib.PretrainingConfig | None,
    warm_start: warm_start_lib.WarmStartConfig | None,
    finetuning: finetuning_lib.FinetuningConfig,
) -> Rows:
    """Returns the rows of a private run.

    Args:
      hardware: The devices.
      model: The network.
      plan: The privacy plan.
      pretraining: The public stage, or None.
      warm_start: The stage on what a noisy release tells of the classes, or None.
      finetuning: The DP-SGD stage.
    """
    batch_size, num_units = plan.config.expected_batch_size, plan.num_units
    trained = denoiser.select_variables(model, finetuning.trainable)
    num_trained, num_parameters = (
        forecast_lib.count_parameters(trained),
        forecast_lib.count_parameters(model.trainable_variables),
    )
    chunk = _choose_chunk(hardware, model, finetuning, batch_size)
    is_poisson = isinstance(plan.sampler, sampling.PoissonSampler) and not plan.truncation
    largest: float
    if plan.truncation:  # Devices take equal parts of what is kept, in whole chunks.
        largest = -(-batch_size // (hardware.devices * chunk.units)) * chunk.units
    else:
        largest = planner.largest_sampled_share(
            num_units, batch_size, hardware.devices, chunk.units, is_poisson=is_poisson
        )
    work = planner.StageWork(
        'private steps',
        plan.config.num_steps,
        batch_size,
        finetuning.views.augmentation_multiplicity,
        largest,
        num_trained,
    )
    configs = {name: c for name, c in (('pre-training', pretraining), ('warm start', warm_start)) if c}
    public = [_public_work(name, config, hardware, num_parameters) for name, config in configs.items()]
    rows = _time_rows(hardware, model, trained, public, [work])
    rows.append(('units a device', _describe_share(hardware, work, num_units if is_poisson else None, chunk.units)))
    rows += _reduction_row(hardware, work)
    states = 2 * num_trained + 2 * num_parameters * len(configs)
    activation_bytes = memory.activation_bytes_per_view(model)
    held = planner.private_memory(
        num_parameters=num_parameters,
        num_trained=num_trained,
        num_optimizer_states=states,
        chunk=chunk,
        activation_bytes=activation_bytes,
    )
    rows.append(('memory a device', _describe_memory(hardware, held, f'{chunk.units} unit(s) x {chunk.views} view(s)')))
    for name, config in configs.items():
        _, description = _public_memory(hardware, config, num_parameters, states, activation_bytes)
        rows.append((f'in {name}', description))
    if hardware.device_memory_gib is not None:
        rows.append(('memory to bind', _advise_private(hardware, held, model, finetuning, batch_size)))
    return rows


def of_public_run(
    hardware: planner.Hardware, model: keras.Model, pretraining: pretraining_lib.PretrainingConfig
) -> Rows:
    """Returns the rows of a run on public images alone.

    Args:
      hardware: The devices.
      model: The network.
      pretraining: The public stage.
    """
    num_parameters = forecast_lib.count_parameters(model.trainable_variables)
    work = _public_work('pre-training', pretraining, hardware, num_parameters)
    rows = _time_rows(hardware, model, model.trainable_variables, [work], []) + _reduction_row(hardware, work)
    activation_bytes = memory.activation_bytes_per_view(model)
    held, description = _public_memory(hardware, pretraining, num_parameters, 2 * num_parameters, activation_bytes)
    rows.append(('memory a device', description))
    if hardware.device_memory_gib is not None:
        left = planner.memory_budget_gib(held, hardware.device_memory_gib) * 2**30 - held.gradients
        most = min(int(left // (work.num_views * activation_bytes)), -(-work.batch_size // hardware.devices))
        fitting = [images for images in range(1, most + 1) if work.batch_size % images == 0]
        rows.append(
            (
                'memory to bind',
                f'PretrainingConfig.images_per_chunk = {max(fitting)} at most' if fitting else 'nothing fits',
            )
        )
    return rows


def _public_memory(
    hardware, config, num_parameters: int, num_optimizer_states: int, activation_bytes: int
) -> tuple[planner.StepMemory, str]:
    """Returns the memory that a step of plain training takes on a device, as numbers and in words."""
    share = -(-config.batch_size // hardware.devices)
    views = min(getattr(config, 'images_per_chunk', None) or share, share) * config.views.augmentation_multiplicity
    held = planner.public_memory(
        num_parameters=num_parameters,
        num_optimizer_states=num_optimizer_states,
        views_at_a_time=views,
        activation_bytes=activation_bytes,
    )
    return held, _describe_memory(hardware, held, f'{views:,} view(s)')


def _describe_share(hardware, work: planner.StageWork, num_units: int | None, units_per_chunk: int) -> str:
    """Returns the units that a device computes a step, in words; num_units: None where batches have one size."""
    text = f'{work.batch_size / hardware.devices:,.1f} expected a step, '
    if num_units:
        stddev = planner.poisson_stddev(num_units, work.batch_size, hardware.devices)
        text += f'standard deviation {stddev:,.1f}, '
    text += f'the largest of {hardware.devices} has' if hardware.devices > 1 else 'computed are'
    padding = f' with padding to chunks of {units_per_chunk}' if units_per_chunk > 1 else ''
    more = work.imbalance(hardware.devices) - 1.0
    return f'{text} {work.largest_share:,.1f} on average{padding}: +{more:.1%} of time'


def _public_work(name: str, config, hardware: planner.Hardware, num_parameters: int) -> planner.StageWork:
    largest = planner.largest_equal_share(
        config.batch_size, hardware.devices, getattr(config, 'images_per_chunk', None)
    )
    return planner.StageWork(
        name, config.num_steps, config.batch_size, config.views.augmentation_multiplicity, largest, num_parameters
    )


def _time_rows(hardware, model, trained, public, private) -> Rows:
    """Returns rows of the time that each stage takes, and of the cost; none where no rate is known."""
    if not hardware.has_rate:
        return []
    rows, rates, total = [], {}, 0.0
    for kind, works, variables in (('public', public, model.trainable_variables), ('private', private, trained)):
        if works:
            flops = None if hardware.is_measured else flops_lib.flops_per_view(model, variables)
            rates[kind] = planner.rate(hardware, flops and flops.training, is_public=kind == 'public')
            rows.append((f'rate, {kind}', _describe_rate(hardware, rates[kind], flops)))
        for work in works:
            seconds = planner.step_seconds(work, hardware, rates[kind])
            total += seconds * work.num_steps
            rows.append(
                (
                    f'time, {work.name}',
                    f'{work.views:,} views in {_duration(seconds * work.num_steps)}, {_duration(seconds)} a step',
                )
            )
    device_hours = total / 3600.0 * hardware.devices
    cost = ''
    if hardware.price_per_device_hour is not None:
        price = hardware.price_per_device_hour
        cost = f', cost {device_hours * price:,.2f} at {price:g} each'
    rows.append(
        (
            'time in all',
            f'{_duration(total)} on {hardware.devices} device(s) = {device_hours:,.4g} '
            f'device-hours{cost}; training alone, without start, samples and evaluation',
        )
    )
    if hardware.devices > 1:
        of_what = 'uneven shares' + (' and all-reduce' if hardware.network_gbps is not None else '')
        rows.append(
            ('scaling', f'efficiency {hardware.scaling_efficiency:g}, assumed and not measured, besides {of_what}')
        )
    return rows


def _describe_rate(hardware, views_per_second: float, flops: flops_lib.Flops | None) -> str:
    rate = f'{views_per_second:,.4g} views a second a device'
    if flops is None:
        return f'{rate}, as given'
    share = views_per_second * flops.training / (hardware.device_tflops * 1e12)
    return (
        f'{rate}, ESTIMATED, NOT MEASURED: {100.0 * share:.3g}% (assumed) of {hardware.device_tflops:g} TFLOPS, '
        f'{flops.training / 1e9:,.4g} GFLOP a view ({flops.training / flops.forward:.2f} x the forward pass)'
    )


def _reduction_row(hardware, work: planner.StageWork) -> Rows:
    if hardware.devices == 1:
        return []
    sent = planner.ring_bytes(work.num_reduced, hardware.devices)
    time = ', its time not counted (--network_gbps)'
    if hardware.network_gbps is not None:
        time = f': {_duration(planner.reduction_seconds(work, hardware))} at {hardware.network_gbps:g} Gbit/s'
    summed = _bytes(4 * work.num_reduced)
    return [('all-reduce', f'{summed} a step, {_bytes(sent)} sent by each device of a ring{time}')]


def _describe_memory(hardware, held: planner.StepMemory, chunk: str) -> str:
    parts = (
        f'{_bytes(held.total)}: weights and average {_bytes(held.weights)}, optimizer '
        f'{_bytes(held.optimizers)}, sums {_bytes(held.sums)}, gradients {_bytes(held.gradients)} and '
        f'activations {_bytes(held.activations)} of {chunk} at a time'
    )
    if hardware.device_memory_gib is None:
        return parts
    usable = planner.SHARE_OF_MEMORY * hardware.device_memory_gib * 2**30
    fits = 'fits' if held.total <= usable else 'DOES NOT FIT'
    return f'{parts}; {fits} in {planner.SHARE_OF_MEMORY:.0%} of {hardware.device_memory_gib:g} GiB'


def _advise_private(hardware, held, model, finetuning, batch_size: int) -> str:
    budget = planner.memory_budget_gib(held, hardware.device_memory_gib)
    if budget <= 0.0:
        return f'nothing fits: without gradients and activations it is {_bytes(held.least)}'
    chunk = _choose_chunk(
        hardware, model, dataclasses.replace(finetuning, memory_budget_gib=budget, units_per_chunk=None), batch_size
    )
    unbound = ' and units_per_chunk = None' if finetuning.units_per_chunk else ''
    return (
        f'FinetuningConfig.memory_budget_gib = {budget:g} at most{unbound}: {chunk.units} unit(s) x {chunk.views} '
        'view(s) at a time'
    )


def _choose_chunk(hardware, model, finetuning, batch_size: int) -> memory.ChunkSizes:
    """Returns the chunk that a device holds at a time: an accelerator, whatever this machine has."""
    return finetuning.choose_chunk_sizes(model, -(-batch_size // hardware.devices), on_accelerator=True)


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, 'hours'), (60.0, 'min')):
        if seconds >= 1.5 * size:
            return f'{seconds / size:,.1f} {unit}'
    return f'{seconds:.3g} s'


def _bytes(num_bytes: float) -> str:
    for size, unit in ((2**30, 'GiB'), (2**20, 'MiB')):
        if num_bytes >= size:
            return f'{num_bytes / size:,.2f} {unit}'
    return f'{num_bytes / 2**10:,.1f} KiB'
