"""Tests that what a configuration binds is what is used: that nothing misspelt passes, and that honest variants do."""

import pathlib
import re

import gin
import numpy as np
import pytest

from tests.cli import verbs
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import gin_files
from tf_dpdiff.cli import gin_usage
from tf_dpdiff.cli import select
from tf_dpdiff.cli import train
from tf_dpdiff.cli import tune

TINY = pathlib.Path(__file__).resolve().parent / 'tiny_digits.gin'
VERBS = {'train': train, 'evaluate': evaluate, 'select': select, 'audit': audit, 'tune': tune}


def parse(tmp_path, content, *flags, verb='train'):
    """Parses a file of its own that has this content."""
    (tmp_path / 'my.gin').write_text(content)
    gin_config.parse([str(tmp_path / 'my.gin')], flags, verb)


def refusal(tmp_path, content, *flags, verb='train'):
    """Returns the one line by which a file, or its flags, are refused."""
    with pytest.raises(command.UsageError) as refused:
        parse(tmp_path, content, *flags, verb=verb)
    assert '\n' not in str(refused.value)
    return str(refused.value)


# A binding that nothing reads, and the nearest name that would have been read.
UNUSED = [
    ('TARGET_EPSILION = 1.0', 'Did you mean TARGET_EPSILON?'),
    ('target_epsilon = 1.0', 'Did you mean TARGET_EPSILON?'),
    ('finetuning/TARGET_EPSILON = 1.0', 'Did you mean TARGET_EPSILON?'),
    ('finetuning/DpSgdConfig.target_epsilon = 1.0', 'Did you mean DpSgdConfig.target_epsilon?'),
    ('finetunning/OptimizationConfig.learning_rate = 1.0', 'Did you mean finetuning/OptimizationConfig.learning_rate?'),
    ('train/FinetuningConfig.init_from = None', 'Did you mean FinetuningConfig.init_from?'),
    ('OptimizationConfig.learning_rate = 1.0', 'a narrower scope binds learning_rate'),
    ('LogNormalSigma.mean = -1.0', 'nothing calls @LogNormalSigma()'),
    ('tfds_images.name = "mnist"', 'nothing calls @tfds_images()'),
    ('AccuracyReleaseConfig.noise_multiplier = 4.0', 'nothing calls @AccuracyReleaseConfig()'),
    ('X/macro.value = 3', 'nothing reads %X'),
    ('X = @ClassifierConfig()\nClassifierConfig.name = "mlp"', 'nothing reads %X'),
]


@pytest.mark.parametrize('binding, said', UNUSED)
@pytest.mark.parametrize('by', ['file', 'flag', 'both'])
def test_binding_that_nothing_reads_is_refused_and_names_the_nearest_in_use(tmp_path, binding, said, by):
    lines, include = binding.splitlines(), "include 'digits.gin'\n"
    if by == 'flag':
        error = refusal(tmp_path, include, *lines)
        assert error.startswith(f'--gin_param={lines[0]!r} is not used: ')
    else:
        error = refusal(tmp_path, include + binding, *(lines if by == 'both' else ()))
        assert error.startswith(f'{tmp_path / "my.gin"}, line 2: ') and 'is not used: ' in error
    assert said in error


@pytest.mark.parametrize('verb', VERBS)
@pytest.mark.parametrize('binding', ['TARGET_EPSILION = 1.0', 'finetuning/DpSgdConfig.target_epsilon = 1.0'])
def test_command_refuses_it_in_one_line_before_anything_is_made(tmp_path, capsys, verb, binding):
    flags = ['--gin_file=gin/select_digits.gin', f'--gin_param={binding}', f'--workdir={tmp_path / "run"}']
    assert verbs.call(VERBS[verb], *flags) == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert error.startswith(f'{verb}: error: --gin_param={binding!r} is not used') and '\n' not in error
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'content, said',
    [
        ("include 'digits.gin'\nTARGET_EPSILON = 1.0\nTARGET_EPSILON = 2.0", 'line 3 binds it to 2.0, and what comes'),
        ("TARGET_EPSILON = 1.0\ninclude 'digits.gin'", 'digits.gin, line .* binds it to 10.0'),
        ("include 'privacy/eps1.gin'\ninclude 'digits.gin'", 'digits.gin, line .* binds it to 10.0'),
        (
            "include 'mnist.gin'\nTARGET_EPSILON = 1.0\ninclude 'privacy/eps10.gin'",
            'eps10.gin, line .* binds it to 10.0',
        ),
        (
            "include 'base/private.gin'\nTARGET_EPSILON = 1.0\ninclude 'models/mnist.gin'\ninclude 'privacy/eps5.gin'",
            'eps5.gin, line .* binds it to 5.0',
        ),
        (
            "include 'digits.gin'\nTARGET_EPSILON = 1.0\nDpSgdConfig.target_epsilon = 5.0",
            'nothing reads %TARGET_EPSILON',
        ),
        (
            "include 'digits.gin'\ntrain.pretraining = None\naudit.pretraining = None\nPretrainingConfig.num_steps = 9",
            r'nothing calls @PretrainingConfig\(\)',
        ),
        (
            "include 'digits.gin'\ntrain.warm_start = None\naudit.warm_start = None\nClassMeansConfig.num_rounds = 9",
            r'nothing calls @ClassMeansConfig\(\)',
        ),
    ],
)
def test_value_that_a_file_binds_and_another_line_undoes_is_refused(tmp_path, content, said):
    assert re.search(said, refusal(tmp_path, content))


