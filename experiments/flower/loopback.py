"""Loopback: SuperLink and SuperNodes of Flower on this machine, for trying.

As on several machines, connections to the SuperLink are encrypted, and it takes
no nodes but those whose keys are registered.
"""

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
from typing import Any, NamedTuple

from . import app_files
from fmtl_jax.running import machine

_LINK = 'loopback'
_HOST = '127.0.0.1'
_GRACE = 10.0  # Seconds between SIGTERM and SIGKILL.
_STARTS = 120.0  # Seconds for a SuperLink to start.


def check(nodes: int, timeout: float) -> None:
  """Raises a ValueError unless so many nodes can be started here.

  Args:
    nodes: How many there are, to which clients are dealt.
    timeout: Seconds after which a node has dropped out of a round.
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
    ValueError: If Flower does not start, or the experiment is refused.
  """
  print(f'Results go to {workdir}.', flush=True)
  with tempfile.TemporaryDirectory(prefix='fmtl-flower-') as place:
    folder = pathlib.Path(place)
    outcome, app = folder / 'outcome.json', folder / 'app'
    log = folder / 'server.log'
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
        'log': str(log),
      },
    )
    with stopping(folder) as programs:
      link = start_link(programs, nodes)
      submit(programs, app)
      wait(programs, log)
      for number in range(nodes):
        start_node(programs, link, number, nodes)
      code, message = outcome_of(programs, outcome, log)
  if code:
    raise ValueError(message)
  print(f'Results are in {workdir}.')
  return 0


