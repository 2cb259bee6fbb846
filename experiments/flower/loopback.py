"""Loopback: SuperLink and SuperNodes of Flower on this machine, for trying."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib.util
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

from . import app_files

_LINK = 'loopback'
_GRACE = 10.0  # Seconds between SIGTERM and SIGKILL.
_STARTS = 120.0  # Seconds for a SuperLink to start.


def run(
  flags: Sequence[str],
  workdir: pathlib.Path,
  nodes: int,
  timeout: float,
  resume: str,
) -> int:
  """Runs an experiment on nodes of this machine; returns an exit code.

  Args:
    flags: Those of the experiment: its config, fields, and cases.
    workdir: Where results go.
    nodes: How many there are, to which clients are dealt.
    timeout: Seconds after which a node has dropped out of a round.
    resume: As of `train_and_evaluate`.

  Raises:
    ValueError: If Flower is not installed, or does not start.
  """
  if importlib.util.find_spec('flwr') is None:
    raise ValueError(
      'Expected Flower for --engine=flower, got none; install it with `pip '
      "install 'fmtl_jax[flower]'`."
    )
  if nodes < 1 or timeout <= 0:
    raise ValueError(
      f'Expected --nodes >= 1 and --node_timeout > 0, got {nodes} and '
      f'{timeout:g}.'
    )
  print(f'Results go to {workdir}.', flush=True)
  with tempfile.TemporaryDirectory(prefix='fmtl-flower-') as place:
    folder = pathlib.Path(place)
    outcome, app = folder / 'outcome.json', folder / 'app'
    app.mkdir()
    app_files.write(
      app,
      {
        'flags': shlex.join(flags),
        'nodes': nodes,
        'timeout': timeout,
        'workdir': str(workdir.absolute()),
        'resume': resume,
        'outcome': str(outcome),
      },
    )
    with contextlib.ExitStack() as stack:
      link = started(stack, folder)
      for number in range(nodes):
        start_node(stack, folder, link, number, nodes)
      log = submit(stack, folder, app, link)
      code, message = _wait(outcome, folder / f'{log}.log')
  if code:
    raise ValueError(message)
  print(f'Results are in {workdir}.')
  return 0


def started(stack: contextlib.ExitStack, folder: pathlib.Path) -> int:
  """Starts a SuperLink; returns its port, on which it listens."""
  port = free_port()
  config = folder / 'flwr' / 'config.toml'
  config.parent.mkdir()
  config.write_text(
    f'[superlink]\ndefault = "{_LINK}"\n\n[superlink.{_LINK}]\n'
    f'address = "127.0.0.1:{port}"\ninsecure = true\n',
    encoding='utf-8',
  )
  process = start(
    stack,
    folder,
    'superlink',
    [
      *('flower-superlink', '--insecure', '--host', '127.0.0.1'),
      *('--port', str(port), '--disable-runtime-dependency-installation'),
    ],
  )
  end = time.monotonic() + _STARTS
  while time.monotonic() < end and process.poll() is None:
    with contextlib.suppress(OSError):
      socket.create_connection(('127.0.0.1', port), 1).close()
      return port
    time.sleep(0.1)
  raise ValueError(
    'Expected a SuperLink of Flower to start, but it did not: '
    + _last_line(folder / 'superlink.log')
  )


def start_node(
  stack: contextlib.ExitStack,
  folder: pathlib.Path,
  link: int,
  number: int,
  count: int,
) -> subprocess.Popen:
  """Starts a SuperNode; its process group has all that belongs to it."""
  own = folder / f'node_{number}'
  config = f'partition-id={number} num-partitions={count} folder="{own}"'
  return start(
    stack,
    folder,
    f'supernode_{number}',
    [
      *('flower-supernode', '--insecure', '--superlink', f'127.0.0.1:{link}'),
      *('--port', str(free_port()), '--node-config', config),
    ],
  )


def submit(
  stack: contextlib.ExitStack,
  folder: pathlib.Path,
  app: pathlib.Path,
  link: int,
) -> str:
  """Sends an app to a SuperLink, which runs it; returns where its log goes."""
  del link  # That of the config in FLWR_HOME.
  sent = start(stack, folder, 'run', ['flwr', 'run', str(app), _LINK])
  if sent.wait(_STARTS):
    raise ValueError(
      f'Expected Flower to run the app, but it did not: '
      f'{_last_line(folder / "run.log")}'
    )
  return 'superlink'


def start(
  stack: contextlib.ExitStack,
  folder: pathlib.Path,
  name: str,
  command: Sequence[str],
) -> subprocess.Popen:
  """Starts a program of Flower, whose process group ends with the stack."""
  program = pathlib.Path(sys.executable).with_name(command[0])
  log = stack.enter_context(open(folder / f'{name}.log', 'ab'))
  process = subprocess.Popen(
    [str(program), *command[1:]],
    env={**os.environ, **_environment(folder)},
    stdin=subprocess.DEVNULL,
    stdout=log,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )
  stack.callback(stop, process)
  return process


def stop(process: subprocess.Popen) -> None:
  """Stops a process group: children outlive a SIGTERM of their parent."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(_GRACE)


def _environment(folder: pathlib.Path) -> Mapping[str, str]:
  """Of all programs of Flower here."""
  path = [os.getcwd(), *filter(None, [os.environ.get('PYTHONPATH')])]
  scripts = str(pathlib.Path(sys.executable).parent)
  return {
    'FLWR_HOME': str(folder / 'flwr'),
    'FLWR_TELEMETRY_ENABLED': '0',
    'FLWR_SUPEREXEC_TASK_POLL_INTERVAL': '0.05',
    'PATH': os.pathsep.join([scripts, os.environ.get('PATH', '')]),
    'PYTHONPATH': os.pathsep.join(path),
  }


def free_port() -> int:
  """A port of loopback that nobody listens on."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def _wait(outcome: pathlib.Path, log: pathlib.Path) -> tuple[int, str]:
  """Shows what the server says until it has ended: its code and error."""
  shown = _followed(log)
  while not outcome.exists():
    next(shown)
    time.sleep(0.2)
  next(shown)
  found = json.loads(outcome.read_text(encoding='utf-8'))
  return found['code'], found['message']


def _followed(log: pathlib.Path) -> Iterator[None]:
  """Prints what is new in a log, each time it is asked."""
  with open(log, encoding='utf-8', errors='replace') as file:
    while True:
      sys.stderr.write(file.read())
      sys.stderr.flush()
      yield


def _last_line(log: pathlib.Path) -> str:
  """The last line of a log that is not empty."""
  lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
  return next((x.strip() for x in reversed(lines) if x.strip()), 'no word')
