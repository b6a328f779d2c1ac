# The public library, by name: what is here is promised, and nothing else. Each name is imported when it is first used.
# Configurations and sources of images have the same names in configuration files (cli/gin_config.py registers them).

__all__: list[str]

from .cli.gin_config import recipe as recipe
from .data.augmentation import AugmentationConfig as AugmentationConfig
from .data.camelyon17 import wilds_camelyon17 as wilds_camelyon17
from .data.datasets import digits as digits
from .data.datasets import npz_images as npz_images
from .data.folders import image_folder as image_folder
from .data.npy import npy_images as npy_images
from .data.procedural import random_strokes as random_strokes
from .data.public import public_images as public_images
from .data.tfds_images import tfds_images as tfds_images
from .data.tfrecords import tfrecord_images as tfrecord_images
from .diffusion.process import DiffusionProcess as DiffusionProcess
from .diffusion.samplers import SamplerConfig as SamplerConfig
from .diffusion.schedules import Schedule as Schedule
from .diffusion.timesteps import LogNormalSigma as LogNormalSigma
from .diffusion.timesteps import TimestepMixture as TimestepMixture
from .evaluation.canaries import AuditConfig as AuditConfig
from .evaluation.classifiers import ClassifierConfig as ClassifierConfig
from .evaluation.features import FeaturesConfig as FeaturesConfig
from .evaluation.metrics import QualityConfig as QualityConfig
from .evaluation.neighbors import NeighborsConfig as NeighborsConfig
from .evaluation.selection import SelectionConfig as SelectionConfig
from .evaluation.utility import UtilityConfig as UtilityConfig
from .networks.dit import DiTConfig as DiTConfig
from .networks.unet import UNetConfig as UNetConfig
from .privacy.accuracy_release import AccuracyReleaseConfig as AccuracyReleaseConfig
from .privacy.class_means import ClassMeansConfig as ClassMeansConfig
from .privacy.feature_means import FeatureMeansConfig as FeatureMeansConfig
from .privacy.plan import DpSgdConfig as DpSgdConfig
from .runs.evaluate import EvaluationRecipe as EvaluationRecipe
from .runs.library import Generator as Generator
from .runs.library import load as load
from .runs.library import Run as Run
from .runs.library import Statement as Statement
from .runs.library import train as train
from .runs.recipe import Recipe as Recipe
from .sampling.draw import GenerateConfig as GenerateConfig
from .training.finetuning import FinetuningConfig as FinetuningConfig
from .training.loop import TrainerConfig as TrainerConfig
from .training.optimization import OptimizationConfig as OptimizationConfig
from .training.pretraining import PretrainingConfig as PretrainingConfig
from .training.public_classifier import PublicClassifierConfig as PublicClassifierConfig
from .training.strategies import StrategyConfig as StrategyConfig
from .training.views import ViewsConfig as ViewsConfig
from .training.warm_start import WarmStartConfig as WarmStartConfig
from .version import __version__ as __version__
