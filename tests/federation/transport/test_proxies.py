import httpx
import pytest

from afspl_jax.errors import UserError
from afspl_jax.federation.transport.proxies import bypass_proxies_for_loopback, check_proxies

NAMES = ("no_proxy", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture
def environment(monkeypatch):
  for name in NAMES:
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)

  def set_to(**variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)
    bypass_proxies_for_loopback()

  return set_to


def uses_proxy(url):
  """Whether httpx, which Flower uses, would send a request for this URL through a proxy."""
  with httpx.Client() as client:
    return client._transport_for_url(httpx.URL(url)) is not client._transport


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_hosts_that_need_no_proxy_stay_without_one(environment, name):
  environment(https_proxy="http://proxy:3128", **{name: "fed.example.org, [fd00::7]"})
  assert uses_proxy("https://elsewhere.example.org:9092")
  assert not uses_proxy("https://fed.example.org:9092")
  assert not uses_proxy("https://[fd00::7]:9092")
  for loopback in ("127.0.0.1", "localhost", "[::1]"):
    assert not uses_proxy(f"https://{loopback}:9092")
  check_proxies()


def test_the_small_letters_win_as_everywhere(environment):
  environment(https_proxy="http://proxy:3128", no_proxy="a.example.org", NO_PROXY="b.example.org")
  assert not uses_proxy("https://a.example.org") and uses_proxy("https://b.example.org")


@pytest.mark.parametrize(
  "name, value, what",
  [
    (
      "ALL_PROXY",
      "socks5://me:secret@proxy",
      r"a socks5 proxy, .* 'httpx\[socks\]'",
    ),
    ("https_proxy", "ftp://me:secret@proxy", "expected http://HOST:PORT; got another URL"),
    ("HTTP_PROXY", "http://proxy:port", "expected http://HOST:PORT; got another URL"),
    ("no_proxy", "a.example.org:port", "expected host names .* got 'a.example.org:port'"),
  ],
)
def test_a_setting_that_connections_cannot_use_is_named(environment, name, value, what):
  environment(**{name: value})
  with pytest.raises(UserError, match=f"environment, {name}: .*{what}") as error:
    check_proxies()
  assert "secret" not in str(error.value)
