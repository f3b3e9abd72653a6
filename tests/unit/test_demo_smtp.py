"""The demo's SMTP server, line by line, without a socket."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from mouso.demo import smtp_sink
from mouso.demo.smtp_sink import Session

START = b"EHLO me\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n"


class Wire:
    """Takes what the server says."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data

    async def drain(self) -> None:
        pass


def talk(folder: Path, said: bytes) -> list[str]:
    """Says something to a server; returns the codes it answers with."""

    async def run() -> list[str]:
        reader, wire = asyncio.StreamReader(limit=1000), Wire()
        reader.feed_data(said)
        reader.feed_eof()
        try:
            await Session(reader, cast(asyncio.StreamWriter, wire), folder).run()
        except asyncio.IncompleteReadError:
            pass
        lines = wire.text.decode().split("\r\n")
        assert lines.pop() == ""
        return [line[:3] for line in lines if line[3:4] == " "]

    return asyncio.run(run())


def test_a_mail_is_kept_under_its_message_id(tmp_path: Path) -> None:
    codes = talk(tmp_path, START + b"Message-ID: <one/../two@x>\r\nSubject: s\r\n\r\n..dot\r\nend\r\n.\r\nQUIT\r\n")
    assert codes == ["220", "250", "250", "250", "354", "250", "221"]
    (mail,) = tmp_path.iterdir()
    assert mail.name == "one-..-two-x.eml"
    assert mail.read_bytes() == (
        b"Return-Path: <a@b.c>\r\nDelivered-To: d@e.f\r\n"
        b"Message-ID: <one/../two@x>\r\nSubject: s\r\n\r\n.dot\r\nend\r\n"
    )


def test_the_same_mail_twice_is_one(tmp_path: Path) -> None:
    talk(
        tmp_path,
        START + b"Message-ID: <1@x>\r\n\r\nfirst\r\n.\r\n" + START + b"Message-ID: <1@x>\r\n\r\nsecond\r\n.\r\n",
    )
    (mail,) = tmp_path.iterdir()
    assert mail.read_bytes().endswith(b"second\r\n")


def test_only_a_whole_line_with_a_dot_ends_a_mail(tmp_path: Path) -> None:
    body = b"a\n.\nb\r.\rc\r\n.\nMAIL FROM:<x@y>\r\n" + b"x" * 3000 + b".\r\nend\r\n"
    assert talk(tmp_path, START + body + b".\r\nQUIT\r\n")[-3:] == ["354", "250", "221"]
    (mail,) = tmp_path.iterdir()
    assert mail.read_bytes().endswith(body.replace(b"\r\n.\n", b"\r\n\n"))


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        (b"MAIL FROM:<a@b.c>\r\n", ["503"]),
        (b"EHLO me\r\nRCPT TO:<a@b.c>\r\nDATA\r\n", ["250", "503", "503"]),
        (b"EHLO\r\nHELO \r\n", ["501", "501"]),
        (b"helo me\r\nmail from: <>\r\nrcpt to:<>\r\nmail from:<a@b>\r\n", ["250", "250", "501", "503"]),
        (b"EHLO me\r\nMAIL FROM:a@b\r\nMAIL FROM:<a b>\r\nMAIL TO:<a@b>\r\n", ["250", "501", "501", "501"]),
        (b"EHLO me\r\nMAIL FROM:<a@b> SIZE=99999999999 BODY=8BITMIME\r\n", ["250", "552"]),
        (b"EHLO me\r\nMAIL FROM:<a@b> SIZE=9\r\nRSET\r\nMAIL FROM:<a@b>\r\n", ["250", "250", "250", "250"]),
        (
            b"NOOP\r\nVRFY you\r\nEXPN all\r\n\r\n\xff\xfe\r\nQUIT\r\nNOOP\r\n",
            ["250", "252", "500", "500", "500", "221"],
        ),
        (b"NOOP " + b"x" * 2000 + b"\r\nNOOP\r\n", ["500"]),
    ],
)
def test_commands_are_answered_as_rfc_5321_says(tmp_path: Path, said: bytes, codes: list[str]) -> None:
    assert talk(tmp_path, said) == ["220", *codes]
    assert list(tmp_path.iterdir()) == []


def test_too_large_a_mail_is_refused_and_the_next_one_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_sink, "MOST_BYTES", 100)
    codes = talk(tmp_path, START + b"x" * 200 + b"\r\n.\r\n" + START + b"small\r\n.\r\n")
    assert codes.count("552") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mail_that_breaks_off_is_not_kept(tmp_path: Path) -> None:
    assert talk(tmp_path, START + b"Subject: half\r\n")[-1] == "354"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_no_crash(tmp_path: Path) -> None:
    assert talk(tmp_path / "gone", START + b"x\r\n.\r\nQUIT\r\n")[-2:] == ["452", "221"]
