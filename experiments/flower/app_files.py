"""The app: a folder that `flwr run` sends to all machines.

It has no code of the package: every machine has that installed. What runs is in
the app's config, which nodes may add flags to.
"""

from collections.abc import Mapping
import importlib.metadata
import json
import pathlib
import shutil

_PACKAGE = __name__.rpartition('.')[0]  # Under either name.
_MODULE = 'fmtl_app'
_PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fmtl-app"
version = "1.0.0"
description = "A federated multi-task experiment"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.42,<1.43"]

[tool.flwr.app]
publisher = "fmtl"
fab-format-version = 1
flwr-version-target = "{version}"

[tool.flwr.app.components]
serverapp = "{module}.server:app"
clientapp = "{module}.client:app"

[tool.flwr.app.config]
{config}
"""
_LICENSE = (
  'Apache License, Version 2.0, January 2004\n'
  'http://www.apache.org/licenses/LICENSE-2.0\n'
)
_SERVER = '''"""The ServerApp of an experiment."""

from {package} import server_app

app = server_app.app
'''


def write(folder: pathlib.Path, run: Mapping[str, str | int | float]) -> None:
  """Writes an app.

  Args:
    folder: Of the app, which is there and empty.
    run: Its config: `flags` of the experiment, how many `nodes`, the `timeout`
      of a round in seconds, `workdir` at the server, `resume`, and
      files for its output, `log`, and how it ended, `outcome`, or ''.
  """
  config = {'package': _PACKAGE, **run}
  (folder / 'pyproject.toml').write_text(
    _PROJECT.format(
      version=importlib.metadata.version('flwr'),
      module=_MODULE,
      # Texts and numbers of JSON are those of TOML.
      config='\n'.join(f'{k} = {json.dumps(v)}' for k, v in config.items()),
    ),
    encoding='utf-8',
  )
  (folder / 'LICENSE').write_text(_LICENSE, encoding='utf-8')
  module = folder / _MODULE
  module.mkdir()
  (module / '__init__.py').write_text('', encoding='utf-8')
  (module / 'server.py').write_text(
    _SERVER.format(package=_PACKAGE), encoding='utf-8'
  )
  client = pathlib.Path(__file__).with_name('client_app.py')
  shutil.copyfile(client, module / 'client.py')
