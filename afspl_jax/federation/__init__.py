"""The federation: Flower carries the messages, the round loop is ours."""

import os

# Flower reads these when it is first imported, and every import of it here passes through this
# file. Sites hold data that must not leave them: nothing calls home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
# A run's progress bar owns stderr; set the variable yourself to hear more from Flower.
os.environ.setdefault("FLWR_LOG_LEVEL", "ERROR")
