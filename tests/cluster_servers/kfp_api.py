"""A Kubeflow Pipelines API (v2beta1) over HTTP: parses uploads as pipelines, validates requests against the swagger."""

from __future__ import annotations

import email.parser
import email.policy
import functools
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

PREFIX = "/apis/v2beta1"


@dataclass
class Kubeflow:
    """The server's objects, and the faults that a test configures."""

    token: str = ""
    multi_user: bool = False
    forbidden: set[str] = field(default_factory=set)
    """Paths (below the prefix) that are answered 403."""
    login: bool = False
    """Everything is redirected to a login page, which is HTML."""
    web_page: bool = False
    """Answers with HTML, as a dashboard would."""
    busy: int = 0
    """Number of reads of a run that are answered 503."""
    pipelines: dict[str, str] = field(default_factory=dict)
    """Name -> id."""
    versions: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Pipeline id -> (name, version id), oldest first."""
    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedules: list[dict[str, Any]] = field(default_factory=list)
    states: list[tuple[str, dict[str, str]]] = field(default_factory=lambda: [("SUCCEEDED", {})])
    """Answers to reads of a run, one after the other, the last one for ever: (state of the run, task -> state)."""
    errors: dict[str, str] = field(default_factory=dict)
    """Task -> message."""
    faults: list[str] = field(default_factory=list)
    """Requests that the swagger or the protobuf does not allow."""
    requests: list[str] = field(default_factory=list)
    packages: list[dict[str, Any]] = field(default_factory=list)
    """The pipelines that were uploaded."""


@functools.lru_cache(maxsize=1)
def _definitions(folder: str) -> dict[str, Any]:
    """The swagger's definitions with unknown fields forbidden."""
    found = json.loads(Path(folder, "kfp_v2beta1.swagger.json").read_text())["definitions"]
    for definition in found.values():
        if definition.get("properties") and "additionalProperties" not in definition:
            definition["additionalProperties"] = False
        for name, field_ in list(definition.get("properties", {}).items()):
            if field_.get("format") == "int64":
                definition["properties"][name] = {"type": ["string", "integer"]}
    return found


