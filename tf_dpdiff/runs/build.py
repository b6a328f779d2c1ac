"""From a recipe to what runs: its plan, network, stages and step, built the same way for every command."""

from collections.abc import Callable, Iterator
import dataclasses
import pathlib
from typing import Any, NamedTuple

from tf_dpdiff import keras
from tf_dpdiff.data import datasets
from tf_dpdiff.data import overlap
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import kinds
from tf_dpdiff.networks import scattering
from tf_dpdiff.privacy import best_of_runs
from tf_dpdiff.privacy import feature_means
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import recipe as recipe_lib
from tf_dpdiff.runs import tensorboard_events
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning
from tf_dpdiff.training import loop
from tf_dpdiff.training import matching as matching_lib
from tf_dpdiff.training import pretraining
from tf_dpdiff.training import public_checkpoint
from tf_dpdiff.training import stage as stage_lib
from tf_dpdiff.training import strategies
from tf_dpdiff.training import summaries as summaries_lib
from tf_dpdiff.training import teacher as teacher_stage
from tf_dpdiff.training import views as views_lib
from tf_dpdiff.training import warm_start

# How much is held in memory at a time: may be changed when a run is resumed.
_CHUNKS = ('units_per_chunk', 'memory_budget_gib', 'images_per_chunk')


class OneOfSeveral(NamedTuple):
    """What a run knows of the choice among runs in which it takes part.

    Attributes:
      tuning: The choice.
      candidate: Which of its candidates the run takes.
      run_id: The public name of whichever run is released.
    """

    tuning: best_of_runs.Tuning
    candidate: int
    run_id: str | None


