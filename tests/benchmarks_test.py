"""Tests that the benchmarks run."""

import argparse
import contextlib
import importlib
import json
import math
import pathlib
import subprocess
import sys
import types

import gin
import pytest
import tensorflow as tf

from benchmarks import results
from benchmarks import settings
from docs.generators import numbers
from tf_dpdiff.cli import gin_config
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.training import flops

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.long(in_share=False)
def test_server_under_load_loses_nothing(tmp_path):
    program = ROOT / 'benchmarks' / 'serving_load.py'
    subprocess.run(
        [
            sys.executable,
            '-I',
            str(program),
            '--requests',
            '10',
            '--concurrency',
            '1',
            '16',
            '--checked',
            '500',
            '--output',
            str(tmp_path / 'measured.json'),
        ],
        check=True,
    )
    measured = json.loads((tmp_path / 'measured.json').read_text())
    checked = measured['checked']
    assert [checked[name] for name in ('requests', 'lost', 'repeated', 'wrong')] == [500, 0, 0, 0]
    assert [row['errors'] for rows in measured['batching'].values() for row in rows] == [0] * 4


@pytest.mark.long(in_share=False)
def test_strategies_are_measured(tmp_path):
    program = ROOT / 'benchmarks' / 'scaling.py'
    subprocess.run([sys.executable, '-I', str(program), '--output', str(tmp_path / 'measured.json')], check=True)
    measured = json.loads((tmp_path / 'measured.json').read_text())
    assert set(measured['overhead_at_one_replica']) == {'default', 'mirrored', 'multi_worker_mirrored'}
    assert set(measured['weak_scaling']) == {'two devices', 'two processes'}
    assert measured['strong_scaling']['one replica'] == 1.0


@pytest.mark.long(in_share=False)
def test_time_of_a_run_is_given_to_its_parts(tmp_path):
    program, measured = ROOT / 'benchmarks' / 'end_to_end.py', tmp_path / 'measured.json'
    command = [sys.executable, '-I', str(program), '--output', str(measured)]
    subprocess.run(
        [
            *command,
            '--gin_file',
            'tests/cli/tiny_digits.gin',
            'gin/mnist_cpu.gin',
            '--data_dir',
            str(tmp_path),
            '--network',
            '0.26M',
            '--num_views',
            '2',
            '--views_of_step',
            '4',
            '--rounds',
            '2',
        ],
        check=True,
    )
    results = json.loads(measured.read_text())
    digits, mnist = results['runs']
    assert "'mnist' is not prepared in" in mnist['skipped']
    assert digits['traces'] == {'pretraining': 1, 'warm_start': 1, 'finetuning': 1}
    seconds = {row['row']: row['secs'] for row in digits['rows']}
    assert min(seconds.values()) >= 0.0 and abs(sum(seconds.values()) - digits['wall_secs']) < 0.01
    assert seconds['other'] < 0.05 * digits['wall_secs']
    assert [step['name'] for step in results['steps']] == ['tiny_digits', '0.26M, K = 2']
    for step in results['steps']:
        assert 0.0 < step['parts']['forward and backward'] < 1.5 * step['whole_secs']
    picture = tmp_path / 'picture.png'
    shown = subprocess.check_output([*command, '--markdown', f'--picture={picture}'], text=True)
    assert '| all but forward and backward |' in shown and picture.read_bytes().startswith(b'\x89PNG')


def run_benchmark(name, *arguments):
    return subprocess.run(
        [sys.executable, '-I', str(ROOT / 'benchmarks' / f'{name}.py'), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def measure_and_present(name, folder, *arguments):
    """Returns the results of a benchmark, after they were shown as a table and as a picture."""
    output, picture = folder / 'measured.json', folder / 'picture.png'
    done = run_benchmark(name, f'--output={output}', *arguments)
    assert done.returncode == 0, done.stderr
    done = run_benchmark(name, f'--output={output}', '--markdown', f'--picture={picture}')
    assert done.returncode == 0 and done.stdout.startswith('| '), done.stderr
    assert picture.read_bytes().startswith(b'\x89PNG')
    measured = json.loads(output.read_text())
    assert measured['machine']['cores'] >= 1 and measured['versions']['tensorflow']
    return measured


STORED = sorted(
    path.stem for path in (ROOT / 'benchmarks').glob('*.json') if path.stem not in ('scaling', 'serving_load')
)


def from_benchmarks(name):
    """Returns a module of benchmarks/, which no pip installs."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f'benchmarks.{name}')


@pytest.fixture(name='call_benchmark')
def fixture_call_benchmark(monkeypatch):
    """Runs a benchmark in the process of the test: one of its own would import as much again."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        from_benchmarks(name).main()

    return call


@pytest.mark.parametrize('name', STORED)
def test_stored_results_are_shown_as_the_program_shows_them_now(call_benchmark, name, tmp_path, capsys):
    picture = tmp_path / 'picture.png'
    call_benchmark(name, '--markdown', f'--picture={picture}')
    assert '| --- |' in capsys.readouterr().out and picture.read_bytes().startswith(b'\x89PNG')


def write_run(folder):
    """Writes the files of a run that results.py reads."""

    def evaluation(classifier, accuracies):
        return {
            'utility': {
                'classifiers': [{'classifier': classifier, 'synthetic_images': {'accuracy_of_seeds': accuracies}}]
            }
        }

    contents = {
        'privacy_statement.json': {
            'epsilon': 2.0,
            'delta': 1e-5,
            'steps_run': 3,
            'expected_batch_size': 4,
            'augmentation_multiplicity': 5,
            'noise_multiplier': 6.0,
        },
        'seconds.json': {'train': 1800.0},
        'non_private/evaluation_samples/evaluation.json': {
            **evaluation('svm', [0.5, 0.7]),
            'num_samples': 7,
            'quality': {'protocol': 'p', 'rows': [{'images': 'synthetic', 'fid': 1.5, 'kid': 9.0}]},
        },
    }
    for path, value in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value))
    return evaluation


