"""Meeting: processes find each other before JAX starts, and fit together.

Process 0 listens at the address of the coordinator. Each of the others connects
and sends its number, the number of processes, and what it is to run. If all
have come and agree, process 0 confirms it; otherwise it sends all of them the
error. The connections stay open: `watch.Watch` monitors them.

A message is four bytes with its length and then JSON. What anybody may send is
bounded in length and never evaluated; a connection that says something else is
closed and forgotten.
"""

from collections.abc import Mapping
import contextlib
import errno
import json
import selectors
import socket
import time
from typing import Any, NamedTuple

from ..configuration import hints

MAGIC = 'fmtl_jax --distributed'
VERSION = 1
WITHIN = 25.0  # Seconds.
_LONGEST = 1 << 20  # Bytes of a message.
_RETRY = 0.1  # Seconds.
_LOOPBACK = ('localhost', '127.0.0.1', '::1')
_MOST_NAMED = 4

Message = dict[str, Any]


class GoneError(Exception):
  """The other end of a connection is closed."""


class ForeignError(Exception):
  """The other end is something else than a process of this program."""


class Connection:
  """Messages over a socket.

  Attributes:
    socket: The socket.
    host: Where the other end is.
  """

  def __init__(self, sock: socket.socket, seconds: float = 1.0):
    """Takes a socket.

    Args:
      sock: Connected.
      seconds: How long a message may take to leave.
    """
    sock.settimeout(seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.socket = sock
    self.host = str(sock.getpeername()[0])
    self._received = b''

  def fileno(self) -> int:
    """Of the socket; for selectors."""
    return self.socket.fileno()

  def send(self, message: Message) -> None:
    """Sends a message; a closed connection is noticed by `messages`."""
    text = json.dumps(message).encode()
    with contextlib.suppress(OSError):
      self.socket.sendall(len(text).to_bytes(4, 'big') + text)

  def messages(self) -> list[Message]:
    """What has come; to be called where something has.

    Raises:
      GoneError: If the other end is closed, and nothing came before.
      ForeignError: If it sends something else.
    """
    found: list[Message] = []
    try:
      received = self.socket.recv(1 << 16)
    except TimeoutError:
      return found
    except OSError as error:
      raise GoneError(str(error)) from error
    if not received:
      raise GoneError('closed')
    self._received += received
    while (message := self._next()) is not None:
      found.append(message)
    return found

  def _next(self) -> Message | None:
    """The first complete message, removed from what has come."""
    if len(self._received) < 4:
      return None
    length = int.from_bytes(self._received[:4], 'big')
    if length > _LONGEST:
      raise ForeignError('too long')
    if len(self._received) < 4 + length:
      return None
    text = self._received[4 : 4 + length]
    self._received = self._received[4 + length :]
    try:
      message = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise ForeignError('no JSON') from error
    if not isinstance(message, dict):
      raise ForeignError('no JSON object')
    return message

  def receive(self, deadline: float) -> list[Message]:
    """Waits for messages; none if the deadline, of `monotonic`, passes."""
    with selectors.DefaultSelector() as selector:
      selector.register(self.socket, selectors.EVENT_READ)
      while (left := deadline - time.monotonic()) > 0:
        if selector.select(left) and (found := self.messages()):
          return found
    return []

  def close(self) -> None:
    """Closes the socket."""
    self.socket.close()


class Member(NamedTuple):
  """A process, as it introduces itself.

  Attributes:
    number: From 0 on.
    of: The number of processes that it was started with.
    about: What it is to run: JSON values by name, the same in all of them.
  """

  number: int
  of: int
  about: Mapping[str, Any]

  def hello(self) -> Message:
    """What it says first."""
    return {
      'magic': MAGIC,
      'version': VERSION,
      'number': self.number,
      'count': self.of,
      'about': dict(self.about),
    }


class Place(NamedTuple):
  """Where processes meet."""

  host: str
  port: int

  def __str__(self) -> str:
    host = f'[{self.host}]' if ':' in self.host else self.host
    return f'{host}:{self.port}'


class Met(NamedTuple):
  """What a process has after the meeting.

  Attributes:
    peers: Connections by number: of process 0 to all others, of these to it.
    listener: Of process 0, where late ones are refused; None in the others.
  """

  peers: dict[int, Connection]
  listener: socket.socket | None


def place_of(coordinator: str) -> Place:
  """Reads `HOST:PORT` or `[HOST]:PORT`.

  Raises:
    ValueError: If it is something else.
  """
  host, _, port = coordinator.rpartition(':')
  host = host.removeprefix('[').removesuffix(']')
  if not host or not port.isascii() or not port.isdigit():
    port = '0'
  if not 1 <= int(port[:6]) <= 65535:
    raise ValueError(
      'Expected --coordinator to be HOST:PORT with a port from 1 to 65535, '
      f'such as localhost:12345, got {coordinator!r}.'
    )
  return Place(host, int(port))


def meet(place: Place, me: Member, seconds: float = WITHIN) -> Met:
  """Waits until all processes are there, and compares what they run.

  Args:
    place: Where process 0 listens; the same in all of them.
    me: This process.
    seconds: How long to wait.

  Raises:
    ValueError: If some do not come, or do not fit; all that are there get the
      same sentence.
  """
  deadline = time.monotonic() + seconds
  if me.number:
    return Met({0: _join(place, me, seconds, deadline)}, None)
  try:
    listener = _listen(place)
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      _tell_the_other(place, me, min(deadline, time.monotonic() + 5))
    raise ValueError(
      f'Process 0 cannot listen at --coordinator={place} ({error.strerror}); '
      'choose another port, in all processes.'
    ) from error
  try:
    return Met(_gather(listener, place, me, seconds, deadline), listener)
  except BaseException:
    listener.close()
    raise


def _listen(place: Place) -> socket.socket:
  """Listens at a port, for this machine alone if it is named like that.

  Otherwise at all addresses: the name of a machine may be one of its own only.
  """
  if place.host in _LOOPBACK:
    family = socket.AF_INET6 if ':' in place.host else socket.AF_INET
    host = place.host if ':' in place.host else '127.0.0.1'
    return socket.create_server((host, place.port), family=family)
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ('', place.port), family=socket.AF_INET6, dualstack_ipv6=True
    )
  return socket.create_server(('', place.port))


