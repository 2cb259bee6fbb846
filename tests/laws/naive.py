"""A naive reference: rounds as loops over clients, steps, examples and layers.

It shares no code with the package. Everything is NumPy in float64, gradients
are written by hand, and every rule is spelled out once more. It knows the
perceptron of `testing.mlp`: dense layers `layer_0`, `layer_1`, ... with tanh
between them. What is random comes in as data: who was drawn, in which order the
examples are used.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

Tree = Any
Schedule = Callable[[int], float] | float


@dataclasses.dataclass
class Client:
  """A client.

  Attributes:
    features: `[N_m, d]`.
    labels: `[N_m, S]`, NaN where a label is missing.
    tasks: The task of each slot, None for an empty slot.
    owners: The owner of its copy of a further layer type, by layer type.
  """

  features: np.ndarray
  labels: np.ndarray
  tasks: list[int | None]
  owners: dict[str, int]


@dataclasses.dataclass
class Member:
  """A client that was drawn.

  Attributes:
    client: Its number.
    active: Whether each slot takes part.
    orders: The order of its examples in each epoch.
    personal_orders: In those of a personal model, where that has its own.
    work: The share of its steps that it takes, at least one.
    is_late: Whether its results do not count.
    shares: How much the loss of each slot counts in layers that slots share.
  """

  client: int
  active: list[bool]
  orders: list[list[int]]
  personal_orders: list[list[int]] = dataclasses.field(default_factory=list)
  work: float = 1.0
  is_late: bool = False
  shares: list[float] | None = None


def value_of(schedule: Schedule, number: int) -> float:
  """The value of a constant or of a schedule in a round."""
  return float(schedule(number)) if callable(schedule) else schedule


class Sgd:
  """Server SGD with momentum; each owner's state is its own."""

  def __init__(
    self,
    rate: Schedule = 1.0,
    momentum: float = 0.0,
    max_norm: float = np.inf,
  ):
    self.rate, self.momentum, self.max_norm = rate, momentum, max_norm
    self.traces: dict[Any, dict[Any, np.ndarray]] = {}

  def changes(self, owner, mean, number):
    """The changes of all leaves of one owner, by leaf."""
    norm = np.sqrt(sum((value**2).sum() for value in mean.values()))
    scale = min(1.0, self.max_norm / norm) if norm else 1.0
    old = self.traces.get(owner, dict.fromkeys(mean, 0.0))
    trace = {
      leaf: -scale * mean[leaf] + self.momentum * old[leaf] for leaf in mean
    }
    self.traces[owner] = trace
    rate = value_of(self.rate, number)
    return {leaf: -rate * value for leaf, value in trace.items()}


class Adam:
  """Server Adam; each owner counts its own steps."""

  def __init__(self, rate: Schedule, b1=0.9, b2=0.999, eps=1e-8):
    self.rate, self.b1, self.b2, self.eps = rate, b1, b2, eps
    self.states: dict[Any, Any] = {}

  def changes(self, owner, mean, number):
    """The changes of all leaves of one owner, by leaf."""
    zeros = {leaf: np.zeros_like(value) for leaf, value in mean.items()}
    count, first, second = self.states.get(owner, (0, zeros, zeros))
    count += 1
    first = {k: self.b1 * first[k] - (1 - self.b1) * mean[k] for k in mean}
    second = {
      k: self.b2 * second[k] + (1 - self.b2) * mean[k] ** 2 for k in mean
    }
    self.states[owner] = (count, first, second)
    rate = value_of(self.rate, number)
    return {
      k: -rate
      * (first[k] / (1 - self.b1**count))
      / (np.sqrt(second[k] / (1 - self.b2**count)) + self.eps)
      for k in mean
    }


def copied(params: Tree) -> Tree:
  """The same values in arrays of their own."""
  return {
    layer: {name: leaf.copy() for name, leaf in leaves.items()}
    for layer, leaves in params.items()
  }


def predict(network: Sequence[tuple[np.ndarray, np.ndarray]], x: np.ndarray):
  """The activations of one example, the outputs last."""
  activations = [x]
  for i, (kernel, bias) in enumerate(network):
    h = np.tanh(activations[-1]) if i else x
    activations.append(h @ kernel + bias)
  return activations


