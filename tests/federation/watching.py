"""A Progress that keeps its texts."""


class Watching:
  """Keeps texts in `said` and `sites`, and calls `on_round` with every round's report."""

  def __init__(self, on_round=lambda report: None):
    self.said, self.sites, self.on_round = [], [], on_round

  def waiting(self, text):
    self.said.append(text)

  def site_changed(self, text):
    self.sites.append(text)

  def round_done(self, report):
    self.on_round(report)
