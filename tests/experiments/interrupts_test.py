"""Law: a signal ends a run between two rounds, never inside one."""

import signal
import threading

from absl.testing import absltest
from absl.testing import parameterized

from experiments import interrupts


class NoticedTest(parameterized.TestCase):
  @parameterized.parameters(signal.SIGINT, signal.SIGTERM)
  def test_a_signal_is_noted_and_the_block_goes_on(self, number):
    with interrupts.noticed() as flag:
      self.assertIsNone(flag.signal_number)
      signal.raise_signal(number)
      self.assertEqual(flag.signal_number, number)

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


class InterruptedTest(parameterized.TestCase):
  @parameterized.parameters((signal.SIGINT, 130), (signal.SIGTERM, 143))
  def test_the_exit_code_is_that_of_the_signal(self, number, code):
    stop = interrupts.Interrupted(number)
    self.assertEqual(stop.exit_code, code)
    self.assertEqual(str(stop), signal.Signals(number).name)


if __name__ == '__main__':
  absltest.main()
