"""Tests that a value of a wrong type is refused by one line: the binding, the type wanted, the value given."""

import collections.abc
import inspect
import types
import typing

import gin
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_types
from tf_dpdiff.cli import gin_usage
from tf_dpdiff.cli import train


def refusal(*flags, files=('gin/digits.gin',)):
    with pytest.raises(command.UsageError) as refused:
        gin_config.parse(files, flags, 'train')
    assert '\n' not in str(refused.value)
    return str(refused.value)


WRONG = [
    ('TARGET_EPSILON = "10"', "DpSgdConfig.target_epsilon wants a number or None, got the text '10': write 10."),
    ('TARGET_EPSILON = True', 'DpSgdConfig.target_epsilon wants a number or None, got True.'),
    ('TARGET_EPSILON = (10.0,)', 'wants a number or None, got the tuple (10.0,).'),
    ('TARGET_EPSILON = "ten"', "wants a number or None, got the text 'ten'."),
    ('TARGET_DELTA = None', 'DpSgdConfig.target_delta wants a number, got None.'),
    ('NUM_STEPS = 1.5', 'DpSgdConfig.num_steps wants a whole number, got the number 1.5.'),
    ('NUM_STEPS = 1e4', 'DpSgdConfig.num_steps wants a whole number, got the number 10000.0: write 10000.'),
    ('NUM_STEPS = True', 'DpSgdConfig.num_steps wants a whole number, got True.'),
    ('NUM_STEPS = 3j', 'DpSgdConfig.num_steps wants a whole number, got 3j.'),
    ('random_strokes.num_images = (48, 40)', 'random_strokes.num_images wants a whole number, got the tuple (48, 40).'),
    (
        'random_strokes.image_size = (48, 40, 3)',
        'a whole number or a tuple (a whole number, a whole number), got the tuple',
    ),
    ('random_strokes.num_images = @SamplerConfig()', 'wants a whole number, got @SamplerConfig().'),
    ('UNetConfig.middle_attention = 1', 'wants True or False, got the whole number 1.'),
    ('UNetConfig.channel_multipliers = (1, 2.5)', 'wants a tuple, each item a whole number, got the tuple (1, 2.5).'),
    ('UNetConfig.channel_multipliers = 2', 'wants a tuple, each item a whole number, got the whole number 2.'),
    ("FinetuningConfig.trainable = ('norm')", "each item a text, got the text 'norm': write ('norm',)."),
    ("FinetuningConfig.trainable = 'norm'", "each item a text, got the text 'norm': write ('norm',)."),
    ('FinetuningConfig.init_from = ["runs/a"]', "wants a text or None, got the list ['runs/a']."),
    ('FinetuningConfig.init_from = False', 'wants a text or None, got False.'),
    ("SamplerConfig.name = b'ddim'", "SamplerConfig.name wants a text, got b'ddim'."),
    ('SamplerConfig.name = {1: 2}', 'SamplerConfig.name wants a text, got {1: 2}.'),
    ('TIMESTEP_MIXTURE = ((0.5, 0, 100.0), (0.5, 0, 9))', 'a tuple (a number, a whole number, a whole number), got'),
    ('TIMESTEP_MIXTURE = ((0.5, 0),)', 'a tuple (a number, a whole number, a whole number), got'),
    ('WarmStartConfig.sharpening = (1.0, 2.0, 3.0)', 'wants a tuple (a number, a number), got'),
    ('train.sampler = @UNetConfig()', 'train.sampler wants what is made by @SamplerConfig(), got @UNetConfig().'),
    ('train.network = @SamplerConfig()', 'wants what is made by @DiTConfig() or @UNetConfig(), got @SamplerConfig().'),
    ('train.sampler = @SamplerConfig', 'got @SamplerConfig, which is not called: write @SamplerConfig().'),
    ('train.sampler = None', 'train.sampler wants what is made by @SamplerConfig(), got None.'),
    ("train.sampler = 'ddim'", "train.sampler wants what is made by @SamplerConfig(), got the text 'ddim'."),
    (
        'train.data = @random_strokes()',
        'train.data wants what is made by @csv_images() or @dicom_folder() or @digits() or',
    ),
    ('PretrainingConfig.dataset = @digits()', 'what is made by @public_images(), got @digits().'),
    ("quick/UtilityConfig.classifiers = ('mlp', 3)", 'quick/UtilityConfig.classifiers wants a tuple, each item'),
    ('quick/UtilityConfig.curve_sizes = 100', 'quick/UtilityConfig.curve_sizes wants a tuple, each item a whole'),
    ('train.budget_file = 3', 'train.budget_file wants a text or None, got the whole number 3.'),
]


