"""Which settings of personalisation fit together (validate.py)."""

from afspl_jax.config.routing import site_prompts
from afspl_jax.models.prompter.local import is_local, local_patterns
from afspl_jax.models.prompter.site_prompts import ROUTING_LEAVES
from afspl_jax.runs.rule import Rule, has_controls, where

PERSONAL = (
  Rule(
    "fed.ditto",
    lambda c: c.fed.ditto == 0,
    "0 with fed.share=none, where there is nothing to be near to, with fed.finetune, which makes"
    " other personal models, and with privacy.example_clip, whose budget is of the rounds",
    when=lambda c: c.fed.share == "none" or c.fed.finetune > 0 or c.privacy.example_clip > 0,
  ),
  Rule(
    "fed.local_leaves",
    lambda c: not c.fed.local_leaves,
    "none with fed.share=none, where all leaves are local",
    when=lambda c: c.fed.share == "none",
  ),
  Rule(
    "fed.local_leaves",
    lambda c: not any(is_local(leaf, local_patterns(c.fed)) for leaf in ROUTING_LEAVES),
    "patterns without keys and query of sites where images are routed, which sets them",
    when=lambda c: site_prompts(c.experiment) > 0 and c.fed.share == "all",
  ),
  *where(
    lambda c: c.optim.local_only > 0,
    Rule(
      "optim.local_only",
      lambda c: c.optim.local_only < c.optim.local_steps,
      "less than optim.local_steps, {c.optim.local_steps}",
    ),
    Rule(
      "optim.local_only",
      lambda c: c.fed.share == "all" and (c.prompter.local or bool(c.fed.local_leaves)),
      "0 unless some leaves are local and some shared",
    ),
    Rule(
      "optim.local_only",
      lambda c: not has_controls(c) and c.privacy.example_clip == 0,
      "0 with a strategy that has controls, and with privacy.example_clip: they are of steps that"
      " train all leaves",
    ),
  ),
)