def test_results_are_those_of_the_files_that_a_run_leaves(tmp_path):
    folder, row = tmp_path / 'row', results.Row('toy', ('gin/toy.gin',), ('A = 1',))
    write_run(folder)
    found = results.run(row, folder, argparse.Namespace(data_dir=None, wide_resnet=False))  # Nothing is left to run.
    assert found['command'] == "bin/train --gin_file=gin/toy.gin '--gin_param=A = 1' --workdir=WORKDIR"
    assert found['accuracies'] == {'svm': [0.5, 0.7]} and found['accuracies_of_real'] == {}
    assert found['fid'] == {'synthetic': 1.5} and found['hours'] == {'train': 0.5} and found['steps'] == 3


def test_classifiers_of_real_images_are_trained_beside_the_first_run_alone(tmp_path, monkeypatch):
    row, ran = results.Row('toy', ('gin/toy.gin',)), []

    def run(command, **_):
        ran.append(command)
        if command[0].endswith('evaluate'):
            write_run(tmp_path / command[2].rpartition('/')[2])
        return argparse.Namespace(returncode=0)

    (tmp_path / 'toy').mkdir()
    monkeypatch.setattr(subprocess, 'run', run)
    results.run(row, tmp_path / 'toy', argparse.Namespace(data_dir=None, wide_resnet=False), results.FURTHER_RUNS)
    train, evaluate = ([flag for flag in command if flag.startswith('--gin_param')] for command in ran)
    assert not train and evaluate == ['--gin_param=UtilityConfig.real_images = False']
    with gin.unlock_config():
        gin_config.parse(['gin/cifar10_cpu.gin'], results.FURTHER_RUNS)
    assert not gin.query_parameter('UtilityConfig.real_images')


def test_the_papers_classifier_is_trained_on_the_same_samples_and_shown_beside_the_others(tmp_path, monkeypatch):
    folder, row, ran = tmp_path / 'row', results.Row('toy', ('gin/toy.gin',), ('A = 1',)), []
    evaluation = write_run(folder)
    (folder / 'samples.npz').write_text('samples')

    def run(command, **_):
        ran.append(command)
        assert (folder / 'wide_resnet.npz').read_text() == 'samples'
        made = folder / 'non_private' / 'evaluation_wide_resnet' / 'evaluation.json'
        made.parent.mkdir()
        made.write_text(json.dumps(evaluation('wrn_40_4', [0.9])))
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(subprocess, 'run', run)
    flags = argparse.Namespace(data_dir=None, wide_resnet=True)
    for _ in range(2):  # The second time all is done.
        found = results.run(row, folder, flags)
        assert found['accuracies'] == {'svm': [0.5, 0.7], 'wrn_40_4': [0.9]} and found['fid'] == {'synthetic': 1.5}
        assert set(found['hours']) == {'train', 'wide_resnet'} and found['hours']['train'] == 0.5
    ((program, *of_command),) = ran
    assert program.endswith('bin/evaluate') and f'--samples={folder / "wide_resnet.npz"}' in of_command
    assert not (folder / 'wide_resnet.npz').exists()
    with gin.unlock_config():
        gin_config.parse(['gin/mnist_cpu.gin'], results.WIDE_RESNET)
    assert not gin.query_parameter('UtilityConfig.real_images')


