"""Tests of the ledger: what a release is charged as, and how releases are put on record."""

import dp_accounting
import pytest

from tf_dpdiff.privacy import ledger as ledger_lib

GAUSSIAN = dp_accounting.GaussianDpEvent(2.0)


@pytest.mark.parametrize(
    'arguments, event',
    [
        ((2.0, 0.1, 5), dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.1, GAUSSIAN), 5)),
        ((2.0, 1.0, 5), dp_accounting.SelfComposedDpEvent(GAUSSIAN, 5)),
        ((0.0, 0.1, 5), dp_accounting.NonPrivateDpEvent()),
        ((0.0, 1.0, 5), dp_accounting.NonPrivateDpEvent()),
        ((2.0, None, 5), dp_accounting.NonPrivateDpEvent()),
        ((2.0, 0.1, 0), dp_accounting.NoOpDpEvent()),
    ],
)
def test_release_is_charged_as_a_gaussian_that_is_sampled_as_it_was(arguments, event):
    assert ledger_lib.dp_event(*arguments) == event
    if arguments[2]:
        assert ledger_lib.Release('a', *arguments).dp_event() == event


def test_applications_that_follow_one_another_are_one_release_however_they_are_recorded():
    one_by_one = ledger_lib.Ledger().record('a', 2.0, 0.1).record('a', 2.0, 0.1).record('a', 2.0, 0.1)
    assert one_by_one.releases == (ledger_lib.Release('a', 2.0, 0.1, 3),)
    assert ledger_lib.Ledger().record('a', 2.0, 0.1, count=3) == one_by_one
    assert ledger_lib.Ledger().record('a', 2.0, 0.1).record('a', 2.0, 0.1, count=2) == one_by_one


@pytest.mark.parametrize('other', [('b', 2.0, 0.1), ('a', 3.0, 0.1), ('a', 2.0, 0.2), ('a', 2.0, None)])
def test_applications_that_differ_are_releases_of_their_own(other):
    ledger = ledger_lib.Ledger().record('a', 2.0, 0.1, count=2).record(*other, count=2)
    assert ledger.releases == (ledger_lib.Release('a', 2.0, 0.1, 2), ledger_lib.Release(*other, 2))


def test_no_application_adds_nothing():
    ledger = ledger_lib.Ledger().record('a', 2.0, 0.1)
    assert ledger.record('a', 2.0, 0.1, count=0) == ledger
    assert ledger_lib.Ledger().record('a', 2.0, 0.1, count=0).dp_event() == dp_accounting.NoOpDpEvent()