def test_order_of_files_that_loses_a_budget_is_refused_and_the_other_order_is_not():
    names = ['gin/privacy/eps1.gin', 'gin/cifar10.gin']
    with pytest.raises(command.UsageError, match='TARGET_EPSILON = 1.0 is not used.*eps10.gin, line 5 binds it to 10'):
        gin_config.parse(names, [], 'train')
    gin_config.parse(names[::-1], [], 'train')
    assert gin.query_parameter('TARGET_EPSILON/gin.macro.value') == 1.0


# What a person may honestly write, and who runs it.
HONEST = [
    ("include 'digits.gin'\ntrain.pretraining = None", 'train'),
    ("include 'digits.gin'\ntrain.pretraining = None\naudit.pretraining = None\ntrain.warm_start = None", 'train'),
    ("include 'digits.gin'\nDpSgdConfig.target_epsilon = 5.0", 'train'),
    ("include 'digits.gin'\nDATA = @npz_images()\nnpz_images.path = 'x.npz'", 'train'),
    ("include 'digits.gin'\nDATA = @mine/npz_images()\nmine/npz_images.path = 'x.npz'", 'train'),
    ("include 'digits.gin'\ntrain.utility = None\nevaluate.quality = None\nUtilityConfig.num_seeds = 1", 'train'),
    ("include 'digits.gin'\ntrain.utility = None\nevaluate.quality = None\nUtilityConfig.num_seeds = 1", 'evaluate'),
    (
        "include 'digits.gin'\nselect.data = %DATA\nselect.selection = @SelectionConfig()\n"
        "SelectionConfig.candidates = ('mlp', 'rbf_svm')\nAuditConfig.num_canaries = 5",
        'train',
    ),
    ("include 'digits.gin'\nfinetuning/ViewsConfig.timesteps = @LogNormalSigma()\nLogNormalSigma.mean = -1.0", 'train'),
    ("include 'digits.gin'\nSamplerConfig:\n  name = 'dpmpp_2m'\n  num_steps = 7", 'train'),
    (
        "include 'models/digits.gin'\ninclude 'base/private.gin'\n"
        "include 'data/digits.gin'\ninclude 'privacy/eps1.gin'\n"
        'TARGET_DELTA = 1e-5\nEXPECTED_BATCH_SIZE = 9\nNUM_STEPS = 3\nAUGMENTATION_MULTIPLICITY = 1\n'
        'TIMESTEP_MIXTURE = ((1.0, 0, 1000),)\nfinetuning/OptimizationConfig.learning_rate = 1.0',
        'train',
    ),
    ("include 'mnist_cpu.gin'\ninclude 'privacy/eps1.gin'\ntrain.warm_start = None", 'train'),
    ("include 'cifar10_cpu.gin'\nWarmStartConfig.classifier = None", 'train'),
    ("include 'colour32.gin'\nPUBLIC_DATA = @tfds_images()\ntfds_images.name = 'cifar10'", 'train'),
    ("include 'digits.gin'\nX = 7\nY = %X\nNUM_STEPS = %Y", 'train'),
    (
        "include 'digits.gin'\nevaluate.accuracy_release = @AccuracyReleaseConfig()\n"
        'AccuracyReleaseConfig.noise_multiplier = 4.0',
        'evaluate',
    ),
]


@pytest.mark.parametrize('content, verb', HONEST)
def test_honest_variant_is_not_refused(tmp_path, content, verb):
    parse(tmp_path, content, verb=verb)
    last_bound = re.findall(r'([\w./]+) = ', content)[-1]
    assert f'{last_bound} =' in gin.config_str()


