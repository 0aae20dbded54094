"""Errors that end a run in one clear message."""


class UserError(ValueError):
  """A mistake in a flag, a config, a file or a folder.

  The message is for the user: what was expected, what was found, what to do. `launch.py` and
  `afspl` print it without a traceback and exit with status 2.
  """


class SettingError(UserError):
  """A mistake in a flag or a config, and not in a file or a folder that it names."""


class Stopped(RuntimeError):
  """A run that cannot go on now, in one clear message: what is finished is kept."""
