"""What was chosen for a run: one frozen recipe, checked once, wherever it comes from."""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

from tf_dpdiff.data import datasets
from tf_dpdiff.data import public as public_lib
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.evaluation import utility as utility_lib
from tf_dpdiff.networks import denoiser
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import teacher as teacher_lib
from tf_dpdiff.sampling import draw as draw_lib
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import loop as loop_lib
from tf_dpdiff.training import matching as matching_lib
from tf_dpdiff.training import pretraining as pretraining_lib
from tf_dpdiff.training import warm_start as warm_start_lib

_OF_PRIVATE_RUNS = ('privacy', 'finetuning', 'teacher', 'warm_start', 'utility', 'budget_file')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """All settings of a run. With private images it is a private run; without, it makes a public checkpoint.

    Attributes:
      network: The network's shape.
      process: The diffusion process.
      data: The private images, and real images held out from them. None: a run on public images alone, which makes a
        checkpoint for private runs to start from.
      privacy: The privacy budget and how it is spent; of a private run.
      finetuning: The DP-SGD stage; of a private run.
      pretraining: The public stage, or None.
      teacher: The private classifier that is released too, may label samples, and chooses among candidates; or None.
      warm_start: The stage on what a noisy release tells of the classes, or None.
      sampler: How images are drawn.
      samples: How many images are drawn at the end.
      utility: The classifiers that tell what the samples are worth, or None. What they measure is written to
        non_private/.
      loop: Settings of the loop.
      budget_file: The budget of all runs on these data, which the run is charged to, or None.

    Raises:
      ValueError: if something is missing that this kind of run needs, or given that it has no use for.
    """

    network: denoiser.DenoiserConfig
    process: process_lib.DiffusionProcess
    data: datasets.PrivateData | None = None
    privacy: plan_lib.DpSgdConfig | None = None
    finetuning: finetuning_lib.FinetuningConfig | None = None
    pretraining: pretraining_lib.PretrainingConfig | None = None
    teacher: teacher_lib.TeacherConfig | None = None
    warm_start: warm_start_lib.WarmStartConfig | None = None
    sampler: samplers.SamplerConfig = samplers.SamplerConfig()
    samples: draw_lib.GenerateConfig = draw_lib.GenerateConfig()
    utility: utility_lib.UtilityConfig | None = None
    loop: loop_lib.TrainerConfig = loop_lib.TrainerConfig()
    budget_file: str | pathlib.Path | None = None
    # Not copied by dataclasses.replace, so that it never tells of another recipe.
    _configuration: str | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.samples.labels != 'asked' and self.teacher is None:
            raise ValueError(
                f'GenerateConfig.labels = {self.samples.labels!r} needs a teacher: bind '
                'train.teacher = @TeacherConfig(), or leave the labels out.'
            )
        if self.is_private:
            if not (self.privacy and self.finetuning):
                raise ValueError(
                    'the configuration is incomplete: train.data is private, so train.privacy and train.finetuning '
                    'must be bound too.'
                )
            return
        given = [name for name in _OF_PRIVATE_RUNS if getattr(self, name) is not None]
        if given:
            raise ValueError(
                'the configuration is incomplete: it binds no private images (train.data), but what belongs to them '
                f'(train.{", train.".join(given)}).'
            )
        if self.pretraining is None:
            raise ValueError(
                'the configuration is incomplete: it binds no private images (train.data), and no public ones either '
                '(train.pretraining).'
            )
        if self.loop.log_non_private:
            raise ValueError(
                'TrainerConfig.log_non_private is for private runs: a run on public images alone writes its loss to '
                'tensorboard/.'
            )

    @property
    def is_private(self) -> bool:
        """Whether the run reads private images."""
        return self.data is not None

    @property
    def matching(self) -> matching_lib.MatchingConfig | None:
        """How images are made to match for the warm start, or None."""
        return self.warm_start.matching if self.warm_start else None

    @property
    def stages(self) -> dict[str, Any]:
        """The configurations of the stages that the run has, by name and in order."""
        named = {
            pretraining_lib.NAME: self.pretraining,
            warm_start_lib.NAME: self.warm_start,
            finetuning_lib.NAME: self.finetuning,
        }
        return {name: config for name, config in named.items() if config}

    def to_text(self) -> str:
        """Returns the recipe as a configuration file has it, for the record.

        Of a recipe that was made in Python these are the bindings of gin that differ from the defaults; images, which
        no file can hold, are a comment.
        """
        return self._configuration or '\n'.join(_bindings('train', self, '')) + '\n'

    def configured_by(self, text: str) -> 'Recipe':
        """Returns the same recipe, with the configuration that it was made by for the record."""
        configured = dataclasses.replace(self)
        object.__setattr__(configured, '_configuration', text)
        return configured


def _bindings(name: str, config, scope: str) -> Iterator[str]:
    """Yields the lines that bind the fields of a configuration, and of those in it, each in a scope of its own."""
    inner = []
    for field in filter(lambda field: field.init, dataclasses.fields(config)):
        value = getattr(config, field.name)
        left = f'{name}.{field.name}'
        if value == field.default:
            continue
        if isinstance(value, datasets.PrivateData):
            # This is released. The number of units is public, and how many images they own is not.
            yield f'# {left}: {value.spec.num_units:,} units of {value.spec.name!r}'
        elif isinstance(value, (datasets.ImageDataset, public_lib.PublicImages)):
            yield f'# {left}: {value.spec.to_phrase()}'
        elif dataclasses.is_dataclass(value):
            lines = list(_bindings(f'{scope}{field.name}/{type(value).__name__}', value, f'{scope}{field.name}/'))
            inner += lines
            # gin refuses a scope in which nothing is bound.
            own_scope = f'{scope}{field.name}/' if any(not line.startswith('#') for line in lines) else ''
            yield f'{left} = @{own_scope}{type(value).__name__}()'
        else:
            yield f'{left} = {(str(value) if isinstance(value, pathlib.Path) else value)!r}'
    yield from inner
