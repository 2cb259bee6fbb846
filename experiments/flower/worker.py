"""The worker of a node: a warm process that answers all of its messages.

`client_app` starts it with the first message. It ends with the process that
starts ClientApps, which ends with the SuperNode.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import tempfile
import threading
import time
import traceback

from absl import flags

from ..console import command_line
from ..console import config_files
from ..console import programs
from ..folders import files
from . import client_app

_CONFIG = config_files.define_config()
_CASES = command_line.define_cases()
_FOLDER = command_line.define_path('folder', 'Of the node.')
_NODE = flags.DEFINE_integer('node', 0, 'Which node it is, from 0 on.')
_OF = flags.DEFINE_integer('of', 1, 'How many nodes there are.')
_RUN = flags.DEFINE_integer('run', 0, 'The number of the run, of Flower.')
_PARENT = flags.DEFINE_integer('parent', 0, 'The process to end with.')


def main() -> int:
  """Answers until its parent ends, or it is told to end."""
  from . import node as node_lib

  threading.Thread(target=_end_with, args=(_PARENT.value,), daemon=True).start()
  node, error = None, ''
  try:
    node = node_lib.Node(
      _CONFIG.value,
      command_line.override_values(),
      _NODE.value,
      _OF.value,
      _FOLDER.value,
    )
  except ValueError as wrong:  # Said in the answer to the first message.
    error = str(wrong)
  with (
    tempfile.TemporaryDirectory(prefix='fmtl-node-') as place,
    contextlib.closing(socket.socket(socket.AF_UNIX)) as server,
  ):
    address = f'{place}/socket'  # Short: addresses have a hundred characters.
    server.bind(address)
    server.listen()
    found = {'socket': address, 'run': _RUN.value, 'pid': os.getpid()}
    files.write_text(
      pathlib.Path(_FOLDER.value) / 'worker.json', json.dumps(found)
    )
    while True:
      connection, _ = server.accept()
      with contextlib.closing(connection):
        try:
          request, data = client_app.receive(connection)
          if request['kind'] == 'end':
            client_app.send(connection, {}, b'')
            return 0
          client_app.send(connection, *_answer(node, error, request, data))
        except (EOFError, OSError):  # Flower ended the one who asked.
          continue


def _answer(node, error, request, data):
  """The answer to a request; an error is a sentence."""
  if node is None:
    return {'error': error}, b''
  try:
    return node.answer(request, data)
  except Exception as found:  # It must not end the worker.
    traceback.print_exc()
    return {'error': command_line.one_sentence(str(found))}, b''


def _end_with(pid: int) -> None:
  """Ends this process when another one has ended."""
  while pid:
    try:
      os.kill(pid, 0)
    except OSError:
      sys.stderr.flush()
      os._exit(0)
    time.sleep(0.5)


if __name__ == '__main__':
  programs.run(main)
