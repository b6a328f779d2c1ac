"""Tests of bin/account and of bin/train --budget_file as a user calls them."""

import json
import pathlib
import re
import shutil
import stat
import time

from dp_accounting import pld
import numpy as np
from PIL import Image
import pytest

from tests.cli import verbs
from tf_dpdiff import progress
from tf_dpdiff.cli import account
from tf_dpdiff.cli import command
from tf_dpdiff.cli import train
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import budget as budget_lib
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import budget as budget_file
from tf_dpdiff.training import checkpoints

pytestmark = pytest.mark.usefixtures('small_network')
VERBS = {'account': account, 'train': train}
TINY = pathlib.Path(__file__).resolve().parent / 'tiny_digits.gin'
CIFAR10 = ('--num_units=50000', '--delta=1e-5', '--expected_batch_size=16384', '--num_steps=200')


def call(verb, *flags):
    return verbs.call(VERBS[verb], *flags)


def call_for_json(capsys, *flags):
    assert call('account', *flags, '--json') == command.DONE
    return json.loads(capsys.readouterr().out)


def tiny(*bindings):
    bindings = ('GenerateConfig.num_images = 10', 'train.utility = None', *bindings)
    return [f'--gin_file={TINY}'] + [f'--gin_param={binding}' for binding in bindings]


def direct_epsilon(noise_multiplier, sampling_probability, num_steps, delta=1e-5):
    event = ledger_lib.dp_event(noise_multiplier, sampling_probability, num_steps)
    return pld.PLDAccountant().compose(event).get_epsilon(delta)


BOUNDS = (), ('--truncated_batch_size=110',)


def test_noise_is_found_and_what_is_printed_meets_the_target(capsys):
    assert call('account', *CIFAR10, '--epsilon=10') == command.DONE
    out = capsys.readouterr().out
    shown = re.search(r'noise multiplier │ ([\d.]+)  \(computed\)', out)
    assert float(shown.group(1)) == pytest.approx(2.451, rel=5e-3)
    spent = direct_epsilon(float(shown.group(1)), 16384 / 50000, 200)
    assert 9.99 < spent <= 10.0
    by_pld, by_rdp = map(float, re.search(r'([\d.]+) by PLD +([\d.]+) by RDP', out).groups())
    assert spent <= by_pld < spent + 2e-4 and by_rdp >= by_pld
    rows = re.findall(r'│ +([\d,]+) │ +([\d.]+) │ +([\d.]+) │', out)
    assert [int(row[0]) for row in rows] == [1, 25, 50, 75, 100, 125, 150, 175, 200]
    assert float(rows[-1][1]) == by_pld and float(rows[-1][2]) == by_rdp
    assert float(rows[4][1]) == pytest.approx(direct_epsilon(float(shown.group(1)), 16384 / 50000, 100), rel=1e-3)


@pytest.mark.parametrize(
    'flags, solved, name, more',
    [
        (('--noise_multiplier=17.5', '--epsilon=1', '--expected_batch_size=16384'), 'num_steps', 'num_steps', 1),
        (('--noise_multiplier=17.5', '--epsilon=1', '--num_steps=200'), 'batch', 'expected_batch_size', 1),
    ],
)
def test_whole_numbers_are_the_largest_that_fit(capsys, flags, solved, name, more):
    fields = call_for_json(capsys, '--num_units=50000', '--delta=1e-5', *flags)
    assert fields['solved'] == solved

    def spent(extra):
        changed = {**fields, name: round(fields[name]) + extra}
        return direct_epsilon(17.5, changed['expected_batch_size'] / 50000, changed['num_steps'])

    assert fields['epsilon'] == pytest.approx(spent(0), rel=1e-9) and spent(0) <= 1.0 < spent(more)


def test_class_means_are_paid_from_the_same_target(capsys):
    flags = ('--noise_multiplier=17.5', '--epsilon=1', '--sampling_probability=0.3', '--delta=1e-5')
    alone = call_for_json(capsys, *flags)
    beside = call_for_json(capsys, *flags, '--warm_start_noise_multiplier=10')
    assert 0 < beside['num_steps'] < 0.9 * alone['num_steps'] and beside['epsilon'] <= 1.0
    curve = beside['epsilon_over_steps']
    assert curve[0]['num_steps'] == 0 and curve[0]['pld'] > 0.2
    assert [point['pld'] for point in curve] == sorted(point['pld'] for point in curve)


