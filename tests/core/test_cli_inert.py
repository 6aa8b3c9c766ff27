"""What other people wrote cannot drive the reader's terminal."""

from __future__ import annotations

import pytest

from gpushare.cli.inert import TerminalFilter, inert

RED = b"\x1b[31m"


def shown(*chunks: bytes) -> str:
    terminal = TerminalFilter()
    return "".join([terminal.feed(chunk) for chunk in chunks]) + terminal.feed(b"", final=True)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param(b"plain text\n", "plain text\n", id="plain"),
        pytest.param(b"50%\r60%\r\n\tx", "50%\r60%\r\n\tx", id="progress bar"),
        pytest.param(RED + b"red\x1b[0m", "\x1b[31mred\x1b[0m", id="colour"),
        pytest.param(b"\x1b[38;2;1;2;3mrgb\x1b[38:5:9m", "\x1b[38;2;1;2;3mrgb\x1b[38:5:9m", id="true colour"),
        pytest.param(b"\x1b]52;c;ZXZpbA==\x07", "\\x1b]52;c;ZXZpbA==\\x07", id="clipboard"),
        pytest.param(b"\x1b]0;title\x1b\\", "\\x1b]0;title\\x1b\\", id="title"),
        pytest.param(b"\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H", id="clear screen"),
        pytest.param(b"\x1b[6n\x1b[>c", "\\x1b[6n\\x1b[>c", id="terminal answers"),
        pytest.param(b"a\x08\x7fb\x00", "a\\x08\\x7fb\\x00", id="backspace and NUL"),
        pytest.param("\x9b31m\x85".encode(), "\\x9b31m\\x85", id="C1 controls"),
        pytest.param(b"\x9b2J", "\\x9b2J", id="raw C1 byte"),
        pytest.param(b"\xff\xfe ok \xe2\x82", "\\xff\\xfe ok \\xe2\\x82", id="not UTF-8"),
        pytest.param("a\u202eb\u2066c".encode(), "a\\u202eb\\u2066c", id="direction override"),
        pytest.param("Grüße 🚀 日本 👩‍🔬".encode(), "Grüße 🚀 日本 👩‍🔬", id="any script"),
        pytest.param(b"\x1b[" + b"1;" * 100 + b"m", "\\x1b[" + "1;" * 100 + "m", id="endless parameters"),
    ],
)
def test_a_terminal_is_shown_colours_and_lines_and_nothing_else(written: bytes, expected: str) -> None:
    assert shown(written) == expected
    one_by_one = [written[i : i + 1] for i in range(len(written))]
    assert shown(*one_by_one) == expected


def test_an_unfinished_sequence_is_shown_when_the_output_ends() -> None:
    terminal = TerminalFilter()
    assert terminal.feed(b"x\x1b[3") == "x"
    assert terminal.feed(b"", final=True) == "\\x1b[3"


def test_a_name_stays_on_one_line_without_colour() -> None:
    assert inert("a\nb\x1b[31mc\u202e\udcff\t[red]") == "a\\x0ab\\x1b[31mc\\u202e\\xff\\x09[red]"
