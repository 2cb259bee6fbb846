"""Asynchronous rounds as a loop over events."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

import naive


@dataclasses.dataclass
class Flight:
  """A client at work, or whose update waits: when it started, and when it ends.

  Attributes:
    client: Its number.
    buffer: That its update goes to.
    finish: In seconds from the start of all.
    version: The steps of the server before it started.
    own_versions: Those in which each task's layers moved.
    start: The parameters of all owners at that moment.
  """

  client: int
  buffer: int
  finish: float
  version: int
  own_versions: Sequence[int]
  start: Any


@dataclasses.dataclass
class EventLoop:
  """Who arrives when.

  Attributes:
    seconds: How long each client needs.
    groups: The clients that may start for each buffer.
    tasks: Those of each client.
    by_task: Whether a buffer is of a task.
    concurrency: How many are at work for each buffer.
    size: K, the updates that fill one.
    draw_fn: `(step, arrivals, buffer) -> order of preference` of all clients.
  """

  seconds: Sequence[float]
  groups: Sequence[Sequence[int]]
  tasks: Sequence[Sequence[int]]
  by_task: bool
  concurrency: Sequence[int]
  size: int
  draw_fn: Callable[[int, int, int], Sequence[int]]

  def __post_init__(self):
    self.now, self.arrivals = 0.0, 0
    self.steps = [0] * (1 + max(task for own in self.tasks for task in own))
    self.at_work: list[Flight] = []
    self.buffers: list[list[Flight]] = [[] for _ in self.groups]

  def start(self, params, version):
    """Fills what is free with clients that are idle, best liked first."""
    for number, group in enumerate(self.groups):
      for client in self.draw_fn(version, self.arrivals, number):
        waiting = [flight for buffer in self.buffers for flight in buffer]
        busy = [flight.client for flight in self.at_work + waiting]
        own = sum(flight.buffer == number for flight in self.at_work)
        if own == self.concurrency[number]:
          break
        if client in group and client not in busy:
          finish = self.now + self.seconds[client]
          self.at_work.append(
            Flight(*(client, number, finish, version, list(self.steps)), params)
          )

  def step(self, params, version):
    """Runs until a buffer is full: its number, its flights, and the time."""
    since = self.now
    while True:
      next_time = min((f.finish for f in self.at_work), default=np.inf)
      if next_time > self.now:
        self.start(params, version)
      flight = min(self.at_work, key=lambda f: f.finish)
      self.at_work.remove(flight)
      self.now = max(self.now, flight.finish)
      self.arrivals += 1
      self.buffers[flight.buffer].append(flight)
      full = self.buffers[flight.buffer]
      if len(full) == self.size:
        self.buffers[flight.buffer] = []
        moved = {task for f in full for task in self.tasks[f.client]}
        for task in {flight.buffer} if self.by_task else moved:
          self.steps[task] += 1
        return flight.buffer, full, self.now - since


class Asynchronous(naive.Federation):
  """Steps of a server by updates of clients that started at any time."""

  def asynchronous(self, params, flights, members, factors, number):
    """The parameters after a step.

    Args:
      params: The newest.
      flights: Those whose updates are averaged.
      members: Of the flights.
      factors: `(layer type, flight, place) -> number`: what an update counts,
        at the owner's place.
      number: Of the step.
    """
    results = []
    for flight, member in zip(flights, members, strict=True):
      start = naive.copied(flight.start)
      for layer, name in self.types:
        if self.types[layer, name] == 'personal':
          start[layer][name] = params[layer][name]
      result = self.local_training(start, member, flight.version)
      for ((layer, name), place), value in result.items():
        layer_type = self.types[layer, name]
        if layer_type != 'personal':
          update = value - start[layer][name][place]
          update = factors(layer_type, flight, place) * update
          result[(layer, name), place] = params[layer][name][place] + update
      results.append(result)
    new = naive.copied(params)
    for layer_type in dict.fromkeys(self.types.values()):
      if layer_type != 'personal':
        self.average(layer_type, params, new, members, results, number)
    for result in results:
      for ((layer, name), place), value in result.items():
        if self.types[layer, name] == 'personal':
          new[layer][name][place] = value
    return new