def test_bound_on_the_batch_is_paid_and_told(capsys):
    flags = ('--num_units=1000', '--delta=1e-4', '--num_steps=50', '--epsilon=3')
    plain, bounded = (call_for_json(capsys, *flags, '--expected_batch_size=100', *more) for more in BOUNDS)
    assert set(bounded) - set(plain) == {'truncated_batch_size'} and bounded['truncated_batch_size'] == 110
    assert bounded['noise_multiplier'] > 1.1 * plain['noise_multiplier'] and bounded['epsilon'] <= 3.0
    noise = f'--noise_multiplier={bounded["noise_multiplier"]}'
    # A batch that is computed is at most the bound, and about what it was.
    found = call_for_json(capsys, *flags, noise, '--truncated_batch_size=110')
    assert 100 <= found['expected_batch_size'] <= 101 and found['epsilon'] <= 3.0
    assert call('account', *flags, noise, '--expected_batch_size=100', *BOUNDS[1]) == command.DONE
    words = ' '.join(re.findall(r'[\w.,]+', capsys.readouterr().out))
    assert '100 of 1,000 units, probability 0.1 of each unit, at most 110 ' in words


def test_rounds_of_class_means_are_paid_each(capsys):
    flags = ('--noise_multiplier=17.5', '--epsilon=1', '--sampling_probability=0.3', '--delta=1e-5')
    rounds = call_for_json(capsys, *flags, '--warm_start_noise_multiplier=20', '--warm_start_num_rounds=4')
    assert rounds['num_steps'] == call_for_json(capsys, *flags, '--warm_start_noise_multiplier=10')['num_steps']
    assert rounds['num_steps'] < call_for_json(capsys, *flags, '--warm_start_noise_multiplier=20')['num_steps']
    assert call('account', *flags, '--warm_start_noise_multiplier=20', '--warm_start_num_rounds=4') == command.DONE
    assert 'noise multiplier 20, 4 rounds' in capsys.readouterr().out


def test_all_settings_given_are_checked_against_the_target(capsys):
    assert call_for_json(capsys, *CIFAR10, '--epsilon=1', '--noise_multiplier=18')['solved'] is None
    assert call('account', *CIFAR10, '--epsilon=1', '--noise_multiplier=17') == command.WRONG_USE
    assert 'more than --epsilon=1' in capsys.readouterr().err


def test_plot_is_drawn(tmp_path, capsys):
    path = tmp_path / 'epsilon.png'
    assert call('account', *CIFAR10, '--noise_multiplier=17.384', f'--plot={path}') == command.DONE
    assert str(path) in capsys.readouterr().out
    picture = np.asarray(Image.open(path).convert('RGB'))
    assert picture.shape[0] > 300 and picture.shape[1] > 500
    for colour in ((31, 119, 180), (255, 127, 14)):  # The two curves.
        assert (picture == colour).all(-1).sum() > 200
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'flags, said',
    [
        (('--num_units=100', '--expected_batch_size=10', '--delta=0.01'), 'is not below 1 / 100 units'),
        (('--sampling_probability=0.01', '--delta=0.5'), 'is not below 1 / 100 units'),
        (('--sampling_probability=0.01', '--num_units=1000', '--delta=1e-3'), 'is not below 1 / 1,000 units'),
        (('--sampling_probability=0.01', '--delta=1e-4'), 'it is for fewer than 10,000 units'),
    ],
)
def test_delta_that_is_too_large_for_the_data_is_cautioned_against(capsys, flags, said):
    assert call('account', *flags, '--num_steps=2', '--noise_multiplier=5') == command.DONE
    error = capsys.readouterr().err
    assert error.startswith('account: caution: delta = ') and said in error
    assert ('anything may be released' in error) == ('fewer than' not in said)


@pytest.mark.parametrize('flags', [('--epsilon=10',), ('--epsilon=1', '--noise_multiplier=18')])
def test_good_plan_is_not_cautioned_against(capsys, flags):
    assert call('account', *CIFAR10, *flags) == command.DONE
    assert 'caution' not in capsys.readouterr().err