def _gather(
  listener: socket.socket,
  place: Place,
  me: Member,
  seconds: float,
  deadline: float,
) -> dict[int, Connection]:
  """Process 0 waits for the others; their connections by number."""
  peers: dict[int, Connection] = {}
  unknown: set[Connection] = set()
  reason = ''
  with selectors.DefaultSelector() as selector:
    selector.register(listener, selectors.EVENT_READ)

    def forget(connection):
      selector.unregister(connection)
      connection.close()
      unknown.discard(connection)
      for number in [n for n, c in peers.items() if c is connection]:
        del peers[number]  # It may come again.

    while len(peers) < me.of - 1 and not reason:
      left = deadline - time.monotonic()
      if left <= 0:
        missing = sorted({*range(1, me.of)} - {*peers})
        reason = (
          f'{_names(missing)} of --num_processes={me.of} did not come to '
          f'{place} within {seconds:g} s; start all of them with the same '
          '--coordinator and --num_processes (--distributed_timeout=SECONDS '
          'waits longer).'
        )
        break
      for key, _ in selector.select(left):
        connection = key.data
        if connection is None:
          with contextlib.suppress(OSError):  # It is closed already.
            connection = Connection(listener.accept()[0])
            unknown.add(connection)
            selector.register(connection, selectors.EVENT_READ, connection)
          continue
        try:
          for message in connection.messages():
            who = introduced(message)
            reason = misfit(me, who, who.number in peers)
            if reason:
              break
            peers[who.number] = connection
            unknown.discard(connection)
        except (GoneError, ForeignError):
          forget(connection)
        if reason:
          break
  if reason:
    # Also those who have not said yet who they are.
    for connection in (*peers.values(), *unknown):
      connection.send({'error': reason})
      connection.close()
    raise ValueError(reason)
  for connection in unknown:
    connection.close()  # It tries again, and is refused.
  return peers


