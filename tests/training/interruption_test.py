"""Tests of clean stops."""

import signal
import threading

import pytest

from tf_dpdiff.training import interruption


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_asks_for_a_stop_and_afterwards_means_what_it_meant(number):
    before = signal.getsignal(number)
    with interruption.StopRequest() as stop:
        assert not stop.requested and not stop.reason
        signal.raise_signal(number)
        assert stop.requested and stop.reason == number.name
    assert signal.getsignal(number) == before


def test_second_interrupt_does_not_wait():
    with interruption.StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        # Others may be sent again by whoever waits for the end.
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason == 'SIGINT'


def test_another_thread_may_ask_and_the_first_reason_stays():
    with interruption.StopRequest() as stop:
        thread = threading.Thread(target=stop.request, args=('preemption notice of GCE',))
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested and stop.reason == 'preemption notice of GCE'
