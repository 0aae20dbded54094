"""What a few bytes claim does not become memory."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

_BOUND = 300  # MB above what the process has once all is imported
_CHILD = """
import resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from tests.fuzz.test_memory import HOSTILE
from tests.fuzz.target import seed, tell
from tests.fuzz.targets import TARGETS

for name, _ in HOSTILE.values():
  tell(TARGETS[name], seed(TARGETS[name]))
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + %d * 10**6
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for what, (name, make) in HOSTILE.items():
  said = tell(TARGETS[name], make(seed(TARGETS[name])))
  print(f"{what}: {said[:100]!r}")
"""


def _png(data: bytes) -> bytes:
  """60000 by 60000 pixels, by its header, whose check is right."""
  import zlib

  header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
  return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def _header(header: bytes) -> bytes:
  return len(header).to_bytes(8, "little") + header


_TERABYTES = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
_HUGE = b"\xff\xff\xff\xf0\x01\x93\x92\xce\xff\xff\xff\xff\xcd\x10\0\xa7float32\xc6\xff\xff\xff\xf0"
_LIST = struct.pack("<QQ1sIIQ", 1, 1, b"a", 9, 0, 2**60)
_TENSOR = struct.pack("<QQQ1sIQQIQ", 1, 0, 1, b"a", 2, 2**30, 2**30, 0, 0)
_NPY = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + b"\n"
HOSTILE = {
  "a tensor of terabytes": ("safetensors", lambda data: _header(_TERABYTES)),
  "a header of exabytes": ("safetensors", lambda data: (2**62).to_bytes(8, "little") + data[8:]),
  "a msgpack array of terabytes": ("flax_msgpack", lambda data: b"\x81\xa1a\xc9" + _HUGE),
  "a msgpack map of 2**32 names": ("flax_msgpack", lambda data: b"\xdf\xff\xff\xff\xff" + data),
  "a GGUF list of 2**60 values": ("gguf", lambda data: data[:16] + _LIST),
  "a GGUF tensor of exabytes": ("gguf", lambda data: data[:8] + _TENSOR),
  "a prompter of terabytes": ("prompter", lambda data: _header(_TERABYTES)),
  "a state of terabytes": ("client_state", lambda data: _header(_TERABYTES)),
  "features of terabytes": ("features", lambda data: b"\x93NUMPY\x01\x00\x76\x00" + _NPY),
  "a picture of 14 GB": ("png", _png),
  "a line of 20 MB": ("folder", lambda data: b'{"image": "' + b"x" * 20_000_000 + b'"}\n'),
  "a million lists, each in another": ("manifest", lambda data: b"[" * 10**6 + b"]" * 10**6),
  "a million objects": (
    "run_clients_status",
    lambda data: b'{"a":' * 10**6 + b"1" + b"}" * 10**6 + b"\n",
  ),
  "4300 digits and more": ("reply", lambda data: b'{"records": {}, "error": ' + b"9" * 10**6),
  "an update that says it is large": (
    "reply",
    lambda data: data.replace(b"(8,)", b"(9999999999999,)"),
  ),
  "a client with the number 2**60": (
    "ask_shares",
    lambda data: data.replace(b'"number": 0', b'"number": 1152921504606846976'),
  ),
  "rows of a peer that are none": ("features_begun", lambda data: b"999999999999 0\n" + data),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's RLIMIT_AS and /proc")
def test_what_a_header_claims_is_not_allocated():
  found = subprocess.run(
    [sys.executable, "-c", _CHILD % _BOUND],
    capture_output=True,
    text=True,
    cwd=Path(__file__).parents[2],
  )
  assert found.returncode == 0, found.stderr[-2000:]
  said = dict(line.split(": ", 1) for line in found.stdout.splitlines())
  assert said.keys() == HOSTILE.keys()
  taken = {what for what, answer in said.items() if answer == "''"}
  # Both are no faults: the one is no message, the other begins anew.
  assert taken == {"4300 digits and more", "rows of a peer that are none"}, said
