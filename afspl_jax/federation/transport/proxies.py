"""The proxy settings of the environment, which Flower's connections use.

The processes of one host talk over loopback, and never through a proxy.
"""

import os

import httpx

from afspl_jax.errors import UserError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # in small or in capital letters


def bypass_proxies_for_loopback() -> None:
  """Adds the loopback addresses to `no_proxy`, in this process and the ones that it starts.

  As everywhere, `no_proxy` wins over `NO_PROXY`; afterwards both have the same value. IPv6
  addresses may be in brackets.
  """
  value = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
  hosts = [host.strip() for host in value.split(",") if host.strip()]
  hosts = [host[1:-1] if host.startswith("[") and host.endswith("]") else host for host in hosts]
  hosts += [host for host in _LOOPBACK if host not in hosts]
  os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def check_proxies() -> None:
  """Checks that connections can use the environment's proxy settings.

  Raises:
    UserError: a variable that they cannot use, by its name.
  """
  for name, value in sorted(os.environ.items()):
    if name.lower() in _PROXIES and value:
      _check_proxy(name, value if "://" in value else f"http://{value}")
  for host in os.environ.get("no_proxy", "").split(","):
    try:
      httpx.URL(f"all://[{host}]" if host.count(":") > 1 else f"all://*{host}")
    except httpx.InvalidURL as error:
      raise UserError(
        f"environment, no_proxy: expected host names and addresses with commas between them; got"
        f" {host!r} ({error}). Correct it"
      ) from error


def _check_proxy(name: str, url: str) -> None:
  scheme = url.partition("://")[0]  # the rest may hold a password
  try:
    with httpx.Client(proxy=url, trust_env=False):
      pass
  except ImportError as error:
    raise UserError(
      f"environment, {name}: expected an HTTP proxy; got a {scheme} proxy, which needs another"
      " package. Install it: pip install 'httpx[socks]'. Or unset the variable"
    ) from error
  except (httpx.InvalidURL, ValueError) as error:
    raise UserError(
      f"environment, {name}: expected http://HOST:PORT; got another URL ({scheme}://...). Correct"
      " or unset the variable"
    ) from error
