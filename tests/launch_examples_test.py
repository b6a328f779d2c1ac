"""Tests that what starts runs on several machines is well formed, agrees with itself and names settings that exist."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import gin
import pytest
import yaml

from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import serve
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.cli import train
from tf_dpdiff.training import checkpoint_folders
from tf_dpdiff.training import clusters
from tf_dpdiff.training import strategies

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / 'examples'
SBATCH = EXAMPLES / 'slurm' / 'train.sbatch'
TPU = EXAMPLES / 'tpu' / 'train_on_tpu_vm.sh'
READMES = [EXAMPLES / name / 'README.md' for name in ('slurm', 'kubernetes', 'tpu')]


@pytest.fixture(name='objects', scope='module')
def fixture_objects():
    documents = yaml.safe_load_all((EXAMPLES / 'kubernetes' / 'train-job.yaml').read_text())
    return {document['kind']: document for document in documents}


def strategy_of(arguments, monkeypatch):
    """Returns the StrategyConfig that flags of bin/train make, and the flags."""
    seen = []
    monkeypatch.setattr(command, 'run', lambda parser, unused_main, argv: seen.append(parser.parse_args(argv)))
    with pytest.raises(SystemExit):
        train.run(arguments)
    (flags,) = seen
    gin_config.parse(flags.gin_file, flags.gin_param)
    started = []
    monkeypatch.setattr(strategies, 'start', started.append)
    strategies.start(strategy_flags.configured(flags.strategy))
    gin.clear_config()
    return started[0], flags


def words(script):
    """Returns the arguments of bin/train in a shell script, variables as they are written."""
    text = script.read_text().replace('\\\n', ' ')
    start = text.index('--gin_file=')
    return shlex.split(text[start:].split('\n)\n')[0].split('\n\n')[0])


def pods_of(objects):
    return objects['Job']['spec']['template']


@pytest.mark.parametrize('script', [SBATCH, TPU], ids=lambda path: path.name)
def test_shell_accepts_the_scripts(script):
    assert subprocess.run(['bash', '-n', script], check=False).returncode == 0


def test_slurm_script_asks_for_workers_that_find_each_other(monkeypatch):
    config, flags = strategy_of(words(SBATCH), monkeypatch)
    assert (config.name, config.cluster) == (strategies.MULTI_WORKER, clusters.SLURM)
    assert flags.gin_file == ['gin/cifar10.gin'] and flags.workdir == '$workdir'
    options = dict(re.findall(r'^#SBATCH --([\w-]+)=?(.*)$', SBATCH.read_text(), re.M))
    assert options['ntasks-per-node'] == '1' and 'requeue' in options
    assert re.fullmatch(r'USR1@\d+', options['signal'])  # With `B:` the workers would hear nothing of it.
    nodes = int(options['nodes'])
    # What Slurm then tells the last worker.
    told = {
        'PROCID': nodes - 1,
        'NODEID': nodes - 1,
        'STEP_NUM_TASKS': nodes,
        'STEP_NODELIST': f'gpu[1-{nodes}]',
        'STEP_TASKS_PER_NODE': f'1(x{nodes})',
    }
    for name, value in told.items():
        monkeypatch.setenv(f'SLURM_{name}', str(value))
    resolver = clusters.resolve(config.cluster, config.port, config.num_workers, config.service)
    assert clusters.addresses(resolver)[-1] == f'gpu{nodes}:{config.port}' and clusters.index(resolver) == nodes - 1


SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >srun.args
[[ $ENDS_WITH == TERM ]] && kill -TERM $PPID && exit 1
exit $ENDS_WITH
"""


