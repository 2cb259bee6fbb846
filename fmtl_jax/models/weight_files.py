"""Published weights of VGG networks, read into the parameters of a model.

Files of MatConvNet, Keras and PyTorch differ in the order of a kernel's axes,
in the order in which the last convolution is flattened, and in the order of
the color channels. All of it is converted here; no framework is needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import collections
import contextlib
import functools
import importlib.util
import math
import os
import pathlib
import pickle
import struct
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np

from fmtl_jax.models import base
from fmtl_jax.storage import archives


class _Array(NamedTuple):
  """An array in a file: its shape and dtype are known before it is read."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


# `{name: (kernel, bias)}` as they stand in the file; missing ones are left out.
_Layers = Mapping[str, tuple[_Array, _Array]]

# Of PyTorch's storages.
_DTYPES = {'FloatStorage': '<f4', 'DoubleStorage': '<f8', 'HalfStorage': '<f2'}
_SAFETENSORS_DTYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2'}

# Of the level 5 of MATLAB's format.
_MAT_HEADER, _MAT_COMPRESSED = 128, 15
_CHUNK = 2**20  # Bytes that are unpacked at once.
_MORE = 2**24  # Bytes that a file may have besides the numbers of a network.


class _Format(NamedTuple):
  """A kind of file: how to read it, and the orders that are usual in it.

  `read` takes the file, the names of layers, how many numbers they have
  together, and where to put what has to be open for their arrays to be read.
  `layout` has the axes of a kernel: H and W of its window, I inputs, O outputs.
  `library` is what reading needs beyond the package's own requirements.
  """

  read: Callable[
    [pathlib.Path, Sequence[str], int, contextlib.ExitStack], _Layers
  ]
  layout: str
  channel_order: str
  library: str | None = None


