"""A browser without a window, told what to do by Chromium's own protocol on two pipes: no driver, no other package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
_PATIENCE_SECS = 60.0


def find():
    """Returns the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A context that runs a browser with one tab.

    Args:
      path: Of Chromium.
      folder: Where it keeps its profile.
    """

    def __init__(self, path, folder):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ['--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', '--disable-dev-shm-usage']
        quiet = ['--no-first-run', '--disable-background-networking', '--disable-sync', '--hide-scrollbars']
        command = [path, *flags, *quiet, f'--user-data-dir={folder}', 'about:blank']
        # The protocol is spoken on the descriptors 3 and 4.
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{to_read} 4>&{to_write}', 'bash', *command],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._received, self._count, self._session = b'', 0, None
        self.events = []

    def __enter__(self):
        (target,) = (one for one in self.call('Target.getTargets')['targetInfos'] if one['type'] == 'page')
        attached = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)
        self._session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        return self

    def __exit__(self, *unused_error):
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method, **parameters):
        """Calls a method of the protocol; returns its result, and keeps the events that come meanwhile."""
        self._count += 1
        message = {'id': self._count, 'method': method, 'params': parameters}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        until = time.monotonic() + _PATIENCE_SECS
        while True:
            answer = self._receive(until)
            if answer.get('id') == self._count:
                assert 'error' not in answer, (method, answer['error'])
                return answer['result']
            self.events.append(answer)

    def _receive(self, until):
        while b'\0' not in self._received:
            assert select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0], 'the browser hangs'
            chunk = os.read(self._read, 2**20)
            assert chunk, 'the browser has ended'
            self._received += chunk
        message, _, self._received = self._received.partition(b'\0')
        return json.loads(message)

    def evaluate(self, expression):
        """Returns the value of an expression in the page."""
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result['exceptionDetails']
        return result['result'].get('value')

    def resize(self, width, height, *, mobile=False):
        """Makes the window as large as a screen."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def open(self, url, *states):
        """Opens a page and waits until `data-state` of its body is one of these."""
        self.call('Page.navigate', url='about:blank')
        self.call('Page.navigate', url=url)
        return self.wait(*states)

    def wait(self, *states):
        """Waits until `data-state` of the body is one of these; returns it."""
        until = time.monotonic() + _PATIENCE_SECS
        while True:
            state = self.evaluate('document.body ? document.body.dataset.state || "" : ""')
            if state in states:
                return state
            assert time.monotonic() < until, f'the page is {state!r}: {self.evaluate("document.body.innerText")}'
            time.sleep(0.05)

    def screenshot(self):
        """Returns a picture of the whole page, PNG."""
        answer = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=True)
        return base64.b64decode(answer['data'])
