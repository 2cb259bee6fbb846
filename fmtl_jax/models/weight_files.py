"""Published weights of VGG networks, read into the parameters of a model.

Files of MatConvNet, Keras and PyTorch differ in the order of a kernel's axes,
in the order in which the last convolution is flattened, and in the order of
the color channels. All of it is converted here; no framework is needed.
"""

from collections.abc import Callable, Mapping, Sequence
import collections
import importlib.util
import math
import pathlib
import pickle
from typing import Any, NamedTuple
import zipfile

import jax
import numpy as np

from fmtl_jax.models import base

# `{name: (kernel, bias)}` as they stand in the file; missing ones are left out.
_Layers = Mapping[str, tuple[np.ndarray, np.ndarray]]

# Of PyTorch's storages.
_DTYPES = {'FloatStorage': '<f4', 'DoubleStorage': '<f8', 'HalfStorage': '<f2'}


class _Format(NamedTuple):
  """A kind of file: how to read it, and the orders that are usual in it.

  `layout` has the axes of a kernel: H and W of its window, I inputs, O outputs.
  `library` is what reading needs beyond the package's own requirements.
  """

  read: Callable[[pathlib.Path, Sequence[str]], _Layers]
  layout: str
  channel_order: str
  library: str | None = None


def load_vgg(
  path: str | pathlib.Path,
  model: base.Model,
  channel_order: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:
  """Loads the weights of a VGG network.

  The suffix tells the format: `.mat` (MatConvNet), `.h5` (Keras), `.pth` or
  `.pt` (a state dict of PyTorch 1.6 or later) or `.safetensors` (the same
  names and layouts). Layers have the names of the model's stages, as in
  `vgg.vgg_face`; what else is in the file is ignored. Nothing in a file is
  executed.

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
  try:
    found = kind.read(path, names)
  except Exception as error:  # Whatever a reader makes of damaged files.
    raise ValueError(
      f'Expected a {path.suffix} file of weights, got {path}, which cannot be '
      f'read ({error!r}); if it is damaged, download it again.'
    ) from error
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = {}
  features = 0
  for name in names:
    if name not in found:
      raise ValueError(
        f'Expected weights and biases of the layers {", ".join(names)} in '
        f'{path}, got none of {name}; give a file of the same network.'
      )
    kernel, bias = found[name]
    shape = shapes[name]['kernel'].shape
    where = f'{name} of {path}'
    params[name] = {
      'kernel': _kernel(kernel, shape, features, kind.layout, where),
      'bias': _bias(bias, shapes[name]['bias'].shape, where),
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


def _kernel(kernel, shape, features, layout, where):
  """Brings a kernel into the order and `shape` of the model's.

  `features` are the outputs of the layer before. A dense layer is seen as a
  convolution over all that it takes, and may be stored as one.
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
  axes = [layout.index(axis) for axis in 'HWIO']
  kernel = kernel.reshape(window).transpose(axes).reshape(shape)
  return np.ascontiguousarray(kernel, np.float32)


def _bias(bias, shape, where):
  if bias.size != shape[0]:
    raise ValueError(
      f'Expected {shape} as the shape of the biases of {where}, got '
      f'{bias.shape}; give a file of the same network.'
    )
  return np.asarray(bias, np.float32).reshape(shape)  # MATLAB has no vectors.


def _read_matconvnet(path, names):
  """Reads `layers`, at the top or in `net`: a cell of structs with names."""
  from scipy import io  # Imported slowly, and rarely needed.

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
        kernel, bias = layer.weights.ravel()
      else:  # Of MatConvNet before 1.0-beta12.
        kernel, bias = layer.filters, layer.biases
      layers[name] = kernel, bias
  return layers


def _read_keras(path, names):
  """Reads groups by the name of a layer, whose arrays are told by rank.

  Their own names depend on the version of Keras: `conv1_1_W_1:0`,
  `conv1_1/kernel:0`.
  """
  import h5py

  layers = {}
  with h5py.File(path, 'r') as file:
    root = file.get('model_weights', file)
    for name in names:
      arrays: list[np.ndarray] = []

      def collect(_, item, arrays=arrays):
        if isinstance(item, h5py.Dataset):
          arrays.append(item[()])

      if name in root:
        root[name].visititems(collect)
      if len(arrays) == 2:
        bias, kernel = sorted(arrays, key=np.ndim)
        layers[name] = kernel, bias
  return layers


def _read_safetensors(path, names):
  import safetensors

  with safetensors.safe_open(path, framework='np') as file:
    return _from_state_dict(file.keys(), file.get_tensor, names)


def _read_pytorch(path, names):
  """Reads a state dict: a pickle of tensors, and their bytes beside it."""
  with zipfile.ZipFile(path) as archive:
    [pickled] = [n for n in archive.namelist() if n.endswith('/data.pkl')]
    folder = pickled.removesuffix('data.pkl') + 'data/'
    with archive.open(pickled) as file:
      state = _TensorUnpickler(file).load()

    def get(name):
      (_, storage, key, *_), offset, shape, strides, *_ = state[name]
      dtype = np.dtype(_DTYPES[storage])
      return np.ndarray(  # It checks that all of it lies in the buffer.
        shape,
        dtype,
        buffer=archive.read(folder + key),
        offset=offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in strides],
      )

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
