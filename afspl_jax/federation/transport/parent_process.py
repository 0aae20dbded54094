"""A child process that ends when its parent ends, even if the parent is killed."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

_STDIN = 0  # file descriptor


def end_with_parent(grace: float = 0.0) -> None:
  """Starts a thread that ends this process when its parent ends.

  In a process that `multiprocessing` started, the parent is the one that started it. In any other,
  stdin must be a pipe whose other end the parent holds and never writes to: the operating system
  closes it when the parent ends, in whatever way.

  Args:
    grace: seconds that this process has to end by itself after SIGTERM; 0: it ends at once.
  """
  threading.Thread(target=_wait_and_end, args=(grace,), daemon=True).start()


def _wait_and_end(grace: float) -> None:
  parent = multiprocessing.parent_process()
  wait([_STDIN if parent is None else parent.sentinel])
  if grace:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
  os._exit(1)
