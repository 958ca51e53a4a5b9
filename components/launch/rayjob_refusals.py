"""What an API answer that no repetition will change means, and what to do about it, in one line."""

from __future__ import annotations

import json
from typing import Any

from components.errors import UserError


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
