"""Calls to the Kubernetes API for RayJobs and their pods.

A call is repeated as long as that can help; a failure that remains becomes a `UserError` of one line. The Role in
`k8s/base/role.yaml` grants these calls and no others: create, list, watch and delete RayJobs, list pods, read their
logs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from components.errors import UserError
from components.launch.rayjob_settings import Timing

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
CONNECT_SECONDS, READ_SECONDS = 5, 30
LONGEST_PAUSE = 15.0
RETRIABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same call may succeed."""
_TIMEOUT = (CONNECT_SECONDS, READ_SECONDS)

Result = TypeVar("Result")


def connect() -> Any:
    """A `kubernetes.client.ApiClient` for the cluster of this pod, or for the current context of the kubeconfig.

    Raises:
        UserError: there is neither.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise UserError(
                f"no Kubernetes cluster is configured: {error}",
                remedy="run in a pod with a service account, or set KUBECONFIG",
            ) from error
    return client.ApiClient(configuration)


class RayJobApi:
    """RayJobs and their pods in one namespace.

    Args:
        api: a `kubernetes.client.ApiClient`.
        namespace: of the jobs.
        timing: pauses and time limits.
    """

    def __init__(self, api: Any, namespace: str, timing: Timing) -> None:
        from kubernetes import client

        self.api, self.namespace, self.timing = api, namespace, timing
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._resource: dict[str, str] = {
            "group": GROUP,
            "version": VERSION,
            "namespace": namespace,
            "plural": PLURAL,
        }

    def with_own_connections(self) -> RayJobApi:
        """The same API with a connection pool of its own, for another thread or a signal handler."""
        from kubernetes import client

        return RayJobApi(client.ApiClient(self.api.configuration), self.namespace, self.timing)

    def create(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Creates a job. Returns it, or None if a job of that name exists.

        After a broken connection it is unknown whether the job was created. The call is repeated; a conflict then means
        that it was.
        """

        def call() -> dict[str, Any]:
            return self._custom.create_namespaced_custom_object(
                **self._resource, body=body, field_validation="Strict", _request_timeout=_TIMEOUT
            )

        return self._with_retries(call, "create rayjobs", none_for=(409,))

    def find(self, name: str, *, patience: float | None = None) -> tuple[dict[str, Any] | None, str]:
        """The job (None if it does not exist) and the resource version to watch from.

        Uses a list and not a get: only a list's resource version is recent enough to watch from.

        Args:
            name: of the job.
            patience: seconds for which the call is repeated; default: `Timing.patience_s`.
        """

        def call() -> dict[str, Any]:
            return self._custom.list_namespaced_custom_object(
                **self._resource, field_selector=f"metadata.name={name}", _request_timeout=_TIMEOUT
            )

        found = self._with_retries(call, "list rayjobs", patience=patience)
        assert found is not None
        return next(iter(found["items"]), None), found["metadata"]["resourceVersion"]

    def find_by_label(self, label: str, value: str) -> list[dict[str, Any]]:
        """All jobs with this label."""

        def call() -> dict[str, Any]:
            return self._custom.list_namespaced_custom_object(
                **self._resource, label_selector=f"{label}={value}", _request_timeout=_TIMEOUT
            )

        found = self._with_retries(call, "list rayjobs")
        assert found is not None
        return list(found["items"])

    def watch(self, name: str, resource_version: str, seconds: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (event type, job) for every change, for at most `seconds`; a lost watch ends early without an error.

        A lost watch means nothing for the job: the caller reads the job again and starts a new watch.

        Raises:
            UserError: the cluster refuses the watch.
        """
        from kubernetes import client, watch
        from urllib3.exceptions import HTTPError

        stream = watch.Watch().stream(
            self._custom.list_namespaced_custom_object,
            **self._resource,
            field_selector=f"metadata.name={name}",
            resource_version=resource_version,
            timeout_seconds=seconds,
            # The server ends the watch; a connection that died on the way is noticed a little later.
            _request_timeout=(CONNECT_SECONDS, seconds + 5),
        )
        try:
            for event in cast("Iterator[dict[str, Any]]", stream):
                yield event["type"], event["raw_object"]
        except client.ApiException as error:
            if error.status not in RETRIABLE | {410}:
                raise api_error(error, "watch rayjobs", self.namespace) from error
            time.sleep(self.timing.retry_s)
        except (HTTPError, OSError, json.JSONDecodeError):
            time.sleep(self.timing.retry_s)

    def delete(self, name: str, uid: str) -> bool:
        """Requests the job's deletion. Returns False if no job with that name and uid exists."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}

        def call() -> dict[str, Any]:
            return self._custom.delete_namespaced_custom_object(
                **self._resource, name=name, body=body, _request_timeout=_TIMEOUT
            )

        # 409: the name now belongs to a newer job.
        return self._with_retries(call, "delete rayjobs", none_for=(404, 409)) is not None

    def pods(self, selector: str, *, patience: float | None = None) -> list[Any]:
        """The pods (`V1Pod`) with these labels."""

        def call() -> Any:
            return self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_TIMEOUT)

        return self._with_retries(call, "list pods", patience=patience).items

    def log(self, pod: str) -> Any:
        """A stream of the pod's log lines, each with its time: a `urllib3.HTTPResponse` that the caller closes."""
        return self._core.read_namespaced_pod_log(
            pod,
            self.namespace,
            follow=True,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(CONNECT_SECONDS, None),
        )

    def _with_retries(
        self,
        call: Callable[[], Result],
        action: str,
        *,
        none_for: tuple[int, ...] = (),
        patience: float | None = None,
    ) -> Result | Any:
        """Calls `call`, with growing pauses as long as the cluster is unreachable or answers that it is busy.

        Args:
            call: one API call.
            action: verb and resource, for the message.
            none_for: HTTP statuses for which None is returned.
            patience: seconds for which the call is repeated; default: `Timing.patience_s`.
        """
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        end = time.monotonic() + (self.timing.patience_s if patience is None else patience)
        pause = self.timing.retry_s
        while True:
            try:
                return call()
            except client.ApiException as error:
                if error.status in none_for:
                    return None
                if error.status not in RETRIABLE or time.monotonic() + pause > end:
                    raise api_error(error, action, self.namespace) from error
            except (HTTPError, OSError) as error:
                if time.monotonic() + pause > end:
                    raise unreachable(error, self.api.configuration.host) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def unreachable(error: Exception, host: str) -> UserError:
    """The error for a cluster that does not answer."""
    return UserError(
        f"the Kubernetes API does not answer ({type(error).__name__})",
        where=host,
        remedy="check the network and the address, then start again: the same job is found by its name",
    )


