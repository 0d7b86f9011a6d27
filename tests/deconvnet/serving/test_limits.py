"""Limits on uploads: bytes, all together and one by one, and time; and when to try again."""

import asyncio
from typing import Any

import pytest

from deconvnet.serving import limits
from deconvnet.serving.limits import Disconnected, Limits, Receive, Refused, Uploads, discard_rest, retry_seconds

SMALL = Limits(max_bytes=100, max_total_bytes=250, read_timeout=5)


def receiver(*chunks: bytes | None, more: bool = False) -> Receive:
    """Gives the chunks of a body, then nothing. None stands for a client that goes. `more`: whether the body does not end."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        if (chunk := left.pop(0)) is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or more}

    return receive


def read(uploads: Uploads, receive: Receive, declared: int | None = None) -> bytes:
    async def run() -> bytes:
        with uploads.open() as upload:
            return await uploads.read(upload, receive, declared)

    return asyncio.run(run())


@pytest.mark.parametrize("chunks", [[b"x" * 100], [b"x" * 60, b"x" * 40], [b"x"] * 100, [b"", b"x" * 100, b""]])
def test_a_body_within_the_limit_is_read_however_it_is_cut(chunks: list[bytes]) -> None:
    uploads = Uploads(SMALL)
    assert read(uploads, receiver(*chunks)) == b"x" * 100 and uploads.total == 0


@pytest.mark.parametrize(
    ("chunks", "declared"), [([b"x" * 101], None), ([b"x" * 60, b"x" * 41], None), ([], 101), ([b"x" * 60] * 9, 20)]
)
def test_a_body_over_the_limit_is_refused_without_reading_the_rest(chunks: list[bytes], declared: int | None) -> None:
    uploads = Uploads(SMALL)
    with pytest.raises(Refused) as refused:
        read(uploads, receiver(*chunks, more=True), declared)
    assert (refused.value.status, refused.value.retry_after) == (413, None) and uploads.total == 0


@pytest.mark.parametrize("pauses", ["at once", "in the middle", "often"])
def test_a_body_that_is_too_slow_is_refused(pauses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.01 if pauses != "often" else 10)
    uploads = Uploads(Limits(max_bytes=10**9, read_timeout=5 if pauses != "often" else 0.01))

    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    receive = {"at once": receiver(), "in the middle": receiver(b"x", more=True), "often": trickle}[pauses]
    with pytest.raises(Refused) as refused:
        read(uploads, receive)
    assert refused.value.status == 408 and uploads.total == 0


def test_a_client_that_goes_ends_the_upload() -> None:
    uploads = Uploads(SMALL)
    with pytest.raises(Disconnected):
        read(uploads, receiver(b"x" * 50, None))
    assert uploads.total == 0


def test_where_memory_runs_out_the_largest_upload_is_dropped_and_small_ones_go_on() -> None:
    uploads = Uploads(SMALL)
    with uploads.open() as small, uploads.open() as large, uploads.open() as larger, uploads.open() as photo:
        uploads.add(small, b"x" * 10)
        uploads.add(large, b"x" * 90)
        uploads.add(larger, b"x" * 100)
        uploads.add(photo, b"x" * 50)
        assert uploads.total == 250
        uploads.add(small, b"x")
        assert larger.dropped and not larger.chunks and uploads.total == 151
        with pytest.raises(Refused) as refused:
            uploads.add(larger, b"x")
        assert (refused.value.status, refused.value.retry_after) == (429, 1)
        assert uploads.total == 151
    assert uploads.total == 0


def test_an_upload_that_is_itself_the_largest_is_refused() -> None:
    uploads = Uploads(SMALL)
    with uploads.open() as one, uploads.open() as two, uploads.open() as three:
        uploads.add(one, b"x" * 90)
        uploads.add(two, b"x" * 90)
        with pytest.raises(Refused, match="too many large bodies"):
            uploads.add(three, b"x" * 95)
        assert uploads.total == 180


def test_a_complete_body_is_not_dropped_for_one_that_arrives() -> None:
    uploads = Uploads(SMALL)

    async def run() -> None:
        with uploads.open() as complete, uploads.open() as other, uploads.open() as late:
            assert await uploads.read(complete, receiver(b"x" * 100)) == b"x" * 100
            uploads.add(other, b"x" * 90)
            with pytest.raises(Refused):
                uploads.add(late, b"x" * 95)
            assert not complete.dropped and uploads.total == 190

    asyncio.run(run())


@pytest.mark.parametrize(("chunks", "read"), [([b"x" * 10] * 3, 3), ([b"x" * 10] * 30, 10), ([b"x", None], 2), ([], 0)])
def test_the_rest_of_a_refused_body_is_read_up_to_a_limit(
    chunks: list[bytes | None], read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_LINGER_SECONDS", 0.01)
    left = [*chunks]
    whole = receiver(*chunks, more=not chunks)

    async def receive() -> Any:
        message = await whole()
        left.pop(0)
        return message

    asyncio.run(discard_rest(receive, 100))
    assert len(chunks) - len(left) == read


@pytest.mark.parametrize(
    ("waiting", "seconds", "replicas", "expected"),
    [(64, 0.5, 1, 16), (64, 0.5, 4, 4), (1, 0.01, 1, 1), (64, 30, 1, 60), (0, 1, 1, 1)],
)
def test_retry_after_is_the_time_until_half_are_answered(waiting: int, seconds: float, replicas: int, expected: int) -> None:
    assert retry_seconds(waiting, seconds, replicas) == expected