def load_vgg(
  path: str | pathlib.Path,
  model: base.Model,
  channel_order: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:
  """Loads the weights of a VGG network.

  The suffix names the format: `.mat` (MatConvNet), `.h5` (Keras, also the
  `.weights.h5` of Keras 3), `.pth` or `.pt` (a state dict of PyTorch 1.6 or
  later) or `.safetensors` (the same names and layouts). Layers have the names
  of the model's stages, as in `vgg.vgg_face`; what else is in the file is
  ignored. Nothing in a file is executed, no other file is read for it, and an
  array of another shape is not unpacked.

  Args:
    path: The file.
    model: The network; its parameters have the shapes to expect.
    channel_order: Of the images that the weights in the file take, `RGB` or
      `BGR`. None is the format's usual order: BGR for Keras, else RGB.

  Returns:
    The parameters of `model` as float32 arrays, for RGB images.

  Raises:
    ValueError: If the file cannot be read, or if a layer is missing or has
      another shape.
  """
  path = pathlib.Path(path).expanduser()
  kind = _format(path)
  channel_order = channel_order or kind.channel_order
  if channel_order not in ('RGB', 'BGR'):
    raise ValueError(
      f'Expected channel_order to be RGB or BGR, got {channel_order!r}.'
    )
  names = [name for name, _ in model.stages]
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  params = {}
  features = 0
  with contextlib.ExitStack() as stack:
    with _describing_errors(path):
      found = kind.read(path, names, size, stack)
    for name in names:
      if name not in found:
        raise ValueError(
          f'Expected weights and biases of the layers {", ".join(names)} in '
          f'{path}, got none of {name}; give a file of the same network.'
        )
      kernel, bias = found[name]
      shape = shapes[name]['kernel'].shape
      where = f'{name} of {path}'
      window = _window(kernel, shape, features, kind.layout, where)
      _check_bias(bias, shapes[name]['bias'].shape, where)
      with _describing_errors(path):
        params[name] = {
          'kernel': _hwio(_values(kernel), window, shape, kind.layout),
          'bias': _values(bias).reshape(-1),  # MATLAB has no vectors.
        }
      features = shape[-1]
  if channel_order == 'BGR':
    first = params[names[0]]
    first['kernel'] = np.ascontiguousarray(first['kernel'][:, :, ::-1])
  return params


def _format(path: pathlib.Path) -> _Format:
  """Finds the format of a file that can be read here."""
  suffix = path.suffix.lower()
  if suffix not in _FORMATS:
    raise ValueError(
      f'Expected a file of weights that ends in {", ".join(_FORMATS)}, got '
      f'{path}.'
    )
  if not path.is_file():
    raise ValueError(f'Expected a file of weights, got {path}, which is none.')
  kind = _FORMATS[suffix]
  if kind.library and importlib.util.find_spec(kind.library) is None:
    raise ValueError(
      f'Expected the package {kind.library} to read {path}, got none; install '
      f'it with `pip install {kind.library}`.'
    )
  if kind.read is _read_pytorch:
    with path.open('rb') as file:
      if file.read(2) != b'PK':
        raise ValueError(
          'Expected the zip format of PyTorch 1.6 or later, got '
          f'{path}, which is no zip; save it again with '
          '`torch.save(torch.load(path), path)`.'
        )
  return kind


@contextlib.contextmanager
def _describing_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever a reader makes of a damaged file into a sentence."""
  try:
    yield
  except _OutsideError as error:
    raise ValueError(
      f'Expected a {path.suffix} file that holds its weights, got {path}, '
      f'{error}, which may be another file; save the weights in one file.'
    ) from error
  except Exception as error:
    raise ValueError(
      f'Expected a {path.suffix} file of weights, got {path}, which cannot be '
      f'read ({error!r}); if it is damaged, download it again.'
    ) from error


class _OutsideError(Exception):
  """A file refers to something that is not in it."""


def _values(array: _Array) -> np.ndarray:
  """Reads an array as float32."""
  if array.dtype.kind != 'f':
    raise ValueError(f'its numbers are of the type {array.dtype}, no floats')
  return np.asarray(array.read(), np.float32)


def _window(kernel, shape, features, layout, where):
  """Checks the shape of a kernel; returns it as that of a convolution.

  `shape` is that of the model's, `features` are the outputs of the layer
  before. A dense layer is seen as a convolution over all that it takes, and may
  be stored as one.
  """
  if len(shape) == 4:
    height, width, inputs, outputs = shape
  else:
    inputs, outputs = features, shape[1]
    height = width = math.isqrt(shape[0] // inputs)
  sizes = {'H': height, 'W': width, 'I': inputs, 'O': outputs}
  window = tuple(sizes[axis] for axis in layout)
  accepted = [window]
  if len(shape) == 2:
    accepted.append(shape if layout[-1] == 'O' else shape[::-1])
  if kernel.shape not in accepted:
    raise ValueError(
      f'Expected {" or ".join(map(str, accepted))} as the shape of the weights '
      f'of {where}, got {kernel.shape}; give a file of the same network.'
    )
  return window


def _hwio(kernel, window, shape, layout):
  """Brings a kernel into the order and `shape` of the model's."""
  axes = [layout.index(axis) for axis in 'HWIO']
  return np.ascontiguousarray(
    kernel.reshape(window).transpose(axes).reshape(shape)
  )


def _check_bias(bias, shape, where):
  if math.prod(bias.shape) != shape[0]:
    raise ValueError(
      f'Expected {shape} as the shape of the biases of {where}, got '
      f'{bias.shape}; give a file of the same network.'
    )


def _read_matconvnet(path, names, size, stack):
  """Reads `layers`, at the top or in `net`: a cell of structs with names."""
  del stack  # All of it is read at once.
  from scipy import io  # Imported slowly, and rarely needed.

  # In double precision, and half as many numbers that are not asked for.
  _check_unpacked(path, most=12 * size + _MORE)
  file = io.loadmat(
    path, struct_as_record=False, variable_names=['layers', 'net']
  )
  cells = file['layers'] if 'layers' in file else file['net'][0, 0].layers
  layers = {}
  for cell in cells.ravel():
    layer = cell[0, 0]
    name = str(layer.name[0])
    if name in names:
      if hasattr(layer, 'weights'):
        arrays = layer.weights.ravel()
      else:  # Of MatConvNet before 1.0-beta12.
        arrays = layer.filters, layer.biases
      kernel, bias = map(np.asarray, arrays)
      layers[name] = _in_memory(kernel), _in_memory(bias)
  return layers


def _in_memory(array: np.ndarray) -> _Array:
  return _Array(array.shape, array.dtype, lambda: array)


def _check_unpacked(path: pathlib.Path, most: int) -> None:
  """Raises a ValueError if a file of MATLAB unpacks to more bytes than `most`.

  Level 5 of the format has elements, some of which are compressed. What is no
  such file is decided by its reader.
  """
  unpacked = 0
  with path.open('rb') as file:
    order = '<' if file.read(_MAT_HEADER)[-2:] == b'IM' else '>'
    while len(tag := file.read(8)) == 8:
      kind, length = struct.unpack(f'{order}II', tag)
      if kind != _MAT_COMPRESSED:
        file.seek(length, os.SEEK_CUR)
        continue
      stream = zlib.decompressobj()
      while length and not stream.eof:
        packed = file.read(min(length, _CHUNK))
        if not packed:
          return
        length -= len(packed)
        while packed:
          unpacked += len(stream.decompress(packed, _CHUNK))
          if unpacked > most:
            raise ValueError(f'it unpacks to more than {most:,} bytes')
          packed = stream.unconsumed_tail
      file.seek(length, os.SEEK_CUR)


def _read_keras(path, names, size, stack):
  """Reads groups of a layer, whose arrays are distinguished by rank.

  Their own names depend on the version of Keras: `conv1_1_W_1:0`,
  `conv1_1/kernel:0` in a group of the layer's name. Keras 3 counts, as in
  `layers/conv2d_1/vars/0`: there, the layer's name is an attribute of `vars`.
  """
  del size  # What a file says of an array is what it unpacks to.
  import h5py

  file = stack.enter_context(h5py.File(path, 'r'))
  found: dict[str, list[Any]] = {}
  for parts, item in _items(file, (), set()):
    if isinstance(item, h5py.Dataset):
      top = parts[1:] if parts[0] == 'model_weights' else parts
      names_of_parts = [top[0]]
      if len(parts) > 1 and parts[-2] == 'vars':
        names_of_parts.append(_text(item.parent.attrs.get('name', '')))
      for name in set(names_of_parts).intersection(names):
        found.setdefault(name, []).append(item)
  layers = {}
  for name, items in found.items():
    if len(items) == 2:
      for item in items:
        if item.external or item.is_virtual:
          raise _OutsideError(f'whose {item.name} has its numbers elsewhere')
      bias, kernel = sorted(items, key=lambda item: item.ndim)
      layers[name] = tuple(
        _Array(item.shape, item.dtype, functools.partial(item.__getitem__, ()))
        for item in (kernel, bias)
      )
  return layers


def _items(group, parts, seen):
  """What a file of HDF5 holds, each once: `(names on the way to it, item)`."""
  import h5py

  for name in group:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
      raise _OutsideError(f'whose {"/".join((*parts, name))} is a link')
    item = group[name]
    place = h5py.h5o.get_info(item.id).addr
    if place not in seen:
      seen.add(place)
      yield (*parts, name), item
      if isinstance(item, h5py.Group):
        yield from _items(item, (*parts, name), seen)


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _read_safetensors(path, names, size, stack):
  del size  # Nothing is packed.
  import safetensors

  file = stack.enter_context(safetensors.safe_open(path, framework='np'))

  def get(name):
    part = file.get_slice(name)
    dtype = np.dtype(_SAFETENSORS_DTYPES[part.get_dtype()])
    shape = tuple(part.get_shape())
    return _Array(shape, dtype, lambda: file.get_tensor(name))

  return _from_state_dict(file.keys(), get, names)


def _read_pytorch(path, names, size, stack):
  """Reads a state dict: a pickle of tensors, and their bytes beside it."""
  del size  # PyTorch packs nothing: entries are no larger than the file.
  most = path.stat().st_size
  archive = stack.enter_context(archives.Zip(path, most, times=1))
  [pickled] = [n for n in archive.namelist() if n.endswith('/data.pkl')]
  folder = pickled.removesuffix('data.pkl') + 'data/'
  with archive.open(pickled) as file:
    state = _TensorUnpickler(file).load()

  def get(name):
    (_, storage, key, *_), offset, shape, strides, *_ = state[name]
    dtype = np.dtype(_DTYPES[storage])

    def read():
      return np.ndarray(  # It checks that all of it lies in the buffer.
        shape,
        dtype,
        buffer=archive.read(folder + key),
        offset=offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in strides],
      )

    return _Array(tuple(shape), dtype, read)

  return _from_state_dict(state, get, names)


