"""A Kubernetes API server for one namespace: RayJobs with watches, pods, pod logs; and a KubeRay that follows a script.

The real client talks to it over HTTP. It implements resource versions, 409, 410, preconditions, `timeoutSeconds` and
strict field validation (if `ROBUSTRAIN_CONTRACTS` names the published CRD), and records verb and resource of every
request as an authorizer would see them.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cluster_servers import crd

JOBS = re.compile(r"/apis/ray\.io/v1/namespaces/(?P<ns>[^/]+)/rayjobs(/(?P<name>[^/]+))?")
PODS = re.compile(r"/api/v1/namespaces/(?P<ns>[^/]+)/pods(/(?P<name>[^/]+)/log)?")


@dataclass
class Cluster:
    """The server's objects, and the faults that a test configures."""

    namespace: str = "team"
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    watches: int = 0
    version: int = 100
    token: str = "good"
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    drop_creates: int = 0
    """Number of creations that succeed without an answer: the connection is cut."""
    busy: int = 0
    """Number of requests that are answered 503."""
    lose_watches: int = 0
    """Number of watches that are cut before their first event."""
    expire_watches: int = 0
    """Number of watches that are answered 410."""
    on_create: Callable[[Cluster, str], None] | None = None
    """The operator: runs in a thread of its own after a job was created."""
    on_pods: Callable[[Cluster], None] | None = None
    change: threading.Condition = field(default_factory=threading.Condition)

    def put(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        """Adds a job, as another client would."""
        with self.change:
            job["metadata"].setdefault("uid", str(uuid.uuid4()))
            self.jobs[name] = job
            self._note("ADDED", job)
            return json.loads(json.dumps(job))

    def status(self, name: str, deployment: str = "", job: str = "", **more: str) -> None:
        """Writes a job's status, as KubeRay does."""
        with self.change:
            if name in self.jobs:
                self.jobs[name]["status"] = {"jobDeploymentStatus": deployment, "jobStatus": job, **more}
                self._note("MODIFIED", self.jobs[name])

    def remove(self, name: str) -> None:
        with self.change:
            if name in self.jobs:
                self._note("DELETED", self.jobs.pop(name))

    def wait(self, condition: Callable[[Cluster], bool], seconds: float = 90) -> None:
        """Waits until the condition holds; fails the test if it does not in time."""
        with self.change:
            assert self.change.wait_for(lambda: condition(self), seconds), (
                f"the condition never held; requests: {self.requests}"
            )

    def _note(self, kind: str, job: dict[str, Any]) -> None:
        self.version += 1
        job["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, kind, json.loads(json.dumps(job))))
        self.change.notify_all()


def script(*statuses: tuple[str, str], pause: float = 0.05) -> Callable[[Cluster, str], None]:
    """An operator that writes these (deployment status, job status) one after the other."""

    def operate(cluster: Cluster, name: str) -> None:
        for deployment, job in statuses:
            time.sleep(pause)
            cluster.status(name, deployment, job)

    return operate


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        jobs, pods = JOBS.fullmatch(url.path), PODS.fullmatch(url.path)
        found = jobs or pods
        if found is None or found["ns"] != self.cluster.namespace:
            self._fail(404, "the server could not find the requested resource")
            return
        verb = _verb(method, found["name"], query)
        resource = "rayjobs" if jobs else ("pods/log" if found["name"] else "pods")
        if not self._admit("get" if resource == "pods/log" else verb, resource):
            return
        if jobs:
            getattr(self, f"_{verb}_job")(found["name"], query, body)
        elif found["name"]:
            self._pod_log(found["name"])
        else:
            self._pod_list(query)

    def _admit(self, verb: str, resource: str) -> bool:
        cluster = self.cluster
        with cluster.change:
            cluster.requests.append((verb, resource))
            cluster.change.notify_all()
            if cluster.busy:
                cluster.busy -= 1
                self._fail(503, "the server is currently unable to handle the request")
                return False
        if cluster.token and self.headers.get("Authorization") != f"Bearer {cluster.token}":
            self._fail(401, "Unauthorized")
            return False
        if (verb, resource) in cluster.forbidden:
            self._fail(403, f"User cannot {verb} resource {resource}")
            return False
        return True

    def _create_job(self, name: str | None, query: dict[str, str], body: bytes) -> None:
        cluster, job = self.cluster, json.loads(body)
        name = job["metadata"]["name"]
        folder = crd.contracts()
        faults = crd.faults(job, folder) if folder and query.get("fieldValidation") == "Strict" else []
        if faults:
            self._fail(422, f"RayJob is invalid: {faults[0]}")
            return
        if name in cluster.jobs:
            self._fail(409, f'rayjobs.ray.io "{name}" already exists')
            return
        answer = cluster.put(name, job)
        if cluster.on_create:
            threading.Thread(target=cluster.on_create, args=(cluster, name), daemon=True).start()
        if cluster.drop_creates:
            cluster.drop_creates -= 1
            self._cut()
            return
        self._answer(201, answer)

    def _list_job(self, name: str | None, query: dict[str, str], body: bytes) -> None:
        with self.cluster.change:
            items = [job for job in self.cluster.jobs.values() if _selected(job, query)]
            text = {"kind": "RayJobList", "metadata": {"resourceVersion": str(self.cluster.version)}, "items": items}
            self._answer(200, text)

    def _watch_job(self, name: str | None, query: dict[str, str], body: bytes) -> None:
        cluster = self.cluster
        cluster.watches += 1
        if cluster.expire_watches:
            cluster.expire_watches -= 1
            self._begin()
            self._chunk({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}})
            self._chunk(None)
            return
        self._begin()
        if cluster.lose_watches:
            cluster.lose_watches -= 1
            self._cut()
            return
        seen = int(query["resourceVersion"])
        end = time.monotonic() + int(query["timeoutSeconds"])
        while (left := end - time.monotonic()) > 0:
            with cluster.change:
                cluster.change.wait_for(lambda after=seen: any(event[0] > after for event in cluster.events), left)
                news = [event for event in cluster.events if event[0] > seen]
            for version, kind, job in news:
                seen = version
                if _selected(job, query):
                    self._chunk({"type": kind, "object": job})
        self._chunk(None)

    def _get_job(self, name: str, query: dict[str, str], body: bytes) -> None:
        job = self.cluster.jobs.get(name)
        self._answer(200, job) if job else self._fail(404, f'rayjobs.ray.io "{name}" not found')

    def _delete_job(self, name: str, query: dict[str, str], body: bytes) -> None:
        job = self.cluster.jobs.get(name)
        if job is None:
            self._fail(404, f'rayjobs.ray.io "{name}" not found')
            return
        wanted = json.loads(body or b"{}").get("preconditions", {}).get("uid")
        if wanted and wanted != job["metadata"]["uid"]:
            self._fail(409, "the UID in the precondition does not match")
            return
        self.cluster.remove(name)
        self._answer(200, {"kind": "Status", "status": "Success"})

    def _pod_list(self, query: dict[str, str]) -> None:
        if self.cluster.on_pods:
            self.cluster.on_pods(self.cluster)
        items = [pod for pod in self.cluster.pods if _selected(pod, query)]
        self._answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    def _pod_log(self, name: str) -> None:
        self._begin("text/plain")
        for line in self.cluster.logs.get(name, []):
            if line == "CUT":
                self.cluster.logs[name].remove("CUT")
                self._cut()
                return
            self._raw_chunk(line.encode() + b"\n")
        self._chunk(None)

    def _begin(self, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, value: Any) -> None:
        self._raw_chunk(b"" if value is None else json.dumps(value).encode() + b"\n")

    def _raw_chunk(self, data: bytes) -> None:
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:
            self.close_connection = True

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _fail(self, code: int, message: str) -> None:
        self._answer(code, {"kind": "Status", "status": "Failure", "message": message, "code": code})

    def _answer(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _verb(method: str, name: str | None, query: dict[str, str]) -> str:
    if method == "GET":
        return "get" if name else ("watch" if query.get("watch") == "True" else "list")
    return {"POST": "create", "DELETE": "delete"}[method]


def _selected(thing: dict[str, Any], query: dict[str, str]) -> bool:
    metadata = thing["metadata"]
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    labels = metadata.get("labels") or {}
    return (not name or metadata["name"] == name) and all(labels.get(key) == value for key, value in wanted.items())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


@contextmanager
def serve(cluster: Cluster) -> Iterator[str]:
    """The server's address while it runs; on 127.0.0.1 only."""
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
