"""Law: a signal ends a run between two rounds, never inside one."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

from absl.testing import absltest
from absl.testing import parameterized

from experiments.running import interrupts

ROOT = pathlib.Path(__file__).resolve().parents[3]


class NoticedTest(parameterized.TestCase):
  @parameterized.parameters(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  def test_a_signal_is_noted_and_the_block_continues(self, number):
    old = signal.signal(number, signal.default_int_handler)  # Not of `nohup`.
    self.addCleanup(signal.signal, number, old)
    with interrupts.noticed() as flag:
      self.assertIsNone(flag.signal_number)
      signal.raise_signal(number)
      self.assertEqual(flag.signal_number, number)

  def test_nohup_stays(self):
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
      with interrupts.noticed() as flag:
        signal.raise_signal(signal.SIGHUP)
        self.assertIsNone(flag.signal_number)
    finally:
      signal.signal(signal.SIGHUP, old)

  def test_handlers_are_put_back(self):
    caught = []
    for error in (None, KeyError):
      old = signal.signal(
        signal.SIGTERM, lambda number, frame: caught.append(number)
      )
      try:
        with interrupts.noticed():
          signal.raise_signal(signal.SIGTERM)
          if error is not None:
            raise error
      except KeyError:
        pass
      finally:
        signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, old)
    self.assertEqual(caught, [signal.SIGTERM] * 2)

  def test_a_second_ctrl_c_ends_at_once(self):
    with self.assertRaises(KeyboardInterrupt), interrupts.noticed():
      signal.raise_signal(signal.SIGINT)
      signal.raise_signal(signal.SIGINT)

  def test_ctrl_c_after_a_request_to_end_is_the_first_one(self):
    with interrupts.noticed() as flag:
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGINT)
    self.assertEqual(flag.signal_number, signal.SIGINT)

  def test_another_thread_leaves_signals_alone(self):
    found = []

    def work():
      before = signal.getsignal(signal.SIGINT)
      with interrupts.noticed() as flag:
        found.append(flag.signal_number)
        found.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    self.assertEqual(found, [None, True])


class BeforeTheRoundsTest(parameterized.TestCase):
  """In a process of its own, as a program begins."""

  def run_code(self, code):
    return subprocess.run(
      [sys.executable, '-c', 'import signal\n' + code],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )

  def check_stopped(self, found):
    self.assertEqual(found.stderr, f'{interrupts.AT_ONCE}\n')
    self.assertEqual(found.returncode, 128 + signal.SIGINT)

  @parameterized.parameters('end_at_once', 'raise_and_note')
  def test_one_that_a_library_swallows_ends_the_program(self, name):
    found = self.run_code(f"""
from experiments.running import interrupts
import sys
interrupts.{name}()
try:
  signal.raise_signal(signal.SIGINT)
except BaseException:
  pass  # As a callback from C++.
try:
  with interrupts.noticed():
    print('The rounds began.')
except KeyboardInterrupt:
  print(interrupts.AT_ONCE, file=sys.stderr)
  sys.exit(interrupts.EXIT_CODE)
""")
    self.check_stopped(found)
    self.assertEmpty(found.stdout)

  def test_a_second_one_waits_for_nobody(self):
    found = self.run_code("""
from experiments.running import interrupts
interrupts.raise_and_note()
try:
  signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
  signal.raise_signal(signal.SIGINT)
""")
    self.check_stopped(found)

  def test_one_while_a_program_is_imported(self):
    # Before anything else of it: JAX takes a second.
    process = subprocess.Popen(
      [sys.executable, '-v', '-m', 'experiments.main'],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    for line in process.stderr:
      if line.startswith("import 'jax.version'"):
        process.send_signal(signal.SIGINT)
        break
    errors = process.stderr.read()
    process.wait()
    process.stderr.close()
    said = [line for line in errors.splitlines() if 'Stopped' in line]
    self.assertEqual(said, [interrupts.AT_ONCE])
    self.assertNotIn('Traceback', errors)
    self.assertEqual(process.returncode, 128 + signal.SIGINT)


class InterruptedTest(parameterized.TestCase):
  @parameterized.parameters(
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)
  )
  def test_the_exit_code_is_that_of_the_signal(self, number, code):
    stop = interrupts.Interrupted(number)
    self.assertEqual(stop.exit_code, code)
    self.assertEqual(str(stop), signal.Signals(number).name)


if __name__ == '__main__':
  absltest.main()
