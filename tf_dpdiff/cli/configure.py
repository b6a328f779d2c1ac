"""From a folder of one's own images to a configuration that runs as it is."""

import dataclasses
import os
import pathlib
import tempfile
from typing import Any, NamedTuple

from tf_dpdiff import keras
from tf_dpdiff import progress
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.data import datasets
from tf_dpdiff.data import problems as problems_lib
from tf_dpdiff.data import survey as survey_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import relations
from tf_dpdiff.runs import build as build_lib
from tf_dpdiff.runs import forecast as forecast_lib
from tf_dpdiff.runs import init_rules
from tf_dpdiff.runs import init_source
from tf_dpdiff.runs import recipe as recipe_lib

_COMMENT_COLUMN = 48
_MOST_OVERTIME = 1.5  # Of the hours that were asked for; beyond it, it is said.
_INCLUDE = "include 'own_images.gin'"
# What nothing is known of before the images are, for a configuration that can be read.
_UNDECIDED = [
    'TARGET_EPSILON = 1.0',
    'TARGET_DELTA = 1e-30',
    'EXPECTED_BATCH_SIZE = 1',
    'ClassMeansConfig.noise_multiplier = 1.0',
    'ClassMeansConfig.l2_norm_clip = 1.0',
    'WarmStartConfig.num_steps = 1',
]


def configure(
    path: str | os.PathLike,
    *,
    epsilon: float = 10.0,
    delta: float | None = None,
    hours: float = 1.0,
    unit: str | None = None,
    image_size: tuple[int, int] | None = None,
    window: tuple[float, float] | None = None,
    label_column: str | None = None,
    held_out_fraction: float | None = None,
) -> str:
    """Returns a configuration for a folder of one's own images, which runs as it is.

    It goes by public facts alone: the number of images or owners, the classes, the sizes that are in the headers, the
    budget, and the speed of this machine, measured for some seconds on random numbers. No pixel is read, and nothing
    is counted per class.

    Args:
      path: A folder, a table or an .npz file, as `survey` reads them.
      epsilon: The privacy budget, > 0.
      delta: In (0, 1); None: at most 1 / (10 N), rounded down to one digit.
      hours: That the run may take on this machine, > 0.
      unit: What is protected: 'image', or a word for the owner of several images, such as 'patient'; None: an image,
        but where the images name their owners.
      image_size: (height, width) to bring images to, in pixels; None: those of the public model.
      window: (low, high): the grey levels of 16-bit images that become 0 and 255; such images need it.
      label_column: Of the table that lists the images: their class; None: the one that looks like it.
      held_out_fraction: About the share of the units that is held out, in (0, 1), where there is no test part; None:
        that of the source.

    Returns:
      The text of a configuration file.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if the images can't be read so, or the budget can't be met; says what to do.
    """
    asked = init_source.Wishes(
        epsilon=epsilon,
        delta=delta,
        hours=hours,
        unit=unit,
        image_size=image_size,
        window=window,
        label_column=label_column,
        held_out_fraction=held_out_fraction,
    )
    return configured(path, asked).text


class Configured(NamedTuple):
    """A configuration, what it builds, and what was measured for it."""

    text: str
    build: build_lib.Build
    model: keras.Model
    speed: forecast_lib.Speed
    told: forecast_lib.Forecast