class Programs(NamedTuple):
  """Programs of Flower that were started here.

  Attributes:
    folder: Of their logs and states, a log each.
    processes: By name.
  """

  folder: pathlib.Path
  processes: dict[str, subprocess.Popen]

  def start(self, name: str, command: Sequence[str]) -> None:
    """Starts a program, whose output goes to `NAME.log`."""
    program = pathlib.Path(sys.executable).with_name(command[0])
    with open(self.folder / f'{name}.log', 'ab') as log:
      self.processes[name] = subprocess.Popen(
        [str(program), *command[1:]],
        env={**os.environ, **_environment(self.folder)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def kill(self, name: str) -> None:
    """Ends a program with all that it has started, as a loss of power does."""
    _end([self.processes.pop(name).pid], [signal.SIGKILL])

  def check(self) -> None:
    """Raises a ValueError if one of them has ended by itself."""
    for name, process in self.processes.items():
      if process.poll():
        raise ValueError(
          f'Expected {name} of Flower to run until the end, but it said: '
          f'{last_line(self.folder / f"{name}.log")}'
        )


@contextlib.contextmanager
def stopping(folder: pathlib.Path) -> Iterator[Programs]:
  """Programs in a folder, all of which are stopped at the end."""
  programs = Programs(folder, {})
  try:
    yield programs
  finally:
    _end([process.pid for process in programs.processes.values()])


def _end(
  pids: Sequence[int],
  signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGKILL),
) -> None:
  """Ends processes and all that they have started, in whatever session."""
  family = _descendants(pids)
  for number in signals:
    for pid in family:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    end = time.monotonic() + _GRACE
    while any(map(_runs, family)) and time.monotonic() < end:
      time.sleep(0.05)


def _descendants(pids: Sequence[int]) -> list[int]:
  """Processes and all that they have started, the youngest last."""
  table = subprocess.run(
    ['ps', '-A', '-o', 'pid=,ppid='], capture_output=True, check=True, text=True
  ).stdout
  parents = [tuple(map(int, line.split())) for line in table.splitlines()]
  found = list(pids)
  for pid in found:
    found += [child for child, parent in parents if parent == pid]
  return found


def _runs(pid: int) -> bool:
  """Whether a process runs; one of ours that has ended is taken note of."""
  with contextlib.suppress(ChildProcessError):
    return os.waitpid(pid, os.WNOHANG)[0] == 0
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def start_link(programs: Programs, nodes: int) -> int:
  """Starts a SuperLink that takes as many nodes; returns its port.

  Its certificates and the keys of its nodes are in the folder `keys`.
  """
  from . import certificates  # What it needs comes with Flower.

  port, keys = free_port(), programs.folder / 'keys'
  keys.mkdir()
  certificates.write(keys, nodes, [])
  authority = keys / certificates.AUTHORITY
  config = programs.folder / 'flwr' / 'config.toml'
  config.parent.mkdir()
  config.write_text(
    f'[superlink]\ndefault = "{_LINK}"\n\n[superlink.{_LINK}]\n'
    f'address = "{_HOST}:{port}"\n'
    f'root-certificates = {json.dumps(str(authority))}\n',
    encoding='utf-8',
  )
  programs.start(
    'superlink',
    [
      *('flower-superlink', '--host', _HOST, '--port', str(port)),
      *('--ssl-ca-certfile', str(authority)),
      *('--ssl-certfile', str(keys / certificates.CERTIFICATE)),
      *('--ssl-keyfile', str(keys / certificates.KEY)),
      '--enable-supernode-auth',
      '--disable-runtime-dependency-installation',
    ],
  )
  _wait_for(programs, port)
  names = [f'node_{number}' for number in range(nodes)]
  for name in names:
    key = str(keys / f'{name}.pub')
    programs.start(
      f'register_{name}',
      ['flwr', 'supernode', 'register', key, _LINK, '--name', name],
    )
  for name in names:
    programs.processes[f'register_{name}'].wait(_STARTS)
  programs.check()
  return port


def _wait_for(programs: Programs, port: int) -> None:
  """Waits until a SuperLink listens on a port."""
  end = time.monotonic() + _STARTS
  while time.monotonic() < end:
    programs.check()
    with contextlib.suppress(OSError):
      socket.create_connection((_HOST, port), 1).close()
      return
    time.sleep(0.1)
  raise ValueError(
    f'Expected a SuperLink of Flower to start within {_STARTS:g} s, but it did '
    'not; try again when this machine has less to do.'
  )


def start_node(programs: Programs, link: int, number: int, count: int) -> None:
  """Starts a SuperNode, which has a folder `node_N`.

  Args:
    programs: That it is one of, as `supernode_N`.
    link: The port of the SuperLink.
    number: Which node it is.
    count: How many there are.
  """
  from . import certificates

  keys = programs.folder / 'keys'
  own = programs.folder / f'node_{number}'
  config = f'partition-id={number} num-partitions={count} folder="{own}"'
  programs.start(
    f'supernode_{number}',
    [
      *('flower-supernode', '--superlink', f'{_HOST}:{link}'),
      *('--root-certificates', str(keys / certificates.AUTHORITY)),
      *('--auth-supernode-private-key', str(keys / f'node_{number}')),
      *('--port', str(free_port()), '--node-config', config),
    ],
  )


def submit(programs: Programs, app: pathlib.Path) -> None:
  """Sends an app to the SuperLink, which runs it."""
  programs.start('run', ['flwr', 'run', str(app), _LINK])
  programs.processes['run'].wait(_STARTS)
  programs.check()


def _environment(folder: pathlib.Path) -> Mapping[str, str]:
  """Of all programs of Flower here."""
  path = [os.getcwd(), *filter(None, [os.environ.get('PYTHONPATH')])]
  scripts = str(pathlib.Path(sys.executable).parent)
  kept = {}
  if sys.dont_write_bytecode:  # Each message would compile Flower's sources.
    bytecode = machine.cache_folder() / 'bytecode'
    kept = {
      'PYTHONDONTWRITEBYTECODE': '',
      'PYTHONPYCACHEPREFIX': os.environ.get(
        'PYTHONPYCACHEPREFIX', str(bytecode)
      ),
    }
  return kept | {
    'FLWR_HOME': str(folder / 'flwr'),
    'FLWR_TELEMETRY_ENABLED': '0',
    'FLWR_SUPEREXEC_TASK_POLL_INTERVAL': '0.05',
    'PATH': os.pathsep.join([scripts, os.environ.get('PATH', '')]),
    'PYTHONPATH': os.pathsep.join(path),
  }


def free_port() -> int:
  """A port of loopback that nobody listens on."""
  with socket.socket() as found:
    found.bind((_HOST, 0))
    return found.getsockname()[1]


def wait(programs: Programs, path: pathlib.Path) -> None:
  """Waits for a file."""
  while not path.exists():
    programs.check()
    time.sleep(0.2)


def outcome_of(
  programs: Programs, path: pathlib.Path, log: pathlib.Path
) -> tuple[int, str]:
  """Shows what the server says until it has ended: its code and error."""
  shown = _followed(log)
  while not path.exists():
    next(shown)
    programs.check()
    time.sleep(0.2)
  next(shown)
  found = read_json(path)
  return found['code'], found['message']


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """What a file of JSON holds."""
  return json.loads(path.read_text(encoding='utf-8'))


def _followed(log: pathlib.Path) -> Iterator[None]:
  """Prints what is new in a log, each time it is asked."""
  with open(log, encoding='utf-8', errors='replace') as file:
    while True:
      sys.stderr.write(file.read())
      sys.stderr.flush()
      yield


def last_line(log: pathlib.Path) -> str:
  """The last line of a log that is not empty, of errors if it has some."""
  lines = [
    line.strip()
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines()
    if line.strip()
  ]
  told = [x for x in lines if 'INFO' not in x and 'For more info' not in x]
  return ['no word', *lines, *told][-1]
