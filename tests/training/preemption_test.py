"""Tests of notices that a machine will be taken away, against a metadata server on this machine."""

import http.server
import threading
import time
import urllib.parse

import pytest

from tf_dpdiff.training import interruption
from tf_dpdiff.training import preemption


class MetadataServer:
    """Speaks as the metadata server of Google Compute Engine does: values, etags, answers that wait for a change."""

    def __init__(self, port=0, flavor='Google'):
        self.values = {'preempted': 'FALSE', 'maintenance-event': 'NONE'}
        self.changed, self.waiting, self.flavors = threading.Condition(), 0, set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Answers one question."""

            def do_GET(self):
                outer.flavors.add(self.headers['Metadata-Flavor'])
                url = urllib.parse.urlsplit(self.path)
                query, key = dict(urllib.parse.parse_qsl(url.query)), url.path.split('/computeMetadata/v1/instance/')[1]
                with outer.changed:
                    if query.get('wait_for_change') == 'true':
                        outer.waiting += 1
                        outer.changed.wait_for(
                            lambda: outer.values[key] != query['last_etag'], float(query['timeout_sec'])
                        )
                        outer.waiting -= 1
                    value = outer.values[key]
                self.send_response(200)
                self.send_header('Metadata-Flavor', flavor)
                self.send_header('ETag', value)
                self.send_header('Content-Length', str(len(value)))
                self.end_headers()
                self.wfile.write(value.encode())

            def log_message(self, *unused_args):
                pass

        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()

    def set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def wait_for(condition):
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.01)


def watchers():
    return [thread for thread in threading.enumerate() if thread.name.startswith('gce ')]


@pytest.fixture(name='server')
def fixture_server(monkeypatch):
    server = MetadataServer()
    monkeypatch.setenv('GCE_METADATA_HOST', f'127.0.0.1:{server.port}')
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')  # The metadata server is never asked through a proxy.
    monkeypatch.setattr(preemption, '_PAUSE_SECS', 0.05)
    yield server
    server.close()


@pytest.mark.parametrize(
    'key, value, reason',
    [
        ('preempted', 'TRUE', 'preemption notice of GCE'),
        ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE', 'maintenance notice of GCE'),
    ],
)
def test_notice_asks_for_a_stop(server, key, value, reason):
    with interruption.StopRequest() as stop, preemption.watching('gce', stop):
        wait_for(lambda: server.waiting == 2)
        assert not stop.requested
        server.set(key, value)
        wait_for(lambda: stop.requested)
        assert stop.reason == reason
    assert server.flavors == {'Google'}


def test_machine_that_is_moved_while_it_runs_goes_on(server):
    with interruption.StopRequest() as stop, preemption.watching('gce', stop):
        wait_for(lambda: server.waiting == 2)
        server.set('maintenance-event', 'MIGRATE_ON_HOST_MAINTENANCE')
        server.set('maintenance-event', 'NONE')
        wait_for(lambda: server.waiting == 2)
        assert not stop.requested


@pytest.mark.parametrize(
    'key, value, is_stopped',
    [('preempted', 'TRUE', True), ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE', False)],
)
def test_what_was_announced_before_the_start(server, monkeypatch, key, value, is_stopped):
    monkeypatch.setattr(preemption, '_POLL_SECS', 0.02)  # The same value comes again and again, as after a minute.
    server.set(key, value)
    with interruption.StopRequest() as stop, preemption.watching('gce', stop):
        time.sleep(0.3)
        assert stop.requested == is_stopped
        server.set('preempted', 'TRUE')
        wait_for(lambda: stop.requested)


def test_threads_end_at_once_also_while_the_server_holds_back_its_answer(server):
    with interruption.StopRequest() as stop, preemption.watching('gce', stop):
        wait_for(lambda: server.waiting == 2)
        assert len(watchers()) == 2
        started = time.monotonic()
    assert time.monotonic() - started < 5.0 and not watchers()
    assert not stop.requested


def test_server_that_goes_away_ends_nothing_and_is_asked_again(server, capsys):
    with interruption.StopRequest() as stop, preemption.watching('gce', stop):
        wait_for(lambda: server.waiting == 2)
        server.close()
        server.set('maintenance-event', 'NONE again')  # Both long answers come; then nobody is there.
        server.set('preempted', 'FALSE again')
        time.sleep(0.5)
        assert not stop.requested
        back = MetadataServer(server.port)
        wait_for(lambda: back.waiting == 2)
        back.set('preempted', 'TRUE')
        wait_for(lambda: stop.requested)
        back.close()
    (warning,) = capsys.readouterr().err.splitlines()  # However often it was asked.
    assert warning.startswith('warning: no answer') and 'the run goes on' in warning  # Of no verb: audits warn too.


def test_no_metadata_server_at_the_start_is_one_clear_line(server):
    server.close()
    with interruption.StopRequest() as stop, pytest.raises(ValueError, match='preemption_notice = None') as raised:
        with preemption.watching('gce', stop):
            pytest.fail('it began without a server')
    assert '\n' not in str(raised.value) and not watchers()


def test_server_that_is_none_of_gce_is_refused(server, monkeypatch):
    other = MetadataServer(flavor='Somebody')
    monkeypatch.setenv('GCE_METADATA_HOST', f'127.0.0.1:{other.port}')
    with interruption.StopRequest() as stop, pytest.raises(ValueError, match='does not answer as it'):
        with preemption.watching('gce', stop):
            pytest.fail('it took another server for that of GCE')
    other.close()
    del server


def test_nothing_is_watched_unless_asked_for_and_unknown_kinds_are_named(monkeypatch):
    monkeypatch.setenv('GCE_METADATA_HOST', '127.0.0.1:9')
    with interruption.StopRequest() as stop, preemption.watching(None, stop):
        assert not watchers()
    with pytest.raises(ValueError, match="None or one of .*'aws'"):
        preemption.check('aws')
