"""Whether images are routed to the prompts of sites, and how many of these there are."""

from afspl_jax.config.experiment import Experiment


def may_route(config: Experiment) -> bool:
  """Whether the sites may send image statistics, and a global model with the image uses them."""
  hidden = config.privacy.dp != "none" or config.privacy.example_clip or config.secure.aggregation
  return not hidden and config.fed.share == "all" and config.prompter.see_image


def site_prompts(config: Experiment) -> int:
  """The number of prompts of sites; 0: images are not routed.

  It depends on settings that all hosts share, and not on the number of clients, which a site with
  data of its own does not know.
  """
  routing = config.prompter.routing
  if routing == "none" or (routing == "auto" and not may_route(config)):
    return 0
  return config.prompter.site_prompts
