import pytest

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.flags import known_fields, parse_flags
from afspl_jax.errors import UserError

FINE = "from afspl_jax.config.experiment import Experiment\n"


@pytest.fixture
def configs(tmp_path):
  folder = tmp_path / "configs"
  folder.mkdir()
  (folder / "shapes.py").write_text(f"{FINE}def get_config():\n  return Experiment()\n")
  (folder / "other.py").write_text(f"{FINE}def get_config():\n  return Experiment(seed=7)\n")
  return folder


def parsed(configs, *args):
  return parse_flags(["launch.py", *args], configs)


def complaint(configs, *args) -> str:
  """The one clear line that these flags give."""
  with pytest.raises(UserError) as error:
    parsed(configs, *args)
  text = str(error.value)
  assert text and "\n" not in text and "Traceback" not in text
  return text


def test_no_flags_give_the_default_experiment(configs):
  config, workdir, *_ = parsed(configs)
  assert config == Experiment() and str(workdir) == "runs/shapes"


def test_a_config_is_looked_up_in_configs_first_then_as_a_path(configs, tmp_path, monkeypatch):
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  for name, seed in {"other.py": 1, "mine.py": 2}.items():
    (elsewhere / name).write_text(f"{FINE}def get_config():\n  return Experiment(seed={seed})\n")
  monkeypatch.chdir(elsewhere)
  assert parsed(configs, "--config=other.py")[0].seed == 7
  assert parsed(configs, f"--config={elsewhere / 'other.py'}")[0].seed == 1
  config, workdir, *_ = parsed(configs, "--config=mine.py")
  assert config.seed == 2 and str(workdir) == "runs/mine"


def test_overrides_of_every_kind_reach_their_field(configs):
  config, workdir, *_ = parsed(
    configs,
    "--config=other.py",
    "--config.fed.rounds=5",
    "--config.optim.prompt_lr=1",
    "--config.data.dir=/a=b",
    "--config.prompter.see_image=false",
    "--config.prompter.fusion_weights=0.5,0.25,1",
    "--config.eval.every",
    "3",
    "--workdir=x/y",
  )
  assert (config.seed, config.fed.rounds, config.eval.every) == (7, 5, 3)
  assert config.optim.prompt_lr == 1.0 and isinstance(config.optim.prompt_lr, float)
  assert config.data.dir == "/a=b" and config.prompter.see_image is False
  assert config.prompter.fusion_weights == (0.5, 0.25, 1)
  assert str(workdir) == "x/y"


@pytest.mark.parametrize("text", ["(0.2, 0.8)", "[0.2, 0.8]", "0.2,0.8"])
def test_tuples_may_be_written_in_several_ways(configs, text):
  config, *_ = parsed(configs, f"--config.prompter.fusion_weights={text}")
  assert config.prompter.fusion_weights == (0.2, 0.8)


def test_overrides_may_come_before_the_config_and_the_last_wins(configs):
  config, *_ = parsed(configs, "--config.seed=3", "--config=other.py", "--config.seed=4")
  assert config.seed == 4


def test_one_parse_leaves_nothing_behind_for_the_next(configs):
  parsed(configs, "--config.fed.rounds=5")
  assert parsed(configs)[0] == Experiment()


@pytest.mark.parametrize(
  "args, parts",
  [
    (["--config=nope.py"], ["nope.py", "other.py, shapes.py", "path to a .py file"]),
    (["--config="], ["other.py, shapes.py"]),
    (["--config", "other.py"], ["--config=other.py"]),
    (["--config.fed.nope=1"], ["fed.nope", "no such field", "fed.rounds, fed.clients_per_round"]),
    (["--config.fed=1"], ["--config.fed:", "fed.rounds"]),
    (
      ["--config.nope.rounds=1"],
      ["nope.rounds", "attack, backbone, data, eval, fed, optim, privacy, prompter"],
    ),
    (["--config.nope=1"], ["--config.nope:", "no such field", "seed"]),
    (["--config.fed.rounds=ten"], ["fed.rounds", "expected int, such as 48", "'ten'"]),
    (["--config.fed.rounds=2.5"], ["fed.rounds", "expected int", "'2.5'"]),
    (["--config.seed=True"], ["seed", "expected int", "'True'"]),
    (["--config.optim.prompt_lr=fast"], ["optim.prompt_lr", "expected float", "'fast'"]),
    (["--config.prompter.see_image=maybe"], ["see_image", "expected bool", "'maybe'"]),
    (["--config.prompter.fusion_weights=a,b"], ["fusion_weights", "expected numbers", "a,b"]),
    (["--config.fed.rounds"], ["Missing value", "config.fed.rounds"]),
    (["rounds"], ["expected flags", "'rounds'"]),
    (["config=other.py"], ["expected flags, such as --config=", "'config=other.py'"]),
    (["config.seed=1"], ["expected flags", "'config.seed=1'"]),
    (["--workdri=x"], ["workdri", "workdir"]),
    (["--nonsense=1"], ["nonsense", "--help"]),
    (["--flagfile=/no/such/file"], ["/no/such/file"]),
  ],
)
def test_a_mistyped_flag_is_one_clear_line(configs, args, parts):
  line = complaint(configs, *args)
  for part in parts:
    assert part in line


