"""Names the format of a file by its first bytes, for messages about files of another format."""

from typing import NamedTuple


class FileFormat(NamedTuple):
  """A format.

  Attributes:
    name: with its article.
    placeholder: whether such a file was downloaded in place of the one that was wanted.
  """

  name: str
  placeholder: bool = False


HEAD = 512  # bytes that are looked at

_TEXTS = {  # by the beginning in lower case, after white space
  b"version https://git-lfs": FileFormat("a Git LFS pointer", True),
  b"<!doctype html": FileFormat("an HTML page", True),
  b"<html": FileFormat("an HTML page", True),
  b"<svg": FileFormat("an SVG drawing"),
  b"<?xml": FileFormat("an XML file"),
  b"{": FileFormat("a JSON file"),
  b"[": FileFormat("a JSON file"),
}
_BYTES = {  # by place and content
  (0, b"%PDF"): FileFormat("a PDF file"),
  (128, b"DICM"): FileFormat("a DICOM file"),
  (344, b"n+1\0"): FileFormat("a NIfTI file"),
  (0, b"\x1f\x8b"): FileFormat("a gzip archive"),
  (0, b"PK\x03\x04"): FileFormat("a ZIP archive"),
  (0, b"7z\xbc\xaf"): FileFormat("a 7-Zip archive"),
  (0, b"GGUF"): FileFormat("a GGUF file"),
  (0, b"\x89HDF"): FileFormat("an HDF5 file"),
  (0, b"\x93NUMPY"): FileFormat("a NumPy array"),
  **{(0, bytes([0x80, protocol])): FileFormat("a pickle") for protocol in (2, 3, 4, 5)},
  (4, b"ftypheic"): FileFormat("a HEIC image"),
  (4, b"ftypheix"): FileFormat("a HEIC image"),
  (4, b"ftypmif1"): FileFormat("a HEIF image"),
  (4, b"ftypavif"): FileFormat("an AVIF image"),
  (4, b"ftyp"): FileFormat("a video"),
  (8, b"AVI "): FileFormat("a video"),
  (0, b"\x1aE\xdf\xa3"): FileFormat("a video"),
}


def file_format(head: bytes) -> FileFormat | None:
  """Names a format.

  Args:
    head: the first `HEAD` bytes of a file.

  Returns:
    The format, or None if it is not one of those that are known here.
  """
  found = [known for (at, mark), known in _BYTES.items() if head[at : at + len(mark)] == mark]
  text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
  found += [known for mark, known in _TEXTS.items() if text.startswith(mark)]
  return found[0] if found else None
