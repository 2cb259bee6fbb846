"""Watch: a process ends, with an error message, when another one ended.

JAX notices after minutes, or ends the process with a core dump. Here every
process says twice a second that it is there, over the connections of
`meeting.meet`: process 0 to all others, and they to it. Whoever leaves with an
error says which; whose connection closes without a word has been killed.

JAX's own connections to its service in process 0 go through here, too: where
that process is killed, JAX would end the others at once, before they can say
why. They stay open until it is known.
"""

from collections.abc import Callable
import contextlib
import selectors
import socket
import threading
import time

from . import meeting

_ALIVE = {'alive': True}
_BETWEEN = 0.5  # Seconds between two signs of life; the same in all.
_HELLO = 5.0  # Seconds in which one who connects says who it is.


class Watch:
  """Monitors the other processes, in a thread of its own.

  Attributes:
    place: Where JAX's service is to be reached, on this machine.
  """

  def __init__(
    self,
    me: meeting.Member,
    at: meeting.Place,
    met: meeting.Met,
    end: Callable[[str], None],
    seconds: float = meeting.WITHIN,
  ):
    """Starts to watch.

    Args:
      me: This process.
      at: Where process 0 listens.
      met: Connections to the others.
      end: Ends this process, and prints the sentence that it gets.
      seconds: Without a message, after which a process counts as gone.
    """
    self._me, self._at, self._end, self._seconds = me, at, end, seconds
    self._peers = dict(met.peers)
    self._started = time.monotonic()
    self._over = threading.Event()
    self._ending = threading.Lock()
    local = socket.create_server(('127.0.0.1', 0))
    self.place = meeting.Place(*local.getsockname())
    if met.listener is None:
      self._listener, serve = local, self._to_process_0
    else:
      local.close()  # JAX's service will have this port.
      self._listener, serve = met.listener, self._late
      for connection in self._peers.values():
        connection.send(me.hello())  # All have come.
    _start(self._accept, serve)
    self._thread = _start(self._look)

  def leave(self, reason: str = '') -> None:
    """Announces the end of this process; `end` is not called any more.

    Args:
      reason: What went wrong here: the others end. '' if nothing.
    """
    with self._ending:
      self._over.set()
    for connection in self._peers.values():
      connection.send({'stopped': reason} if reason else {'done': True})
    self._thread.join()
    _close(self._listener)

  def wait(self, seconds: float) -> None:
    """Waits for `end`: an error here may be due to one that ended."""
    self._thread.join(seconds)

  def _look(self):
    """Reads messages of the others until one ends or this one leaves."""
    heard = dict.fromkeys(self._peers, time.monotonic())
    with selectors.DefaultSelector() as selector:
      for number, connection in self._peers.items():
        selector.register(connection, selectors.EVENT_READ, number)
      next_sign = 0.0
      while not self._over.is_set():
        if time.monotonic() >= next_sign:
          for number in heard:
            self._peers[number].send(_ALIVE)
          next_sign = time.monotonic() + _BETWEEN
        # What came while this thread could not run counts, too.
        for key, _ in selector.select(_BETWEEN / 2):
          number = key.data
          reason, done = self._read(number)
          heard[number] = time.monotonic()
          if reason:
            return self._stop(reason)
          if done:
            selector.unregister(key.fileobj)
            del heard[number]
        for number, last in heard.items():
          if time.monotonic() - last > self._seconds:
            return self._stop(
              f'Process {number} has not answered for {self._seconds:g} s '
              f'({self._peers[number].host})'
            )

  def _read(self, number):
    """Why everyone has to stop, if so, and whether a process is done."""
    connection = self._peers[number]
    done = False
    try:
      for message in connection.messages():
        done = done or 'done' in message
        if 'stopped' in message:
          return str(message['stopped']), False
    except (meeting.GoneError, meeting.ForeignError):
      return f'Process {number} went away ({connection.host})', False
    return '', done

  def _stop(self, reason):
    """Ends all processes."""
    with self._ending:
      if self._over.is_set():
        return
      for connection in self._peers.values():
        connection.send({'stopped': reason})
      self._end(reason)
      self._over.set()  # Where `end` returns: in tests.

  def _accept(self, serve):
    """Serves those who connect, each in a thread."""
    while True:
      try:
        sock, _ = self._listener.accept()
      except OSError:
        return
      _start(serve, sock)

  def _late(self, sock):
    """Process 0 forwards to JAX, or refuses a process that comes late."""
    try:
      connection = meeting.Connection(sock)
    except OSError:  # It is closed already.
      return sock.close()
    try:
      message = connection.receive(time.monotonic() + _HELLO)[0]
      if message.get('magic') == meeting.MAGIC and 'forward' in message:
        return self._to_jax(sock)
      other = meeting.introduced(message)
    except (meeting.GoneError, meeting.ForeignError, IndexError):
      return connection.close()
    reason = meeting.misfit(self._me, other, there=True)
    connection.send({'error': reason})
    connection.close()
    # Nothing is lost yet; later on, a run is not ended by a mistake elsewhere.
    if time.monotonic() - self._started < self._seconds:
      self._stop(reason)

  def _to_jax(self, sock):
    """Connects to JAX's service here, which may not be there yet."""
    try:
      deadline = time.monotonic() + self._seconds
      service = meeting.connect(self.place, deadline)
    except OSError:
      return sock.close()
    # What this end sends first says that it is connected.
    sock.sendall(b'.')
    self._forward(sock, service.socket)

  def _to_process_0(self, sock):
    """Connects to JAX's service in process 0."""
    try:
      deadline = time.monotonic() + self._seconds
      far = meeting.connect(self._at, deadline)
      far.send({'magic': meeting.MAGIC, 'forward': True})
      far.socket.settimeout(self._seconds)
      if far.socket.recv(1) != b'.':
        raise OSError('closed')
    except OSError:
      self._over.wait(self._seconds)
      return sock.close()
    self._forward(sock, far.socket)

  def _forward(self, near, far):
    """Copies bytes both ways until an end is closed."""
    for sock in (near, far):
      sock.settimeout(None)
      sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start(_copy, near, far, 0.0)
    # If process 0 is gone, this process ends while JAX does not know.
    _copy(far, near, 2 * _BETWEEN if self._me.number else 0.0)


def _copy(source, target, delay):
  """Copies bytes until one is closed, and closes the other some time later."""
  with contextlib.suppress(OSError):
    while data := source.recv(1 << 16):
      target.sendall(data)
  time.sleep(delay)
  with contextlib.suppress(OSError):
    target.shutdown(socket.SHUT_RDWR)
  source.close()


def _close(listener):
  """Ends `accept` in another thread, too."""
  with contextlib.suppress(OSError):
    listener.shutdown(socket.SHUT_RDWR)
  listener.close()


def _start(function: Callable[..., None], *args) -> threading.Thread:
  thread = threading.Thread(target=function, args=args, daemon=True)
  thread.start()
  return thread