def loss_and_slope(
  outputs: np.ndarray, label: float, kind: str, num_classes: int
) -> tuple[float, np.ndarray]:
  """The loss of one example and its derivative by the outputs."""
  slope = np.zeros_like(outputs)
  if kind == 'multiclass':
    logits = outputs[:num_classes] - outputs[:num_classes].max()
    chances = np.exp(logits) / np.exp(logits).sum()
    slope[:num_classes] = chances
    slope[int(label)] -= 1
    return -np.log(chances[int(label)]), slope
  score = outputs[0]
  if kind == 'binary':
    slope[0] = 1 / (1 + np.exp(-score)) - label
    return np.log1p(np.exp(-np.abs(score))) + max(
      score, 0
    ) - label * score, slope
  slope[0] = 2 * (score - label)
  return (score - label) ** 2, slope


def gradient(network, x, label, kind, num_classes):
  """The loss of one example and its gradient by each kernel and bias."""
  activations = predict(network, x)
  loss, slope = loss_and_slope(activations[-1], label, kind, num_classes)
  grads = []
  for i in reversed(range(len(network))):
    h = np.tanh(activations[i]) if i else x
    grads.append((np.outer(h, slope), slope))
    slope = (network[i][0] @ slope) * (1 - h**2)
  return loss, grads[::-1]