class Build:
    """A run that is ready to begin: all that follows from its recipe alone.

    To make one calibrates the noise of a private run, which takes seconds, and reads no image.

    Args:
      recipe: What was chosen.
      spec: What is known of the private images, where it is not what the recipe's data say; None: it is.
      one_of_several: The choice among runs in which it takes part, or None.

    Attributes:
      recipe: What was chosen.
      spec: What is known of the images that decide on shape and classes: the private ones, or else the public ones.
      plan: The privacy plan; None: the run reads no private image.
      model: What is needed to rebuild its network and sampler.

    Raises:
      ValueError: if the parts do not fit together; names what differs.
      accounting.BudgetError: if the budget can't be met.
    """

    def __init__(
        self,
        recipe: recipe_lib.Recipe,
        spec: datasets.DatasetSpec | None = None,
        *,
        one_of_several: OneOfSeveral | None = None,
    ):
        self.recipe, self._one_of_several = recipe, one_of_several
        last_stage, images = recipe.finetuning or recipe.pretraining, recipe.data or recipe.pretraining
        assert last_stage is not None and images is not None  # One of the two stages there is in every recipe.
        self.spec = spec or images.spec
        self.model = folder.ModelDescription(
            self.spec.image_shape,
            self.spec.class_names,
            recipe.network,
            recipe.process,
            recipe.sampler,
            last_stage.views.label_drop_probability,
            has_feature_means=bool(recipe.warm_start and recipe.warm_start.has_public_images),
            has_teacher=recipe.teacher is not None,
        ).with_sampler(recipe.sampler)
        self.plan: plan_lib.DpSgdPlan | None = None
        if recipe.privacy:
            self.plan = plan_lib.make_plan(
                recipe.privacy,
                self.spec.num_units,
                recipe.warm_start.release if recipe.warm_start else None,
                teacher=recipe.teacher,
                matching=_matched_release(recipe),
                tuning=one_of_several.tuning if one_of_several else None,
            )

    def make_network(self) -> keras.Model:
        """Returns a new network."""
        return denoiser.build(self.recipe.network, self.spec.image_shape, self.spec.num_classes)

    def make_view_maker(self, views: views_lib.ViewsConfig) -> views_lib.ViewMaker:
        """Returns what makes the views of a stage."""
        return views_lib.make_view_maker(self.recipe.process, views, self.recipe.network, self.spec.num_classes)

    def check(self, num_workers: int = 1) -> None:
        """Refuses stages that do not fit the images, in so far as that can be told without reading any.

        Raises:
          ValueError: says what does not fit.
        """
        for config in self.recipe.stages.values():
            self.make_view_maker(config.views)
            config.views.augmentation.check(self.spec.image_shape)
        if not self.recipe.is_private:
            return
        if self.recipe.pretraining:
            _check_public_shape(self.recipe.pretraining.spec, self.spec)
        self._check_teacher(num_workers)
        self._check_warm_start(num_workers)

    def check_network(self, model: keras.Model) -> None:
        """Refuses a network, or views, that are not fit for per-unit clipping; see `finetuning.check_model`."""
        assert self.recipe.finetuning is not None
        finetuning.check_model(model, self.spec.image_shape, self.make_view_maker(self.recipe.finetuning.views))

    def open_origin(self) -> public_checkpoint.PublicCheckpoint | None:
        """Returns the public checkpoint that the run starts from, or None where it starts from none.

        Raises:
          FileNotFoundError: if there is none where one is said to be.
          ValueError: if it does not fit the network or the process, or if the run has a public stage of its own.
        """
        if self.recipe.finetuning is None or self.recipe.finetuning.init_from is None:
            return None
        if self.recipe.pretraining:
            raise ValueError(
                'a run either has a public stage of its own or starts from a checkpoint: set pretraining = None '
                "(of 'train' or 'audit'), or FinetuningConfig.init_from = None."
            )
        origin = public_checkpoint.read(pathlib.Path(self.recipe.finetuning.init_from).expanduser())
        origin.check_fits(self.recipe.network, self.recipe.process, self.spec.image_shape)
        return origin

    def public_data(self, origin: public_checkpoint.PublicCheckpoint | None) -> tuple[str, ...]:
        """Returns the public images that the run's weights see, one phrase a source."""
        recipe, phrases = self.recipe, [origin.to_phrase()] if origin else []
        if recipe.pretraining:
            phrases.append(recipe.pretraining.spec.to_phrase())
        if recipe.warm_start and recipe.warm_start.public is not None:
            phrases.append(recipe.warm_start.public.spec.to_phrase())
        return tuple(dict.fromkeys(phrases))

    def statement(
        self, ledger: ledger_lib.Ledger, public_data: tuple[str, ...], run_id: str | None = None
    ) -> statement_lib.PrivacyStatement | statement_lib.PublicStatement:
        """Returns the statement about weights that are made from the ledger's releases and from no others."""
        if self.plan is None:
            assert self.recipe.pretraining is not None
            return statement_lib.PublicStatement(public_data, self.recipe.pretraining.num_steps, run_id)
        assert self.recipe.finetuning is not None
        return statement_lib.PrivacyStatement(
            unit=self.spec.unit,
            dataset=self.spec.name,
            plan=self.plan,
            ledger=ledger,
            augmentation_multiplicity=self.recipe.finetuning.views.augmentation_multiplicity,
            run_id=run_id,
            public_data=public_data,
            has_owners=self.spec.has_owners,
            preparation=self.spec.preparation,
            candidate=self._one_of_several.candidate if self._one_of_several else None,
        )

    def make_training(
        self,
        workdir: pathlib.Path,
        private: datasets.ImageDataset | None,
        *,
        on_release: warm_start.OnRelease = lambda unused_release: None,
        make_grid_drawer: Callable[[folder.ModelDescription], loop.DrawGrid]
        | None = tensorboard_events.make_grid_drawer,
        replicas: strategies.Replicas = strategies.ONE,
    ) -> 'RunTraining':
        """Reads the images, and makes what trains the run from wherever its folder says that it stands.

        Args:
          workdir: The run's folder.
          private: The private images; None: of a run on public images alone.
          on_release: Called at the first worker with the noisy class means, or with the public images that noisy
            feature means have chosen.
          make_grid_drawer: Makes what draws the samples that TensorBoard shows on the way; None: it shows none.
          replicas: What computes the steps.

        Raises:
          ValueError: if the parts do not fit together; names what differs.
          model_check.ModelCheckError: if the network is not fit for per-unit clipping.
        """
        recipe, plan = self.recipe, self.plan
        if plan is not None:
            assert private is not None
            if plan.num_units != private.num_units:
                raise ValueError(
                    f'the plan is for {plan.num_units} units, data set {private.name!r} has {private.num_units}.'
                )
            if recipe.warm_start and recipe.warm_start.release != plan.warm_start_release:
                raise ValueError(
                    f'the warm start makes another release, {recipe.warm_start.release}, than the plan accounts for: '
                    f'{plan.warm_start_release}.'
                )
            if _matched_release(recipe) != plan.matching:
                raise ValueError(f'the plan does not account for {recipe.matching}: it accounts for {plan.matching}.')
            if recipe.teacher != plan.teacher:
                raise ValueError(
                    f'the teacher, {recipe.teacher}, is not the one that the plan accounts for: {plan.teacher}.'
                )
        origin = self.open_origin()
        self.check(replicas.workers.count)
        num_public = self.count_private_images_that_are_public(origin, private) if private is not None else 0
        model = self.model
        if not recipe.is_private:
            assert recipe.pretraining is not None
            model = model._replace(labelled=not _is_unlabelled(recipe.pretraining.images))
        configuration = self._configuration(origin, private)
        state = checkpoints.resume_or_begin(
            workdir / checkpoints.FOLDER,
            configuration,
            is_private=plan is not None,
            run_id=self._one_of_several.run_id if self._one_of_several else None,
            workers=replicas.workers,
        )
        training = self.make_networks(origin, state, replicas)
        summaries = summaries_lib.Summaries(workdir)
        with replicas.scope():
            stages = list(self._make_stages(training, state, summaries, workdir, private, on_release))
        trainer = loop.Trainer(
            workdir,
            configuration,
            recipe.loop,
            state=state,
            training=training,
            stages=stages,
            summaries=summaries,
            build_network=self.make_network,
            num_classes=self.spec.num_classes,
            plan=plan,
            draw_grid=make_grid_drawer(model) if make_grid_drawer else None,
        )
        return RunTraining(self, trainer, model, self.public_data(origin), num_public)

    def _configuration(
        self, origin: public_checkpoint.PublicCheckpoint | None, private: datasets.ImageDataset | None
    ) -> dict[str, Any]:
        """Returns what must be the same when the run is resumed, as JSON-able values."""
        recipe = self.recipe
        configuration: dict[str, Any] = {}
        if self.plan is not None and private is not None:
            configuration = {'privacy': self.plan.fingerprint(), 'data_fingerprint': private.fingerprint()}
        configuration |= {
            'network': kinds.to_json(recipe.network),
            'process': dataclasses.asdict(recipe.process),
            'pretraining': recipe.pretraining and _describe(recipe.pretraining),
        }
        if recipe.finetuning:
            # The weights and not the place where they lie decide what is learnt.
            init_from = {'init_from': origin and origin.sha256}
            configuration['warm_start'] = recipe.warm_start and _describe(recipe.warm_start)
            configuration['finetuning'] = {**_describe(recipe.finetuning), **init_from}
        return configuration

    def make_networks(
        self,
        origin: public_checkpoint.PublicCheckpoint | None,
        state: checkpoints.RunState,
        replicas: strategies.Replicas,
    ) -> stage_lib.Training:
        """Returns what the stages share: networks that a run begins with, and a resumed one fills from its folder."""
        keras.utils.set_random_seed(0)  # Initial weights are public.
        with replicas.scope():
            model, average = (self.make_network() for _ in range(2))
        if origin and not state.has_begun:
            origin.carry_over_to(model)
        average.set_weights(model.get_weights())
        return stage_lib.Training(model, average, self.make_view_maker, replicas)

    def _make_stages(
        self, training: stage_lib.Training, state: checkpoints.RunState, summaries, workdir, private, on_release
    ) -> Iterator[stage_lib.Stage]:
        """Yields the stages of the run, in order."""
        recipe, is_first = self.recipe, training.replicas.workers.is_first
        if recipe.is_private:
            self.check_network(training.model)
        if recipe.pretraining:
            yield pretraining.make_stage(recipe.pretraining, training)
        if recipe.teacher:
            assert self.plan is not None
            yield teacher_stage.make_stage(recipe.teacher, self.plan, private, state, workdir=workdir)
        if recipe.warm_start:
            assert self.plan is not None
            yield warm_start.make_stage(
                recipe.warm_start,
                training,
                self.plan,
                private,
                state,
                workdir=workdir,
                on_release=on_release if is_first else lambda unused_release: None,
                label_images=self._label_by_teacher(workdir, state),
            )
        if recipe.finetuning:
            assert self.plan is not None
            every = recipe.loop.log_every_steps
            log = finetuning.diagnostics_writer(summaries, every) if recipe.loop.log_non_private and is_first else None
            yield finetuning.make_stage(recipe.finetuning, training, self.plan, private, state, log)

    def _label_by_teacher(self, workdir: pathlib.Path, state: checkpoints.RunState) -> matching_lib.LabelFn | None:
        """Returns what labels the images of the warm start as the samples will be labelled; None: nothing does."""
        how, shape = self.recipe.samples.labels, self.spec.image_shape
        if self.recipe.teacher is None or how == 'asked':
            return None

        def label(images, matched):
            scorer = teacher_stage.read_scorer(workdir, state.run_id, shape)
            return teacher_stage.choose_labels(scorer, images, matched, how=how).labels

        return label

    def _check_teacher(self, num_workers: int) -> None:
        """Refuses a teacher where there is nothing to be told apart, or in several processes."""
        if not self.recipe.teacher:
            return
        if self.spec.num_classes < 2:
            raise ValueError(
                f'a teacher tells classes apart, and {self.spec.name!r} has one: set train.teacher = None.'
            )
        scattering.Scattering(self.spec.image_shape)  # Refuses images that are too small.
        if num_workers > 1:
            # Each would make a release of its own: sums that are rounded otherwise, and other samples chosen.
            raise ValueError(
                f"a teacher is for one process, got {num_workers} workers: use the strategy 'default' or 'mirrored', "
                'or set train.teacher = None.'
            )

    def _check_warm_start(self, num_workers: int) -> None:
        """Refuses a warm start on public images that do not fit the private ones, in noise or in several processes."""
        config = self.recipe.warm_start
        if config and config.matching:
            self._check_matching(config.matching, num_workers)
        if not config or not config.has_public_images:
            return
        release, public_images = config.release, config.public
        assert self.plan is not None and public_images is not None
        assert isinstance(release, feature_means.FeatureMeansConfig)
        if num_workers > 1:
            # Each would train a classifier of its own: other features, the same noise, and other images to train on.
            raise ValueError(
                f'a warm start on public images is for one process, got {num_workers} workers: use the '
                "strategy 'default' or 'mirrored'."
            )
        public = public_images.spec
        if public.image_shape != self.spec.image_shape:
            raise ValueError(
                f'public of WarmStartConfig ({public.name!r}: {public.image_shape}) must have the shape of the '
                f'private images ({self.spec.name!r}: {self.spec.image_shape}): see image_shape of '
                'public_images.'
            )
        release.check_enough(self.spec.num_units, self.spec.num_classes, self.plan.config.neighboring_relation)

    def _check_matching(self, config: matching_lib.MatchingConfig, num_workers: int) -> None:
        """Refuses images that are made to match in several processes, or to match noise."""
        if num_workers > 1:
            raise ValueError(
                f"matching is for one process, got {num_workers} workers: use the strategy 'default' or 'mirrored', or "
                'set WarmStartConfig.matching = None.'
            )
        assert self.plan is not None
        config.release.check_enough(self.spec.num_units, self.spec.num_classes, self.plan.config.neighboring_relation)

    def count_private_images_that_are_public(
        self, origin: public_checkpoint.PublicCheckpoint | None, private: datasets.ImageDataset
    ) -> int:
        """Refuses public images that are the private ones; returns how many of those are among them: PRIVATE."""
        recipe, digests = self.recipe, [origin.image_digests] if origin else []
        if recipe.pretraining:
            digests.append(overlap.image_digests(recipe.pretraining.images.images_uint8))
        if recipe.warm_start and recipe.warm_start.has_public_images:
            labelled = warm_start.with_classes_that_have_images(recipe.warm_start.images)
            digests.append(overlap.image_digests(labelled.images_uint8))
        if not digests:
            return 0
        return overlap.check_is_not_private(digests, overlap.image_digests(private.images_uint8), private.name)


