"""How benchmarks measure: each case in a process of its own, and the cases in turns. No library but the standard one.

A program that measures a case ends in `serve`, whatever environment it runs in; the benchmark starts it as a `Case`.
"""

import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
_MARK = 'measured: '  # Before each line that a case reports; libraries print lines of their own.


class CaseError(RuntimeError):
    """A case can't be measured; the message says why."""


def serve(step, *, peak_device_memory=lambda: None, **facts):
    """Reports that a case is ready, then runs a step whenever the benchmark asks for one, until its input ends.

    Args:
      step: Called without arguments; returns when its result is there. Called once before the case is ready: what
        libraries do at the first call (tracing, compiling) is not part of the steps.
      peak_device_memory: Returns the GiB that were held on an accelerator at most; None: there is none.
      **facts: JSON-able values that the benchmark is to know.
    """
    step = timed(step)

    def memory():
        return {'peak_memory_gib': peak_memory_gib(), 'peak_device_memory_gib': peak_device_memory()}

    _report({**facts, 'first_step_secs': step(), **memory()})
    for _ in sys.stdin:
        gc.collect()
        _report({'secs': step(), **memory()})


def _report(values):
    print(_MARK + json.dumps(values), flush=True)


def peak_memory_gib():
    """Returns the largest resident size of this process so far (Linux and macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == 'darwin' else 1024) / 2**30


class Case:
    """A program of this folder in a process of its own, in the state of being asked for steps.

    Args:
      name: Of the case, for messages.
      program: A file of this folder.
      *arguments: Of the program.
      python: Of the environment that it runs in.
      timeout_secs: To get ready in, and for each step; a case that takes longer is given up.
      environment: Variables that are set for it besides ours.

    Attributes:
      facts: What the program said when it was ready.
      peak_memory_gib: Of its process so far.
      peak_device_memory_gib: On the accelerator so far; None: there is none.
    """

    def __init__(self, name, program, *arguments, python=sys.executable, timeout_secs=900.0, environment=None):
        self.name, self._timeout_secs = name, timeout_secs
        command = [str(python), '-I', str(ROOT / 'benchmarks' / program), *map(str, arguments)]
        environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', **(environment or {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self._errors = []
        self._reader = threading.Thread(target=lambda: self._errors.extend(self._process.stderr), daemon=True)
        self._reader.start()
        self.facts = self._read()
        self._take_memory(self.facts)

    def step(self):
        """Runs a step and returns its seconds."""
        try:
            self._process.stdin.write('step\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It has died; reading says of what.
        measured = self._read()
        self._take_memory(measured)
        return measured['secs']

    def _take_memory(self, said):
        self.peak_memory_gib = said.pop('peak_memory_gib')
        self.peak_device_memory_gib = said.pop('peak_device_memory_gib')

    def _read(self):
        expired = threading.Timer(self._timeout_secs, self._process.kill)
        expired.start()
        started = time.monotonic()
        try:
            for line in self._process.stdout:
                if line.startswith(_MARK):
                    return json.loads(line[len(_MARK) :])
        finally:
            expired.cancel()
        status = self._process.wait()
        self._reader.join(timeout=5)
        if time.monotonic() - started >= self._timeout_secs:
            raise CaseError(f'{self.name}: took more than {self._timeout_secs:.0f} s')
        said = [line.strip() for line in self._errors if line.strip()]
        if status < 0:
            said = [f'killed by signal {-status}' + (' (out of memory?)' if status == -9 else '')]
        raise CaseError(f'{self.name}: {said[-1][:200] if said else f"exit code {status}"}')

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *unused_error):
        self.close()


def take_turns(steps, rounds):
    """Runs rounds of one step each; returns {name: seconds of each round}.

    Steps of one round are as near in time as can be, so ratios are taken within a round (`median_ratio`).

    Args:
      steps: {name: function that makes a step and returns its seconds}; `Case.step`, or `timed` of a function.
      rounds: How many.
    """
    seconds = {name: [] for name in steps}
    for index in range(rounds):
        # Every other round backwards: what drifts with time favours none.
        for name in steps if index % 2 == 0 else reversed(steps):
            seconds[name].append(steps[name]())
    return seconds


def steps_of(cases):
    """Returns the steps of cases by name, as `take_turns` takes them."""
    return {case.name: case.step for case in cases}


def timed(function):
    """Returns the function that calls a function and returns its seconds."""

    def timed_function():
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return timed_function


def median_ratio(numerators, denominators):
    """Returns the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators))


def describe_machine():
    """Returns processor, cores, memory, system and Python version."""
    processor = platform.processor() or platform.machine()
    features = []
    if os.path.exists('/proc/cpuinfo'):
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        values = dict(line.split(':', 1) for line in reversed(lines) if ':' in line)
        values = {name.strip(): value.strip() for name, value in values.items()}
        processor = values.get('model name', processor)
        flags = values.get('flags', '').split()
        features = [name for name in ('avx2', 'avx512f', 'avx512_bf16', 'amx_tile', 'amx_bf16') if name in flags]
    return {
        'processor': processor,
        'features': features,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
    }


def environment_with_data(data_dir):
    """Returns the environment of a program that reads data sets in a folder; None: where it looks by itself."""
    return {**os.environ, **({'TFDS_DATA_DIR': str(data_dir)} if data_dir else {})}


def versions(*packages):
    """Returns the versions of installed packages."""
    return {package: importlib.metadata.version(package) for package in packages}


def write_results(path, **results):
    """Writes results as JSON, after the machine; called by benchmarks, not in the environments of peers."""
    from tf_dpdiff import files

    files.write_text(path, json.dumps({'machine': describe_machine(), **results}, indent=2) + '\n')
