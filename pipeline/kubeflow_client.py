"""A `kfp.Client` for an address that was seen to answer, and what its refusals mean in one line.

The address is asked for its health first: the client itself tries a wrong one, or a wrong token, for 25 s.

Where Kubeflow Pipelines is, and as whom we speak to it; read from the environment.

| variable | meaning | default |
|---|---|---|
| `ROBUSTRAIN_KFP_HOST`, `KF_PIPELINES_ENDPOINT` | address of the Kubeflow Pipelines API | none, required |
| `ROBUSTRAIN_KFP_TOKEN` | token to send | none |
| `ROBUSTRAIN_KFP_TOKEN_FILE`, `KF_PIPELINES_SA_TOKEN_PATH` | file with a token, read anew for every call | none |
| `ROBUSTRAIN_KFP_CA` | certificate authority, PEM file | the system's |
| `ROBUSTRAIN_KFP_NAMESPACE` | your profile, in a Kubeflow of several users | none |
| `ROBUSTRAIN_NAMESPACE` | where the RayJobs run | the profile, else `kubeflow` |
| `ROBUSTRAIN_KFP_EXPERIMENT` | the experiment of the runs | `robustrain` |
| `ROBUSTRAIN_SERVICE_ACCOUNT` | account of the steps | Kubeflow's choice |
| `ROBUSTRAIN_PIPELINE_IMAGE` | image of the steps, also for `compile` | `robustrain/pipeline:0.1.0` |
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from components.errors import UserError

# MERGED

PROBE_SECONDS = 5.0
HEALTH = "ask for its health"


def connect(settings: ClusterSettings) -> Any:
    """A `kfp.Client` for an address that was seen to answer.

    Raises:
        UserError: it does not answer, refuses the token, is not Kubeflow Pipelines, or wants to know the profile.
    """
    if _probe(settings) and not settings.namespace:
        raise UserError(
            "this Kubeflow has several users and no profile is named",
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


def _probe(settings: ClusterSettings) -> bool:
    """Whether the API has several users; raises when it is not one, within `PROBE_SECONDS`."""
    request = urllib.request.Request(f"{settings.host}/apis/v2beta1/healthz")
    token = settings.token or _token_in(settings.token_file)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        opener = urllib.request.build_opener(_NoRedirect(), urllib.request.HTTPSHandler(context=context))
        with opener.open(request, timeout=PROBE_SECONDS) as answer:
            health = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        refused(error.code, str(error.reason), settings, HEALTH)
    except ValueError as error:
        raise _not_kfp(settings) from error
    except OSError as error:
        raise unreachable(settings, error) from error
    if not isinstance(health, dict):
        raise _not_kfp(settings)
    return health.get("multi_user") is True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect leads to a login page, which would look like an answer."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _token_in(file: str) -> str:
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
def told(settings: ClusterSettings, doing: str) -> Iterator[None]:
    """Turns what the client raises into one line, and keeps the client's own lines off standard output.

    Args:
        doing: what is being tried, as it follows "may not".

    Raises:
        UserError: the API refuses, or is out of reach.
    """
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except ApiException as error:
        refused(error.status or 0, said(error), settings, doing)
    except (HTTPError, OSError) as error:
        raise unreachable(settings, error) from error


def refused(status: int, why: str, settings: ClusterSettings, doing: str) -> NoReturn:
    """Raises the one line for an answer that no repetition will change.

    Args:
        status: HTTP status.
        why: the API's words.
        doing: what was tried.
    """
    if status == 401 or 300 <= status < 400:
        what = "refused the token" if status == 401 else "asks for a login"
        raise UserError(what, where=settings.host, remedy="set ROBUSTRAIN_KFP_TOKEN to a valid token")
    if status == 403:
        remedy = "ask for the role kubeflow-edit in the profile, or correct ROBUSTRAIN_KFP_NAMESPACE"
        raise UserError(f"this account may not {doing}: {why}", where=settings.host, remedy=remedy)
    if status == 404 and doing == HEALTH:
        raise _not_kfp(settings)
    raise UserError(
        f"answered {status} to '{doing}': {why}", where=settings.host, remedy="correct what it names and start again"
    )


def unreachable(settings: ClusterSettings, error: Exception) -> UserError:
    """The one line for an API that does not answer."""
    cause = " ".join(str(getattr(error, "reason", error)).split())[:200]
    remedy = "check the address in ROBUSTRAIN_KFP_HOST and the network"
    return UserError(f"Kubeflow Pipelines does not answer ({cause})", where=settings.host, remedy=remedy)


def said(error: Any) -> str:
    """The message inside the API's error body, or the bare reason."""
    try:
        body = json.loads(error.body or "")
        text = body.get("message") or body.get("error_message") or body["error"]
    except (ValueError, KeyError, TypeError, AttributeError):
        text = error.reason or "no message"
    return " ".join(str(text).split())[:400].rstrip(".")


def _not_kfp(settings: ClusterSettings) -> UserError:
    remedy = "give the address up to, and not including, /apis/v2beta1"
    return UserError("something else than Kubeflow Pipelines answers", where=settings.host, remedy=remedy)


@dataclass(frozen=True)
class ClusterSettings:
    """Where Kubeflow Pipelines is and as whom we speak to it; see the table above."""

    host: str
    token: str = field(default="", repr=False)
    token_file: str = ""
    ca: str = ""
    namespace: str = ""
    job_namespace: str = "kubeflow"
    experiment: str = "robustrain"
    service_account: str = ""
    image: str = ""
    poll_s: float = 10.0
    outage_s: float = 300.0
    """While waiting: the API may be out of reach for so long (s)."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ClusterSettings:
        """The settings that the environment names.

        Raises:
            UserError: no address is named.
        """
        env = os.environ if environment is None else environment
        host = env.get("ROBUSTRAIN_KFP_HOST") or env.get("KF_PIPELINES_ENDPOINT", "")
        if not host:
            raise UserError(
                "no Kubeflow Pipelines address is named",
                where="ROBUSTRAIN_KFP_HOST",
                remedy="set it, for example to https://kubeflow.example.com/pipeline",
            )
        namespace = env.get("ROBUSTRAIN_KFP_NAMESPACE", "")
        return cls(
            host=(host if "://" in host else f"https://{host}").rstrip("/"),
            token=env.get("ROBUSTRAIN_KFP_TOKEN", ""),
            token_file=env.get("ROBUSTRAIN_KFP_TOKEN_FILE") or env.get("KF_PIPELINES_SA_TOKEN_PATH", ""),
            ca=env.get("ROBUSTRAIN_KFP_CA", ""),
            namespace=namespace,
            job_namespace=env.get("ROBUSTRAIN_NAMESPACE") or namespace or "kubeflow",
            experiment=env.get("ROBUSTRAIN_KFP_EXPERIMENT") or "robustrain",
            service_account=env.get("ROBUSTRAIN_SERVICE_ACCOUNT", ""),
            image=env.get("ROBUSTRAIN_PIPELINE_IMAGE", ""),
        )

    def run_url(self, run_id: str) -> str:
        """The run's page in the Kubeflow interface."""
        return f"{self.host}/#/runs/details/{run_id}"
