"""Tests of clean stops."""

import signal

import pytest

from tf_dpdiff.training import interruption


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_asks_for_a_stop_and_afterwards_means_what_it_meant(number):
    before = signal.getsignal(number)
    with interruption.StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) == before


def test_second_interrupt_does_not_wait():
    with interruption.StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
