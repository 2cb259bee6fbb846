"""The ClientApp: it hands each message to the worker of its node.

Flower starts an interpreter for every message. This file is all that it
imports beside Flower: data, JAX and compiled programs stay in the worker, a
process that the first message to a node starts, and that ends with the node. It
is copied into the app, and knows nothing of this package.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import socket
import struct
import subprocess
import sys
import time

from flwr import app as records
from flwr import clientapp

BUFFER = 'packed'  # One array of bytes, as `packing.pack` makes them.
_LENGTHS = struct.Struct('<QQ')
_START_SECONDS = 600.0  # For a worker: it imports JAX.

app = clientapp.ClientApp()


def record(about: dict, data: bytes) -> records.RecordDict:
  """The content of a message."""
  packed = records.Array('uint8', (len(data),), 'bytes', data)
  return records.RecordDict(
    {
      'about': records.ConfigRecord({'json': json.dumps(about)}),
      'arrays': records.ArrayRecord({BUFFER: packed}),
    }
  )


def opened(content: records.RecordDict) -> tuple[dict, bytes]:
  """The inverse of `record`."""
  about = json.loads(str(content.config_records['about']['json']))
  return about, content.array_records['arrays'][BUFFER].data


def send(connection: socket.socket, about: dict, data: bytes) -> None:
  """Sends a JSON object and bytes over a local socket."""
  text = json.dumps(about).encode()
  connection.sendall(_LENGTHS.pack(len(text), len(data)) + text + data)


def receive(connection: socket.socket) -> tuple[dict, bytes]:
  """Receives what `send` sent; an EOFError where the other end is gone."""
  text, data = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
  return json.loads(_exactly(connection, text)), _exactly(connection, data)


def _exactly(connection, size):
  """So many bytes."""
  parts = []
  while size:
    part = connection.recv(min(size, 1 << 20))
    if not part:
      raise EOFError('The worker of this node has ended.')
    parts.append(part)
    size -= len(part)
  return b''.join(parts)


@app.query()
@app.train()
@app.evaluate()
def forward(
  message: records.Message, context: records.Context
) -> records.Message:
  """Answers a message with what the worker says."""
  imported = _age()
  about, data = opened(message.content)
  start = time.monotonic()
  with contextlib.closing(_worker(context)) as connection:
    send(connection, about, data)
    answer, packed = receive(connection)
  if 'error' in answer:
    raise ValueError(answer['error'])
  answer |= {'process': imported, 'worker': time.monotonic() - start}
  return records.Message(record(answer, packed), reply_to=message)


def _age() -> float:
  """Seconds since this process was started, 0 where nobody knows."""
  try:
    fields = (
      pathlib.Path('/proc/self/stat')
      .read_text(encoding='ascii')
      .rpartition(')')[2]
    )
    started = int(fields.split()[19]) / os.sysconf('SC_CLK_TCK')
    uptime = float(
      pathlib.Path('/proc/uptime').read_text(encoding='ascii').split()[0]
    )
  except (OSError, ValueError, IndexError):
    return 0.0
  return uptime - started


def _worker(context: records.Context) -> socket.socket:
  """A connection to the worker of this node, which is started if need be."""
  folder = pathlib.Path(str(context.node_config.get('folder', '')))
  if not folder.name:
    raise ValueError(
      'Expected a folder in --node-config, where this node writes what its '
      'clients keep; write folder="/path" there.'
    )
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'worker.lock', 'w', encoding='utf-8') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if connection := _connected(folder, context.run_id):
      return connection
    process = _started(folder, context)
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
      if connection := _connected(folder, context.run_id):
        return connection
      if process.poll() is not None:
        break
      time.sleep(0.05)
  raise RuntimeError(f'No worker has started; {folder}/worker.log says why.')


def _connected(folder: pathlib.Path, run_id: int) -> socket.socket | None:
  """A connection to a worker of this run, None if there is none."""
  try:
    found = json.loads((folder / 'worker.json').read_text(encoding='utf-8'))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(found['socket'])
  except (OSError, ValueError, KeyError):
    return None
  if found['run'] == run_id:
    return connection
  with contextlib.suppress(EOFError, OSError):  # Of a run before this one.
    send(connection, {'kind': 'end'}, b'')
    receive(connection)
  connection.close()
  return None


def _started(
  folder: pathlib.Path, context: records.Context
) -> subprocess.Popen:
  """A new worker, which ends with the process that starts ClientApps."""
  run, node = context.run_config, context.node_config
  command = [
    *(sys.executable, '-m', f'{run["package"]}.worker'),
    f'--folder={folder}',
    f'--run={context.run_id}',
    f'--node={node.get("partition-id", 0)}',
    f'--of={node.get("num-partitions", 1)}',
    f'--parent={os.getppid()}',
    *shlex.split(str(run['flags'])),
    *shlex.split(str(node.get('flags', ''))),
  ]
  (folder / 'worker.json').unlink(missing_ok=True)
  with open(folder / 'worker.log', 'ab') as log:
    return subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
