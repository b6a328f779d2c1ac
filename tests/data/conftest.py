"""What tests of data sources share."""

import socket

import pytest


@pytest.fixture(name='no_network')
def fixture_no_network(monkeypatch):
    """Nothing is asked of the network."""

    def refuse(*arguments):
        raise AssertionError(f'network: {arguments}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
