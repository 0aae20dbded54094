"""All targets, by name."""

from tests.fuzz import data_sets, messages, models, runs

TARGETS = data_sets.TARGETS | models.TARGETS | messages.TARGETS | runs.TARGETS