class _TensorUnpickler(pickle.Unpickler):
  """Reads a pickle of tensors, each as a tuple that describes it.

  A pickle may name any function to be called. This one finds only those below,
  which do nothing but keep what they are given, and refuses all others.
  """

  def find_class(self, module: str, name: str) -> Any:
    if module == 'torch' and name.endswith('Storage'):
      return name
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    # New functions at each call, because a pickle may set their attributes.
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return lambda *description: description
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return lambda description, *_: description
    raise pickle.UnpicklingError(
      f'{module}.{name} is refused: save a state_dict(), of tensors only'
    )

  def persistent_load(self, pid: Any) -> Any:
    return pid


def _from_state_dict(keys, get, names):
  return {
    name: (get(f'{name}.weight'), get(f'{name}.bias'))
    for name in names
    if f'{name}.weight' in keys and f'{name}.bias' in keys
  }


_PYTORCH = _Format(_read_pytorch, 'OIHW', 'RGB')
_FORMATS = {
  '.mat': _Format(_read_matconvnet, 'HWIO', 'RGB'),
  '.h5': _Format(_read_keras, 'HWIO', 'BGR', library='h5py'),
  '.pth': _PYTORCH,
  '.pt': _PYTORCH,
  '.safetensors': _Format(
    _read_safetensors, 'OIHW', 'RGB', library='safetensors'
  ),
}