@pytest.mark.parametrize('binding, said', WRONG)
def test_value_of_a_wrong_type_names_the_binding_the_type_wanted_and_the_value_given(tmp_path, binding, said):
    error = refusal(binding)
    assert error.startswith(f'--gin_param={binding!r}: ') and said in error
    (tmp_path / 'my.gin').write_text(f"include 'digits.gin'\n\n{binding}\n")
    error = refusal(files=[str(tmp_path / 'my.gin')])
    assert error.startswith(f'{tmp_path / "my.gin"}, line 3: {binding.split(" = ")[0]} = ') and said in error


@pytest.mark.parametrize('binding, said', WRONG[:6])
def test_command_says_so_in_one_line_with_exit_code_2(tmp_path, capsys, binding, said):
    flags = ['--gin_file=gin/digits.gin', f'--gin_param={binding}', f'--workdir={tmp_path / "run"}', '--dry_run']
    assert verbs.call(train, *flags) == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert said in error and '\n' not in error


def test_value_behind_several_macros_names_the_one_that_holds_it():
    error = refusal('A = %B', 'B = "10"', 'TARGET_EPSILON = %A')
    assert error.startswith("""--gin_param='B = "10"': DpSgdConfig.target_epsilon wants a number""")


def test_value_that_another_command_would_read_is_checked_too(tmp_path):
    (tmp_path / 'my.gin').write_text("include 'audit_digits.gin'\nAuditConfig.num_canaries = 2.5")
    assert 'AuditConfig.num_canaries wants a whole number' in refusal(files=[str(tmp_path / 'my.gin')])


@pytest.mark.parametrize(
    'binding',
    [
        'TARGET_EPSILON = 10',
        'TARGET_EPSILON = None',
        'UNetConfig.channel_multipliers = [1, 2]',
        'UNetConfig.attention_resolutions = ()',
        'TIMESTEP_MIXTURE = [[1, 0, 1000]]',
        'FinetuningConfig.trainable = ()',
        'train.pretraining = None',
        "train.budget_file = 'a.budget'",
        'TrainerConfig.profile_steps = (1, 2)',
        "quick/UtilityConfig.classifiers = ('mlp', ('rbf_svm', {'C': 1}), @a/ClassifierConfig())\n"
        "a/ClassifierConfig.name = 'small_cnn'\na/ClassifierConfig.options = (('width', 2),)",
    ],
)
def test_value_that_fits_is_not_refused(binding):
    gin_config.parse(['gin/digits.gin'], binding.splitlines(), 'train')
    assert f'{binding.partition(" =")[0]} =' in gin.config_str()


def test_list_becomes_a_tuple_so_that_the_same_settings_are_equal():
    gin_config.parse(['gin/digits.gin'], ['UNetConfig.channel_multipliers = [1, 2]'], 'train')
    assert gin.query_parameter('UNetConfig.channel_multipliers') == (1, 2)


def samples_of(annotation):
    """Returns a value that fits an annotation, or None where only a reference does, and one that does not fit."""
    kind, of = typing.get_origin(annotation), typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        return samples_of(of[0])[0], '1.0j'
    if kind is tuple and Ellipsis not in of:
        return f'({", ".join(samples_of(item)[0] for item in of)},)', f'({samples_of(of[0])[1]},)'
    if kind in (tuple, collections.abc.Sequence):
        right, wrong = samples_of(of[0])
        return f'({right},)' if right else '()', f'({wrong},)'
    if kind is collections.abc.Mapping:
        return '{}', '3'
    return {int: ('7', '7.5'), float: ('0.5', "'0.5'"), str: ("'x'", '3'), bool: ('True', '1')}.get(
        annotation, (None, '3.5')
    )


def check(name, parameter, value):
    """Checks the type of one value by itself."""
    parsed = gin_files.read([], [f'{name}.{parameter} = {value}'], {})
    gin_types.check(gin_usage.Configuration(parsed.bindings), parsed.bindings, gin_config._REGISTERED)


@pytest.mark.parametrize('function', gin_config._REGISTERED, ids=lambda function: function.__name__)
def test_every_setting_is_checked(function):
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for parameter in inspect.signature(function).parameters:
        right, wrong = samples_of(hints[parameter])
        if right:
            check(function.__name__, parameter, right)
        with pytest.raises(command.UsageError, match=f'{function.__name__}.{parameter} wants '):
            check(function.__name__, parameter, wrong)
