"""Event loops that wait for their tasks before they close.

Orbax 0.12 closes its event loop as soon as one of several reads or writes fails. The others then
end with "Event loop is closed" in threads of TensorStore, which print a traceback.
"""

import asyncio
import contextlib
from collections.abc import Iterator


class _PatientLoop(asyncio.SelectorEventLoop):
  """Waits for its tasks before it closes."""

  def close(self) -> None:
    """Closes the loop after its tasks have ended, in whatever way."""
    if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
      self.run_until_complete(asyncio.wait(tasks))
    super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
  """Makes such loops."""

  def new_event_loop(self) -> asyncio.AbstractEventLoop:
    """A loop that waits for its tasks."""
    return _PatientLoop()


@contextlib.contextmanager
def patient_loops() -> Iterator[None]:
  """New event loops wait for their tasks while the context is open."""
  before = asyncio.get_event_loop_policy()
  asyncio.set_event_loop_policy(_PatientPolicy())
  try:
    yield
  finally:
    asyncio.set_event_loop_policy(before)
