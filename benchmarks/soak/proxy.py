"""A slow line: a TCP proxy whose two directions each carry a limited number of bytes a second.

TLS passes through it unread.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from concurrent.futures import Future

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing a socket resets its connection
_CHUNK = 16384  # bytes; also how far a direction may run ahead of its rate


class Rate:
  """Spaces bytes so that no more than a number of them pass in a second.

  Args:
    bytes_per_second: the limit; 0: none.
    clock: seconds, for tests.
    sleep: waits a number of seconds, for tests.
  """

  def __init__(self, bytes_per_second: float, clock=None, sleep=asyncio.sleep):
    self._per_second, self._clock, self._sleep = bytes_per_second, clock, sleep
    self._free_at = 0.0  # when the line has sent all that it was given

  async def send(self, size: int) -> None:
    """Waits until the line has carried this many bytes more."""
    if not self._per_second:
      return
    now = (self._clock or asyncio.get_running_loop().time)()
    self._free_at = max(now, self._free_at) + size / self._per_second
    await self._sleep(self._free_at - now)


class SlowLine:
  """Forwards connections to a port of this host while the context is open.

  All connections share the line's rate in each direction.

  Args:
    target: port to which connections are forwarded.
    bytes_per_second: in each direction; 0: as fast as it goes.
    forwarder: while nothing listens at the target, connections are accepted and then closed, as a
      port forwarder or a load balancer does. Otherwise they are reset.
  """

  def __init__(self, target: int, bytes_per_second: float, forwarder: bool = False):
    self._target, self._per_second, self._forwarder = target, bytes_per_second, forwarder
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
    self._tasks: set[asyncio.Task] = set()
    self.port = 0  # to connect to
    self.carried = [0, 0]  # bytes to the target, and from it

  def __enter__(self) -> "SlowLine":
    self._thread.start()
    self._call(self._open()).result()
    return self

  def __exit__(self, *_: object) -> None:
    self._call(self._close()).result()
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()
    self._loop.close()

  def connections(self) -> int:
    """Returns the number of open connections."""
    return len(self._tasks)

  def _call(self, work) -> Future:
    return asyncio.run_coroutine_threadsafe(work, self._loop)

  async def _open(self) -> None:
    self._rates = Rate(self._per_second), Rate(self._per_second)
    self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
    self.port = self._server.sockets[0].getsockname()[1]

  async def _close(self) -> None:
    self._server.close()
    tasks = list(self._tasks)
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

  async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    task = asyncio.current_task()
    assert task is not None
    self._tasks.add(task)
    try:
      with contextlib.suppress(OSError, asyncio.CancelledError):
        await self._forward(reader, writer)
    finally:
      writer.transport.abort()
      self._tasks.discard(task)

  async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
      theirs, to_them = await asyncio.open_connection("127.0.0.1", self._target)
    except OSError:
      if not self._forwarder:
        ours = writer.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
      return
    try:
      async with asyncio.TaskGroup() as both:
        both.create_task(self._copy(reader, to_them, 0))
        both.create_task(self._copy(theirs, writer, 1))
    except* OSError:
      pass  # one end is gone: the other one is told below
    finally:
      to_them.transport.abort()

  async def _copy(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int
  ) -> None:
    while data := await reader.read(_CHUNK):
      await self._rates[way].send(len(data))
      writer.write(data)
      await writer.drain()
      self.carried[way] += len(data)
    if writer.can_write_eof():
      writer.write_eof()
