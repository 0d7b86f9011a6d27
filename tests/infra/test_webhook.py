"""Messages to a webhook: a real server gets them, a broken one costs nothing, and the URL, a secret, is never shown."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.settings import NotifySettings
from infra.webhook import URL_VARIABLE, Webhook, open_webhook
from tests.hook_server import SECRET, HookServer, hook_server
from tests.workflows.commands import call
from workflows import train_pipeline
from workflows.settings import Settings, as_dict


@pytest.fixture
def server() -> Iterator[HookServer]:
    with hook_server() as found:
        yield found


def test_a_message_arrives_as_slack_takes_it(server: HookServer, caplog: pytest.LogCaptureFixture) -> None:
    Webhook(server.url).send("IoU < 0.5 & falling: <!channel> s3://key:hush@bucket/w?sig=hush")
    assert server.texts == ["IoU &lt; 0.5 &amp; falling: &lt;!channel&gt; s3://bucket/w"]
    assert caplog.text == ""


def test_long_messages_are_cut_and_not_in_an_escape(server: HookServer) -> None:
    Webhook(server.url).send("<" * 5000)
    assert server.texts == ["&lt;" * 3000]


def test_nothing_is_sent_without_a_webhook(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    sent: list[object] = []
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.setattr("requests.post", lambda *given, **_: sent.append(given))
    open_webhook(NotifySettings()).send("x")
    assert sent == [] and caplog.text == ""


@pytest.mark.parametrize(("status", "said"), [(500, "HTTP status 500"), (404, "HTTP status 404"), (302, "HTTP status 302")])
def test_a_refused_message_is_a_warning_without_the_url(
    server: HookServer, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A redirection is a refusal: followed, it would become a GET without the message."""
    server.status, server.location = status, server.url
    Webhook(server.url).send("x")
    assert said in caplog.text and "the webhook at 127.0.0.1" in caplog.text and SECRET not in caplog.text
    assert server.texts == ["x"]


def test_a_server_that_does_not_answer_is_given_up(server: HookServer, caplog: pytest.LogCaptureFixture) -> None:
    server.status = None
    Webhook(server.url, seconds=0.2).send("x")
    assert "127.0.0.1" in caplog.text and SECRET not in caplog.text and not server.ended.is_set()


def test_a_server_that_drips_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """Each byte restarts the timeout of `requests`, so it would wait for as long as the server likes."""
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            while not ended.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        Webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/{SECRET}", seconds=0.3).send("x")
        delivery = next(thread for thread in threading.enumerate() if thread.name == "delivery")
        ended.set()
    assert delivery.daemon, "the command that has sent it would not end before the server does"
    assert "there was no answer within 0.3 s" in caplog.text and SECRET not in caplog.text


def test_a_server_that_is_away_is_a_warning_without_the_url(caplog: pytest.LogCaptureFixture) -> None:
    with hook_server() as gone:
        url = gone.url
    Webhook(url).send("x")
    assert "ConnectionError" in caplog.text and SECRET not in caplog.text


def test_the_url_is_that_of_the_settings_or_else_of_the_environment(server: HookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9/never")
    open_webhook(NotifySettings(url=server.url)).send("by the settings")
    monkeypatch.setenv(URL_VARIABLE, server.url)
    open_webhook(NotifySettings()).send("by the environment")
    assert server.texts == ["by the settings", "by the environment"]


@pytest.mark.parametrize("url", ["hush", "ftp://hush/x", "https://", "https://[hush", "https://hush@℀x/"])
def test_an_unusable_url_is_refused_without_showing_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, url)
    with pytest.raises(UserError, match=URL_VARIABLE) as refused:
        open_webhook(NotifySettings())
    assert "hush" not in str(refused.value)
    for option in (["--notify.url", url], ["--notify.ulr", f"https://host/{url}"]):
        done = call(train_pipeline.main, "--dry-run", *option)
        assert done.returncode == 2 and option[0].removeprefix("--") in done.stderr and "hush" not in done.stdout + done.stderr


def test_a_section_that_is_text_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"notify: https://host/{SECRET}\n")
    done = call(train_pipeline.main, "--config", str(file), "--dry-run")
    assert done.returncode == 2 and "notify: '***' is not allowed: it is a section" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_the_url_is_in_no_copy_of_the_settings() -> None:
    """Such as MLflow's parameters, pipeline.json, the report and --dry-run."""
    settings = Settings(notify={"url": f"https://host/{SECRET}"})
    assert as_dict(settings)["notify"]["url"] == "**********" and SECRET not in repr(settings) + str(as_dict(settings))
    done = call(train_pipeline.main, "--dry-run", "--notify.url", f"https://host/{SECRET}")
    assert done.returncode == 0 and "notify:" in done.stdout and SECRET not in done.stdout + done.stderr