@pytest.mark.parametrize('content, verb', HONEST)
def test_control_misspelt_macro_in_an_honest_variant_is_refused(tmp_path, content, verb):
    assert 'TARGET_DELTAA = 0.5 is not used' in refusal(tmp_path, f'{content}\nTARGET_DELTAA = 0.5', verb=verb)


def test_what_a_base_leaves_open_must_be_bound_only_where_it_is_read(tmp_path):
    (tmp_path / 'base.gin').write_text("include 'digits.gin'\nTARGET_EPSILON = %gin.REQUIRED")
    assert 'TARGET_EPSILON must be bound' in refusal(tmp_path, "include 'base.gin'")
    parse(tmp_path, "include 'base.gin'\nDpSgdConfig.target_epsilon = 3.0")
    parse(tmp_path, "include 'base.gin'\nTARGET_EPSILON = 3.0")


@pytest.mark.parametrize(
    'path',
    [path for path in sorted(gin_files.gin_folder().glob('*.gin')) if path.name not in verbs.INCLUDED],
    ids=lambda path: path.name,
)
def test_run_files_of_the_project_bind_nothing_in_vain(path):
    verb = next((verb for verb in ('audit', 'select', 'tune') if path.name.startswith(f'{verb}_')), 'train')
    gin_config.parse([str(path)], [], verb)
    with pytest.raises(command.UsageError, match='is not used'):  # Control.
        gin_config.parse([str(path)], ['NUMBER_OF_STEPS = 3'], verb)


@pytest.mark.parametrize(
    'verb, flag',
    [
        ('train', 'evaluate.quality = None'),
        ('train', 'SelectionConfig.num_seeds = 2'),
        ('train', 'AuditConfig.num_canaries = 5'),
        ('evaluate', 'TARGET_EPSILON = 1.0'),
        ('evaluate', 'FinetuningConfig.init_from = None'),
        ('select', 'UtilityConfig.num_seeds = 2'),
        ('audit', 'SamplerConfig.num_steps = 3'),
        ('audit', 'train.pretraining = None'),
    ],
)
def test_flag_that_only_another_command_reads_is_refused_and_a_line_of_a_file_is_not(verb, flag):
    files = ['gin/select_digits.gin']
    with pytest.raises(command.UsageError, match=f'is not used: bin/{verb} does not read it'):
        gin_config.parse(files, [flag], verb)
    gin_config.parse(files, [flag])  # By some command it is read.


def test_of_two_flags_the_last_one_wins_and_one_behind_what_drops_its_part_is_refused(tmp_path):
    parse(tmp_path, "include 'digits.gin'", 'NUM_STEPS = 3', 'NUM_STEPS = 4')
    assert gin.query_parameter('NUM_STEPS/gin.macro.value') == 4
    quick = 'quick/UtilityConfig.num_seeds = 2'
    parse(tmp_path, "include 'digits.gin'", quick, 'train.utility = None')
    assert 'nothing calls' in refusal(tmp_path, "include 'digits.gin'", 'train.utility = None', quick)


@pytest.mark.parametrize('flags', [(), ('--budget_file=b.budget',)])
def test_setting_that_a_flag_of_its_own_gives_is_not_given_twice(tmp_path, capsys, flags):
    given = ['--gin_param=train.budget_file = "a.budget"', f'--workdir={tmp_path / "run"}', '--dry_run', *flags]
    assert verbs.call(train, f'--gin_file={TINY}', *given) == command.WRONG_USE
    assert ('is not used' if flags else 'no budget file at') in capsys.readouterr().err


@pytest.mark.parametrize('verb', VERBS)
def test_strategy_of_a_flag_is_not_bound_by_another_flag_and_wins_over_a_file(tmp_path, capsys, verb):
    (tmp_path / 'my.gin').write_text("include 'select_digits.gin'\nStrategyConfig.name = 'tpu'")
    by_file = [f'--gin_file={tmp_path / "my.gin"}', f'--workdir={tmp_path / "none"}', '--strategy=default']
    binding = "StrategyConfig.name = 'mirrored'"
    assert verbs.call(VERBS[verb], *by_file, f'--gin_param={binding}') == command.WRONG_USE
    assert f'--gin_param={binding!r} is not used' in capsys.readouterr().err
    if verb in ('evaluate', 'select'):  # The others would begin to train.
        assert verbs.call(VERBS[verb], *by_file) == command.WRONG_USE
        assert 'no samples at' in capsys.readouterr().err


@pytest.mark.parametrize(
    'binding',
    [
        'train.workdir = "x"',
        'train.dry_run = True',
        'audit.membership_only = True',
        'evaluate.workers = 2',
        'select.samples_path = "x"',
        'select.workers = None',
    ],
)
def test_what_is_no_part_of_a_recipe_is_no_parameter(tmp_path, binding):
    assert "doesn't have a parameter named" in refusal(tmp_path, f"include 'digits.gin'\n{binding}")