def swagger_faults(body: Any, definition: str) -> list[str]:
    """Faults that the published API forbids in this body; none if `ROBUSTRAIN_CONTRACTS` names no swagger."""
    folder = os.environ.get("ROBUSTRAIN_CONTRACTS", "")
    if not Path(folder, "kfp_v2beta1.swagger.json").is_file():
        return []
    schema = {"$ref": f"#/definitions/{definition}", "definitions": _definitions(folder)}
    return [f"{definition}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(body)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kubeflow: Kubeflow

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = url.path.removeprefix(PREFIX)
        self.kubeflow.requests.append(f"{method} {path}")
        if not self._admit(url.path, path):
            return
        for wanted, pattern, handler in _ROUTES:
            if wanted == method and (found := re.fullmatch(pattern, path)):
                handler(self, query, body, *found.groups())
                return
        self._fail(404, "Not Found")

    def _admit(self, full_path: str, path: str) -> bool:
        kubeflow = self.kubeflow
        if kubeflow.login and full_path != "/dex/login":
            self.send_response(302)
            self.send_header("Location", "/dex/login")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kubeflow.web_page or kubeflow.login:
            self._send(200, b"<html>Kubeflow</html>", "text/html")
        elif not full_path.startswith(PREFIX):
            self._fail(404, "Not Found")
        elif kubeflow.token and self.headers.get("Authorization") != f"Bearer {kubeflow.token}":
            self._fail(401, "Request header error: there is no user identity header.")
        elif path in kubeflow.forbidden:
            self._fail(403, f"User is not authorized with reason: {path}")
        else:
            return True
        return False

    def _health(self, query: dict[str, str], body: bytes) -> None:
        self._answer({"multi_user": self.kubeflow.multi_user})

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        name = query["name"]
        if name in self.kubeflow.pipelines:
            self._fail(409, f"The name {name} already exist. Please specify a new name.")
            return
        if not self._package(body):
            return
        identity = str(uuid.uuid4())
        self.kubeflow.pipelines[name] = identity
        self.kubeflow.versions[identity] = [(name, str(uuid.uuid4()))]
        self._answer({"pipeline_id": identity, "display_name": name})

    def _upload_version(self, query: dict[str, str], body: bytes) -> None:
        name, versions = query["name"], self.kubeflow.versions[query["pipelineid"]]
        if name in dict(versions):
            self._fail(409, f"The name {name} already exist.")
            return
        if self._package(body):
            versions.append((name, str(uuid.uuid4())))
            self._answer(_version(query["pipelineid"], versions[-1]))

    def _package(self, body: bytes) -> bool:
        """Whether the uploaded file is a pipeline, by Kubeflow's own protobuf."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        for part in message.iter_parts():
            if part.get_filename():
                try:
                    documents = list(yaml.safe_load_all(part.get_payload(decode=True)))
                    json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
                    self.kubeflow.packages.append(documents[0])
                    return True
                except (json_format.ParseError, yaml.YAMLError, IndexError) as error:
                    self._fault(f"package: {error}")
        self._fail(400, "Invalid input error: the file is no pipeline")
        return False

    def _list_pipelines(self, query: dict[str, str], body: bytes) -> None:
        wanted = _filtered(query)
        found = [{"pipeline_id": i, "display_name": n} for n, i in self.kubeflow.pipelines.items() if wanted in {"", n}]
        self._answer({"pipelines": found} if found else {})

    def _list_versions(self, query: dict[str, str], body: bytes, pipeline: str) -> None:
        wanted = _filtered(query)
        found = [_version(pipeline, entry) for entry in self.kubeflow.versions[pipeline] if wanted in {"", entry[0]}]
        newest_first = found[::-1] if query.get("sort_by") == "created_at desc" else found
        self._answer({"pipeline_versions": newest_first[: int(query.get("page_size", 10))]})

    def _list_experiments(self, query: dict[str, str], body: bytes) -> None:
        wanted = _filtered(query)
        found = [self._experiment(name) for name in self.kubeflow.experiments if wanted in {"", name}]
        self._answer({"experiments": found} if found else {})

    def _create_experiment(self, query: dict[str, str], body: bytes) -> None:
        if (value := self._checked(body, "v2beta1Experiment")) is not None:
            self.kubeflow.experiments[value["display_name"]] = str(uuid.uuid4())
            self._answer(self._experiment(value["display_name"]))

    def _experiment(self, name: str) -> dict[str, str]:
        return {"experiment_id": self.kubeflow.experiments[name], "display_name": name}

    def _create_run(self, query: dict[str, str], body: bytes) -> None:
        if (value := self._checked(body, "v2beta1Run")) is not None and self._known(value):
            value["run_id"] = str(uuid.uuid4())
            self.kubeflow.runs[value["run_id"]] = value
            self._answer({**value, "state": "PENDING"})

    def _create_schedule(self, query: dict[str, str], body: bytes) -> None:
        if (value := self._checked(body, "v2beta1RecurringRun")) is not None and self._known(value):
            self.kubeflow.schedules.append(value)
            self._answer({"recurring_run_id": "schedule-1", "display_name": value["display_name"]})

    def _known(self, value: dict[str, Any]) -> bool:
        """Whether the request names a version and an experiment that exist."""
        reference = value.get("pipeline_version_reference", {})
        versions = self.kubeflow.versions.get(reference.get("pipeline_id"), [])
        known = reference.get("pipeline_version_id") in dict(versions).values()
        if known and value.get("experiment_id") in self.kubeflow.experiments.values():
            return True
        self._fail(400, "Invalid input error: unknown pipeline version or experiment")
        return False

    def _get_run(self, query: dict[str, str], body: bytes, run: str) -> None:
        kubeflow = self.kubeflow
        if kubeflow.busy:
            kubeflow.busy -= 1
            self._fail(503, "upstream connect error")
            return
        if run not in kubeflow.runs:
            self._fail(404, f"ResourceNotFoundError: Run {run} not found")
            return
        state, tasks = kubeflow.states.pop(0) if len(kubeflow.states) > 1 else kubeflow.states[0]
        details = [
            {
                "task_id": f"task-{name}",
                "display_name": name,
                "state": task,
                **({"error": {"code": 2, "message": kubeflow.errors[name]}} if name in kubeflow.errors else {}),
            }
            for name, task in tasks.items()
        ]
        self._answer({**kubeflow.runs[run], "state": state, "run_details": {"task_details": details}})

    def _terminate(self, query: dict[str, str], body: bytes, run: str) -> None:
        self.kubeflow.states[:] = [("CANCELED", {})]
        self._answer({})

    def _checked(self, body: bytes, definition: str) -> dict[str, Any] | None:
        value = json.loads(body)
        faults = swagger_faults(value, definition)
        if faults:
            self._fault(*faults)
            self._fail(400, faults[0])
            return None
        return value

    def _fault(self, *faults: str) -> None:
        self.kubeflow.faults.extend(faults)

    def _fail(self, code: int, message: str) -> None:
        text = {"error": message, "code": code, "message": message, "details": []}
        self._send(code, json.dumps(text).encode(), "application/json")

    def _answer(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(self, code: int, data: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


_ROUTES = (
    ("GET", "/healthz", _Handler._health),
    ("POST", "/pipelines/upload", _Handler._upload),
    ("POST", "/pipelines/upload_version", _Handler._upload_version),
    ("GET", "/pipelines", _Handler._list_pipelines),
    ("GET", "/pipelines/([^/]+)/versions", _Handler._list_versions),
    ("GET", "/experiments", _Handler._list_experiments),
    ("POST", "/experiments", _Handler._create_experiment),
    ("POST", "/runs", _Handler._create_run),
    ("GET", "/runs/([^/:]+)", _Handler._get_run),
    ("POST", "/runs/([^/:]+):terminate", _Handler._terminate),
    ("POST", "/recurringruns", _Handler._create_schedule),
)


def _version(pipeline: str, entry: tuple[str, str]) -> dict[str, str]:
    return {"pipeline_id": pipeline, "display_name": entry[0], "pipeline_version_id": entry[1]}


def _filtered(query: dict[str, str]) -> str:
    """The display name that a filter asks for, or an empty string."""
    predicates = json.loads(query.get("filter") or "{}").get("predicates", [])
    return predicates[0]["stringValue"] if predicates else ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def serve(kubeflow: Kubeflow) -> Iterator[str]:
    """The server's address while it runs; on 127.0.0.1 only."""
    handler = type("Handler", (_Handler,), {"kubeflow": kubeflow})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