def test_runs_of_a_row_are_shown_together_and_those_whose_files_are_gone_are_kept(tmp_path, monkeypatch):

    def came_out(accuracies, fid):
        return {
            'title': 'toy',
            'epsilon': 2.0,
            'hours': {'train': 0.5},
            'fid': {'synthetic': fid},
            'accuracies': {'svm': accuracies},
        }

    output, made = tmp_path / 'results.json', []
    output.write_text(json.dumps({'rows': {'mnist': came_out([0.5, 0.7], 1.0)}}))
    (table,) = results.tables(json.loads(output.read_text()))
    assert table.rows == [['toy', '1', '2.0000', '0.50', '1.00', '60.0% (50.0% to 70.0%)']]

    def run(row, folder, flags, of_evaluation):
        made.append((folder.name, of_evaluation))
        return came_out([0.8, 0.9], 2.0)

    monkeypatch.setattr(results, 'run', run)
    flags = argparse.Namespace(output=output, rows=['mnist'], runs=2, folder=tmp_path / 'runs', ablations=False)
    (table,) = results.tables(results.measure(flags))
    assert made == [('mnist.2', results.FURTHER_RUNS)]
    assert table.rows == [
        ['toy', '2', '2.0000', '0.50 (0.50 to 0.50)', '1.50 (1.00 to 2.00)', '72.5% (60.0% to 85.0%)']
    ]
    assert list(json.loads(output.read_text())['rows']) == ['mnist', 'mnist.2']


@pytest.mark.parametrize('name', results.ABLATIONS)
def test_ablations_spend_as_many_views_on_settings_that_there_are(name):
    row = results.ABLATIONS[name]
    with gin.unlock_config():
        gin_config.parse(row.gin_files, row.bindings)
    macros = ('EXPECTED_BATCH_SIZE', 'NUM_STEPS', 'AUGMENTATION_MULTIPLICITY')
    assert math.prod(gin.query_parameter(f'{macro}/gin.macro.value') for macro in macros) == (
        1024 * 4 if name == 'warm_start_alone' else 98304
    )


@pytest.mark.parametrize('row', [*results.ROWS.values(), *results.ABLATIONS.values()], ids=lambda row: row.title)
def test_commands_of_a_row_read_what_they_are_given(row):
    for verb, bindings in (('train', row.bindings), ('evaluate', (*row.of_evaluation, *results.WIDE_RESNET))):
        gin_config.parse(row.gin_files, bindings, verb)
        assert all(f'{binding.partition(" =")[0]} =' in gin.config_str() for binding in bindings)


