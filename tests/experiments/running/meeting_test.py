"""Law: processes that do not fit, or lose one, all end with one sentence."""

from concurrent import futures
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from absl.testing import absltest
from absl.testing import parameterized

from experiments.running import meeting
from experiments.running import watch
from fmtl_jax.storage import critical

ROOT = pathlib.Path(__file__).resolve().parents[3]
SAME = {'run.rounds': 4}
SHORT = 1.0

# Joins, prints that it is there, and reads its fate from standard input.
PEER = """
import os, sys
from experiments.running import meeting
from experiments.running import watch
place = meeting.place_of(sys.argv[1])
me = meeting.Member(int(sys.argv[2]), int(sys.argv[3]), {'run.rounds': 4})
def end(reason):
  print(reason, flush=True)
  os._exit(2)
met = meeting.meet(place, me, 10)
watcher = watch.Watch(me, place, met, end, float(sys.argv[4]))
print('there', flush=True)
word = sys.stdin.readline().strip()
watcher.leave('' if word == 'done' else word)
"""


def free_place():
  """A port of this machine that nobody listens at."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return meeting.Place('localhost', probe.getsockname()[1])


def together(*members, place=None, seconds=SHORT):
  """What `meet` returns, or raises, in processes that start together."""
  place = place or free_place()

  def one(member):
    try:
      met = meeting.meet(place, member, seconds)
    except ValueError as error:
      return str(error)
    for connection in met.peers.values():
      if not member.number:
        connection.send(member.hello())
    if met.listener is not None:
      met.listener.close()
    return met

  with futures.ThreadPoolExecutor(len(members)) as pool:
    return list(pool.map(one, members))


class PlaceTest(parameterized.TestCase):
  @parameterized.parameters(
    ('localhost:12345', 'localhost', 12345),
    ('10.0.0.1:1', '10.0.0.1', 1),
    ('[::1]:65535', '::1', 65535),
  )
  def test_host_and_port(self, text, host, port):
    place = meeting.place_of(text)
    self.assertEqual(place, (host, port))
    self.assertEqual(str(place), text)

  @parameterized.parameters(
    *('localhost', 'localhost:', ':12345', 'localhost:0', 'localhost:65536'),
    *('localhost:http', 'localhost:-1', 'localhost:9999999999', '', '²:²'),
  )
  def test_anything_else_is_reported(self, text):
    with self.assertRaisesRegex(ValueError, 'HOST:PORT with a port from 1'):
      meeting.place_of(text)


class MeetTest(parameterized.TestCase):
  def test_those_who_fit_are_connected(self):
    first, *others = together(
      *(meeting.Member(n, 3, SAME) for n in range(3)), seconds=10
    )
    self.assertEqual(sorted(first.peers), [1, 2])
    self.assertEqual([list(met.peers) for met in others], [[0], [0]])

  def test_who_is_missing_is_named(self):
    start = time.monotonic()
    found = together(meeting.Member(0, 3, SAME), meeting.Member(2, 3, SAME))
    self.assertLess(time.monotonic() - start, 3)
    # One whose time ends first says it in its own words, and has left.
    left = 'Process 2 waited 1 s' in found[1]
    missing = 'Process(es 1, 2| 1)' if left else 'Process 1'
    self.assertRegex(found[0], f'^{missing} of --num_processes=3 did not come')
    self.assertTrue(left or found[1] == found[0], found[1])

  def test_where_nobody_listens(self):
    found = together(meeting.Member(1, 2, SAME))
    self.assertRegex(
      found[0], r'^Process 1 waited 1 s .*localhost:\d+ \(Connection refused\)'
    )

  @parameterized.named_parameters(
    (
      'unlike_numbers_of_processes',
      (meeting.Member(0, 2, SAME), meeting.Member(1, 3, SAME)),
      'Process 1 was started with --num_processes=3 and process 0 with 2;',
    ),
    (
      'twice_the_same',
      tuple(meeting.Member(n, 3, SAME) for n in (0, 1, 1)),
      'Process 1 was started twice;',
    ),
    (
      'twice_the_first',
      tuple(meeting.Member(n, 3, SAME) for n in (0, 0, 1)),
      'Process 0 was started twice;',
    ),
    (
      'another_experiment',
      (
        meeting.Member(0, 2, {'a': 1, 'run.rounds': 4}),
        meeting.Member(1, 2, {'run.rounds': 5, 'a': 1}),
      ),
      r'differs in run.rounds \(4 in process 0, 5 in process 1\);',
    ),
    (
      'a_number_out_of_range',
      (meeting.Member(0, 2, SAME), meeting.Member(2, 2, SAME)),
      'with --process_id=2 of 2; give them numbers from 0 to 1',
    ),
  )
  def test_what_does_not_fit_ends_all(self, members, sentence):
    start = time.monotonic()
    found = together(*members, seconds=3)
    for one in found:
      # One who comes after the others were told finds nobody.
      self.assertRegex(str(one), f'{sentence}|waited 3 s for process 0')
      self.assertNotIn('\n', str(one))
    self.assertRegex(found[0], sentence)
    self.assertLess(time.monotonic() - start, 5)

  @parameterized.parameters(b'SSH-2.0-OpenSSH_9.2\r\n', b'\0\0\0\2{}', b'')
  def test_a_port_that_another_program_has(self, says):
    with socket.create_server(('127.0.0.1', 0)) as other:
      place = meeting.Place('localhost', other.getsockname()[1])
      taken = []

      def serve():
        with contextlib.suppress(OSError):
          while True:
            sock, _ = other.accept()
            taken.append(sock)
            sock.sendall(says)

      threading.Thread(target=serve, daemon=True).start()
      first, second = together(
        *(meeting.Member(n, 2, SAME) for n in range(2)), place=place
      )
      other.shutdown(socket.SHUT_RDWR)
    for sock in taken:
      sock.close()
    self.assertRegex(first, 'cannot listen at .*Address already in use.*choose')
    self.assertRegex(
      second,
      'is not a process of this program; choose' if says else 'waited 1 s',
    )

  @parameterized.parameters(
    b'GET / HTTP/1.1\r\n\r\n',
    b'\xff\xff\xff\xff',
    b'\0\0\0\2[]',
    b'\0\0\0\2{}',
    b'\0\0\0\x0a' + b'[' * 10,
    b'\0',
    b'',
  )
  def test_strangers_disturb_nobody(self, says):
    place = free_place()
    members = [meeting.Member(n, 2, SAME) for n in range(2)]
    with futures.ThreadPoolExecutor() as pool:
      first = pool.submit(together, members[0], place=place, seconds=10)
      stranger = meeting.connect(place, time.monotonic() + 5)
      with contextlib.closing(stranger.socket):
        stranger.socket.sendall(says)
        second = together(members[1], place=place, seconds=10)
        met = [*first.result(), *second]
    self.assertEqual([list(each.peers) for each in met], [[1], [0]])

  def test_one_who_left_may_come_again(self):
    place, me = free_place(), meeting.Member(1, 3, SAME)
    with futures.ThreadPoolExecutor() as pool:
      first = pool.submit(meeting.meet, place, meeting.Member(0, 3, SAME), 10)
      left = meeting.connect(place, time.monotonic() + 5)
      left.send(me.hello())
      time.sleep(0.1)
      left.close()
      time.sleep(0.1)
      others = [
        pool.submit(meeting.meet, place, meeting.Member(n, 3, SAME), 10)
        for n in (1, 2)
      ]
      met = first.result()
      for connection in met.peers.values():
        connection.send(me.hello())
      self.assertEqual(sorted(met.peers), [1, 2])
      self.assertEqual([list(o.result().peers) for o in others], [[0], [0]])
      met.listener.close()


class WatchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.place = free_place()
    self.ended, self.reasons = threading.Event(), []

  def peer(self, number, count=2, seconds=5.0):
    """Starts a process."""
    process = subprocess.Popen(
      [
        *(sys.executable, '-c', PEER, str(self.place)),
        *(str(number), str(count), str(seconds)),
      ],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.communicate)
    self.addCleanup(process.kill)
    return process

  def watch(self, number=0, count=2, seconds=5.0):
    """Watches in this process."""

    def end(reason):
      with critical.uninterrupted():
        self.reasons.append(reason)
      self.ended.set()

    me = meeting.Member(number, count, SAME)
    met = meeting.meet(self.place, me, 10)
    watcher = watch.Watch(me, self.place, met, end, seconds)
    self.addCleanup(watcher.leave)
    return watcher

  def check_ended(self, sentence, within=3.0):
    self.assertTrue(self.ended.wait(within))
    self.assertRegex(self.reasons[0], sentence)
    self.assertLen(self.reasons, 1)

  @parameterized.parameters(0, 1)
  def test_one_who_is_killed_is_named(self, number):
    peer = self.peer(number)
    self.watch(1 - number)
    self.assertEqual(peer.stdout.readline(), 'there\n')
    self.assertFalse(self.ended.wait(0.5))
    peer.kill()
    self.check_ended(rf'^Process {number} went away \(127.0.0.1\)$')

  def test_one_who_is_silent_is_named(self):
    peer = self.peer(1)
    self.watch(seconds=1.0)
    peer.stdout.readline()
    self.assertFalse(self.ended.wait(1.5))  # It says that it is there.
    peer.send_signal(signal.SIGSTOP)
    self.check_ended('^Process 1 has not answered for 1 s', within=4)

  def test_everyone_hears_of_it(self):
    peers = [self.peer(n, 3) for n in (1, 2)]
    self.watch(count=3)
    for peer in peers:
      peer.stdout.readline()
    peers[0].communicate('Process 1 ended (no memory)\n')
    self.check_ended(r'^Process 1 ended \(no memory\)$')
    output, _ = peers[1].communicate()
    self.assertEqual(output, 'Process 1 ended (no memory)\n')
    self.assertEqual(peers[1].returncode, 2)

  @parameterized.parameters(0, 1)
  def test_one_who_is_done_may_go(self, number):
    peer = self.peer(number)
    watcher = self.watch(1 - number)
    peer.communicate('done\n')
    self.assertFalse(self.ended.wait(0.5))
    watcher.leave()
    self.assertEmpty(self.reasons)

  def test_nothing_is_cut_off(self):
    peer = self.peer(1)
    self.watch()
    peer.stdout.readline()
    with critical.uninterrupted():
      peer.kill()
      self.assertFalse(self.ended.wait(1.0))
      self.assertEmpty(self.reasons)
    self.check_ended('^Process 1 went away')

  def test_one_who_comes_late_is_reported(self):
    peer = self.peer(1)
    self.watch()
    peer.stdout.readline()
    with self.assertRaisesRegex(ValueError, 'Process 1 was started twice'):
      meeting.meet(self.place, meeting.Member(1, 2, SAME), 5)
    self.check_ended('^Process 1 was started twice')  # In the beginning.

  def test_a_run_is_not_ended_by_a_mistake_elsewhere(self):
    peer = self.peer(1)
    self.watch(seconds=1.0)
    peer.stdout.readline()
    time.sleep(1.1)
    with self.assertRaisesRegex(ValueError, '--num_processes=3 and process 0'):
      meeting.meet(self.place, meeting.Member(2, 3, SAME), 5)
    self.assertFalse(self.ended.wait(0.3))


if __name__ == '__main__':
  absltest.main()
