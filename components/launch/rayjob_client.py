"""The calls to the Kubernetes API, each repeated while that can help, each failure told in one line.

These calls, and no others, are granted by the Role in `k8s/base/role.yaml`: create, list, watch and delete RayJobs,
list pods, read their logs.

What an API answer that no repetition will change means, and what to do about it, in one line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from components.errors import UserError
from components.launch.rayjob_settings import Timing

# MERGED

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
CONNECT_SECONDS, READ_SECONDS = 5, 30
LONGEST_PAUSE = 15.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that the same call may not meet again."""
_TIMEOUT = (CONNECT_SECONDS, READ_SECONDS)

Result = TypeVar("Result")


def connect() -> Any:
    """A `kubernetes.client.ApiClient` for the pod this runs in, or for the current context of the kubeconfig.

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
                f"no Kubernetes cluster is known here: {error}",
                remedy="run in a pod with a service account, or set KUBECONFIG",
            ) from error
    return client.ApiClient(configuration)


class RayJobApi:
    """RayJobs and their pods in one namespace.

    Args:
        api: a `kubernetes.client.ApiClient`.
        namespace: of the jobs.
        timing: pauses and patience.
    """

    def __init__(self, api: Any, namespace: str, timing: Timing) -> None:
        from kubernetes import client

        self.api, self.namespace, self.timing = api, namespace, timing
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._place: dict[str, str] = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": PLURAL}

    def apart(self) -> RayJobApi:
        """The same with a connection pool of its own, for use from another thread or a signal's path."""
        from kubernetes import client

        return RayJobApi(client.ApiClient(self.api.configuration), self.namespace, self.timing)

    def create(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The job as it was created, or None if one of that name exists.

        A connection that breaks tells nothing about the job; the call is repeated, and then a conflict says that it is
        there.
        """

        def call() -> dict[str, Any]:
            return self._custom.create_namespaced_custom_object(
                **self._place, body=body, field_validation="Strict", _request_timeout=_TIMEOUT
            )

        return self._steadily(call, "create rayjobs", none_for=409)

    def find(self, name: str, *, patience: float | None = None) -> tuple[dict[str, Any] | None, str]:
        """The job (None if there is none) and the resource version to watch from.

        By a list and not by a get: only a list's resource version is recent enough to watch from.
        """

        def call() -> dict[str, Any]:
            return self._custom.list_namespaced_custom_object(
                **self._place, field_selector=f"metadata.name={name}", _request_timeout=_TIMEOUT
            )

        found = self._steadily(call, "list rayjobs", patience=patience)
        assert found is not None
        return next(iter(found["items"]), None), found["metadata"]["resourceVersion"]

    def labelled(self, label: str, value: str) -> list[dict[str, Any]]:
        """All jobs with this label."""

        def call() -> dict[str, Any]:
            return self._custom.list_namespaced_custom_object(
                **self._place, label_selector=f"{label}={value}", _request_timeout=_TIMEOUT
            )

        found = self._steadily(call, "list rayjobs")
        assert found is not None
        return list(found["items"])

    def watch(self, name: str, resource_version: str, seconds: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """(event type, job) for every change, for at most `seconds`; ends early, without an error, when it is lost.

        A lost watch is no news about the job: the caller reads the job anew and watches again.
        """
        from kubernetes import client, watch
        from urllib3.exceptions import HTTPError

        stream = watch.Watch().stream(
            self._custom.list_namespaced_custom_object,
            **self._place,
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
            if error.status not in PASSING | {410}:
                raise explain(error, "watch rayjobs", self.namespace) from error
            time.sleep(self.timing.retry_s)
        except (HTTPError, OSError, json.JSONDecodeError):
            time.sleep(self.timing.retry_s)

    def delete(self, name: str, uid: str) -> bool:
        """Asks for the job's deletion; False if no job of that name and uid is there."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}

        def call() -> dict[str, Any]:
            return self._custom.delete_namespaced_custom_object(
                **self._place, name=name, body=body, _request_timeout=_TIMEOUT
            )

        # 409: the name now belongs to a younger job.
        return self._steadily(call, "delete rayjobs", none_for=(404, 409)) is not None

    def pods(self, selector: str, *, patience: float | None = None) -> list[Any]:
        """The pods (`V1Pod`) with these labels."""

        def call() -> Any:
            return self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_TIMEOUT)

        return self._steadily(call, "list pods", patience=patience).items

    def log(self, pod: str) -> Any:
        """A stream of the pod's log lines, each with its time; a `urllib3.HTTPResponse` to read and to close."""
        return self._core.read_namespaced_pod_log(
            pod,
            self.namespace,
            follow=True,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(CONNECT_SECONDS, None),
        )

    def _steadily(
        self,
        call: Callable[[], Result],
        doing: str,
        *,
        none_for: int | tuple[int, ...] = (),
        patience: float | None = None,
    ) -> Result | Any:
        """`call()`, repeated with growing pauses while the cluster is out of reach or says that it is busy."""
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        accepted = (none_for,) if isinstance(none_for, int) else none_for
        end = time.monotonic() + (self.timing.patience_s if patience is None else patience)
        pause = self.timing.retry_s
        while True:
            try:
                return call()
            except client.ApiException as error:
                if error.status in accepted:
                    return None
                if error.status not in PASSING or time.monotonic() + pause > end:
                    raise explain(error, doing, self.namespace) from error
            except (HTTPError, OSError) as error:
                if time.monotonic() + pause > end:
                    raise unreachable(error, self.api.configuration.host) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def unreachable(error: Exception, host: str) -> UserError:
    """The one line for a cluster that does not answer."""
    return UserError(
        f"the Kubernetes API does not answer ({type(error).__name__})",
        where=host,
        remedy="check the network and the address, then start again: the same job is found by its name",
    )


def explain(error: Any, doing: str, namespace: str) -> UserError:
    """The one line for an answer that no repetition will change.

    Args:
        error: a `kubernetes.client.ApiException`.
        doing: verb and resource, as a Role names them.
        namespace: of the jobs.
    """
    said = _said(error)
    where = f"namespace {namespace}"
    if error.status == 401:
        return UserError("the cluster refused the token", where=where, remedy="renew the service account's token")
    if error.status == 403:
        return UserError(
            f"the service account may not {doing}",
            where=where,
            remedy="apply k8s/base, which binds the Role robustrain",
        )
    if error.status == 404:
        return UserError(
            f"the cluster does not know RayJobs or the namespace: {said}",
            where=where,
            remedy="install the KubeRay operator with its CRDs and create the namespace",
        )
    if error.status in {400, 422}:
        return UserError(
            f"the cluster refused the RayJob: {said}", where=where, remedy="correct the value that it names"
        )
    return UserError(
        f"the cluster answered {error.status} to {doing}: {said}", where=where, remedy="ask the cluster's keepers"
    )


def _said(error: Any) -> str:
    """The message inside a Kubernetes `Status` object, or the bare reason."""
    try:
        text = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        text = error.reason or "no message"
    return " ".join(str(text).split())[:400].rstrip(".")
