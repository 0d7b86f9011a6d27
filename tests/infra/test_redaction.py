"""Secrets are removed from text and settings."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("store postgresql://mlflow:ab/cd@db.host/mlflow is away", "store postgresql://db.host/mlflow is away"),
        ("http://anne@example.org:p@ss@host:5000/x", "http://host:5000/x"),
        ("'redis://:p'w/d@host', 'http://host:80/x'", "'redis://host', 'http://host:80/x'"),
        ("postgresql://u:p?q@host/x", "postgresql://***"),
        ("http://host:4443/b?GoogleAccessId=a@b.iam&Signature=abc", "http://***"),
        ("https://storage.googleapis.com/b?GoogleAccessId=a@b.iam&Signature=abc", "https://storage.googleapis.com/b"),
        ("https://host/it's.pth?X-Amz-Signature=abc", "https://host/it's.pth"),
        ("s3://bucket/a@3, models:/net@champion, images@12", "s3://bucket/a@3, models:/net@champion, images@12"),
        ("s3://bucket/a:b@3 http://host:5000/x", "s3://bucket/a:b@3 http://host:5000/x"),
        ("file:///C:/a@3 sqlite:////home/a:b@c/m.db", "file:///C:/a@3 sqlite:////home/a:b@c/m.db"),
    ],
)
def test_uris_lose_user_password_query_and_fragment(text, clean):
    assert without_secrets(text) == clean


def texts(without: str) -> st.SearchStrategy[str]:
    """Short texts of printable characters, without blanks and some others."""
    return st.text("".join(sorted({*string.printable} - {*string.whitespace, *without})), max_size=4)


@given(texts("/:?#"), texts(""), texts(""), st.sampled_from(["", ":5432"]))
def test_no_part_of_a_password_is_shown_whatever_characters_it_has(user: str, before: str, after: str, port: str) -> None:
    password = f"{before}hush{after}"
    shown = without_secrets(f"the store db+x://{user}:{password}@host{port}/path is away")
    assert shown == ("the store db+x://*** is away" if {*"?#"} & {*password} else f"the store db+x://host{port}/path is away")


def test_values_of_secret_keys_are_hidden_and_the_structure_stays():
    settings = {"uri": "http://u:p@host", "nested": {"api_key": "k", "password": None, "sizes": (1, "s3://a/b?c")}, "n": 2}
    assert redacted(settings) == {
        "uri": "http://host",
        "nested": {"api_key": "***", "password": None, "sizes": [1, "s3://a/b"]},
        "n": 2,
    }
    assert redacted(["x"], "auth_token") == "***"


@pytest.mark.parametrize(
    "key", ["password", "db_passwd", "client_secret", "auth_token", "credentials", "api_key", "apikey", "AWS_ACCESS_KEY_ID"]
)
def test_the_value_of_each_kind_of_secret_is_hidden(key):
    assert redacted({key: "hush", "keys": 3}) == {key: "***", "keys": 3}
