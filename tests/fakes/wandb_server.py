"""A small W&B server on loopback: what the client needs to record runs, and ways to fail."""

import base64
import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Any
from urllib.parse import unquote, urlparse

import yaml

from tests.fakes.wandb_records import (
    ENTITY,
    RecordedRun,
    Refused,
    make_project_node,
    make_sweep_node,
    refuse_too_long,
)

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer:
    """Serves on a port of loopback. `failing` is what every request meets:

    None: it is answered; "silent": it is not; a number: that HTTP status. `answers_left`: requests that are
    answered before the server goes silent. `latency_seconds`: how long each request waits for its answer.
    `refused`: names of runs that the server refuses.
    """

    def __init__(self) -> None:
        self.runs: dict[str, RecordedRun] = {}
        self.sweep: dict[str, Any] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.keys: set[str] = set()
        self.failing: str | int | None = None
        self.answers_left: int | None = None
        self.latency_seconds = 0.0
        self.refused: set[str] = set()
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"recorder": self})
        self._http = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Close the port."""
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def query(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL query or mutation by its name."""
        self.operations.append(operation)
        if operation in ("Viewer", "GetViewer", "GetDefaultEntity"):
            return {
                "viewer": {
                    "id": "U",
                    "username": "user",
                    "entity": ENTITY,
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "UpsertBucket":
            if values["name"] in self.refused:
                raise Refused(f"no run may be called {values['name']}")
            refuse_too_long(values)
            return self._upsert(values)
        if operation == "RunResumeStatus":
            run = self.runs.get(values["name"])
            return {
                "model": {**make_project_node(values["project"]), "bucket": run.make_node() if run else None}
            }
        if operation == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/up/{values['run']}/{f}"} for f in values["files"]]
            return {"createRunFiles": {"runID": f"R:{values['run']}", "uploadHeaders": [], "files": files}}
        if operation in ("UpsertView2", "upsertView"):
            return self._upsert_view(values)
        if operation == "SweepWithRuns":
            return {"project": {**make_project_node(values["project"]), "sweep": self.sweep["node"]}}
        if operation in ("UpsertSweep", "CreateAgent", "Heartbeat", "AgentHeartbeat"):
            return self._sweep(operation, values)
        if operation == "CreateProject":
            return {"upsertModel": {"project": make_project_node(values["input"]["name"]), "inserted": True}}
        if operation == "GetProjects":
            pages = {"endCursor": None, "hasNextPage": False}
            names = sorted({run.project for run in self.runs.values()})
            edges = [{"node": make_project_node(name), "cursor": name} for name in names]
            return {"models": {"edges": edges, "pageInfo": pages}}
        if operation == "SpecificReport":
            return {"view": self.views[values["reportId"]]}
        if operation == "View":
            views = [{"node": view} for view in self.views.values() if view["name"] == values["viewName"]]
            return {"project": {**make_project_node(values["name"]), "allViews": {"edges": views}}}
        raise KeyError(operation)

    def _sweep(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        """Give the points of a grid, whatever the method, to the agent that asks."""
        if operation == "UpsertSweep":
            config = yaml.safe_load(values["config"])
            choices = {key: entry["values"] for key, entry in config["parameters"].items()}
            points = [dict(zip(choices, point, strict=True)) for point in product(*choices.values())]
            self.sweep = {"config": values["config"], "left": points}
            self.sweep["node"] = make_sweep_node(config["method"], values["config"], values["projectName"])
            return {"upsertSweep": {"sweep": self.sweep["node"], "configValidationWarnings": []}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "A"}}}
        commands: list[dict[str, Any]] = []
        if not json.loads(values.get("runState") or "{}"):
            if self.sweep["left"]:
                point = self.sweep["left"].pop(0)
                arguments = {key: {"value": value} for key, value in point.items()}
                run_id = f"agent{len(self.sweep['left'])}"
                commands = [{"type": "run", "run_id": run_id, "program": None, "args": arguments}]
            else:
                commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "A"}, "commands": json.dumps(commands)}}

    def _upsert_view(self, values: dict[str, Any]) -> dict[str, Any]:
        named = [number for number, view in self.views.items() if view["name"] == values.get("name")]
        number = values.get("id") or (named[0] if named else f"Vmlldzo{len(self.views)}")
        fields = {key: values.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        project = {**make_project_node(values["projectName"]), "entityName": ENTITY}
        self.views[number] = {"id": number, **fields, "project": project, "user": {"username": "user"}}
        return {"upsertView": {"view": self.views[number], "inserted": "id" not in values}}

    def _upsert(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, RecordedRun(name, values["project"]))
        run.meta |= {key: values[key] for key in META if values.get(key) is not None}
        for key, entry in json.loads(values.get("config") or "{}").items():
            run.config[key] = entry["value"] if isinstance(entry, dict) else entry
        return {"upsertBucket": {"bucket": run.make_node(), "inserted": inserted}}

    def stream(self, project: str, name: str, body: dict[str, Any]) -> None:
        """Record lines of a run's files, at the offsets that the client gives."""
        run = self.runs.setdefault(name, RecordedRun(name, project))
        for file, part in (body.get("files") or {}).items():
            if file in ("wandb-history.jsonl", "wandb-events.jsonl"):
                lines = run.history if "history" in file else run.events
                offset = part.get("offset", 0)
                assert offset <= len(lines), f"{file}: a gap before line {offset}"
                rows = [json.loads(line) for line in part["content"]]
                lines[offset : offset + len(rows)] = rows
            elif file == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        run.preempting |= body.get("preempting", False)
        if body.get("complete"):
            failed, run.preempting = "preempted" if run.preempting else "failed", False
            run.state = failed if body.get("exitcode") else "finished"


META = ("displayName", "groupName", "jobType", "tags", "commit", "notes")


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve for as long as the context lasts."""
    server = WandbServer()
    try:
        yield server
    finally:
        server.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # of connections; a client that sends many runs at a time opens several for each

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    recorder: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._meets_failure():
            return
        _, _, run, file = [*unquote(urlparse(self.path).path).split("/", 3), "", "", ""][:4]
        recorded = self.recorder.runs.get(run)
        content = recorded.files.get(file) if recorded else None
        self._answer(content or b"{}", 200 if content else 404)

    def do_PUT(self) -> None:
        body = self._body()
        if self._meets_failure():
            return
        _, _, run, file = unquote(urlparse(self.path).path).split("/", 3)
        with self.recorder.lock:
            self.recorder.runs[run].files[file] = body
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self._meets_failure():
            return
        path = urlparse(self.path).path
        with self.recorder.lock:
            if path == "/graphql":
                self._graphql(json.loads(body))
            elif match := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
                self.recorder.stream(match[2], match[3], json.loads(body))
                self._answer({"exitcode": None, "limits": {}})
            else:
                self._answer({})

    def _graphql(self, request: dict[str, Any]) -> None:
        authorization = self.headers.get("Authorization", "")
        key = base64.b64decode(authorization.removeprefix("Basic ")).decode().removeprefix("api:")
        self.recorder.keys.add(key)
        if key != KEY:
            self._answer({"errors": [{"message": "invalid api key"}]}, 401)
            return
        match = re.search(r"\b(?:query|mutation)\s+(\w+)", request.get("query", ""))
        try:
            self._answer(
                {"data": self.recorder.query(match[1] if match else "", request.get("variables") or {})}
            )
        except Refused as error:
            field = "upsertBucket"
            self._answer({"data": {field: None}, "errors": [{"message": str(error), "path": [field]}]}, 400)
        except KeyError as error:
            self._answer({"errors": [{"message": f"unknown operation {error}"}]}, 400)

    def _meets_failure(self) -> bool:
        server = self.recorder
        time.sleep(server.latency_seconds)
        if server.answers_left is not None:
            server.answers_left -= 1
            if server.answers_left < 0:
                server.failing = server.failing or "silent"
        if server.failing is None:
            return False
        if server.failing == "silent":
            while not server.stopped.wait(0.1) and server.failing == "silent":
                time.sleep(0)
            self.close_connection = True
        else:
            self._answer({"error": "no"}, int(server.failing))
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: Any, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
