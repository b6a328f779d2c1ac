"""Tests of audits by gradient canaries: a correct program stays below its claim, each fault put into it is found."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.privacy import faults
from tf_dpdiff.data import datasets
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.evaluation import canaries as canaries_lib
from tf_dpdiff.evaluation import gradient_canaries
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import epsilon_bounds
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import noise as noise_lib
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import audit as audit_lib
from tf_dpdiff.runs import gradient_audit
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import finetuning as finetuning_lib
from tf_dpdiff.training import interruption
from tf_dpdiff.training import optimization
from tf_dpdiff.training import views as views_lib

pytestmark = pytest.mark.usefixtures('small_network')
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NUM_CANARIES = 600
PRIVACY = plan_lib.DpSgdConfig(
    target_delta=1e-4, expected_batch_size=310, num_steps=8, l2_norm_clip=1e-2, noise_multiplier=1.0
)


def make_recipe(num_canaries=NUM_CANARIES, **changes):
    images = np.zeros([20, 4, 4, 1], np.uint8)
    data = datasets.ImageDataset('never read', images, (np.arange(20) % 2).astype(np.int32), ('a', 'b'))

    def read():
        raise AssertionError('an image was read')

    return audit_lib.AuditRecipe(
        data=datasets.PrivateData(train=read, held_out=read, spec=data.spec),
        network=unet.UNetConfig(base_channels=64, groups=2),
        process=process_lib.DiffusionProcess(),
        privacy=dataclasses.replace(PRIVACY, **changes),
        finetuning=finetuning_lib.FinetuningConfig(
            optimization.OptimizationConfig(0.01), views_lib.ViewsConfig(), units_per_chunk=64
        ),
        gradient_canaries=gradient_canaries.GradientAuditConfig(num_canaries=num_canaries),
    )


@pytest.fixture(autouse=True)
def fixture_the_same_chance_each_time(monkeypatch):
    """A correct program is accused in one audit of a hundred: not here."""
    monkeypatch.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: seeds.PrivateSeed(bytes(range(32))))
    monkeypatch.setattr(
        canaries_lib, 'draw_inclusions', lambda count: np.random.default_rng(0).integers(0, 2, count) == 1
    )


def audit(workdir, **changes):
    return gradient_audit.audit(make_recipe(**changes), workdir, configuration='a configuration', say=lambda text: None)


@pytest.fixture(name='sound', scope='module')
def fixture_sound(tmp_path_factory, small_network):
    """An audit of the program as it is."""
    workdir = tmp_path_factory.mktemp('sound')
    with pytest.MonkeyPatch.context() as monkeypatch:
        fixture_the_same_chance_each_time.__wrapped__(monkeypatch)
        return workdir, audit(workdir)


def test_program_as_it_is_stays_below_its_claim_and_comes_near_to_it(sound):
    result = sound[1]
    assert not result.is_violation and result.faults == ()
    assert 0.6 * result.proven_epsilon < result.found.independent < result.proven_epsilon
    assert 0.0 < result.found.one_run < result.found.independent and result.found.any_program < result.proven_epsilon
    assert result.found.independent == pytest.approx(result.expected, rel=0.25)
    assert set(result.p_values) and min(result.p_values.values()) > 1e-3
    assert 'no fault was found' in result.to_text()


def one_canary_is_never_clipped(monkeypatch):
    """One of all units, whose gradient is ten times too long, is added as it is."""
    monkeypatch.setattr(gradient_canaries, 'CanaryViews', _OneIsLonger)
    faults.long_units_not_clipped(monkeypatch, 5.0)


class _OneIsLonger(gradient_canaries.CanaryViews):
    def __init__(self, directions, slots, num_units, lengths, variables, num_views):
        included = np.random.default_rng(0).integers(0, 2, len(slots)) == 1
        lengths = np.where(np.arange(len(slots)) == np.flatnonzero(included)[0], 10.0, 1.0) * PRIVACY.l2_norm_clip
        super().__init__(directions, slots, num_units, lengths, variables, num_views)


ABOVE, TOO_LITTLE = 'above the claim', 'refuted: noise is as large'
TWICE, TOO_LONG = 'refuted: no noise is used twice', 'refuted: no unit is longer'
FAULTS = {
    'two thirds of the noise': (faults.TWO_THIRDS_OF_THE_NOISE, {ABOVE, TOO_LITTLE}),
    'half of the variance': (faults.HALF_OF_THE_VARIANCE, {ABOVE, TOO_LITTLE}),
    'noise forgotten in one variable': (faults.no_noise_in_one_variable, {TOO_LITTLE}),
    'the same noise in two steps': (faults.same_noise_in_two_steps, {TWICE}),
    'each variable clipped alone': (faults.each_variable_clipped_alone, {ABOVE}),
    'first unit of each chunk not clipped': (faults.first_unit_of_a_chunk_not_clipped, {TOO_LONG}),
    'one unit of all not clipped': (one_canary_is_never_clipped, {TOO_LONG}),
    'all units in every step': (faults.all_units_in_every_step, {ABOVE}),
}
# Each takes a few seconds.
QUICK = {'two thirds of the noise', 'the same noise in two steps', 'one unit of all not clipped'}


@pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FAULTS]
)
def test_fault_is_found_by_what_is_there_to_find_it(monkeypatch, tmp_path, name):
    # The program without a fault, above, is the control.
    fault, expected = FAULTS[name]
    fault(monkeypatch)
    result = audit(tmp_path)
    assert result.is_violation
    found = '; '.join(result.faults)
    assert all(words in found for words in expected), found
    if ABOVE in expected:
        # Of less noise the bound is well above, since scores go by the noise as it is.
        assert result.found.independent > (1.15 if TOO_LITTLE in expected else 1.0) * result.proven_epsilon
    assert 'FAULTS WERE FOUND' in (tmp_path / 'audit_summary.txt').read_text()


@pytest.mark.long
def test_two_devices_together_stay_below_the_claim(tmp_path):
    settings = (
        'GradientAuditConfig.num_canaries = 600',
        'GradientAuditConfig.confidence = 0.9999',
        'EXPECTED_BATCH_SIZE = 1018',
        'NUM_STEPS = 8',
        'DpSgdConfig.noise_multiplier = 1.0',
        'TARGET_EPSILON = None',
        'StrategyConfig.logical_cpus = 2',
    )
    # A program of its own, since the number of devices is chosen before anything else.
    subprocess.run(
        [
            *(sys.executable, '-m', 'tf_dpdiff.cli', 'audit', '--gin_file=gin/audit_gradients_digits.gin'),
            *('--gradient_canaries', '--strategy=mirrored', f'--workdir={tmp_path}'),
            *(f'--gin_param={setting}' for setting in settings),
        ],
        check=True,
        cwd=ROOT,
    )
    summary = json.loads((tmp_path / 'audit_summary.json').read_text())
    found = summary['audit']
    assert summary['settings']['num_replicas'] == 2 and not found['is_violation']
    assert 0.3 * found['proven_epsilon'] < found['found']['independent'] < found['proven_epsilon']


def test_accounting_that_forgets_steps_is_found(monkeypatch, tmp_path):
    record = ledger_lib.Ledger.record

    def forget(self, mechanism, noise_multiplier, sampling_probability, count=1, truncation=None):
        return (
            self
            if self.count(mechanism) >= 2
            else record(self, mechanism, noise_multiplier, sampling_probability, count, truncation)
        )

    monkeypatch.setattr(ledger_lib.Ledger, 'record', forget)
    result = audit(tmp_path)
    assert result.is_violation and result.found.independent > result.proven_epsilon


def test_without_noise_more_than_20_can_be_shown_and_nothing_is_refuted_where_nothing_is_claimed(tmp_path):
    result = audit(tmp_path, noise_multiplier=0.0)
    # A canary that is in takes part in none of the eight steps once in 256 times.
    assert result.most_that_can_be_shown >= result.found.independent > 20.0
    assert not result.is_violation and result.expected is None and result.p_values == {}
    assert 'No epsilon is claimed' in result.to_text() and result.to_dict()['proven_epsilon'] is None


def test_summary_says_what_was_tested_and_holds_nothing_else(sound):
    workdir, result = sound
    assert {path.name for path in workdir.iterdir()} == {
        'audit_summary.json',
        'audit_summary.txt',
        'operative_config.gin',
    }
    summary = json.loads((workdir / 'audit_summary.json').read_text())
    assert summary['is_public'] and summary['settings']['num_units'] == 620
    assert summary['settings']['privacy']['noise_multiplier'] == 1.0
    assert summary['audit'] == json.loads(json.dumps(result.to_dict()))
    secret = seeds.PrivateSeed(bytes(range(32)))
    text = (workdir / 'audit_summary.json').read_text()
    assert secret.reveal().hex() not in text and str(secret.derive('noise')) not in text


def test_claim_is_that_of_the_steps_which_were_run(sound):
    event = ledger_lib.dp_event(1.0, 0.5, 8)
    assert sound[1].proven_epsilon == pytest.approx(accounting.epsilon(event, 1e-4))
    assert sound[1].num_steps == 8 and sound[1].sampling_probability == 0.5


def test_sums_that_are_not_finite_are_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(
        noise_lib.GaussianNoise, 'add', lambda self, sums, **unused_options: [sums[0] * np.nan, *sums[1:]]
    )
    with pytest.raises(FloatingPointError, match='private step 0 of the audit released numbers that are not finite'):
        audit(tmp_path)
    assert not list(tmp_path.iterdir())


def test_claim_whose_curve_is_not_known_is_refused_beforehand(monkeypatch):
    monkeypatch.setattr(epsilon_bounds, 'deltas_by_pld', lambda *unused_arguments, **unused_options: None)
    with pytest.raises(ValueError, match='trade-off curve of the claim would take too long'):
        gradient_audit.prepare(make_recipe(), say=lambda text: None)


def test_stop_ends_the_audit_and_keeps_nothing(tmp_path, monkeypatch):
    class StopAtOnce(interruption.StopRequest):
        def __init__(self):
            super().__init__()
            self.requested = True

    monkeypatch.setattr(interruption, 'StopRequest', StopAtOnce)
    with pytest.raises(interruption.Interrupted, match='begins anew'):
        audit(tmp_path)
    assert not list(tmp_path.iterdir())


def test_folder_of_a_run_and_units_that_are_not_poisson_sampled_are_refused(tmp_path):
    (tmp_path / checkpoints.FOLDER).mkdir()
    with pytest.raises(ValueError, match='wants a folder of its own'):
        audit(tmp_path)
    with pytest.raises(ValueError, match='there is nothing for gradient canaries to test'):
        gradient_audit.prepare(make_recipe(sampling='shuffled_batches'), say=lambda text: None)
