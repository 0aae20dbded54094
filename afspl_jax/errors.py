"""The one kind of error that is the user's to put right."""


class UserError(ValueError):
  """A mistake in a flag, a config, a file or a folder.

  The message is for the user: what was expected, what was found, what to do. `launch.py` and
  `afspl` print it without a traceback and exit with status 2.
  """
