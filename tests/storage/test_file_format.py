import pytest

from afspl_jax.storage.file_format import HEAD, file_format

FILES = {
  "an HTML page": b"\n  <!DOCTYPE HTML><html>",
  "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
  "a PDF file": b"%PDF-1.7",
  "a DICOM file": bytes(128) + b"DICM\x02\0",
  "a NIfTI file": bytes(344) + b"n+1\0",
  "an XML file": b'\xef\xbb\xbf<?xml version="1.0"?><svg>',
  "a ZIP archive": b"PK\x03\x04\x14\0",
  "a pickle": b"\x80\x02}q\0",
  "a GGUF file": b"GGUF\x03\0\0\0",
  "an HDF5 file": b"\x89HDF\r\n\x1a\n",
  "an AVIF image": b"\0\0\0\x1cftypavif\0\0",
  "a HEIC image": b"\0\0\0\x18ftypheic\0\0",
  "a video": b"\0\0\0\x18ftypisom\0\0",
  "a JSON file": b' {"a": 1}',
}


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_known_by_its_first_bytes(name):
  found = file_format(FILES[name][:HEAD])
  assert found is not None and found.name == name
  assert found.placeholder == (name in ("an HTML page", "a Git LFS pointer"))


# How a pickled dictionary begins in protocols 2 to 5.
@pytest.mark.parametrize("start", [b"\x80\x02}", b"\x80\x03}", b"\x80\x04}", b"\x80\x05}"])
def test_a_pickle_of_any_protocol_is_known(start):
  found = file_format(start + b"q\0.")
  assert found is not None and found.name == "a pickle"


@pytest.mark.parametrize("head", [b"", b"\x89PNG\r\n\x1a\n", b"a text", bytes(512)])
def test_others_are_not_named(head):
  assert file_format(head) is None