def configured(path: str | os.PathLike, asked: init_source.Wishes) -> Configured:
    """Returns what `configure` makes of a folder, and what it measured and built on the way.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: as `configure`.
    """
    with progress.working('init', f'looking at {path}'):
        found = survey_lib.survey(pathlib.Path(path).expanduser().absolute())
        found.check()
    if found.problems:
        problems = problems_lib.Problems(str(found.path))
        for problem in found.problems:
            problems.add(problem)
        problems.check()
    lines = _source(found, asked)
    recipe = _recipe([*lines, *_UNDECIDED])
    assert recipe.data is not None and recipe.finetuning is not None
    spec = recipe.data.spec
    network = recipe.network
    if init_source.public_model(spec.image_shape):
        network = network.resized(init_source.model_shape(spec.image_shape[2]), spec.image_shape)
    lines += [
        _bind(
            f'{type(network).__name__}.{field.name}', getattr(network, field.name), 'As the public model at this size.'
        )
        for field in dataclasses.fields(network)
        if getattr(network, field.name) != getattr(recipe.network, field.name)
    ]
    delta = asked.delta or init_rules.choose_delta(spec.num_units)
    model = denoiser.build(network, spec.image_shape, spec.num_classes)
    with progress.working('init', 'measuring the speed of this machine'):
        speed = forecast_lib.measure_speed(model, recipe.finetuning.trainable, has_matching=True)
    assert speed is not None  # The models are small.
    facts = init_rules.PublicFacts(
        spec.num_units, spec.num_classes, spec.image_shape, asked.epsilon, delta, asked.hours, speed
    )
    with progress.working('init', 'dividing the budget'):
        choice = init_rules.choose(facts)
    lines += [*_start(spec), *_decided(facts, choice, asked)]
    recipe = _recipe(lines)
    with progress.working('init', 'calibrating the noise'):
        build = build_lib.Build(recipe)  # Refuses a budget that makes no sense.
    hours = forecast_lib.training_secs(recipe, speed) / 3600.0
    # What gin/own_images.gin says of the means is what the rules reckoned with.
    assert recipe.warm_start is not None
    assert (recipe.warm_start.release, recipe.warm_start.matching) == (choice.release, choice.matching)
    told = forecast_lib.forecast_of(build, model)
    rate = init_rules.choose_learning_rate(told.gradient_share)  # It changes nothing of what was built to find it.
    why = 'The more the noise hides of the gradients, the less.'
    lines.append(_bind('finetuning/OptimizationConfig.learning_rate', rate, why))
    return Configured(_text([*_head(found, build, told, asked, hours), *lines]), build, model, speed, told)


def _recipe(lines: list[str]) -> recipe_lib.Recipe:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / 'draft.gin'
        file.write_text(_text([_INCLUDE, *lines]), encoding='utf-8')
        return gin_config.recipe(str(file))


def _text(lines: list[str]) -> str:
    return '\n'.join(lines) + '\n'


def _bind(name: str, value: Any, why: str = '') -> str:
    return _line(f'{name} = {value!r}', why)


def _line(text: str, why: str) -> str:
    """Returns a line with the reason behind it, where there is one to tell."""
    return f'{text:<{_COMMENT_COLUMN}}  # {why}' if why else text


def _head(
    found: survey_lib.Survey,
    build: build_lib.Build,
    told: forecast_lib.Forecast,
    asked: init_source.Wishes,
    hours: float,
) -> list[str]:
    spec, works = build.spec, 'It runs as it is'
    if told.is_hopeless:
        works = 'Its noise hides all, see --dry_run, and this asks for --anyway'
    but = f' (it will rather take {hours:.1g})' if hours > _MOST_OVERTIME * asked.hours else ''
    is_hashed = found.source == 'npz' and not spec.has_owners
    seen = 'Pixels had no say but in which images are held out' if is_hashed else 'No pixel was read'
    return [
        f'# Made by bin/init for {asked.hours:g} hour(s) on the machine that it ran on{but}. {works}:',
        '#     bin/train --gin_file=FILE --workdir=runs/mine',
        f'# Treated as public: the name {spec.name!r}, that there are {spec.num_units:,} units (each {spec.unit}), the',
        f'# classes, the sizes in the headers. {seen}, and nothing was counted per class.',
        _INCLUDE,
    ]


def _source(found: survey_lib.Survey, asked: init_source.Wishes) -> list[str]:
    """Returns the lines that name the network, and the source of the images with its settings."""
    image_shape, source = init_source.choose_shape(found, asked), survey_lib.SOURCES[found.source]
    lines = [
        _line(f"include 'models/{init_source.public_model(image_shape) or 'digits'}.gin'", 'The network.'),
        f'DATA = @{source}()',
    ]
    for name, value, why in init_source.settings(found, asked, image_shape):
        lines.append(_bind(f'{source}.{name}', value, why))
    return lines