@dataclasses.dataclass(frozen=True, eq=False)
class RunTraining:
    """The training of a run in its folder.

    Attributes:
      build: What the run was built from.
      trainer: Runs the stages, and knows where the run stands.
      model: What is needed to rebuild the network and sampler.
      public_data: The public images that the weights see, one phrase a source.
      num_private_images_that_are_public: How many private images are among the public ones: PRIVATE.
    """

    build: Build
    trainer: loop.Trainer
    model: folder.ModelDescription
    public_data: tuple[str, ...]
    num_private_images_that_are_public: int

    def statement(self) -> statement_lib.PrivacyStatement | statement_lib.PublicStatement:
        """Returns the statement about the weights as they are now, from what the run has released."""
        return self.build.statement(self.trainer.state.ledger, self.public_data, self.trainer.state.run_id)


def _matched_release(recipe: recipe_lib.Recipe) -> feature_means.FeatureMeansConfig | None:
    """Returns the release that images of the warm start are made to match, or None."""
    return recipe.matching.release if recipe.matching else None


def _describe(config) -> dict[str, Any]:
    """Returns the settings of a stage that decide what is learnt, its images by name and fingerprint."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _CHUNKS}
    for name in ('dataset', 'public'):
        if fields.get(name) is not None:
            fields[name] = [config.images.name, config.images.fingerprint()]
    # It came later: runs that were begun before go on.
    if 'matching' in fields and fields['matching'] is None:
        del fields['matching']
    return folder.plain_values(fields)


def _check_public_shape(public: datasets.DatasetSpec, private: datasets.DatasetSpec) -> None:
    """Refuses public images of another shape or number of classes than the private ones."""
    if public.image_shape != private.image_shape or public.num_classes != private.num_classes:
        raise ValueError(
            f'the public images ({public.name!r}: {public.image_shape}, {public.num_classes} classes) must have '
            f'the shape and the number of classes of the private ones ({private.name!r}: '
            f'{private.image_shape}, {private.num_classes} classes).'
        )


def _is_unlabelled(public: datasets.ImageDataset) -> bool:
    return bool((public.labels == public.num_classes).all())
