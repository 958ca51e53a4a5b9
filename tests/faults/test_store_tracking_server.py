"""An MLflow server that is away or does not speak: an error in seconds that names the variable, and no lock held."""

import http.server
import socket
import threading

import pytest

from components.errors import UserError
from components.store import tracking_server
from components.store.locks import file_lock
from components.store.settings import StorageSettings
from components.store.tracking import Tracking
from components.store.tracking_server import require_server
from pipeline.doctor import examine


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(tracking_server, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(tracking_server, "_ANSWER_SECONDS", 0.5)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def settings(home, uri):
    return StorageSettings.from_environment({}, home=home, tracking_uri=uri)


def test_a_server_that_is_away_is_an_error_that_names_the_variable_and_not_the_password(tmp_path, closed_port):
    with pytest.raises(UserError) as caught:
        Tracking(settings(tmp_path, f"http://ann:secret@127.0.0.1:{closed_port}"))
    text = str(caught.value)
    assert text.startswith("MLFLOW_TRACKING_URI: the MLflow server does not answer")
    assert f"(got 'http://...@127.0.0.1:{closed_port}')" in text
    assert "secret" not in text


def test_a_server_that_never_answers_is_away_too():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="does not answer"):
        require_server(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("status", [200, 401, 404])
def test_any_answer_counts(status, tmp_path):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with file_lock(settings(tmp_path, "http://x").locks / "tracking.lock"):
            Tracking(settings(tmp_path, f"http://ann:sec@ret@127.0.0.1:{server.server_port}/"))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_in_a_pod_the_server_is_waited_for_as_mlflow_does(monkeypatch, closed_port):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    require_server(f"http://127.0.0.1:{closed_port}")


def test_doctor_asks_the_server(tmp_path, closed_port):
    uri = f"http://ann:secret@127.0.0.1:{closed_port}"
    found = next(each for each in examine(settings(tmp_path, uri)) if each.what == "tracking")
    assert (found.state, found.fact) == ("error", f"the MLflow server does not answer ({_refused()}): {uri_shown(uri)}")


def _refused():
    return "<urlopen error [Errno 111] Connection refused>"


def uri_shown(uri):
    return uri.replace("ann:secret", "...")