def test_large_epsilon_is_cautioned_against_in_odds(capsys):
    assert call('account', *CIFAR10, '--epsilon=500') == command.DONE
    captured = capsys.readouterr()
    assert 'is above 10: hardly any protection is proven' in captured.err and 'at odds of up to 10^' in captured.err
    spent = float(re.search(r'([\d.]+) by PLD', captured.out).group(1))
    assert f'epsilon = {spent:.4f}' in captured.err and 490 < spent <= 500


EXTREME_PLANS = [
    ('--delta=1e-12', '--expected_batch_size=1000', '--num_steps=1000', '--epsilon=5', '--num_units=60000'),
    ('--delta=1e-15', '--expected_batch_size=1000', '--num_steps=1000', '--epsilon=5', '--num_units=60000'),
    ('--delta=1e-300', '--sampling_probability=0.01', '--num_steps=100', '--noise_multiplier=2'),
    ('--delta=1e-5', '--sampling_probability=0.01', '--num_steps=1000', '--noise_multiplier=0.001'),
    ('--delta=1e-5', '--sampling_probability=0.01', '--num_steps=10000000', '--noise_multiplier=1'),
    ('--delta=1e-5', '--sampling_probability=0.3', '--num_steps=1000000000000', '--noise_multiplier=1e6'),
    ('--delta=1e-5', '--sampling_probability=1', '--num_steps=10000000', '--epsilon=1'),
]


# What is slow of them is the accountant, which accounting_test asks as extreme questions.
SLOW_PLANS = EXTREME_PLANS[3:5]


@pytest.mark.parametrize(
    'flags', [pytest.param(flags, marks=pytest.mark.long) if flags in SLOW_PLANS else flags for flags in EXTREME_PLANS]
)
def test_extreme_plan_is_answered_and_its_parts_agree(capsys, flags):
    fields = call_for_json(capsys, *flags)
    event = ledger_lib.dp_event(fields['noise_multiplier'], fields['sampling_probability'], fields['num_steps'])
    assert fields['epsilon'] == accounting.epsilon(event, fields['delta']) <= fields['epsilon_by_accountant']['rdp']
    assert fields['target_epsilon'] is None or fields['epsilon'] <= fields['target_epsilon'] < 1.02 * fields['epsilon']
    assert fields['epsilon_over_steps'][-1]['pld'] == fields['epsilon'] < float('inf')


def test_table_does_not_call_by_pld_what_renyi_accounting_found(capsys):
    assert call('account', *EXTREME_PLANS[1]) == command.DONE
    out = capsys.readouterr().out
    assert re.search(r'epsilon +│ – by PLD +[45]\.\d+ by RDP', out) and re.search(r'1,000 │ +– │ +[45]\.\d+ │', out)


def test_work_that_takes_longer_shows_that_it_goes_on(capsys, monkeypatch):
    monkeypatch.setattr(progress, '_PATIENCE_SECS', 0.0)
    monkeypatch.setattr(account, '_complete_settings', lambda flags: time.sleep(0.5) or pytest.fail('stopped'))
    with pytest.raises(BaseException, match='stopped'):
        call('account', *CIFAR10, '--epsilon=1')
    assert capsys.readouterr().err == 'account: computing ...\n'


