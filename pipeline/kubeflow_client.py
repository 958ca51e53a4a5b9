"""Connects to the Kubeflow Pipelines API: its settings, a checked `kfp.Client`, and errors of one line.

The API's health is read before the client is made: the client retries a wrong address or a wrong token for 25 s.
"""

from __future__ import annotations

import contextlib
import io
import json
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import field_validator

from components.errors import UserError
from components.settings import EnvironmentSettings, setting

HEALTH_TIMEOUT_S = 5.0
READ_HEALTH = "read its health"


class KubeflowSettings(EnvironmentSettings):
    """Address of Kubeflow Pipelines, and the account, namespaces and image to use there."""

    host: str = setting(
        "ROBUSTRAIN_KFP_HOST",
        "KF_PIPELINES_ENDPOINT",
        description="address of the Kubeflow Pipelines API",
        remedy="set the address, for example https://kubeflow.example.com/pipeline",
    )
    token: str = setting("ROBUSTRAIN_KFP_TOKEN", description="token to send", default="", repr=False)
    token_file: str = setting(
        "ROBUSTRAIN_KFP_TOKEN_FILE",
        "KF_PIPELINES_SA_TOKEN_PATH",
        description="file with a token, read again for every call",
        default="",
    )
    ca: str = setting(
        "ROBUSTRAIN_KFP_CA",
        description="certificate authority, PEM file",
        default="",
        default_text="the system's",
    )
    namespace: str = setting(
        "ROBUSTRAIN_KFP_NAMESPACE",
        description="namespace of your profile, in a multi-user Kubeflow",
        default="",
    )
    job_namespace: str = setting(
        "ROBUSTRAIN_NAMESPACE",
        description="namespace of the RayJobs, in which `cancel` deletes them",
        default_factory=lambda values: values["namespace"] or "kubeflow",
        default_text="the profile's, else `kubeflow`",
    )
    experiment: str = setting(
        "ROBUSTRAIN_KFP_EXPERIMENT", description="the Kubeflow experiment of the runs", default="robustrain"
    )
    service_account: str = setting(
        "ROBUSTRAIN_SERVICE_ACCOUNT",
        description="service account of the steps",
        default="",
        default_text="Kubeflow's choice",
    )
    image: str = setting(
        "ROBUSTRAIN_PIPELINE_IMAGE",
        description="image of the steps, also for `compile`",
        default="",
        default_text="`robustrain/pipeline:0.1.0`",
    )
    poll_s: float = 10.0
    """Seconds between two reads of a run that is followed."""
    outage_s: float = 300.0
    """Seconds for which the API may be unreachable while a run is followed."""

    @field_validator("host")
    @classmethod
    def _with_scheme(cls, host: str) -> str:
        return (host if "://" in host else f"https://{host}").rstrip("/")

    def run_url(self, run_id: str) -> str:
        """The run's page in the Kubeflow interface."""
        return f"{self.host}/#/runs/details/{run_id}"


def connect(settings: KubeflowSettings) -> Any:
    """A `kfp.Client` for an API that has answered.

    Raises:
        UserError: the API does not answer, refuses the token, is not Kubeflow Pipelines, or needs a profile.
    """
    if _is_multi_user(settings) and not settings.namespace:
        raise UserError(
            "this Kubeflow is multi-user and no profile is set",
            where="ROBUSTRAIN_KFP_NAMESPACE",
            remedy="set it to your profile's namespace",
        )
    import kfp
    from kfp.client import ServiceAccountTokenVolumeCredentials as TokenFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return kfp.Client(
            host=settings.host,
            existing_token=settings.token or None,
            credentials=None if settings.token or not settings.token_file else TokenFile(settings.token_file),
            ssl_ca_cert=settings.ca or None,
            namespace=settings.namespace or "kubeflow",
        )


def _is_multi_user(settings: KubeflowSettings) -> bool:
    """Reads the API's health, within `HEALTH_TIMEOUT_S`. Returns whether it is multi-user.

    Raises:
        UserError: the API does not answer, refuses the token, or is not Kubeflow Pipelines.
    """
    request = urllib.request.Request(f"{settings.host}/apis/v2beta1/healthz")
    token = settings.token or _read_token(settings.token_file)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        opener = urllib.request.build_opener(_NoRedirect(), urllib.request.HTTPSHandler(context=context))
        with opener.open(request, timeout=HEALTH_TIMEOUT_S) as answer:
            health = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise_refusal(error.code, str(error.reason), settings, READ_HEALTH)
    except ValueError as error:
        raise _not_kfp(settings) from error
    except OSError as error:
        raise unreachable(settings, error) from error
    if not isinstance(health, dict):
        raise _not_kfp(settings)
    return health.get("multi_user") is True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they lead to a login page, which would look like an answer."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _read_token(file: str) -> str:
    """The token in a file; empty if no file is named."""
    try:
        return Path(file).read_text().strip() if file else ""
    except OSError as error:
        raise UserError(
            f"the token cannot be read: {error.strerror}",
            where="ROBUSTRAIN_KFP_TOKEN_FILE",
            value=file,
            remedy="correct the path",
        ) from error


@contextlib.contextmanager
def translate_api_errors(settings: KubeflowSettings, action: str) -> Iterator[None]:
    """Turns the client's exceptions into a `UserError`, and keeps the client's output off standard output.

    Args:
        settings: name the API in the message.
        action: what the calls do, as it follows "may not".

    Raises:
        UserError: the API refuses, or is unreachable.
    """
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except ApiException as error:
        raise_refusal(error.status or 0, error_message(error), settings, action)
    except (HTTPError, OSError) as error:
        raise unreachable(settings, error) from error


def raise_refusal(status: int, reason: str, settings: KubeflowSettings, action: str) -> NoReturn:
    """Raises the error for an answer that a repetition would not change.

    Args:
        status: HTTP status.
        reason: the API's message.
        settings: name the API in the message.
        action: what was tried.
    """
    if status == 401 or 300 <= status < 400:
        what = "refused the token" if status == 401 else "asks for a login"
        raise UserError(what, where=settings.host, remedy="set ROBUSTRAIN_KFP_TOKEN to a valid token")
    if status == 403:
        remedy = "ask for the role kubeflow-edit in the profile, or correct ROBUSTRAIN_KFP_NAMESPACE"
        raise UserError(f"this account may not {action}: {reason}", where=settings.host, remedy=remedy)
    if status == 404 and action == READ_HEALTH:
        raise _not_kfp(settings)
    raise UserError(
        f"answered {status} to '{action}': {reason}", where=settings.host, remedy="correct what it names, start again"
    )


def unreachable(settings: KubeflowSettings, error: Exception) -> UserError:
    """The error for an API that does not answer."""
    cause = " ".join(str(getattr(error, "reason", error)).split())[:200]
    remedy = "check the address in ROBUSTRAIN_KFP_HOST and the network"
    return UserError(f"Kubeflow Pipelines does not answer ({cause})", where=settings.host, remedy=remedy)


def error_message(error: Any) -> str:
    """The message in the body of the API's error, or the HTTP reason."""
    try:
        body = json.loads(error.body or "")
        text = body.get("message") or body.get("error_message") or body["error"]
    except (ValueError, KeyError, TypeError, AttributeError):
        text = error.reason or "no message"
    return " ".join(str(text).split())[:400].rstrip(".")


def _not_kfp(settings: KubeflowSettings) -> UserError:
    remedy = "give the address up to, and not including, /apis/v2beta1"
    return UserError("the server at this address is not Kubeflow Pipelines", where=settings.host, remedy=remedy)
