"""Which settings fit together, checked before anything is loaded.

Rules of one setting stand on its field in config/; rules of several are listed here.
"""

import operator

from afspl_jax.config import experiment as settings
from afspl_jax.config.fields import check_values
from afspl_jax.config.setting import require
from afspl_jax.data.example_cap import check_cap
from afspl_jax.evaluation.generate import decoding_settings
from afspl_jax.federation import strategies
from afspl_jax.federation.client.malicious import num_malicious
from afspl_jax.federation.privacy import budget
from afspl_jax.federation.secure import terms
from afspl_jax.runs.personal_rules import PERSONAL
from afspl_jax.runs.privacy_rules import EXAMPLE_PRIVACY, PRIVACY, SECURE
from afspl_jax.runs.rule import Case, Rule, attacked, has_controls, private, secure, where

_SELECTION = (
  Rule(
    "fed.clients_per_round",
    lambda c: c.fed.clients_per_round <= c.clients,
    "at most data.num_clients without fed.newcomers, {c.clients}",
  ),
  Rule(
    "fed.strategy",
    lambda c: c.fed.strategy == "fedavg",
    "fedavg with fed.share=none, where there is nothing to average",
    when=lambda c: c.fed.share == "none",
  ),
  Rule(
    "fed.finetune",
    lambda c: c.fed.finetune == 0,
    "0 with fed.share=none, where every client trains alone, with privacy.example_clip, whose"
    " budget is of the rounds, and with a strategy that has controls",
    when=lambda c: c.fed.share == "none" or c.privacy.example_clip > 0 or has_controls(c),
  ),
  Rule(
    "fed.newcomer_examples",
    lambda c: c.fed.newcomer_examples == 0 or c.fed.newcomer_examples >= c.data.min_examples,
    "0, or at least data.min_examples, {c.data.min_examples}",
  ),
  Rule(
    "fed.compare",
    lambda c: c.fed.compare == "none",
    "none with fed.share=none, where every client trains alone, and with privacy.example_clip,"
    " whose noise and batches the baselines would not have",
    when=lambda c: c.fed.share == "none" or c.privacy.example_clip > 0,
  ),
  Rule(
    "uplink.select",
    lambda c: c.uplink.select == "dense",
    "dense with fed.strategy={c.fed.strategy}, whose controls count every gradient: a row that is"
    " sent later would count twice",
    when=has_controls,
  ),
  Rule(
    "secure.neighbours",
    lambda c: c.secure.neighbours == 0 or 2 <= c.secure.neighbours < c.clients,
    "0, or at least 2 and less than the number of clients, {c.clients}",
  ),
)

_ATTACK = (
  Rule(
    "attack.share",
    lambda c: num_malicious(c.attack, c.clients) == 0,
    "0 with attack.kind=none",
    when=lambda c: not attacked(c),
  ),
  Rule(
    "attack.share",
    lambda c: num_malicious(c.attack, c.clients) > 0,
    "a share of at least one of {c.clients} clients with attack.kind={c.attack.kind}",
    when=attacked,
  ),
  Rule(
    "attack.kind",
    lambda c: not attacked(c),
    "none with secure.aggregation, where a malicious client would not bound its update",
    when=secure,
  ),
)

_ROUTING = where(
  lambda c: c.prompter.routing == "sites",
  Rule(
    "privacy.dp",
    lambda c: not private(c),
    "none with prompter.routing=sites, since image statistics have no noise",
  ),
  Rule(
    "privacy.example_clip",
    lambda c: c.privacy.example_clip == 0,
    "0 with prompter.routing=sites, since image statistics have no noise",
  ),
  Rule(
    "secure.aggregation",
    lambda c: not secure(c),
    "False with prompter.routing=sites, where the server sees the image statistics of each site",
  ),
  Rule("fed.share", lambda c: c.fed.share == "all", "all with prompter.routing=sites"),
  Rule(
    "prompter.see_image",
    lambda c: c.prompter.see_image,
    "True with prompter.routing=sites, which goes by the image alone",
  ),
)

RULES = (*_SELECTION, *PERSONAL, *_ATTACK, *PRIVACY, *EXAMPLE_PRIVACY, *SECURE, *_ROUTING)


def validate(config: settings.Experiment) -> None:
  """Rejects settings that are not legal, or that do not fit together.

  Raises:
    UserError: naming the field, what is expected, and the value.
  """
  check_values(config)
  check_cap(config.data)
  decoding_settings(config.eval)
  clients = budget.num_participants(config)
  groups = {name: getattr(config, name) for name in Case._fields[3:]}
  case = Case(config, clients, strategies.get_strategy(config.fed.strategy, clients), **groups)
  for rule in RULES:
    if rule.when(case):
      value = operator.attrgetter(rule.field)(case)
      require(rule.field, value, rule.holds(case), rule.expected.format(c=case))
  terms.sizes_fit(config)