@pytest.mark.parametrize(
    'ends_with, has_checkpoint, restarts, is_requeued',
    [
        ('1', True, None, True),
        ('137', True, '19', True),
        ('0', True, None, False),
        ('2', True, None, False),
        ('1', False, None, False),
        ('1', True, '20', False),
        ('TERM', True, None, False),
    ],
)
def test_slurm_script_goes_on_where_that_makes_sense(tmp_path, ends_with, has_checkpoint, restarts, is_requeued):
    fakes = {'srun': SRUN, 'scontrol': '#!/usr/bin/env bash\necho "$@" >scontrol.args\n'}
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    checkpoints = tmp_path / 'runs' / 'cifar10' / 'checkpoints'
    checkpoints.mkdir(parents=True)
    if has_checkpoint:
        (checkpoints / checkpoint_folders.README).touch()
    environment = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'SLURM_SUBMIT_DIR': str(tmp_path),
        'SLURM_JOB_ID': '77',
        'ENDS_WITH': ends_with,
        **({'SLURM_RESTART_COUNT': restarts} if restarts else {}),
    }
    ended = subprocess.run(['bash', SBATCH], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == (1 if ends_with == 'TERM' else int(ends_with)), ended.stderr
    requeued = tmp_path / 'scontrol.args'
    assert requeued.exists() == is_requeued
    if is_requeued:
        assert requeued.read_text() == 'requeue 77\n'
    arguments = (tmp_path / 'srun.args').read_text().splitlines()
    program = arguments.index('bin/train')
    assert {'--distribution=block', '--kill-on-bad-exit=1', '--wait=0', '--ntasks-per-node=1'} <= {*arguments[:program]}
    assert "--gin_param=StrategyConfig.cluster = 'slurm'" in arguments[program:]


def test_pods_find_each_other(objects, monkeypatch):
    job, pod = objects['Job']['spec'], pods_of(objects)['spec']
    (container,) = pod['containers']
    config, flags = strategy_of(container['args'], monkeypatch)
    assert (config.name, config.cluster) == (strategies.MULTI_WORKER, clusters.KUBERNETES)
    assert flags.gin_file == ['gin/cifar10.gin']
    assert job['completionMode'] == 'Indexed' and job['completions'] == job['parallelism'] == config.num_workers
    service = objects['Service']
    assert service['metadata']['name'] == pod['subdomain'] == config.service
    assert service['spec']['clusterIP'] == 'None' and service['spec']['publishNotReadyAddresses'] is True
    assert config.port == service['spec']['ports'][0]['port'] == container['ports'][0]['containerPort']
    # What the last pod is told.
    name, last = objects['Job']['metadata']['name'], config.num_workers - 1
    monkeypatch.setenv('JOB_COMPLETION_INDEX', str(last))
    monkeypatch.setenv('HOSTNAME', f'{name}-{last}')
    resolver = clusters.resolve(config.cluster, config.port, config.num_workers, config.service)
    assert clusters.addresses(resolver)[0] == f'{name}-0.{config.service}:{config.port}'
    assert clusters.index(resolver) == last


def test_service_and_network_policy_are_of_the_pods_and_of_nobody_else(objects):
    labels = pods_of(objects)['metadata']['labels']
    policy = objects['NetworkPolicy']['spec']
    ((rule,),) = [rule['from'] for rule in policy['ingress']]
    assert objects['Service']['spec']['selector'] == labels
    assert policy['podSelector']['matchLabels'] == labels and policy['policyTypes'] == ['Ingress']
    assert rule == {'podSelector': {'matchLabels': labels}}


def test_failures_of_pods_are_told_apart(objects):
    job, pod = objects['Job']['spec'], pods_of(objects)['spec']
    assert pod['restartPolicy'] == 'Never'  # Kubernetes refuses a policy with any other.
    exit_codes, disrupted = job['podFailurePolicy']['rules']
    assert exit_codes['action'] == 'FailJob' and exit_codes['onExitCodes']['values'] == [command.WRONG_USE]
    assert exit_codes['onExitCodes']['containerName'] == pod['containers'][0]['name']
    assert disrupted['action'] == 'Ignore' and disrupted['onPodConditions'][0]['type'] == 'DisruptionTarget'
    assert job['backoffLimit'] >= 10 * job['completions']
    assert pod['terminationGracePeriodSeconds'] > 60


def test_volumes_are_there_and_data_are_read_only(objects):
    pod = pods_of(objects)['spec']
    (container,) = pod['containers']
    mounts = {mount['name']: mount for mount in container['volumeMounts']}
    volumes = {volume['name']: volume for volume in pod['volumes']}
    assert mounts.keys() == volumes.keys()
    claim = objects['PersistentVolumeClaim']
    assert volumes['runs']['persistentVolumeClaim']['claimName'] == claim['metadata']['name']
    assert claim['spec']['accessModes'] == ['ReadWriteMany']  # All pods mount it, on several nodes.
    assert mounts['data']['readOnly']
    (data,) = [variable['value'] for variable in container['env'] if variable['name'] == 'TFDS_DATA_DIR']
    assert data.startswith(mounts['data']['mountPath'] + '/')


def test_image_is_made_from_what_is_there(objects):
    text = (EXAMPLES / 'kubernetes' / 'Dockerfile').read_text()
    (folder,) = re.findall(r'^WORKDIR (\S+)$', text, re.M)
    copied = [name for line in re.findall(r'^COPY (.*) \S+$', text, re.M) for name in line.split()]
    assert {'requirements.lock', 'tf_dpdiff', 'gin'} <= {*copied} and not {'.', 'runs', '.venv'} & {*copied}
    assert all((ROOT / name).exists() for name in copied)
    (entry,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', text, re.M)
    assert f'{entry} = tf_dpdiff.cli.train:run' in (ROOT / 'setup.cfg').read_text()
    assert f'tensorflow[and-cuda]=={locked("tensorflow")}' in text
    assert re.search(r'^FROM python:3[.]1[123]-slim$', text, re.M)  # A Python that the lock is made for.
    check_installation_of_the_lock(text)
    (user,) = re.findall(r'--uid (\d+)', text)
    pod = pods_of(objects)['spec']
    assert int(user) == pod['securityContext']['runAsUser'] == pod['securityContext']['fsGroup']
    (container,) = pod['containers']
    assert f'{folder}/runs' in [mount['mountPath'] for mount in container['volumeMounts']]
    assert any(argument.startswith('--workdir=runs/') for argument in container['args'])


def check_installation_of_the_lock(text):
    """Checks that all is installed by hash, and what promise and jsonpath-rw are built with before it."""
    steps = re.findall(r'pip install ((?:[^\n]|\\\n)*?--requirement \S+)', text)
    assert len(steps) == 2 and all({'--no-deps', '--require-hashes'} <= {*step.split()} for step in steps)
    assert 'setuptools.lock' in steps[0] and 'requirements.lock' in steps[1]
    assert {'--no-build-isolation', '--ignore-requires-python'} <= {*steps[1].split()}
    (program,) = re.findall(r"awk '(.*)' requirements\.lock >\S*setuptools\.lock", text)
    kept, lock = kept_by(program)
    assert re.findall(r'^[a-z]\S*', kept, re.M) == [f'setuptools=={locked("setuptools")}']
    assert kept in lock and kept.count('--hash=') == 2


def kept_by(program):
    """Returns the part of the lock that awk keeps, and the lock."""
    lock = ROOT / 'requirements.lock'
    return subprocess.run(['awk', program, lock], capture_output=True, text=True, check=True).stdout, lock.read_text()


def test_probes_ask_the_port_that_the_server_has_for_them():
    (text,) = re.findall(r'^```yaml\n(.*?)^```$', (EXAMPLES / 'kubernetes' / 'README.md').read_text(), re.M | re.S)
    (container,) = yaml.safe_load(text)['containers']
    program, *arguments = container['command']
    assert f'{program} = tf_dpdiff.cli.serve:run' in (ROOT / 'setup.cfg').read_text()
    flags = serve.make_parser().parse_args(arguments)
    assert flags.token_file and flags.tls_certificate and flags.tls_key and flags.host == '0.0.0.0'
    assert container['startupProbe']['grpc'] == container['readinessProbe']['grpc'] == {'port': flags.health_port}
    assert flags.health_port not in (flags.rest_port, flags.grpc_port)


def locked(package):
    (version,) = re.findall(rf'^{package}==(\S+)', (ROOT / 'requirements.lock').read_text(), re.M)
    return version


def test_tpu_script_names_the_tpu_and_its_notice(monkeypatch):
    config, flags = strategy_of([word.replace('$TPU_NAME', 'dpdiff') for word in words(TPU)], monkeypatch)
    assert (config.name, config.tpu, config.preemption_notice) == (strategies.TPU, 'dpdiff', 'gce')
    assert flags.gin_file == ['gin/cifar10.gin']


@pytest.mark.skipif(not shutil.which('awk'), reason='there is no awk')
def test_tpu_script_installs_all_of_the_lock_but_tensorflow():
    text = TPU.read_text()
    check_installation_of_the_lock(text)
    (program,) = re.findall(r"awk '(.*)' requirements\.lock >\S*/requirements\.lock", text)
    kept, lock = kept_by(program)
    before, after = ({*re.findall(r'^\S+==\S+|--hash\S+', part, re.M)} for part in (lock, kept))
    left_out = {name for name in before - after if not name.startswith('--hash')}
    assert left_out == {f'tensorflow=={locked("tensorflow")}'} and len(before) - len(after) < 60
    assert f'tpu-vm-tf-{locked("tensorflow")}-pod-' in (EXAMPLES / 'tpu' / 'README.md').read_text()


PYTHON3 = f"""#!/usr/bin/env bash
if [[ $1 != -c ]]; then echo goes on; exit 7; fi
exec {sys.executable} -S -c "import sys; sys.version_info = tuple(map(int, '$PYTHON_IS'.split('.')))
$2"
"""


@pytest.mark.parametrize(
    'tensorflow, python, is_right',
    [
        ('2.21.1', '3.11.9', True),
        ('2.21.0', '3.13.0', True),
        ('2.20.0', '3.12.1', False),
        ('2.21.0', '3.10.12', False),
        ('2.21.0', '3.14.0', False),
    ],
)
def test_tpu_script_refuses_a_machine_of_another_version(tmp_path, tensorflow, python, is_right):
    (tmp_path / 'python3').write_text(PYTHON3)
    (tmp_path / 'python3').chmod(0o755)
    (tmp_path / 'tensorflow.py').write_text(f'__version__ = {tensorflow!r}')
    environment = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'HOME': str(tmp_path),
        'PYTHONPATH': str(tmp_path),
        'PYTHON_IS': python,
        'TPU_NAME': 'local',
    }
    ended = subprocess.run(['bash', TPU], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == ((7, 'goes on\n') if is_right else (1, ''))
    if not is_right:
        assert ended.stderr.startswith('needs TensorFlow 2.21 on Python 3.11 to 3.13; this machine has ' + tensorflow)


@pytest.mark.parametrize('readme', READMES, ids=lambda path: path.parent.name)
def test_readme_warns_of_the_network_and_names_what_is_there(readme):
    text = readme.read_text()
    assert '**Trusted network only.**' in text
    named = re.findall(r'\b((?:examples|gin)/[\w/.-]+\w)', text)
    assert named and all((ROOT / name).exists() for name in named)
