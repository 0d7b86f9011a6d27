"""Secrets are removed from text and settings."""

import pytest

from infra.redaction import redacted, without_secrets


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://u:p@host:5000/x", "http://host:5000/x"),
        ("postgresql://u:p%40ss@db/mlflow", "postgresql://db/mlflow"),
        ("https://b.s3.amazonaws.com/w.pth?X-Amz-Signature=abc&t=1", "https://b.s3.amazonaws.com/w.pth"),
        ("refused by https://tok@h/x#frag, sorry", "refused by https://h/x sorry"),
        ("anne@example.org wrote s3://bucket/a", "anne@example.org wrote s3://bucket/a"),
        ("what? nothing", "what? nothing"),
    ],
)
def test_uris_lose_user_password_query_and_fragment(text, clean):
    assert without_secrets(text) == clean


def test_values_of_secret_keys_are_hidden_and_the_structure_stays():
    settings = {"uri": "http://u:p@host", "nested": {"api_key": "k", "password": None, "sizes": (1, "s3://a/b?c")}, "n": 2}
    assert redacted(settings) == {
        "uri": "http://host",
        "nested": {"api_key": "***", "password": None, "sizes": [1, "s3://a/b"]},
        "n": 2,
    }
    assert redacted(["x"], "auth_token") == "***"