@pytest.mark.parametrize(
    'binding, said',
    [
        ('NUM_STEPS = %STEPS', 'the configuration uses %STEPS, which it does not define. Did you mean NUM_STEPS?'),
        ('NUM_STEPS = %NUM_STEP/S', 'uses %NUM_STEP/S, which it does not define'),
        (
            'FinetuningConfig.optimization = @finetunning/OptimizationConfig()',
            "nothing is bound in the scope 'finetunning'. Did you mean finetuning?",
        ),
        ('train.privacy = @private/DpSgdConfig()', "nothing is bound in the scope 'private'"),
        ('NUM_STEPS = %NUM_STEPS', 'goes round in a circle: NUM_STEPS -> NUM_STEPS.'),
        ('A = %B\nB = %C\nC = %A\nNUM_STEPS = %A', 'goes round in a circle: A -> B -> C -> A.'),
        ('TIMESTEP_MIXTURE = (%TIMESTEP_MIXTURE,)', 'goes round in a circle'),
        ('train.data = @train()', '@train() is a command, not a value'),
        ('UtilityConfig.num_seeds = @train()', '@train() is a command, not a value'),
    ],
)
def test_reference_that_leads_nowhere_is_refused(tmp_path, binding, said):
    assert said in refusal(tmp_path, f"include 'digits.gin'\n{binding}")


def test_part_of_a_configuration_parses_by_itself_and_is_no_configuration(tmp_path, capsys):
    gin_config.parse(['gin/models/digits.gin'], [])
    assert gin.query_parameter('UNetConfig.base_channels') == 8
    flags = ['--gin_file=gin/models/digits.gin', f'--workdir={tmp_path / "run"}']
    assert verbs.call(train, *flags) == command.WRONG_USE
    assert 'the configuration is incomplete: train needs' in capsys.readouterr().err


NODES, PARAMETERS, SCOPES = 5, ('a', 'b'), ('s', 't')
_received = []


def _register_toys():
    """Registers functions toy_0 to toy_4, which keep what they are called with, in which scope."""
    for number in range(NODES):

        def toy(a=None, b=None, number=number):
            _received.append((gin.current_scope_str(), f'toys.toy_{number}', {'a': a, 'b': b}))
            return len(_received)

        gin.external_configurable(toy, name=f'toy_{number}', module='toys', denylist=['number'])


_register_toys()


def _random_bindings(generator):
    """Returns bindings of toys and macros by which each refers only to later ones, in random scopes."""
    lines = []
    for number in range(NODES):
        for scope in ('', *(f'{name}/' for name in SCOPES), 's/t/'):
            for parameter in PARAMETERS:
                if generator.random() < 0.6:
                    continue
                value = str(generator.integers(100))
                if number + 1 < NODES and generator.random() < 0.7:
                    called = generator.integers(number + 1, NODES)
                    where = generator.choice(['', 's/', 't/', 's/t/'])
                    value = generator.choice([f'@{where}toy_{called}()', f'(1, [@toy_{called}()])', f'%M{called}'])
                lines.append(f'{scope}toy_{number}.{parameter} = {value}')
    return lines + [f'M{number} = @toy_{number}()' for number in range(NODES)]


@pytest.mark.parametrize('seed', range(30))
def test_what_is_found_to_be_read_is_what_gin_reads(seed):
    lines = _random_bindings(np.random.default_rng(seed))
    parsed = gin_files.read([], lines, {})
    configuration = gin_usage.Configuration(parsed.bindings)
    reached = gin_usage.Reached(configuration, ['toys.toy_0'])
    gin.clear_config()
    gin.parse_config(lines)
    _received.clear()
    gin.get_configurable('toy_0')()
    called = {(scope, name) for scope, name, _ in _received}
    assert {('/'.join(scope), name) for scope, name in reached.calls if name.startswith('toys.')} == called
    for scope, name, given in _received:
        bound = configuration.in_scope(tuple(filter(None, scope.split('/'))), name)
        assert {parameter for parameter, value in given.items() if value is not None} == set(bound)
        for parameter, binding in bound.items():
            assert binding in reached.bindings
            if isinstance(binding.value, int):
                assert given[parameter] == binding.value
    read = {binding.key for binding in reached.bindings}
    of_calls = {
        binding.key for scope, name in reached.calls for binding in configuration.in_scope(scope, name).values()
    }
    assert read == of_calls
    gin.clear_config()
