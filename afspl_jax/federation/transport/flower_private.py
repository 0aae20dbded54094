"""Every private name of Flower that this package uses, in one place.

Flower documents `flwr.app`, `flwr.clientapp` and `flwr.serverapp`. All other modules are private
and may change with any release. The names below are the same in Flower 1.41 and 1.42;
`pyproject.toml` admits these two. To move to another series, change the modules in `_GROUPS` and
run `.ci/flower VERSION`. Each group says what the public interface would have to offer in its
place; `docs/upstream.md` describes these changes.

A name is imported when it is first used: a simulation needs three of them, and all of Flower's
server would double the time that it takes to start.
"""

import importlib
from typing import Any, NamedTuple


class _Group(NamedTuple):
  """Private names that one public call could replace."""

  user: str  # the modules here that use them
  public: str  # the call that would replace them; none of these exists yet
  modules: dict[str, str]  # where each name is; of a module: its own full name


_GROUPS = (
  _Group(
    "local_grid.py",
    "flwr.serverapp.InProcessGrid(client_app, node_ids): a Grid inside this process. Flower's own"
    " simulation starts Ray",
    {
      "InflatableObject": "flwr.supercore.inflatable.inflatable_object",
      "inflate_object_from_contents": "flwr.supercore.inflatable.inflatable_utils",
      "Run": "flwr.supercore.run",
      "TaskIdentity": "flwr.supercore.task_identity",
    },
  ),
  _Group(
    "connection.py",
    "flwr.control.Client(address, ca, token): register_node, list_nodes, start_run, list_runs,"
    " stop_run. The `flwr` command sends the same requests, but cannot send a secret, and ends the"
    " process when a request is rejected",
    {
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
    },
  ),
  _Group(
    "server_executor.py",
    "flwr.serverapp.open_grid(superlink, run_id): a Grid for an object of this process. Flower's"
    " executor installs and runs the code that arrives with a run",
    {
      "HttpGrid": "flwr.superlink.grid",
      "PullTaskInputRequest": "flwr.proto.runtime_pb2",
      "PushTaskOutputRequest": "flwr.proto.runtime_pb2",
      "SubStatus": "flwr.common.constant",
      "run_from_proto": "flwr.common.serde",
    },
  ),
  _Group(
    "site_executor.py and tasks.py",
    "flwr.clientapp.answer(client_app, supernode): answers messages with an object of this process",
    {
      "AcquireTaskRequest": "flwr.proto.runtime_pb2",
      "HeartbeatSender": "flwr.supercore.heartbeat",
      "SendTaskHeartbeatRequest": "flwr.proto.runtime_pb2",
      "pull_task_input": "flwr.supernode.runtime.run_clientapp",
      "push_message": "flwr.supernode.runtime.run_clientapp",
      "push_task_output": "flwr.supernode.runtime.run_clientapp",
    },
  ),
  _Group(
    "access_control.py",
    "flower-superlink --control-token-file FILE: only requests with the token may start runs and"
    " register nodes",
    {
      "SuperLinkLifespan": "flwr.superlink.cli.flower_superlink",
      "_parse_superlink_lifespan_config": "flwr.superlink.cli.flower_superlink",
      "console_handler": "flwr.supercore.logger",
      "create_app": "flwr.superlink.main",
      "get_uvicorn_log_config": "flwr.supercore.http_logging",
    },
  ),
  _Group(
    "supernode_program.py and task_gate.py",
    "a SuperNode that creates the task of a message when the message is whole, that holds a request"
    " for a task back until there is one, and that gives up only if it does not trust the server",
    {
      "fleet_http_connection": "flwr.supernode.fleet_http_connection",
      "flower_supernode": "flwr.supernode.cli.flower_supernode",
      "start_client_internal": "flwr.supernode.start_client_internal",
      "supernode_main": "flwr.supernode.main",
    },
  ),
  _Group(
    "redelivery.py",
    "a SuperLink that delivers a message until the SuperNode has confirmed it",
    {
      "MessageIns": "flwr.supercore.state.schema.linkstate_models",
      "MessageRes": "flwr.supercore.state.schema.linkstate_models",
      "SqlLinkState": "flwr.server.superlink.linkstate",
      "linkstate_factory": "flwr.server.superlink.linkstate",
      "uint64_to_int64": "flwr.supercore.utils",
    },
  ),
)
_MODULES = {name: module for group in _GROUPS for name, module in group.modules.items()}
_WHOLE = (
  "fleet_http_connection",
  "start_client_internal",
  "supernode_main",
)  # names of modules, not of things in them


def __getattr__(name: str) -> Any:
  """Imports a name of `_GROUPS` when it is first used."""
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(_MODULES[name])
  value = module if name in _WHOLE else getattr(module, name)
  globals()[name] = value
  return value
