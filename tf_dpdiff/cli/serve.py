"""bin/serve: an exported model behind TensorFlow Serving's protocol, gRPC and REST, and a page to look at it."""

import argparse
import logging
import os
import pathlib
import re
import signal
import sys
import threading

from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.serving import batching
from tf_dpdiff.serving import predict
from tf_dpdiff.serving import security as security_lib
from tf_dpdiff.serving import servables
from tf_dpdiff.serving import server as server_lib

_NAME = re.compile(r'[^/:\s?#%]+')
_MIB = 2**20


def read_config(flags) -> server_lib.ServerConfig:
    """Returns the server configuration that the flags describe.

    Raises:
      ValueError: if that cannot be.
    """
    if not 0 <= flags.grace_secs <= 86400:
        raise command.UsageError(f'--grace_secs must be in [0, 86400], got {flags.grace_secs}.')
    if not 0 < flags.max_message_mib < 2048:
        raise command.UsageError(f'--max_message_mib must be in (0, 2048), got {flags.max_message_mib}.')
    joined = batching.BatchingConfig(
        max_batch_size=flags.max_batch_size,
        batch_timeout_secs=flags.batch_timeout_ms / 1000.0,
        max_queue=flags.max_queue,
        allowed_batch_sizes=flags.allowed_batch_sizes,
    )
    limits = predict.Limits(joined, flags.request_timeout_secs, int(flags.max_message_mib * _MIB))
    token, certificate, key = (
        pathlib.Path(path).expanduser() if path else None
        for path in (flags.token_file, flags.tls_certificate, flags.tls_key)
    )
    security = security_lib.Security(security_lib.read_token(token) if token else None, certificate, key)
    return server_lib.ServerConfig(
        flags.host,
        flags.rest_port,
        flags.grpc_port,
        flags.poll_secs,
        limits,
        security,
        flags.health_port,
        page=not flags.no_page,
    )


def main(flags) -> int:
    """Runs the verb."""
    config = read_config(flags)
    folder = pathlib.Path(flags.model).expanduser().resolve()
    name = flags.model_name or folder.name
    if not _NAME.fullmatch(name):
        raise command.UsageError(
            f'--model_name={name!r} cannot stand in an address; name one without /, :, ?, #, % and spaces.'
        )
    command.quieten_libraries()
    logging.basicConfig(format='%(asctime)s %(levelname)s %(message)s', level=logging.WARNING)
    logging.getLogger('tf_dpdiff.serving').setLevel(logging.INFO)
    for library in ('uvicorn.error', 'asyncio'):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # What clients send wrong is told to them.
    try:
        with progress.working('serve', 'loading the model and warming it up'):
            server = server_lib.ModelServer(folder, name, config)
    except servables.LoadError as error:
        raise command.UsageError(str(error)) from error
    stop = threading.Event()

    def ask_to_stop(number, unused_frame):
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # A second one ends the process at once.

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    server.start()
    host, secure = f'[{flags.host}]' if ':' in flags.host else flags.host, 's' if config.security.certificate else ''
    print(f'REST: http{secure}://{host}:{server.rest_port}/v1/models/{name}')
    print(f'gRPC: grpc{secure}://{host}:{server.grpc_port}/{name}')
    if config.page:
        print(f'page for browsers: http{secure}://{host}:{server.rest_port}/')
    if server.health_port is not None:
        print(f'health checks alone, by gRPC for everyone: {host}:{server.health_port}')
    print(f'serving version {server.newest_version()} of {name}; Ctrl-C stops', flush=True)
    stop.wait()
    print('stopping: requests that have begun are answered', flush=True)
    code = command.DONE if server.stop(flags.grace_secs) else command.FAILED
    if code == command.DONE:
        print('stopped')
    else:
        print(f'serve: error: not all requests were answered in --grace_secs={flags.grace_secs:g}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Threads that still run or load a model would keep the process alive, or break its end.


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(','))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not whole numbers with commas between, as in 8,64,256'
        ) from error


def make_parser() -> command.Parser:
    """Makes the parser of the flags."""
    parser = command.Parser('serve', __doc__)
    shown = ' (default: %(default)s)'
    parser.add_argument('model', help='folder of an exported model, which holds its versions 1/, 2/, ...')
    parser.add_argument('--model_name', help="the model's name in requests (default: the folder's name)")
    parser.add_argument('--host', default='127.0.0.1', help='any but this machine alone needs TLS and a token' + shown)
    parser.add_argument('--rest_port', type=int, default=8501, help='0 for any that is free' + shown)
    parser.add_argument('--grpc_port', type=int, default=8500, help='0 for any that is free' + shown)
    parser.add_argument(
        '--health_port',
        type=int,
        help='one more port, where gRPC health checks alone are answered, without TLS and token, as '
        "Kubernetes' probes ask; 0 for any that is free (default: only on the gRPC port)",
    )
    parser.add_argument('--no_page', action='store_true', help='no page for browsers at the REST address')
    parser.add_argument('--token_file', metavar='FILE', help='holds the token that clients send as a bearer token')
    parser.add_argument('--tls_certificate', metavar='FILE', help='PEM')
    parser.add_argument('--tls_key', metavar='FILE', help='PEM')
    parser.add_argument('--max_batch_size', type=int, default=256, help='rows that are run at once' + shown)
    parser.add_argument(
        '--allowed_batch_sizes',
        type=_sizes,
        default=(),
        metavar='N,N,...',
        help='rows that batches are filled up to; a single number makes each image the same bit for bit '
        'whatever it is joined with (default: as they come)',
    )
    parser.add_argument('--batch_timeout_ms', type=float, default=5.0, help='how long a batch waits to be full' + shown)
    parser.add_argument('--max_queue', type=int, default=256, help='requests that wait; more are refused' + shown)
    parser.add_argument('--request_timeout_secs', type=float, default=60.0, help='for one answer' + shown)
    parser.add_argument('--max_message_mib', type=float, default=16.0, help='size of a request' + shown)
    parser.add_argument('--poll_secs', type=float, default=2.0, help='how often to look for new versions' + shown)
    parser.add_argument('--grace_secs', type=float, default=30.0, help='for answers after Ctrl-C or SIGTERM' + shown)
    return parser


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/serve."""
    parser = make_parser()
    sys.exit(command.run(parser, main, argv))