def introduced(message: Message) -> Member:
  """Who says hello.

  Raises:
    ForeignError: If it is something else than a process of this program.
  """
  number, count = message.get('number'), message.get('count')
  if (
    message.get('magic') != MAGIC
    or type(number) is not int
    or type(count) is not int
    or not isinstance(message.get('about'), dict)
  ):
    raise ForeignError('no hello')
  about = message['about'] | {'the protocol': message.get('version')}
  return Member(number, count, about)


def misfit(me: Member, other: Member, there: bool) -> str:
  """Why a process cannot join; '' if it can.

  Args:
    me: Process 0.
    other: Who says hello.
    there: Whether one of this number is there already.
  """
  if other.of != me.of:
    return (
      f'Process {other.number} was started with --num_processes={other.of} '
      f'and process 0 with {me.of}; start all of them with the same number.'
    )
  if not 0 <= other.number < me.of:
    return (
      f'A process was started with --process_id={other.number} of '
      f'{me.of}; give them numbers from 0 to {me.of - 1}.'
    )
  if there or other.number == me.number:
    return (
      f'Process {other.number} was started twice; give each of them a '
      f'--process_id of its own, from 0 to {me.of - 1}.'
    )
  mine, others = {**me.about, 'the protocol': VERSION}, other.about
  differ = [
    f'{name} ({hints.shown(mine.get(name))} in process 0, '
    f'{hints.shown(others.get(name))} in process {other.number})'
    for name in dict.fromkeys([*mine, *others])
    if mine.get(name) != others.get(name)
  ]
  if differ:
    return (
      f'Process {other.number} runs something else than process 0: it differs '
      f'in {hints.listed(differ, _MOST_NAMED)}; start all of them with the '
      'same command, of the same versions.'
    )
  return ''


def _names(numbers: list[int]) -> str:
  """`Process 1` or `Processes 1, 2`."""
  word = 'Process' if len(numbers) == 1 else 'Processes'
  return f'{word} {hints.listed([*map(str, numbers)])}'


def connect(place: Place, deadline: float) -> Connection:
  """Connects to process 0; waits until it is there.

  Raises:
    OSError: If it is not before the deadline, of `monotonic`.
  """
  while True:
    left = max(deadline - time.monotonic(), _RETRY)
    try:
      return Connection(socket.create_connection(place, timeout=left))
    except OSError:
      if time.monotonic() + _RETRY >= deadline:
        raise
    time.sleep(_RETRY)


def _join(
  place: Place, me: Member, seconds: float, deadline: float
) -> Connection:
  """Another process than 0 connects, and waits until all have come."""
  reason = ''
  while time.monotonic() < deadline:
    try:
      connection = connect(place, deadline)
    except OSError as error:
      reason = error.strerror or str(error)
      break
    connection.send(me.hello())
    try:
      for message in connection.receive(deadline):
        if message.get('magic') == MAGIC:
          return connection
        if isinstance(message.get('error'), str):
          connection.close()
          raise ValueError(message['error'])
        raise ForeignError('no answer')
    except GoneError:  # Such as a forwarded port whose other end is not there.
      reason = 'it closes the connection'
      time.sleep(_RETRY)
    except ForeignError as error:
      raise ValueError(
        f'What answers at --coordinator={place} is not a process of this '
        'program; choose another port, in all processes.'
      ) from error
    else:
      reason = 'it does not say that all have come'
    connection.close()
  raise ValueError(
    f'Process {me.number} waited {seconds:g} s for process 0 at '
    f'--coordinator={place} ({reason}); start all of them with the same '
    '--coordinator and --num_processes (--distributed_timeout=SECONDS waits '
    'longer).'
  )


def _tell_the_other(place: Place, me: Member, deadline: float) -> None:
  """Tells a process 0 that has the port already that there are two.

  Raises:
    ValueError: If there is one.
  """
  try:
    connection = connect(place, deadline)
  except OSError:
    return
  connection.send(me.hello())
  try:
    for message in connection.receive(deadline):
      if isinstance(message.get('error'), str):
        raise ValueError(message['error'])
  except (GoneError, ForeignError):
    pass
  finally:
    connection.close()
