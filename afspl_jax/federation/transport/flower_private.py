"""Every private name of Flower that this package uses, in one place.

Flower documents `flwr.app`, `flwr.clientapp` and `flwr.serverapp`. All other modules are private
and may change with any release. The names below are those of Flower 1.41; `pyproject.toml` pins
that series. To move to another one, change the modules in `_MODULES` and run
`tests/federation/transport/test_flower_private.py`.

A name is imported when it is first used: a simulation needs three of them, and all of Flower's
server would double the time that it takes to start.
"""

import importlib
from typing import Any

_MODULES = {
  # local_grid.py: a Grid inside this process. Flower's own simulation starts Ray, and exports no
  # other way to serialize a message and to give it a sender.
  "InflatableObject": "flwr.supercore.inflatable.inflatable_object",
  "inflate_object_from_contents": "flwr.supercore.inflatable.inflatable_utils",
  "Run": "flwr.supercore.run",
  "TaskIdentity": "flwr.supercore.task_identity",
  # connection.py: requests to a SuperLink or SuperNode. Flower's command line sends the same
  # requests, but cannot send our secret and interrupts the process when one is rejected.
  "ApiErrorCode": "flwr.supercore.error",
  "ControlHttpClient": "flwr.supercore.control",
  "Fab": "flwr.proto.fab_pb2",
  "FlowerError": "flwr.supercore.error",
  "ListNodesRequest": "flwr.proto.control_pb2",
  "ListRunsRequest": "flwr.proto.control_pb2",
  "ProtobufCall": "flwr.supercore.protobuf.client",
  "ProtobufRequestContext": "flwr.supercore.protobuf.client",
  "RegisterNodeRequest": "flwr.proto.control_pb2",
  "RetryInvoker": "flwr.supercore.retry",
  "RuntimeHttpClient": "flwr.supercore.runtime",
  "RuntimeTokenHttpInterceptor": "flwr.supercore.interceptors",
  "RuntimeVersionHttpInterceptor": "flwr.supercore.interceptors",
  "StartRunRequest": "flwr.proto.control_pb2",
  "Status": "flwr.common.constant",
  "StopRunRequest": "flwr.proto.control_pb2",
  "SuperExecAuthHttpInterceptor": "flwr.supercore.interceptors",
  "exponential": "flwr.supercore.retry",
  # tasks.py, server_executor.py, site_executor.py: Flower's own executors install and run the code
  # that arrives with a run.
  "AcquireTaskRequest": "flwr.proto.runtime_pb2",
  "HeartbeatSender": "flwr.supercore.heartbeat",
  "HttpGrid": "flwr.superlink.grid",
  "PullTaskInputRequest": "flwr.proto.runtime_pb2",
  "PushTaskOutputRequest": "flwr.proto.runtime_pb2",
  "SendTaskHeartbeatRequest": "flwr.proto.runtime_pb2",
  "SubStatus": "flwr.common.constant",
  "pull_task_input": "flwr.supernode.runtime.run_clientapp",
  "push_message": "flwr.supernode.runtime.run_clientapp",
  "push_task_output": "flwr.supernode.runtime.run_clientapp",
  "run_from_proto": "flwr.common.serde",
  # access_control.py: the SuperLink's own program, to put access control before its interfaces.
  "SuperLinkLifespan": "flwr.superlink.cli.flower_superlink",
  "_parse_superlink_lifespan_config": "flwr.superlink.cli.flower_superlink",
  "console_handler": "flwr.supercore.logger",
  "create_app": "flwr.superlink.main",
  "get_uvicorn_log_config": "flwr.supercore.http_logging",
  # task_gate.py: the SuperNode's own program, to hand out a message only when it is whole.
  "flower_supernode": "flwr.supernode.cli.flower_supernode",
  "start_client_internal": "flwr.supernode.start_client_internal",
  "supernode_main": "flwr.supernode.main",
  # redelivery.py: the SuperLink's table of messages. Flower takes no other table by configuration.
  "MessageIns": "flwr.supercore.state.schema.linkstate_models",
  "MessageRes": "flwr.supercore.state.schema.linkstate_models",
  "SqlLinkState": "flwr.server.superlink.linkstate",
  "linkstate_factory": "flwr.server.superlink.linkstate",
  "uint64_to_int64": "flwr.supercore.utils",
}


_WHOLE = ("start_client_internal", "supernode_main")  # names of modules, not of things in them


def __getattr__(name: str) -> Any:
  """Imports a name of `_MODULES` when it is first used."""
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(_MODULES[name])
  value = module if name in _WHOLE else getattr(module, name)
  globals()[name] = value
  return value
