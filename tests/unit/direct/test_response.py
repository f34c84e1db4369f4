"""Responses byte by byte, and inputs that two readers of HTTP could understand differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpipe.transports.aws.direct import response
from smartpipe.transports.aws.direct.response import Response, ResponseReader

LINE = b"HTTP/1.1 200 OK\r\n"
OK = LINE + b"Content-Length: 3\r\nDate: today\r\n\r\nabc"
CHUNKS = b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS + b"\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 7\r\n\r\n"


def read(*pieces: bytes) -> tuple[Response | None, ResponseReader]:
    """Return the first response in *pieces*, and its reader."""
    reader = ResponseReader()
    for piece in pieces:
        found = reader.feed(piece)
        if found is not None:
            return found, reader
    return None, reader


@pytest.mark.parametrize("data", [OK, CHUNKED, INTERIM + OK, INTERIM * 3 + CHUNKED], ids=range(4))
def test_a_response_is_the_same_however_it_is_cut(data: bytes) -> None:
    whole, _ = read(data)
    assert whole is not None
    assert (whole.status, whole.body) == (200, b"abc")

    for cut in range(1, len(data)):
        found, reader = read(data[:cut], data[cut:])
        assert found == whole
        assert reader.keep_alive
    assert read(*(bytes([byte]) for byte in data))[0] == whole


def test_one_reader_reads_one_response_after_the_other() -> None:
    reader = ResponseReader()
    for data in (
        OK,
        CHUNKED,
        INTERIM + OK,
        LINE + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        OK,
    ):
        found = reader.feed(data)
        assert found is not None
        assert reader.keep_alive
        assert reader.received_bytes == 0


def test_headers_are_found_by_their_names_in_lower_case_and_trailers_are_not_headers() -> None:
    found, _ = read(
        LINE
        + b"X-Empty:\r\nTransfer-Encoding: chunked\r\nDate: \t today \t\r\nDATE: later\r\n\r\n0\r\nX-Late: x\r\n\r\n"
    )

    assert found is not None
    assert found.header(b"x-empty") == ""
    assert found.header(b"date") == "today"
    assert found.header(b"x-late") is None


@pytest.mark.parametrize("data", [OK, CHUNKED, CHUNKED[:-2] + b"Trailer: x\r\n\r\n", INTERIM + OK], ids=range(4))
def test_no_single_byte_after_a_response_goes_unnoticed(data: bytes) -> None:
    for byte in range(256):
        found, reader = read(data + bytes([byte]))
        assert found is not None
        assert found.body == b"abc"
        assert not reader.keep_alive, bytes([byte])


@given(
    st.binary(min_size=1, max_size=40) | st.text("\r\n", min_size=1).map(str.encode) | st.just(OK) | st.just(CHUNKED)
)
def test_nothing_after_a_response_goes_unnoticed(rest: bytes) -> None:
    for data in (OK, CHUNKED):
        found, reader = read(data + rest)
        assert found is not None
        assert found.body == b"abc"
        assert not reader.keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
        b"Content-Length: 3\r\nContent-Length: 3\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Content-Length: 3 4\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: 0x3\r\n",
        b"Content-Length: 1_0\r\n",
        "Content-Length: ٣\r\n".encode(),
        b"Content-Length:\r\n",
        b"Content-Length: 18446744073709551619\r\n",
        b"Content-Length:\r\n 3\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"X: a\r\n b\r\nContent-Length: 3\r\n",
        b"Content-Length : 3\r\n",
        b" Content-Length: 3\r\n",
        b"Content\tLength: 3\r\n",
        b": 3\r\n",
        b"Content-Length 3\r\n",
        b"Content-Length: 3\n",
        b"X: a\rContent-Length: 3\r\n",
        b"X: a\0\r\nContent-Length: 3\r\n",
        b"X\0: a\r\nContent-Length: 3\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b'Transfer-Encoding: "chunked"\r\n',
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    ],
)
def test_a_body_whose_end_two_readers_could_see_in_two_places_is_refused(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not HTTP/1\.1: ."):
        read(LINE + head + b"\r\n3\r\nabc\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "chunks",
    [
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"1_0\r\nabc\r\n0\r\n\r\n",
        b"\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"10000000000000003\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_chunks_whose_sizes_are_not_plain_hexadecimal_are_refused(chunks: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not HTTP/1\.1: ."):
        read(LINE + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/2.0 200 OK\r\n",
        b"HTTP/0.9 200 OK\r\n",
        b"HTTP/1.2 200 OK\r\n",
        b"HTTP/1.10 200 OK\r\n",
        b"http/1.1 200 OK\r\n",
        b"RTSP/1.0 200 OK\r\n",
        b"ICY 200 OK\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n",
        b"\nHTTP/1.1 200 OK\r\n",
        b" HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1  200 OK\r\n",
        b"HTTP/1.1\t200 OK\r\n",
        b"HTTP/1.1 20 OK\r\n",
        b"HTTP/1.1 2000 OK\r\n",
        b"HTTP/1.1 -20 OK\r\n",
        b"HTTP/1.1 200 OK\n",
        b"HTTP/1.1 200 O\rK\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nHTTP/1.1 200 OK\r\n",
    ],
)
def test_another_start_than_that_of_http_1_is_refused(start: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not HTTP/1\.1: ."):
        read(start + b"Content-Length: 3\r\n\r\nabc")


def test_a_response_that_ends_with_its_connection_is_whole_only_if_it_has_no_length() -> None:
    open_ended, reader = read(LINE + b"\r\nab", b"c")
    assert open_ended is None
    assert reader.finish() == Response(200, [], b"abc")

    for data in (OK, CHUNKED, OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), OK.replace(b"/1.1", b"/1.0")):
        for cut in range(1, len(data)):
            assert read(data[:cut])[1].finish() is None


def test_a_status_without_a_body_ends_with_its_head_whatever_its_headers_say() -> None:
    found, reader = read(b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc")

    assert found == Response(204, [(b"Content-Length", b"3")], b"")
    assert not reader.keep_alive


def feed_without_end(reader: ResponseReader, data: bytes) -> None:
    while True:
        reader.feed(data)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (LINE + b"X: ", b"x" * 1_000),
        (LINE, b"X: x\r\n" * 100),
        (b"HTTP/1.1 200 ", b"x" * 1_000),
        (INTERIM, INTERIM),
        (LINE + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ", b"x" * 1_000),
        (LINE + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 1_000),
    ],
    ids=["header", "headers", "reason", "interim responses", "trailer", "chunk extension"],
)
def test_bytes_outside_the_body_have_a_limit(start: bytes, more: bytes) -> None:
    reader = ResponseReader()
    reader.feed(start)

    with pytest.raises(ValueError, match="more than 65536 bytes outside its body"):
        feed_without_end(reader, more)

    assert reader.received_bytes <= response.MAX_HEAD_BYTES + len(start + more)


def test_a_response_that_is_too_long_is_refused_by_its_total_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "MAX_RESPONSE_BYTES", 1_000)
    reader = ResponseReader()
    reader.feed(LINE + b"Transfer-Encoding: chunked\r\n\r\n")

    with pytest.raises(ValueError, match="longer than 1000 bytes"):
        feed_without_end(reader, b"1\r\nx\r\n")