def api_error(error: Any, action: str, namespace: str) -> UserError:
    """The error for an answer that a repetition would not change.

    Args:
        error: a `kubernetes.client.ApiException`.
        action: verb and resource, as a Role names them.
        namespace: of the jobs.
    """
    message = _error_message(error)
    where = f"namespace {namespace}"
    if error.status == 401:
        return UserError("the cluster refused the token", where=where, remedy="renew the service account's token")
    if error.status == 403:
        return UserError(
            f"the service account may not {action}",
            where=where,
            remedy="apply k8s/base, which binds the Role robustrain",
        )
    if error.status == 404:
        return UserError(
            f"the cluster does not know RayJobs or the namespace: {message}",
            where=where,
            remedy="install the KubeRay operator with its CRDs and create the namespace",
        )
    if error.status in {400, 422}:
        return UserError(
            f"the cluster refused the RayJob: {message}", where=where, remedy="correct the value that it names"
        )
    return UserError(
        f"the cluster answered {error.status} to {action}: {message}",
        where=where,
        remedy="ask the administrators of the cluster",
    )


def _error_message(error: Any) -> str:
    """The message in a Kubernetes `Status` object, or the HTTP reason."""
    try:
        text = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        text = error.reason or "no message"
    return " ".join(str(text).split())[:400].rstrip(".")