@pytest.mark.parametrize(
  "text, parts",
  [
    ("def (", ["SyntaxError"]),
    ("import no_such_module", [":1:", "ModuleNotFoundError", "no_such_module"]),
    ("x = 1\nx.y", [":2:", "AttributeError"]),
    ("open('/no/such/file')", [":1:", "FileNotFoundError"]),
    ("def get_config():\n  return {}['key']", [":2:", "KeyError", "'key'"]),
    ("def get_config():\n  raise ValueError('first\\nsecond')", [":2:", "ValueError: first"]),
    (f"{FINE}def get_config():\n  return Experiment(sed=1)", [":3:", "TypeError", "'sed'"]),
    ("x = 1", ["expected get_config() to return an Experiment"]),
    ("def get_config(): pass", ["expected get_config() to return an Experiment", "NoneType"]),
    ("def get_config(): return {'seed': 1}", ["to return an Experiment", "dict"]),
    (
      f"{FINE}def get_config():\n  e = Experiment()\n  e.fed.rounds = 'ten'\n  return e",
      ["fed.rounds", "expected int, such as 48", "'ten'"],
    ),
    (
      f"{FINE}def get_config():\n  e = Experiment()\n  e.seed = 1.5\n  return e",
      ["seed", "expected int", "1.5"],
    ),
  ],
)
def test_a_config_file_that_does_not_work_is_one_clear_line(configs, text, parts):
  file = configs / "broken.py"
  file.write_text(text + "\n")
  line = complaint(configs, "--config=broken.py")
  if "fed.rounds" not in parts and "seed" not in parts:
    assert str(file) in line
  for part in parts:
    assert part in line


def helped(configs, capsys, *args) -> str:
  with pytest.raises(SystemExit) as stop:
    parsed(configs, *args)
  assert stop.value.code == 0
  return capsys.readouterr().out


def test_help_lists_the_configs_and_every_field(configs, capsys):
  text = helped(configs, capsys, "--help")
  assert "other.py, shapes.py" in text
  for name, _ in known_fields(Experiment()):
    assert f"{name} =" in text


@pytest.mark.parametrize(
  "args", [("--help", "fed"), ("--help=fed",), ("-h", "fed", "--role=server")]
)
def test_help_of_a_group_has_its_fields_alone(configs, capsys, args, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  text = helped(configs, capsys, *args)
  for name, _ in known_fields(Experiment()):
    assert (f"  {name} =" in text) == name.startswith("fed.")
  assert "usage" not in text and max(map(len, text.splitlines())) <= 80
  words = " ".join(text.split())
  assert (
    "fed.wait = 600.0 network: wait for all sites" in words and "[at least 0; seconds]" in words
  )
  assert "[one of uniform, size, round_robin, power_of_choice, poisson]" in words


def test_help_of_an_unknown_group_lists_the_groups(configs):
  line = complaint(configs, "--help", "optims")
  assert "expected one of the groups data, backbone, " in line
  assert line.endswith("got 'optims'. Did you mean optim?")


@pytest.mark.parametrize(
  "typed, meant",
  [
    ("fed.round", "fed.rounds"),
    ("fed.num_clients", "data.num_clients"),
    ("prompt.tokens", "prompter.tokens"),
    ("batchsize", "eval.batch_size"),
    ("sead", "seed"),
    ("optim.zzz", ""),
  ],
)
def test_a_mistyped_field_is_met_with_the_likeliest_one(configs, typed, meant):
  line = complaint(configs, f"--config.{typed}=1")
  assert (f"Did you mean {meant}?" in line) if meant else ("Did you mean" not in line)


def test_a_server_and_a_client_of_a_federation(configs):
  server = parsed(configs, "--role=server", "--superlink=[::]:9000", "--keys=/k")
  assert (server.role, server.superlink, str(server.keys)) == ("server", "[::]:9000", "/k")
  assert parsed(configs, "--role=server").superlink == "0.0.0.0:8000"
  client = parsed(configs, "--role=client", "--superlink=a.org:8000", "--site=Bonn", "--data=/d")
  assert (client.site, client.own_data, client.config.data.dir) == ("Bonn", True, "/d")
  assert str(client.workdir) == "runs/shapes-Bonn" and not client.insecure
  part = parsed(configs, "--role=client", "--superlink=a.org:8000", "--site=Bonn", "--insecure")
  assert not part.own_data and part.config.data.dir == "" and part.insecure


@pytest.mark.parametrize(
  "args, expected",
  [
    (["--role=boss"], "--role: expected one of local, server, client, local-net; got 'boss'"),
    (["--site=Bonn"], "--site: expected with --role=client; got --role=local. Leave it out"),
    (["--superlink=a:1"], "--superlink: expected with --role=server or --role=client; got"),
    (["--role=local-net", "--keys=k"], "--keys: expected with --role=server or --role=client"),
    (["--insecure"], "--insecure: expected with --role=server or client; got --role=local"),
    (["--role=client", "--site=B"], "--superlink: expected the server's HOST:PORT with --role"),
    (["--role=client", "--superlink=a:1"], "--site: expected this site's name with --role=client"),
    (["--role=server", "--superlink=a"], "--superlink: expected HOST:PORT; got 'a'"),
    (["--role=server", "--roster=r"], "--roster: expected with --role=client; got --role=server"),
    (["--role=server", "--superlink=a:0"], "--superlink: expected HOST:PORT; got 'a:0'"),
  ],
)
def test_flags_that_do_not_fit_the_role(configs, args, expected):
  assert complaint(configs, *args).startswith(expected)


def test_a_config_by_a_name_that_no_file_has_is_not_found(configs):
  assert "neither" in complaint(configs, f"--config={'x' * 300}.py")
