"""Tests of on which machines a verb computes, and that one process at a time trains in a folder: in clear lines."""

import json
import socket

import gin
import pytest

from tests.cli import verbs
from tests.cli.conftest import TINY
from tf_dpdiff import files
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.cli import dry_run
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import select
from tf_dpdiff.cli import train
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.training import interruption

AUDIT = ('--gin_file=gin/audit_digits.gin', '--gin_param=UNetConfig.base_channels = 4')
MULTI_WORKER = '--strategy=multi_worker_mirrored'


@pytest.fixture(name='set_workers')
def fixture_set_workers(monkeypatch):
    """Returns a function that names the workers, whose ports are open to nobody; at first there are none."""
    monkeypatch.delenv('TF_CONFIG', raising=False)
    monkeypatch.delenv('SLURM_PROCID', raising=False)

    def set_workers(*addresses):
        tf_config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': 0}}
        monkeypatch.setenv('TF_CONFIG', json.dumps(tf_config))

    return set_workers


def error_of(capsys):
    """Returns the one line that a verb said."""
    (error,) = capsys.readouterr().err.splitlines()
    assert ': error: ' in error
    return error


@pytest.mark.parametrize('verb, flags', [(train, (f'--gin_file={TINY}',)), (audit, AUDIT)], ids=['train', 'audit'])
@pytest.mark.parametrize(
    'strategy, workers, said',
    [
        (('--strategy=parameter_server',), (), "strategy 'parameter_server' is not supported"),
        (('--strategy=multi_worker',), (), 'name of the strategy must be one of'),
        (('--gin_param=StrategyConfig.communication = "nccl"',), (), "communication='nccl' is for the strategy"),
        ((MULTI_WORKER,), (), 'multi_worker_mirrored needs TF_CONFIG='),
        ((MULTI_WORKER,), ('a:1', 'b'), "TF_CONFIG names the worker 'b', which is not HOST:PORT"),
        ((MULTI_WORKER, '--gin_param=StrategyConfig.cluster = "slurm"'), (), 'SLURM_PROCID'),
        ((), ('a:1', 'b:1'), 'TF_CONFIG names 2 workers: say --strategy=multi_worker_mirrored'),
    ],
)
def test_dry_run_refuses_a_strategy_that_the_run_would_refuse(
    tmp_path, capsys, set_workers, verb, flags, strategy, workers, said
):
    if workers:
        set_workers(*workers)
    assert verbs.call(verb, *flags, f'--workdir={tmp_path / "none"}', '--dry_run', *strategy) == command.WRONG_USE
    assert said in error_of(capsys) and not (tmp_path / 'none').exists()


def test_dry_run_of_several_workers_waits_for_none_and_opens_no_port(tmp_path, monkeypatch, capsys, set_workers):
    configured = []
    monkeypatch.setattr(dry_run, 'show', lambda *unused, **unused_too: configured.append(gin.operative_config_str()))
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        set_workers(f'127.0.0.1:{other.getsockname()[1]}', 'nobody.invalid:1')
        flags = f'--gin_file={TINY}', f'--workdir={tmp_path}', '--dry_run', MULTI_WORKER
        assert verbs.call(train, *flags) == command.DONE
    assert "StrategyConfig.name = 'multi_worker_mirrored'" in configured[0]
    assert verbs.call(audit, *AUDIT, f'--workdir={tmp_path}', '--dry_run', MULTI_WORKER) == command.WRONG_USE
    assert 'an audit is for one process, got 2 workers' in error_of(capsys)


@pytest.mark.parametrize('verb', [evaluate, select], ids=['evaluate', 'select'])
def test_notice_is_refused_where_nothing_is_saved_on_the_way(tmp_path, capsys, set_workers, verb):
    del set_workers
    flags = '--gin_file=gin/select_digits.gin', '--gin_param=StrategyConfig.preemption_notice = "gce"'
    assert verbs.call(verb, *flags, f'--workdir={tmp_path}') == command.WRONG_USE
    assert "preemption_notice='gce' of the strategy is for training" in error_of(capsys)


@pytest.mark.parametrize('verb, flags', [(train, (f'--gin_file={TINY}',)), (audit, AUDIT)], ids=['train', 'audit'])
def test_second_run_in_a_folder_is_refused_while_the_first_is_there(tmp_path, capsys, set_workers, verb, flags):
    del set_workers
    with files.holding(tmp_path / '.lock'):
        assert verbs.call(verb, *flags, f'--workdir={tmp_path}') == command.FAILED
    assert f'another process trains in --workdir={tmp_path}: wait for its end' in error_of(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


def test_run_holds_its_folder_until_it_ends(tmp_path, capsys, monkeypatch, set_workers):
    del set_workers

    def try_to_train_too(workdir):
        with pytest.raises(BlockingIOError), files.holding(workdir / '.lock'):
            pytest.fail('two runs were in one folder')
        raise interruption.Interrupted('stopped')

    monkeypatch.setattr(folder_lib, 'check_free', try_to_train_too)
    for _ in range(2):  # The second one gets as far as the first, which is no more there.
        assert verbs.call(train, f'--gin_file={TINY}', f'--workdir={tmp_path}') == command.FAILED
        assert 'stopped' in capsys.readouterr().err