@dataclasses.dataclass
class Federation:
  """Federated averaging over layer types, in loops.

  Attributes:
    types: The layer type of each leaf, `(layer, 'kernel' or 'bias') -> type`,
      in the order of use.
    clients: All clients.
    tasks: `(kind, number of classes)` of each task.
    frozen: The pre-trained leaves.
    rate: Learning rate of clients, perhaps by round.
    momentum: Of the clients.
    keep_momentum: Whether it crosses rounds.
    batch_size: B; 0 for all examples.
    task_weights: In a client's objective.
    weighting: By layer type; examples by default.
    median: The layer types that take medians instead of means.
    servers: The server optimizer of each layer type; FedAvg by default.
    clients_per_task: K of each task.
  """

  types: dict[tuple[str, str], str]
  clients: list[Client]
  tasks: list[tuple[str, int]]
  frozen: Tree = None
  rate: Schedule = 0.1
  momentum: float = 0.0
  keep_momentum: bool = False
  batch_size: int = 0
  task_weights: Sequence[float] | None = None
  weighting: Mapping[str, str] = dataclasses.field(default_factory=dict)
  median: Sequence[str] = ()
  servers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  clients_per_task: Sequence[int] = ()

  # Whether weights are those of a client among all, whoever takes part.
  of_all = False

  def __post_init__(self):
    self.num_slots = len(self.clients[0].tasks)
    self.momenta = {}
    self.kept: dict[int, dict[Any, np.ndarray]] = {}
    leaves = list(self.types)
    heads = [leaf for leaf in leaves if self.types[leaf] == 'task']
    # Without task-specific layers, each slot has its own output layer.
    first = heads[0] if heads else (leaves[-1][0], 'kernel')
    late = leaves[leaves.index(first) :]
    self.by_slot = {
      leaf
      for leaf in leaves
      if self.types[leaf] == 'task'
      or (self.types[leaf] == 'personal' and leaf in late)
    }

  def place(self, leaf, number, slot):
    """Where in the state a client's copy of a leaf is."""
    layer_type, client = self.types[leaf], self.clients[number]
    if layer_type == 'common':
      return ()
    if layer_type == 'task':
      return (client.tasks[slot],)
    if layer_type == 'personal':
      return (number, slot) if leaf in self.by_slot else (number,)
    return (client.owners[layer_type],)

  def network(self, params, number, slot):
    """The network of one client and slot: a kernel and a bias each layer."""

    def get(leaf):
      layer, name = leaf
      if self.types[leaf] == 'pretrained':
        return self.frozen[layer][name]
      return params[layer][name][self.place(leaf, number, slot)]

    layers = list(dict.fromkeys(layer for layer, _ in self.types))
    return [(get((name, 'kernel')), get((name, 'bias'))) for name in layers]

  def objective_gradient(self, params, member, rows):
    """The gradient of a client's objective, by leaf and place in the state."""
    client = self.clients[member.client]
    grads: dict[Any, Any] = {}
    for slot, active in enumerate(member.active):
      if not active:
        continue
      task = client.tasks[slot]
      labelled = [row for row in rows if not np.isnan(client.labels[row, slot])]
      network = self.network(params, member.client, slot)
      weight = 1.0 if self.task_weights is None else self.task_weights[task]
      for row in labelled:
        _, by_layer = gradient(
          network,
          client.features[row],
          client.labels[row, slot],
          *self.tasks[task],
        )
        flat = [grad for pair in by_layer for grad in pair]
        for leaf, grad in zip(self.types, flat, strict=True):
          if self.types[leaf] != 'pretrained':
            key = leaf, self.place(leaf, member.client, slot)
            share = weight * grad / len(labelled)
            if member.shares is not None and leaf not in self.by_slot:
              share = share * member.shares[slot]
            grads[key] = grads.get(key, 0) + share
    return grads

  def batches(self, member):
    """The rows of each step of a client, all epochs one after the other."""
    steps = []
    for order in member.orders:
      size = self.batch_size or len(order)
      steps += [
        order[start : start + size] for start in range(0, len(order), size)
      ]
    yield from steps[: max(1, int(member.work * len(steps) + 1e-4))]

  def extra_gradient(self, params, key, member):
    """What an algorithm adds to a gradient of its local steps."""
    return 0

  def touched(self, member):
    """What a client trains, by leaf and place in the state."""
    return {
      (leaf, self.place(leaf, member.client, slot))
      for slot, active in enumerate(member.active)
      if active
      for leaf in self.types
      if self.types[leaf] != 'pretrained'
    }

  def local_training(self, params, member, number):
    """A client's new values, by leaf and place in the state."""
    params = copied(params)
    kept = self.momenta.get(member.client, {}) if self.keep_momentum else {}
    speed = dict(kept)
    touched = self.touched(member)
    for rows in self.batches(member):
      grads = self.objective_gradient(params, member, rows)
      for (layer, name), place in touched:
        key = (layer, name), place
        grad = grads.get(key, 0) + self.extra_gradient(params, key, member)
        speed[key] = self.momentum * speed.get(key, 0) + grad
        params[layer][name][place] -= value_of(self.rate, number) * speed[key]
    self.momenta[member.client] = speed
    return {
      (leaf, place): params[leaf[0]][leaf[1]][place].copy()
      for leaf, place in touched
    }

  def personal(self, params, number):
    """The parameters with which a client predicts, all others' beside them."""
    return params

  def own_model(self, params, number):
    """What a client kept of a model of its own; the rest is as it is now."""
    model = copied(params)
    for ((layer, name), place), value in self.kept.get(number, {}).items():
      model[layer][name][place] = value
    return model

  def keep(self, number, values):
    """Lets a client keep values of its model, by leaf and place."""
    self.kept.setdefault(number, {}).update(values)

  def work(self, member):
    """How often each gradient of a client counts in its update, summed."""
    steps = len(list(self.batches(member)))
    counts = [
      sum(self.momentum**power for power in range(steps - i))
      for i in range(steps)
    ]
    return sum(counts)

  def everyone(self):
    """All clients with all their tasks."""
    return [
      Member(number, [task is not None for task in client.tasks], [])
      for number, client in enumerate(self.clients)
    ]

  def weight_at(self, leaf, place, cohort, member):
    """What a client's copy of a leaf counts at its place in the state."""
    slots = range(self.num_slots) if leaf in self.by_slot else [None]
    return sum(
      self.weight(self.types[leaf], cohort, member, slot)
      for slot in slots
      if (slot is None or member.active[slot])
      and self.place(leaf, member.client, slot) == place
    )

  def share(self, leaf, place, cohort):
    """What those who report to an owner weigh, out of all its clients."""
    everyone = self.everyone()
    reported, all_of_them = (
      sum(self.weight_at(leaf, place, everyone, member) for member in members)
      for members in (cohort, everyone)
    )
    return reported / all_of_them

  def counts(self, member, late_too=False):
    """Examples with a label of each slot, and those with any active label."""
    labels = self.clients[member.client].labels
    by_slot = [0] * self.num_slots
    total = 0
    if member.is_late and not late_too:
      return by_slot, total
    for row in labels:
      has = [
        active and not np.isnan(label)
        for active, label in zip(member.active, row, strict=True)
      ]
      total += any(has)
      by_slot = [n + h for n, h in zip(by_slot, has, strict=True)]
    return by_slot, total

  def weight(self, layer_type, cohort, member, slot):
    """What one client's update counts; `slot` is None if it has one copy."""
    weighting = self.weighting.get(layer_type, 'examples')
    by_slot, total = self.counts(member)
    count = total if slot is None else by_slot[slot]
    if weighting == 'uniform':
      return float(count > 0)
    if weighting == 'task_balanced' and slot is None:
      of_task = [0] * len(self.tasks)
      for other in self.everyone() if self.of_all else cohort:
        for s, n in enumerate(self.counts(other)[0]):
          if n:
            of_task[self.clients[other.client].tasks[s]] += n
      present = sum(n > 0 for n in of_task)
      tasks = self.clients[member.client].tasks
      return sum(
        n / of_task[tasks[s]] / present for s, n in enumerate(by_slot) if n
      )
    return float(count)

  def shares(self, cohort, member):
    """How much a client's slots count in what they share; None if all do.

    Tasks count the same in layers that are `task_balanced`: what a slot has of
    all examples of its task, against what the client's other slots have of
    theirs.
    """
    single = {
      self.types[leaf] for leaf in self.types if leaf not in self.by_slot
    }
    if not any(self.weighting.get(t) == 'task_balanced' for t in single):
      return None
    parts = []
    for slot, count in enumerate(self.counts(member, late_too=True)[0]):
      task = self.clients[member.client].tasks[slot]
      everybody = sum(
        self.counts(other)[0][s]
        for other in cohort
        for s in range(self.num_slots)
        if self.clients[other.client].tasks[s] == task
      )
      # Late clients may be the only ones that have a task.
      parts.append(count / (everybody or count) if count else 0.0)
    return [part / (sum(parts) or 1) for part in parts]

  def round(self, params, cohort, number):
    """Runs one round; returns the new parameters."""
    new = copied(params)
    for member in cohort:
      member.shares = self.shares(cohort, member)
    results = [self.local_training(params, m, number) for m in cohort]
    for layer_type in dict.fromkeys(self.types.values()):
      if layer_type == 'personal':
        for result in results:
          for ((layer, name), place), value in result.items():
            if self.types[layer, name] == 'personal':
              new[layer][name][place] = value
      elif layer_type != 'pretrained':
        self.average(layer_type, params, new, cohort, results, number)
    return new

  def average(self, layer_type, params, new, cohort, results, number):
    """Gives every owner of a layer type the average of its clients."""
    leaves = [leaf for leaf in self.types if self.types[leaf] == layer_type]
    reports: dict[Any, list[Any]] = {}
    for member, result in zip(cohort, results, strict=True):
      slots = range(self.num_slots) if leaves[0] in self.by_slot else [None]
      for slot in slots:
        if slot is not None and not member.active[slot]:
          continue
        weight = self.weight(layer_type, cohort, member, slot)
        if weight > 0:
          place = self.place(leaves[0], member.client, slot)
          update = {
            (layer, name): result[(layer, name), place]
            - params[layer][name][place]
            for layer, name in leaves
          }
          reports.setdefault(place, []).append((weight, update))
    server = self.servers.get(layer_type, Sgd())
    for place, given in reports.items():
      divisor = sum(weight for weight, _ in given)
      if self.weighting.get(layer_type) == 'paper':
        num_examples = sum(len(client.features) for client in self.clients)
        drawn = sum(self.clients_per_task)
        if layer_type == 'task':
          drawn = self.clients_per_task[place[0]]
        divisor = drawn * num_examples
      mean = {
        leaf: sum(weight * update[leaf] for weight, update in given) / divisor
        for leaf in leaves
      }
      if layer_type in self.median:
        mean = {
          leaf: np.median([update[leaf] for _, update in given], axis=0)
          for leaf in leaves
        }
      changes = server.changes(place, mean, number)
      for (layer, name), change in changes.items():
        new[layer][name][place] += change


@dataclasses.dataclass
class FineTuned(Federation):
  """Clients that train on all their examples at once before they predict."""

  finetune_epochs: int = 5

  def finetune(self, params, member):
    """A client's new values, by leaf and place in the state."""
    return self.local_training(params, member, 0)

  def personal(self, params, number):
    client = self.clients[number]
    order = list(range(len(client.features)))
    active = [task is not None for task in client.tasks]
    member = Member(number, active, [order] * self.finetune_epochs)
    new = copied(params)
    for ((layer, name), place), value in self.finetune(params, member).items():
      new[layer][name][place] = value
    return new