@pytest.mark.parametrize(
    'flags, message',
    [
        ((), 'give --delta and all but one of'),
        (('--delta=1e-5',), 'all but one of --noise_multiplier, --num_steps, the batch'),
        ((*CIFAR10,), 'all but one of --noise_multiplier, --epsilon'),
        ((*CIFAR10, '--epsilon=nan'), '--epsilon must be finite and > 0, got nan'),
        ((*CIFAR10, '--noise_multiplier=0'), '--noise_multiplier must be finite and > 0, got 0.0'),
        (
            (*CIFAR10, '--noise_multiplier=1e-9'),
            '--noise_multiplier must be at least 0.001, got 1e-09: less noise hides',
        ),
        (
            (*CIFAR10, '--epsilon=1', '--warm_start_noise_multiplier=1e-4'),
            '--warm_start_noise_multiplier must be at least',
        ),
        ((*CIFAR10, '--epsilon=1', f'--num_units={10**13}'), '--num_units must be at most 1,000,000,000,000'),
        (
            (*CIFAR10, '--epsilon=1', '--num_units=9'),
            '--expected_batch_size=16384 is larger than the data set of 9 units',
        ),
        ((*CIFAR10, '--epsilon=1', '--sampling_probability=0.1'), 'say the same'),
        (
            (*CIFAR10, '--epsilon=1', '--truncated_batch_size=16383'),
            'truncated_batch_size must be at least the expected batch size, 16384, got 16383',
        ),
        (
            ('--delta=1e-5', '--sampling_probability=0.1', '--num_steps=9', '--epsilon=1', '--truncated_batch_size=9'),
            '--truncated_batch_size needs --num_units',
        ),
        ((*CIFAR10, '--epsilon=1', '--delta=1'), '--delta must be in (0, 1), got 1.0'),
        ((*CIFAR10, '--epsilon=1', '--num_steps=0'), '--num_steps must be at least 1, got 0'),
        ((*CIFAR10, '--epsilon=1', '--num_steps=1.5'), 'invalid int value'),
        ((*CIFAR10, '--epsilon=1', '--warm_start_noise_multiplier=1'), 'cannot be met'),
        ((*CIFAR10, '--epsilon=1', '--warm_start_num_rounds=2'), 'needs --warm_start_noise_multiplier'),
        ((*CIFAR10, '--epsilon=1', '--plot=a.pdf'), 'must end in .png'),
        (('--delta=1e-5', '--expected_batch_size=9', '--num_steps=9', '--epsilon=1'), 'needs --num_units'),
        (('--create',), '--create needs a --budget_file'),
        (('--workdir=runs/x',), '--workdir needs a --budget_file'),
        (('--budget_file=nowhere.json',), 'no budget file at'),
        (('--budget_file=nowhere.json', '--create', '--epsilon=1'), '--create takes --epsilon and --delta'),
        (('--budget_file=nowhere.json', '--create', '--epsilon=1', '--delta=2'), 'delta must be in (0, 1), got 2.0'),
        (('--budget_file=nowhere.json', '--num_steps=3'), '--budget_file does not go with --num_steps'),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert call('account', *flags) == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith('account: error: ') and '\n' not in error
    assert not list(tmp_path.glob('*'))


@pytest.fixture(name='budget_path')
def fixture_budget_path(tmp_path):
    path = tmp_path / 'budget.json'
    assert call('account', f'--budget_file={path}', '--create', '--epsilon=10', '--delta=1e-5') == command.DONE
    return path


def test_total_that_protects_hardly_is_cautioned_against_when_the_file_is_made(tmp_path, capsys):
    assert (
        call('account', f'--budget_file={tmp_path / "budget.json"}', '--create', '--epsilon=500', '--delta=0.1')
        == command.DONE
    )
    error = capsys.readouterr().err
    assert 'epsilon = 500.0000 is above 10' in error and 'it is for fewer than 10 units' in error


def test_budget_file_is_made_once_and_for_its_owner_only(budget_path, capsys):
    assert stat.S_IMODE(budget_path.stat().st_mode) == 0o600
    before = budget_path.read_text()
    assert (
        call('account', f'--budget_file={budget_path}', '--create', '--epsilon=99', '--delta=1e-5') == command.WRONG_USE
    )
    assert 'would forget what its runs have cost' in capsys.readouterr().err
    assert budget_path.read_text() == before


@pytest.mark.parametrize('text', ['', '{"format": 1}', 'budget', '\udcff'])
def test_damaged_budget_file_is_one_clear_line(budget_path, capsys, text):
    budget_path.write_bytes(text.encode('utf-8', 'surrogateescape'))
    assert call('account', f'--budget_file={budget_path}') == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert 'is damaged or no budget file' in error and '\n' not in error
    assert budget_path.read_bytes() == text.encode('utf-8', 'surrogateescape')


def _ledger(noise_multiplier=3.0):
    return ledger_lib.Ledger((ledger_lib.Release('dp_sgd_step', noise_multiplier, 0.2, 50),))


@pytest.fixture(name='charged', scope='module')
def fixture_charged(tiny_run, tmp_path_factory):
    """A budget and a finished tiny run that was charged to it."""
    folder = tmp_path_factory.mktemp('charged')
    workdir = shutil.copytree(tiny_run[0], folder / 'run')
    return pathlib.Path(shutil.copy2(tiny_run[1], folder)), workdir


def test_run_is_charged_and_settled_under_its_public_name(charged, capsys):
    path, workdir = charged
    statement = json.loads((workdir / 'privacy_statement.json').read_text())
    (entry,) = budget_file.read(path).entries
    assert re.fullmatch('[0-9a-f]{16}', statement['run_id']) and entry.run_id == statement['run_id']
    assert entry.status == budget_lib.SETTLED and json.loads(entry.ledger.to_json()) == statement['releases']
    fields = call_for_json(capsys, f'--budget_file={path}')
    assert fields['runs'][0]['dataset'] == 'digits' and fields['unit'] == 'one image'
    assert 0.0 < fields['epsilon_by_accountant']['pld'] <= fields['epsilon_by_accountant']['rdp']
    assert call('account', f'--budget_file={path}') == command.DONE
    out = capsys.readouterr().out
    assert entry.run_id in out and 'settled' in out and '3 x dp sgd step' in out and 'noisy class means' in out


def test_nothing_that_is_released_holds_the_fingerprint(charged, capsys):
    path, workdir = charged
    fingerprint = budget_file.read(path).data_fingerprint
    assert fingerprint in path.read_text()  # The control.
    call('account', f'--budget_file={path}', '--json')
    assert fingerprint not in capsys.readouterr().out
    for name in ('privacy_statement.json', 'privacy_statement.txt', 'operative_config.gin', 'report.html'):
        assert fingerprint not in (workdir / name).read_text()


@pytest.mark.usefixtures('nothing_drawn_anew')
def test_same_command_again_says_that_the_run_is_complete_and_charges_nothing(charged, capsys):
    path, workdir = charged
    before = path.read_text()
    statement = (workdir / 'privacy_statement.json').read_text()
    assert call('train', *tiny(), f'--workdir={workdir}', f'--budget_file={path}') == command.DONE
    assert 'is complete' in capsys.readouterr().err
    assert path.read_text() == before and (workdir / 'privacy_statement.json').read_text() == statement


def errors_of_refused_run(workdir, path, capsys, *bindings):
    """Returns what is said of a run that a budget does not let in, of itself and of its dry run."""
    said = []
    for more in ((), ('--dry_run',)):
        flags = (*tiny(*bindings), f'--workdir={workdir}', f'--budget_file={path}', *more)
        assert call('train', *flags) == command.WRONG_USE
        said.append(capsys.readouterr().err.strip())
    return said


def test_second_run_that_would_pass_the_total_is_refused_before_it_begins(charged, tmp_path, capsys):
    path, _ = charged
    before = path.read_text()
    for error in errors_of_refused_run(tmp_path / 'run', path, capsys, 'ClassMeansConfig.noise_multiplier = 1.6'):
        assert 'the privacy budget would be passed: the 1 run(s) so far cost' in error and '\n' not in error
    assert path.read_text() == before and not (tmp_path / 'run' / 'checkpoints').exists()


def test_dry_run_says_what_would_be_spent_and_writes_nothing(charged, tmp_path, capsys):
    path, _ = charged
    before = path.read_text()
    assert (
        call(
            'train',
            *tiny('ClassMeansConfig.noise_multiplier = 9.0'),
            f'--workdir={tmp_path / "run"}',
            f'--budget_file={path}',
            '--dry_run',
        )
        == command.DONE
    )
    out = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert 'with this run, 2 run(s) cost epsilon = ' in out and 'of 3.5 at delta = 1e-05' in out
    assert path.read_text() == before and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('binding', ["DpSgdConfig.sampling = 'shuffled_batches'", 'DpSgdConfig.noise_multiplier = 0.0'])
def test_run_without_a_guarantee_is_refused(budget_path, tmp_path, capsys, binding):
    flags = tiny('DpSgdConfig.target_epsilon = None', binding)
    assert call('train', *flags, f'--workdir={tmp_path / "run"}', f'--budget_file={budget_path}') == command.WRONG_USE
    assert 'no privacy budget can hold it' in capsys.readouterr().err
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_finished_run_is_recorded_afterwards_and_once(charged, budget_path, capsys):
    _, workdir = charged
    flags = (f'--budget_file={budget_path}', f'--workdir={workdir}')
    fields = call_for_json(capsys, *flags)
    assert [run['status'] for run in fields['runs']] == ['settled']
    assert (
        budget_file.read(budget_path).data_fingerprint
        == checkpoints.read_identity(workdir / 'checkpoints').data_fingerprint
    )
    before = budget_path.read_text()
    assert call('account', *flags) == command.WRONG_USE
    assert 'is in the budget already' in capsys.readouterr().err and budget_path.read_text() == before


@pytest.mark.parametrize(
    'others, message',
    [(('f', 'one image', 10.0), 'belongs to other data'), ((None, 'one patient', 10.0), "protects 'one patient'")],
)
def test_finished_run_that_does_not_belong_to_the_budget_is_refused(charged, tmp_path, capsys, others, message):
    fingerprint, unit, total = others
    fingerprint = fingerprint or checkpoints.read_identity(charged[1] / 'checkpoints').data_fingerprint
    path = tmp_path / 'budget.json'
    budget_file.create(
        path,
        budget_lib.Budget(total, 1e-5).reserve(
            'first', _ledger(4.0), dataset='digits', data_fingerprint=fingerprint, unit=unit, time='now'
        ),
    )
    before = path.read_text()
    assert call('account', f'--budget_file={path}', f'--workdir={charged[1]}') == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert message in error and '\n' not in error and path.read_text() == before


def _small_budget(path, charged, total=2.9):
    """Makes a budget file of the data of a finished run, which does not fit into it beside another run."""
    fingerprint = checkpoints.read_identity(charged[1] / 'checkpoints').data_fingerprint
    about = dict(dataset='digits', data_fingerprint=fingerprint, unit='one image', time='now')
    budget_file.create(path, budget_lib.Budget(total, 1e-5).reserve('first', _ledger(4.0), **about))
    return fingerprint


def test_finished_run_that_does_not_fit_is_on_record_and_the_file_refuses_what_comes_after(charged, tmp_path, capsys):
    path = tmp_path / 'budget.json'
    _small_budget(path, charged)
    assert call('account', f'--budget_file={path}', f'--workdir={charged[1]}') == command.FAILED
    captured = capsys.readouterr()
    budget = budget_file.read(path)
    assert [entry.status for entry in budget.entries] == ['reserved', 'settled'] and budget.epsilon() > 2.9
    overdraft = rounding.round_up(budget.overdrawn_by())
    assert f'account: the privacy budget is overdrawn by epsilon={overdraft}: 2 run(s)' in captured.err
    assert re.search(rf'OVERDRAWN +│ by {overdraft}: no further run is let in', captured.out)
    # It is as overdrawn whenever it is looked at, and a run that would fit alone is not let in.
    assert call('account', f'--budget_file={path}', '--json') == command.FAILED
    fields = json.loads(capsys.readouterr().out)
    assert fields['is_overdrawn'] and fields['overdrawn_by'] == budget.overdrawn_by() and fields['epsilon_left'] == 0.0
    before = path.read_text()
    bindings = 'ClassMeansConfig.noise_multiplier = 50.0', 'DpSgdConfig.noise_multiplier = 50.0'
    for error in errors_of_refused_run(tmp_path / 'run', path, capsys, *bindings):
        assert 'overdrawn by epsilon=' in error.splitlines()[-1]
    assert path.read_text() == before and not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.parametrize(
    'release', [ledger_lib.Release('dp_sgd_step', 0.0, 0.2, 50), ledger_lib.Release('dp_sgd_step', 3.0, None, 50)]
)
def test_finished_run_without_a_guarantee_overdraws_the_file_for_good(charged, tmp_path, capsys, monkeypatch, release):
    path, workdir = tmp_path / 'budget.json', tmp_path / 'run'
    fingerprint, released = _small_budget(path, charged), ledger_lib.Ledger((release,))
    workdir.mkdir()
    statement = json.loads((charged[1] / 'privacy_statement.json').read_text())
    statement.update(releases=json.loads(released.to_json()), guarantee_claimed=False, epsilon=None)
    (workdir / 'privacy_statement.json').write_text(json.dumps(statement))
    monkeypatch.setattr(
        checkpoints,
        'read_identity',
        lambda unused_folder: checkpoints.RunIdentity(statement['run_id'], fingerprint, released, False),
    )
    assert call('account', f'--budget_file={path}', f'--workdir={workdir}') == command.FAILED
    captured = capsys.readouterr()
    assert 'overdrawn for good' in captured.err and 'infinite by PLD' in captured.out
    assert budget_file.read(path).entry(statement['run_id']).ledger == released
    assert call('account', f'--budget_file={path}', '--json') == command.FAILED
    fields = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # Infinity is no JSON.
    assert fields['is_overdrawn'] and fields['overdrawn_by'] is None
    assert fields['epsilon_by_accountant'] == fields['runs'][1]['epsilon_by_accountant'] == {'pld': None, 'rdp': None}


@pytest.mark.usefixtures('nothing_drawn_anew')
def test_run_that_was_made_without_the_file_is_on_record_however_it_comes_to_it(charged, tmp_path, capsys):
    path = tmp_path / 'budget.json'
    _small_budget(path, charged)
    before = path.read_text()
    assert call('train', *tiny(), f'--workdir={charged[1]}', f'--budget_file={path}', '--dry_run') == command.DONE
    assert 'the privacy budget is overdrawn' in ' '.join(capsys.readouterr().out.split())
    assert path.read_text() == before
    assert call('train', *tiny(), f'--workdir={charged[1]}', f'--budget_file={path}') == command.DONE
    assert 'the privacy budget is overdrawn by' in capsys.readouterr().err
    run_id = json.loads((charged[1] / 'privacy_statement.json').read_text())['run_id']
    assert budget_file.read(path).entry(run_id).status == budget_lib.SETTLED
    assert call('account', f'--budget_file={path}') == command.FAILED


def test_beginning_of_a_run_is_on_record_even_where_the_rest_is_refused(charged, tmp_path, capsys, monkeypatch):
    path = tmp_path / 'budget.json'
    _small_budget(path, charged)
    whole = checkpoints.read_identity(charged[1] / 'checkpoints')
    begun = whole._replace(ledger=ledger_lib.Ledger(whole.ledger.releases[-1:]).first('dp_sgd_step', 1))
    monkeypatch.setattr(checkpoints, 'read_identity', lambda unused_folder: begun)
    flags = [*tiny(), f'--workdir={tmp_path / "run"}', f'--budget_file={path}']
    before = path.read_text()
    assert call('train', *flags, '--dry_run') == command.WRONG_USE and path.read_text() == before
    assert call('train', *flags) == command.WRONG_USE
    assert 'the privacy budget would be passed' in capsys.readouterr().err
    entry = budget_file.read(path).entry(whole.run_id)
    assert entry.ledger == begun.ledger and entry.status == budget_lib.SETTLED
    assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.parametrize(
    'change, message',
    [
        ({'run_id': '0123456789abcdef'}, 'are not of the same run'),
        ({'releases': []}, 'are not of the same run'),
        ({'releases': 3}, 'is damaged'),
    ],
)
def test_statement_that_is_not_of_the_checkpoint_is_refused(charged, budget_path, tmp_path, capsys, change, message):
    statement = json.loads((charged[1] / 'privacy_statement.json').read_text())
    workdir = tmp_path / 'run'
    workdir.mkdir()
    (workdir / 'checkpoints').symlink_to(charged[1] / 'checkpoints')
    (workdir / 'privacy_statement.json').write_text(json.dumps({**statement, **change}))
    assert call('account', f'--budget_file={budget_path}', f'--workdir={workdir}') == command.WRONG_USE
    error = capsys.readouterr().err.strip()
    assert message in error and '\n' not in error


def test_folder_without_a_checkpoint_is_refused(charged, budget_path, tmp_path, capsys):
    (tmp_path / 'privacy_statement.json').write_text((charged[1] / 'privacy_statement.json').read_text())
    assert call('account', f'--budget_file={budget_path}', f'--workdir={tmp_path}') == command.WRONG_USE
    assert 'only the private checkpoint says which data' in capsys.readouterr().err
