"""Tests that the benchmarks run."""

import argparse
import importlib
import json
import math
import pathlib
import subprocess
import sys
import types

import gin
import pytest

from benchmarks import results
from benchmarks import settings
from tf_dpdiff.cli import gin_config

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
