"""Workers of one run on this machine, which talk over loopback."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def free_ports(count):
    """Returns ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(('127.0.0.1', 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def start_workers(*command, count=2):
    """Starts the same Python module in several processes and returns them, the first worker first."""
    cluster = {'worker': [f'127.0.0.1:{port}' for port in free_ports(count)]}

    def start(index):
        tf_config = json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': index}})
        return subprocess.Popen(
            [sys.executable, '-m', *map(str, command)],
            cwd=ROOT,
            env={**os.environ, 'TF_CONFIG': tf_config, 'TF_CPP_MIN_LOG_LEVEL': '3'},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return [start(index) for index in range(count)]


def wait_for(workers, timeout_secs=300):
    """Waits for all workers and returns their exit codes and what they said on standard error."""
    said = [worker.communicate(timeout=timeout_secs)[1] for worker in workers]
    return [worker.returncode for worker in workers], said