def _start(spec: datasets.DatasetSpec) -> list[str]:
    """Returns the lines that say what the network starts from."""
    height, width, channels = spec.image_shape
    model = init_source.public_model(spec.image_shape)
    if model and (gin_files.root() / 'saved_models' / model / 'pretrained.json').is_file():
        return [_bind('FinetuningConfig.init_from', f'saved_models/{model}', 'A public model of photographs.')]
    why = 'The public model of this size is not here' if model else 'No public model has this size'
    return [
        _line("include 'stages/procedural.gin'", f'{why}: it begins on drawn images.'),
        _bind('random_shapes.image_size', height if height == width else (height, width)),
        _bind('random_shapes.num_classes', spec.num_classes),
        _bind('random_shapes.channels', channels),
    ]


def _decided(facts: init_rules.PublicFacts, choice: init_rules.Choice, asked: init_source.Wishes) -> list[str]:
    """Returns the lines that say what the budget buys."""
    release, num_units = choice.release, facts.num_units
    noise = forecast_lib.noise_on_means(release, num_units, facts.num_classes, relations.REPLACE_WITH_ZERO)
    rounds = f'in {release.num_rounds} rounds' if release.num_rounds > 1 else 'in one release'
    height, width, channels = facts.image_shape
    lines = [
        _bind('TARGET_EPSILON', facts.epsilon),
        _bind(
            'TARGET_DELTA',
            facts.delta,
            'As given.' if asked.delta else f'At most 1 / (10 x {num_units:,}), rounded down.',
        ),
        _bind(
            'ClassMeansConfig.noise_multiplier',
            release.noise_multiplier,
            f'{choice.warm_start_share:.0%} of the budget, {rounds}; noise {noise:.2g} a pixel of a mean.',
        ),
        _bind(
            'ClassMeansConfig.l2_norm_clip',
            release.l2_norm_clip,
            f'Longer images are shortened to it: 0.3 x sqrt({height} x {width} x {channels}).',
        ),
    ]
    if release.num_rounds > 1:
        why = 'As many per class as the noise permits.'
        lines.append(_bind('ClassMeansConfig.means_per_class', release.means_per_class, why))
        lines.append(_bind('ClassMeansConfig.num_rounds', release.num_rounds))
    if choice.matching:
        noise_multiplier = choice.matching.release.noise_multiplier
        why = f'{init_rules.MATCHING_SHARE:.0%} of the budget, for features of random networks ...'
        lines += [
            _line("include 'stages/matching.gin'", 'The warm start trains on images made to match.'),
            _bind('FeatureMeansConfig.noise_multiplier', noise_multiplier, why),
            _bind('MatchingConfig.num_networks', choice.matching.num_networks, '... of so many of them.'),
            _bind('MatchingConfig.num_images', choice.matching.num_images, 'As many as a fifth of the time makes.'),
        ]
    if choice.teacher:
        share, num_rounds = init_rules.TEACHER_SHARE, choice.teacher.num_rounds
        lines += [
            'train.teacher = @TeacherConfig()',
            _bind(
                'TeacherConfig.noise_multiplier',
                choice.teacher.noise_multiplier,
                f'{share:.0%} of the budget, in {num_rounds} rounds, for a classifier ...',
            ),
            _bind(
                'GenerateConfig.labels', 'auto', '... that labels the samples unless it agrees with their own labels.'
            ),
        ]
    why = f'Of {num_units:,} units; the larger, the less noise in all.'
    return [
        *lines,
        _bind('WarmStartConfig.num_steps', choice.warm_start_steps, 'Up to 45% of the time.'),
        _bind('EXPECTED_BATCH_SIZE', choice.expected_batch_size, why),
        _bind('NUM_STEPS', choice.num_steps),
        _bind('AUGMENTATION_MULTIPLICITY', choice.num_views, 'Views per unit: they cost time, and no privacy.'),
        _bind('GenerateConfig.num_images', choice.num_samples),
    ]