@pytest.mark.parametrize(
    'name, arguments, said',
    [
        ('sampling', ['--markdown', '--output=missing.json'], 'no results in missing.json'),
        ('data', ['--picture=data.png', '--output=missing.json'], 'no results in missing.json'),
        ('scale', ['--markdown', '--output=missing.json'], 'no results in missing.json'),
        ('sampling', ['--num_steps=0'], 'numbers must be at least 1'),
        ('data', ['--units=128', '--num_images=1000'], '--units must be at most'),
        ('results', ['--rows=base'], '--rows must be of mnist, '),
        ('results', ['--ablations', '--rows=mnist'], '--rows must be of base, '),
        ('dp_step', ['--add'], '--add needs --output'),
        ('settings', ['--units=8'], '--units must be a multiple of 16'),
        ('scale', ['--views=3'], '--views_in_all must be whole units'),
        ('scale', ['--output=missing/scale.json'], 'no such folder: missing'),
        ('limit', ['--add'], '--add needs --output'),
        ('gpu', ['--units=0'], 'numbers must be at least 1'),
    ],
)
def test_wrong_use_of_a_benchmark_is_said_in_one_line(call_benchmark, name, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        call_benchmark(name, *arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_benchmark_is_a_program_of_its_own():
    done = run_benchmark('scale', '--views=3')
    assert done.returncode == 2 and '--views_in_all must be' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.long(in_share=False)
def test_cost_of_a_view_and_memory_are_measured(tmp_path):
    tiny = ['--networks=0.26M', '--views_of_a_unit=2', '--views_in_all=8', '--views_at_a_time=4', '--rounds=1']
    measured = measure_and_present('scale', tmp_path, '--units', 2, 16, '--views', 1, 8, '--large', 1, *tiny)
    few, many = measured['sweeps']['batch']
    assert [row['units'] for row in (few, many)] == [2, 16]
    # What is held in memory does not grow with the batch.
    assert all(row[kind]['chunk'] == [2, 2] for row in (few, many) for kind in ('private', 'plain'))
    assert all(
        row[kind]['ms_per_view'] > 0.0
        for rows in measured['sweeps'].values()
        for row in rows
        for kind in ('private', 'plain')
    )
    assert [row['private']['chunk'] for row in measured['sweeps']['views']] == [[4, 1], [1, 8]]
    assert [row['parameters'] for row in measured['large']] == [80391171]


@pytest.mark.long(in_share=False)
def test_what_data_deliver_is_measured(tmp_path):
    tiny = ['--networks=0.26M', '--units=16', '--views=2', '--num_images=500', '--units_per_chunk=8', '--rounds=1']
    measured = measure_and_present('data', tmp_path, *tiny)
    assert set(measured['batches']) == {'digits', 'memory', 'npy', 'owners'}
    assert measured['batches']['owners']['units'] == 50 and measured['batches']['npy']['units'] == 500
    assert 'KerasCV RandomRotation' in measured['views']['rotation']['describes']
    rows = [*measured['batches'].values(), *measured['views'].values()]
    assert len(rows) == 8 and all(0.0 < row['share_of_step']['0.26M'] < 1.0 for row in rows)


@pytest.mark.long(in_share=False)
def test_samplers_are_measured(tmp_path):
    tiny = ['--network=0.26M', '--num_steps', 3, '--batch_size=2', '--rounds=1']
    measured = measure_and_present('sampling', tmp_path, '--samplers', 'ddim', 'edm_heun', *tiny)
    assert [(row['implementation'], row['sampler']) for row in measured['rows']] == [
        ('library', 'ddim'),
        ('exported', 'ddim'),
        ('diffusers', 'ddim'),
        ('library', 'edm_heun'),
        ('diffusers', 'edm_heun'),
    ]
    for row in measured['rows']:
        # The peer's environment may be impossible to make on this machine.
        if row['implementation'] == 'diffusers' and 'error' in row:
            continue
        assert row['images_per_sec'] > 0.0 and row['evaluations'] == {'ddim': 3, 'edm_heun': 5}[row['sampler']]
        assert row['parameters'] == measured['parameters']


@pytest.mark.parametrize(
    'measured, wanted, predicted',
    [
        ({}, 10, None),
        ({10: 2.0}, 10, 2.0),
        ({10: 2.0}, 40, 8.0),
        ({10: 1.0, 20: 2.0, 40: 5.0}, 80, 11.0),
        ({10: 3.0, 20: 2.0}, 40, 2.0),
    ],
)
def test_memory_is_predicted_from_the_largest_that_were_measured(measured, wanted, predicted):
    assert from_benchmarks('engines').predict_memory_gib(measured, wanted) == predicted


def test_physical_batches_are_whole_units_that_divide_the_batch():
    engines = from_benchmarks('engines')
    sizes = [
        [
            engines.Choice('vmap', at_a_time).units_per_chunk(engines.Cell('1.1M', units, views))
            for at_a_time in (16, 64, 256)
        ]
        for units, views in [(16, 1), (12, 4), (16, 64), (7, 2)]
    ]
    assert sizes == [[16, 16, 16], [4, 12, 12], [1, 1, 4], [7, 7, 7]]
    by_hand = engines.choices(engines.ENGINES['torch_by_hand'], engines.Cell('1.1M', 16, 64))
    assert [(choice.mode, choice.views_at_a_time) for choice in by_hand] == [('vmap', 16), ('vmap', 256), ('loop', 16)]


def test_tables_of_the_step_hold_every_engine_and_reason():
    rows = [
        {
            'engine': 'ours',
            'views_per_sec': 100.0,
            'share_of_plain': 0.9,
            'peak_memory_gib': 1.5,
            'first_step_secs': 12.0,
        },
        {'engine': 'tf_privacy', 'reason': 'out of memory (predicted 28 GiB)'},
        {
            'engine': 'ours_plain',
            'views_per_sec': 111.0,
            'ours_times_as_fast': 0.9,
            'peak_memory_gib': 2.0,
            'first_step_secs': 6.0,
        },
    ]
    common = {'network': '1.1M', 'units': 64, 'views': 4}
    tables = from_benchmarks('dp_step_report').tables({'rows': [{**common, **row} for row in rows]})
    shown = '\n'.join(table.markdown() for table in tables)
    assert '| 64 x 4 | 100 | out of memory (predicted 28 GiB) |' in shown
    assert '| 64 x 4 | 90% | out of memory' in shown and '| 64 x 4 | 111 (0.9x) |' in shown
    assert '| 64 x 4 | 1.5; 12 | out of memory (predicted 28 GiB) | 2.0; 6 |' in shown


def test_speeds_are_drawn_beside_our_plain_step_of_the_same_cell():
    report, common = from_benchmarks('dp_step_report'), {'network': '1.1M', 'units': 16}
    rows = [
        {**common, 'views': 1, 'engine': 'ours', 'ours_times_as_fast': 1.0},
        {**common, 'views': 1, 'engine': 'opacus', 'ours_times_as_fast': 2.0},
        {**common, 'views': 1, 'engine': 'ours_plain', 'ours_times_as_fast': 0.8},
        {**common, 'views': 1, 'engine': 'tf_privacy', 'reason': 'out of memory'},
        {**common, 'views': 4, 'engine': 'ours', 'ours_times_as_fast': 1.0},
    ]
    assert report._speeds(rows) == {('1.1M', 16, 1, 'ours'): 0.8, ('1.1M', 16, 1, 'opacus'): 0.4}


def test_rows_measured_before_say_how_an_engine_is_run_and_what_memory_it_takes():
    dp_step, engines = from_benchmarks('dp_step'), from_benchmarks('engines')
    common = {'network': '1.1M', 'mode': 'hooks', 'engine': 'opacus'}
    rows = [
        {**common, 'units': 256, 'views': 1, 'views_at_a_time': 64, 'peak_memory_gib': 2.0},
        {**common, 'units': 16, 'views': 1, 'views_at_a_time': 16, 'peak_memory_gib': 1.0},
    ]
    cell = engines.Cell('1.1M', 1024, 1)
    benchmark = dp_step.NetworkBenchmark(argparse.Namespace(engines=['opacus']), [cell], {}, None)
    benchmark.remember_rows(rows)
    choice = benchmark._choose('opacus', cell)  # Nothing is started: there is no Python to start it with.
    assert choice == engines.Choice('hooks', 64) and benchmark._predict('opacus', choice, cell) == 2.0


@pytest.mark.parametrize(
    ('asked', 'views', 'tried', 'chosen'),
    [
        ((16, 64), 64, [(4, 1), (4, 4)], 256),
        ((16, 256), 1, [(256, 16), (256, 64), (256, 256)], 256),
        ((16,), 1, [], 16),
    ],
)
def test_physical_batch_is_chosen_by_steps_of_few_views(asked, views, tried, chosen, monkeypatch):
    dp_step, engines = from_benchmarks('dp_step'), from_benchmarks('engines')
    cells = [engines.Cell('1.1M', units, views) for units in asked]
    benchmark = dp_step.NetworkBenchmark(argparse.Namespace(engines=['opacus']), cells, {}, None)
    started = []

    def start(unused_stack, key, choice, cell):
        started.append((cell.units, choice.units_per_chunk(cell)))
        return types.SimpleNamespace(name=key, peak_memory_gib=1.0, step=lambda: 1.0 / choice.views_at_a_time)

    monkeypatch.setattr(benchmark, '_start', start)
    assert benchmark._choose('opacus', cells[0]) == engines.Choice('hooks', chosen)
    assert started == tried


def test_results_that_are_added_to_keep_the_other_cells_and_the_highest_load(tmp_path, monkeypatch):
    dp_step = from_benchmarks('dp_step')
    flags = argparse.Namespace(
        networks=['1.1M'],
        units=[16],
        views=[1, 4],
        engines=['ours'],
        rounds=5,
        max_views=1,
        output=tmp_path / 'measured.json',
        add=True,
    )
    before = dp_step._start_results(argparse.Namespace(**{**vars(flags), 'add': False}), {})
    measured, wanted, other = (
        {'network': '1.1M', 'units': 16, 'views': views, 'engine': 'ours'} for views in (1, 4, 64)
    )
    wanted['reason'] = other['reason'] = 'not measured'
    peers = {'torch': {'torch': '2.0'}}
    flags.output.write_text(
        json.dumps({**before, 'rows': [measured, wanted, other], 'load_before': 1e6, 'versions_of_peers': peers})
    )
    monkeypatch.setattr(dp_step, '_measure_network', lambda *unused: pytest.fail('one cell is wanted, and too large'))
    found = dp_step.measure(flags)
    assert sorted(found['rows'], key=lambda row: row['views']) == [measured, wanted, other]
    assert found['load_before'] == 1e6 and found['versions_of_peers'] == peers


def test_comparisons_with_engines_that_are_not_asked_for_again_are_kept(monkeypatch):
    dp_step = from_benchmarks('dp_step')
    flags = argparse.Namespace(engines=['jax_plain'], output=None)
    monkeypatch.setattr(dp_step, 'write_reference', lambda *unused: None)
    monkeypatch.setattr(dp_step.engines_lib, 'check', lambda *unused, **unused_too: {'gradient': 2e-6})
    found = {'rows': [], 'differences_from_ours': {'1.1M': {'opacus hooks': {'gradient': 1e-6}}}}
    for network in ('1.1M', '4.24M'):
        dp_step._measure_network(flags, network, [], {'jax': 'python'}, found)
    assert found['differences_from_ours'] == {
        '1.1M': {'opacus hooks': {'gradient': 1e-6}, 'jax_plain plain': {'gradient': 2e-6}},
        '4.24M': {'jax_plain plain': {'gradient': 2e-6}},
    }


def test_share_of_a_plain_step_that_ran_in_another_group_is_completed():
    rows = {
        'ours': {'seconds': [1.0]},
        'tf_privacy': {'seconds': [8.0, 16.0, 10.0]},
        'ours_plain': {'seconds': [2.0, 1.0, 9.0], 'ours_times_as_fast': 0.9, 'share_of_plain': 1.0},
        'opacus': {'seconds': [1.0], 'share_of_plain': 0.5},
        'jax_privacy': {'seconds': [1.0]},
        'jax_plain': {'reason': 'out of memory'},
    }
    from_benchmarks('dp_step')._complete_shares(rows)
    assert {key: row.get('share_of_plain') for key, row in rows.items()} == {
        'ours': 0.9,
        'tf_privacy': 0.2,
        'ours_plain': 1.0,
        'opacus': 0.5,
        'jax_privacy': None,
        'jax_plain': None,
    }


@pytest.mark.long(in_share=False)
def test_private_step_is_measured_beside_the_plain_one(tmp_path):
    flags = ['--networks=0.26M', '--units=4', '--views', '2', '4', '--rounds=1', '--engines', 'ours', 'ours_plain']
    measured = measure_and_present('dp_step', tmp_path, *flags, '--max_views=8')
    rows = {(row['views'], row['engine']): row for row in measured['rows']}
    for engine in ('ours', 'ours_plain'):
        assert rows[2, engine]['views_per_sec'] > 0.0 and rows[2, engine]['peak_memory_gib'] > 0.1
        assert rows[4, engine]['reason'] == 'not measured'
    ratio = rows[2, 'ours_plain']['seconds'][0] / rows[2, 'ours']['seconds'][0]
    assert rows[2, 'ours']['share_of_plain'] == rows[2, 'ours_plain']['ours_times_as_fast'] == ratio
    more = measure_and_present('dp_step', tmp_path, *flags, '--max_views=16', '--add')['rows']
    assert more[:2] == [rows[2, 'ours'], rows[2, 'ours_plain']]
    assert [row['views'] for row in more[2:]] == [4, 4] and all(row['views_per_sec'] > 0.0 for row in more)


@pytest.mark.long(in_share=False)
def test_settings_are_measured_beside_the_step_as_it_is(tmp_path):
    measured = measure_and_present('settings', tmp_path, '--network=0.26M', '--units=16', '--views=1', '--rounds=1')
    rows = {(row['kind'], row['name']): row for row in measured['rows']}
    assert len(rows) == len(settings.SETTINGS)
    assert all(row['times_as_fast'] > 0.0 and row['peak_memory_gib'] > 0.0 for row in rows.values())
    assert rows['private step', '4 units at a time']['chunk'] == [4, 1]


def test_layers_that_are_counted_take_the_operations_of_the_whole_network():
    counting, image_shape = from_benchmarks('counting'), (8, 8, 1)
    config = unet.UNetConfig(base_channels=8, channel_multipliers=(1, 2), head_channels=8, groups=4)
    model = denoiser.build(config, image_shape, 3)
    layers, counted = counting.count_layers(model), flops.flops_per_view(model, model.trainable_variables)
    assert sum(layer.calls * layer.forward_flops for layer in layers) == counted.forward
    assert sum(layer.calls * layer.training_flops for layer in layers) == counted.training
    # Embeddings of classes and sinusoids, and all that has weights.
    assert sum(layer.calls * layer.parameters for layer in layers) == model.count_params()
    for layer in layers:
        function, variables = layer.make()
        assert function(tf.zeros([2, *layer.input_shape])).shape == (2, *layer.output_shape)
        assert sum(variable.shape.num_elements() for variable in variables) == layer.parameters


COUNTED = {
    'parameters': 100,
    'forward_flops': 40,
    'training_flops': 120,
    'layers': [
        {
            'label': '3x3 convolution, 8x8',
            'bound': 'convolution',
            'calls': 2,
            'training_flops': 60,
            'values_moved': 1,
            'parameters': 0,
        },
        {
            'label': 'normalization, 8x8',
            'bound': 'memory',
            'calls': 1,
            'training_flops': 0,
            'values_moved': 5,
            'parameters': 0,
        },
    ],
}


def limit_results(rows):
    """Returns results of limit.py: peaks of 10 operations and 20 bytes a second, layers of 4 views."""
    seconds = {'forward': [6.0], 'both': [24.0], 'per unit': [48.0]}
    return {
        'machine': {'processor': 'toy', 'cores': 2},
        'versions': {'tensorflow': '2.21'},
        'counts': {'1.1M': COUNTED},
        'peaks': {
            'convolution': {'float32': {'size': 8, 'per_sec': 10.0}, 'bfloat16': {'reason': 'too slow'}},
            'memory': {'float32': {'size': 64, 'per_sec': 20.0}},
        },
        'layers': {
            '1.1M': {
                'units': 2,
                'views': 2,
                'peaks': {name: {'work': work, 'seconds': [1.0]} for name, work in PEAK_WORK.items()},
                'whole': [100.0],
                'layers': [seconds, seconds],
            }
        },
        'rows': rows,
    }


PEAK_WORK = {'convolution': 10, 'memory': 20}


def test_share_of_the_limit_is_taken_within_a_round_from_operations_and_memory(tmp_path, monkeypatch):
    limit = from_benchmarks('limit')
    # The limit of 4 views: 2 x 4 x 60 operations at 10 a second, 4 x 5 x 4 bytes at 20 a second.
    row = {'network': '1.1M', 'units': 2, 'views': 2, 'views_at_a_time': 4, 'seconds': [104.0, 104.0, 208.0]}
    row['beside'] = {'convolution': [1.0, 2.0, 2.0], 'memory': [1.0, 2.0, 2.0]}
    found = limit.compare(row, COUNTED, PEAK_WORK)
    assert found['share_of_limit'] == pytest.approx(0.5)  # Of 0.5, 1 and 0.5.
    assert found['limit_views_per_sec'] == pytest.approx(4 / 104.0)
    assert found['share_of_peak'] == pytest.approx(480 / 104.0 / 10.0)
    results = limit_results([{**row, **found, 'engine': 'ours'}, {**row, 'engine': 'opacus', 'reason': 'too large'}])
    rows, rest = limit.by_label('1.1M', results)
    assert [row['label'] for row in rows] == ['3x3 convolution, 8x8', 'normalization, 8x8']
    assert [row['share_of_time'] for row in rows] == [0.48, 0.24] and rest == pytest.approx(0.28)
    assert [row['share_of_limit'] for row in rows] == [1.0, pytest.approx(4.0 / 24.0)]
    assert [row['share_of_peak'] for row in rows] == [1.0, None] and rows[0]['per_unit_times_as_long'] == 2.0
    shown = '\n'.join(table.markdown() for table in limit.tables(results))
    assert '| 2 x 2 | 0.0385 | 50% | too large |' in shown and '| convolution, bfloat16 | - | too slow |' in shown
    assert '| 3x3 convolution, 8x8 | 2 | 48.0% | 25% | 100% | 100% | 2.00 |' in shown
    assert '| between the layers |  | 28.0% |' in shown
    monkeypatch.setattr(numbers, '_read', lambda unused_name: results)
    assert '| 1.1M | 2 x 2 | 0 | 50% | too large |' in numbers.TABLES['limit']()
    assert '| 3x3 convolution, 8x8 | 2 | 48% | 100% | 2.0 times as long |' in numbers.TABLES['limit_layers']()
    assert '| 3x3 convolution | 1e-08 GFLOP/s | |' in numbers.TABLES['limit_peaks']()
    limit.draw(results, tmp_path / 'limit.png')
    assert (tmp_path / 'limit.png').read_bytes().startswith(b'\x89PNG')


def test_interrupted_measurement_of_the_limit_goes_on_where_it_was(tmp_path, monkeypatch):
    limit = from_benchmarks('limit')
    output, ran = tmp_path / 'limit.json', []
    flags = argparse.Namespace(
        networks=['0.26M'],
        count=['80.4M'],
        units=[2],
        views=[1, 2],
        max_views=4,
        rounds=1,
        layer_units=2,
        layer_views=2,
        peak_sizes=None,
        engines=['ours'],
        environments=tmp_path,
        count_only=False,
        add=True,
        output=output,
    )

    def run_layers(network, *arguments):
        ran.append((network, bool(arguments)))
        return {'counted': COUNTED, 'measured': limit_results([])['layers']['1.1M'] if arguments else None}

    def measure_peak(kind, dtype, sizes):
        ran.append((kind, dtype))
        return {'size': 8, 'work': 10, 'per_sec': 10.0, 'seconds': [1.0]}

    def measure_network(flags, network, cells, *unused):
        for cell in cells:
            ran.append((cell.units, cell.views))
            if cell.views == 2 and interrupted:
                raise KeyboardInterrupt
            yield [{'network': network, 'units': cell.units, 'views': cell.views, 'engine': 'ours', 'reason': 'none'}]

    for name, function in (
        ('run_layers', run_layers),
        ('measure_peak', measure_peak),
        ('measure_network', measure_network),
    ):
        monkeypatch.setattr(limit, name, function)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        limit.measure(flags)
    assert ran[:2] == [('0.26M', False), ('80.4M', False)] and ran[-3:] == [('0.26M', True), (2, 1), (2, 2)]
    assert len(ran) == 2 + 5 + 1 + 2  # Networks, peaks, layers, cells.
    ran.clear()
    interrupted = False
    found = limit.measure(flags)
    assert ran == [(2, 2)] and [row['views'] for row in found['rows']] == [1, 2]
    stored = json.loads(output.read_text())
    output.write_text(json.dumps({**stored, 'machine': {**stored['machine'], 'cores': 1024}}))
    with pytest.raises(from_benchmarks('measuring').CaseError, match='machine of .* measure it whole'):
        limit.measure(flags)


def test_ladder_of_a_gpu_ends_where_its_memory_does_and_goes_on_after_an_interruption(tmp_path, monkeypatch, capsys):
    gpu, measuring = from_benchmarks('gpu'), from_benchmarks('measuring')
    output, started = tmp_path / 'gpu.json', []

    def start(ladder, units, flags):
        started.append((ladder.kind, ladder.compiler, units))
        if units == 16:
            raise measuring.CaseError(f'{ladder}: out of memory')
        if units == interrupted_at:
            raise KeyboardInterrupt
        facts = {'first_step_secs': 9.0, 'parameters': 7, 'planned_memory_gib': 2.0}
        memory = {'peak_memory_gib': 1.0, 'peak_device_memory_gib': 1.5}
        case = types.SimpleNamespace(step=lambda: 0.5, facts=facts, **memory)
        return contextlib.nullcontext(case)

    monkeypatch.setattr(gpu.Ladder, 'start', start)
    monkeypatch.setattr(gpu, 'devices_of_tensorflow', lambda: {'gpus': [{'device_name': 'toy'}]})
    flags = argparse.Namespace(
        device='gpu',
        networks=['0.26M'],
        compute_dtypes=['float32'],
        kinds=['private'],
        compilers=['TensorFlow', 'XLA'],
        units=[1, 4, 16, 64],
        views=2,
        rounds=3,
        add=True,
        output=output,
        timeout_secs=1.0,
    )
    interrupted_at = 4
    with pytest.raises(KeyboardInterrupt):
        gpu.measure(flags)
    interrupted_at = None
    results = gpu.measure(flags)
    assert started == [
        *[('private', 'TensorFlow', units) for units in (1, 4, 4, 16)],
        *[('private', 'XLA', units) for units in (1, 4, 16)],
    ]
    assert [row.get('views_per_sec', row.get('reason')) for row in results['rows']] == [4.0, 16.0, 'out of memory'] * 2
    shown = '\n'.join(table.markdown() for table in gpu.tables(results))
    assert '| private, XLA | 4 | 16 | out of memory |' in shown
    assert '| private, TensorFlow | 1.50 (2.00); 9 | 1.50 (2.00); 9 | out of memory |' in shown
    gpu.draw(results, tmp_path / 'gpu.png')
    assert (tmp_path / 'gpu.png').read_bytes().startswith(b'\x89PNG')


def test_without_a_gpu_its_benchmark_says_what_to_do(call_benchmark, monkeypatch):
    gpu = from_benchmarks('gpu')
    monkeypatch.setattr(gpu, 'devices_of_tensorflow', lambda: {'gpus': []})
    with pytest.raises(SystemExit) as ended:
        call_benchmark('gpu')
    assert 'TensorFlow sees no GPU here: install its CUDA libraries' in str(ended.value.code)


@pytest.mark.long(in_share=False)
def test_limit_is_measured_beside_the_steps(tmp_path):
    tiny = ['--networks=0.26M', '--units=2', '--views=2', '--rounds=1', '--layer_units=2', '--layer_views=2', '--count']
    measured = measure_and_present('limit', tmp_path, *tiny, '--peak_sizes=16', '--engines', 'ours', 'ours_plain')
    assert [row['engine'] for row in measured['rows']] == ['ours', 'ours_plain']
    assert all(row['share_of_limit'] > 0.0 for row in measured['rows'])
    assert set(measured['peaks']) == {'product', 'convolution', 'memory'}
    assert len(measured['layers']['0.26M']['layers']) == len(measured['counts']['0.26M']['layers'])


@pytest.mark.long(in_share=False)
def test_steps_of_a_gpu_are_measured_on_the_cpu_in_the_same_way(tmp_path):
    tiny = ['--networks=0.26M', '--units', '1', '2', '--views=1', '--rounds=1', '--compute_dtypes=float32']
    measured = measure_and_present('gpu', tmp_path, '--device=cpu', *tiny)
    ladders = [(kind, compiler) for kind in ('plain', 'private') for compiler in ('TensorFlow', 'XLA')]
    found = [(row['kind'], row['compiler'], row['units']) for row in measured['rows']]
    assert found == [(*ladder, units) for ladder in ladders for units in (1, 2)]
    for row in measured['rows']:
        assert row['views_per_sec'] > 0.0 and row['planned_memory_gib'] > 0.0, row
        assert row['peak_device_memory_gib'] is None and row['peak_memory_gib'] > 0.1
