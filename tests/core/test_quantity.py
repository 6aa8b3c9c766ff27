"""The one parser of quantities and names: what people write, what is refused, and that nothing drifts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpushare.names import (
    TextError,
    check_display_name,
    check_env_name,
    check_name,
    check_text,
    is_reserved_env,
    shown,
)
from gpushare.quantity import (
    MAX_DURATION_MS,
    MAX_GPUS,
    MAX_MEMORY_MIB,
    ArrayTooLargeError,
    GpuAmount,
    QuantityError,
    format_cpu_milli,
    format_duration_ms,
    format_gpus,
    format_memory_mib,
    parse_array,
    parse_cpu_milli,
    parse_duration_ms,
    parse_gpus,
    parse_int,
    parse_memory_mib,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0.25", (0, 250)),
        ("25%", (0, 250)),
        ("0.001", (0, 1)),
        ("0.1%", (0, 1)),
        ("12.5%", (0, 125)),
        ("0.333", (0, 333)),
        ("0.999", (0, 999)),
        ("0.2500000", (0, 250)),
        ("100%", (1, 0)),
        ("1", (1, 0)),
        ("2", (2, 0)),
        ("0", (0, 0)),
        (str(MAX_GPUS), (MAX_GPUS, 0)),
    ],
)
def test_gpus(text: str, amount: tuple[int, int]) -> None:
    assert parse_gpus(text) == GpuAmount(*amount)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "not a number"),
        ("nan", "not a number"),
        ("Inf", "not a number"),
        ("infinity", "not a number"),
        ("-Inf", "negative"),
        ("+Inf", "not a number"),
        ("0.0", "zero"),
        ("0%", "zero"),
        ("-0.0", "negative"),
        ("-0", "negative"),
        ("00", "leading zero"),
        ("-0.25", "negative"),
        ("-1", "negative"),
        ("1.0000001", "neither a share below 1 nor a whole number"),
        ("1.5", "neither a share below 1 nor a whole number"),
        ("2.5", "one task per share"),
        ("1e-300", "exponent"),
        ("1e0", "exponent"),
        ("0." + "0" * 50 + "1", "below 0.001"),
        ("0.0009", "below 0.001"),
        ("0.05%", "below 0.001"),
        ("0.3333", "not a multiple of 0.001"),
        ("33.33%", "not a multiple of 0.001"),
        ("101%", "above 100%"),
        ("100.1%", "above 100%"),
        ("1025", "above 1024"),
        (str(2**31), "above"),
        (str(2**63 - 1), "above"),
        ("9" * 5000, "5000 characters"),
        ("٠.٥", "outside ASCII"),
        ("١٢", "outside ASCII"),
        ("１２", "outside ASCII"),
        ("½", "outside ASCII"),
        ("1_0", "underscore"),
        ("1_0e-1", "underscore"),
        (" 7 ", "space"),
        ("0.25\n", "space"),
        ("+1", "not a number"),
        ("01", "leading zero"),
        (".5", "both sides"),
        ("1.", "both sides"),
        ("0,5", "not a number"),
        ("0x1", "not a number"),
        ("", "no number"),
        ("%", "no number"),
        ("\0", "not a number"),
        ("\ud800", "outside ASCII"),
    ],
)
def test_gpus_refused(text: str, why: str) -> None:
    with pytest.raises(QuantityError) as caught:
        parse_gpus(text, "gpus")
    assert why in caught.value.why
    assert caught.value.field == "gpus"
    assert caught.value.value == text
    message = str(caught.value)
    assert message.startswith("gpus ")
    assert '"0.25"' in message, "says what is accepted"
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 400


def test_shares_add_up_without_drift() -> None:
    assert sum(parse_gpus("0.1").gpu_milli for _ in range(10)) == 1000
    assert parse_gpus("0.1").gpu_milli + parse_gpus("0.2").gpu_milli == parse_gpus("0.3").gpu_milli
    thirds = 3 * parse_gpus("0.333").gpu_milli
    assert thirds + parse_gpus("0.001").gpu_milli == 1000
    assert thirds + parse_gpus("0.002").gpu_milli > 1000


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("12GiB", 12288),
        ("12G", 12288),
        ("12288M", 12288),
        ("512MiB", 512),
        ("1TiB", 1 << 20),
        ("1T", 1 << 20),
        ("1.5GiB", 1536),
        ("0.5G", 512),
        ("46068MiB", 46068),
        ("1024T", MAX_MEMORY_MIB),
    ],
)
def test_memory(text: str, mib: int) -> None:
    assert parse_memory_mib(text) == mib


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0GiB", "zero"),
        ("-1GiB", "negative"),
        ("12", "no unit"),
        ("12GB", "unknown unit 'GB'"),
        ("12g", "unknown unit 'g'"),
        ("12GiBs", "unknown unit"),
        ("12KiB", "unknown unit"),
        ("0.3GiB", "not a whole number of MiB"),
        ("0.5M", "not a whole number of MiB"),
        (f"{2**64 - 1}M", "above"),
        ("1025T", "above"),
        ("NaNG", "no number"),
        ("1e3G", "exponent"),
        ("1_0G", "underscore"),
        ("12 GiB", "space"),
        ("12GiB\n", "space"),
        ("１２G", "outside ASCII"),
        ("G", "no number"),
        ("", "no number"),
        ("1" * 9999 + "G", "characters"),
    ],
)
def test_memory_refused(text: str, why: str) -> None:
    with pytest.raises(QuantityError, match="gpu-memory") as caught:
        parse_memory_mib(text, "gpu-memory")
    assert why in caught.value.why
    assert "12GiB" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("90m", 5_400_000),
        ("2h", 7_200_000),
        ("1h30m", 5_400_000),
        ("45s", 45_000),
        ("1d", 86_400_000),
        ("1d2h3m4s5ms", 93_784_005),
        ("1.5h", 5_400_000),
        ("0.5s", 500),
        ("250ms", 250),
        ("1h05m", 3_900_000),
        ("3650d", MAX_DURATION_MS),
    ],
)
def test_duration(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0s", "zero"),
        ("0h0m", "zero"),
        ("-1s", "negative"),
        ("-1", "no unit"),
        ("10", "no unit"),
        ("10w", "no time"),
        ("30m1h", "not a number"),
        ("1h1h", "not a number"),
        ("1:30:00", "no time"),
        ("1.5h30m", "not a number"),
        ("0.0001s", "whole number of milliseconds"),
        (f"{10**18}s", "above"),
        ("3651d", "above"),
        ("1e3s", "exponent"),
        ("١s", "outside ASCII"),
        ("1_0s", "underscore"),
        ("1 h", "space"),
        ("1h\n", "no time"),
        ("512MiB", "no time"),
        ("", "no time"),
        ("s", "no number"),
    ],
)
def test_duration_refused(text: str, why: str) -> None:
    with pytest.raises(QuantityError) as caught:
        parse_duration_ms(text)
    assert why in caught.value.why
    assert "1h30m" in str(caught.value)


@pytest.mark.parametrize(("text", "milli"), [("4", 4000), ("0.5", 500), ("500m", 500), ("1.25", 1250)])
def test_cpus(text: str, milli: int) -> None:
    assert parse_cpu_milli(text) == milli


@pytest.mark.parametrize(
    "text", ["0", "-1", "0.0001", "1.5m", "m", "NaN", "1e2", "1_0", " 4", "４", "100000000", "4cpu", ""]
)
def test_cpus_refused(text: str) -> None:
    with pytest.raises(QuantityError):
        parse_cpu_milli(text)


def test_integers() -> None:
    assert parse_int("42", "tasks") == 42
    assert parse_int("-5", "priority", minimum=-10, maximum=10) == -5


@pytest.mark.parametrize(
    "text", ["1_0", "１２", "١٢", " 7 ", "7\n", "+7", "07", "1.0", "1e3", "0x10", "", "-0", "-1", str(2**63)]
)
def test_integers_refused(text: str) -> None:
    with pytest.raises(QuantityError, match="a whole number from 0 to 100"):
        parse_int(text, "tasks", maximum=100)


@pytest.mark.parametrize(
    ("text", "indexes"),
    [("0-3", (0, 1, 2, 3)), ("1,3,5-7", (1, 3, 5, 6, 7)), ("7", (7,)), ("5-5", (5,))],
)
def test_array(text: str, indexes: tuple[int, ...]) -> None:
    assert parse_array(text, 1000) == indexes


def test_array_cap_is_exact_and_checked_before_any_list_is_made() -> None:
    assert len(parse_array("0-999", 1000)) == 1000
    for text in ("0-1000", "0-9999999", "0-999999999", "0-998,1000-1001", ",".join(["1"] * 100_000)):
        with pytest.raises(ArrayTooLargeError, match="1000"):
            parse_array(text, 1000)


@pytest.mark.parametrize(
    "text",
    ["", "a", "1-", "-1", "3-1", "1,1", "5-7,6", "2,1", "1,,2", "0-99%8", "0-9:2", " 1", "1\n", "1 ,2",
     "01", "１", "1_0", "0-1000000000", "1-2-3", "9" * 5000],
)  # fmt: skip
def test_array_refused(text: str) -> None:
    with pytest.raises(QuantityError, match="array"):
        parse_array(text, 1000)


@given(gpus=st.integers(0, MAX_GPUS), gpu_milli=st.integers(0, 999))
def test_gpus_round_trip(gpus: int, gpu_milli: int) -> None:
    amount = GpuAmount(gpus, 0 if gpus else gpu_milli)
    assert parse_gpus(format_gpus(*amount)) == amount


@given(st.integers(1, MAX_DURATION_MS))
def test_duration_round_trip(ms: int) -> None:
    assert parse_duration_ms(format_duration_ms(ms)) == ms


@given(st.integers(1, MAX_MEMORY_MIB), st.integers(1, 10_000_000))
def test_memory_and_cpu_round_trip(mib: int, cpu_milli: int) -> None:
    assert parse_memory_mib(format_memory_mib(mib)) == mib
    assert parse_cpu_milli(format_cpu_milli(cpu_milli)) == cpu_milli


def test_formats_are_what_a_person_writes() -> None:
    assert [format_gpus(2, 0), format_gpus(0, 250), format_gpus(0, 1), format_gpus(0, 0)] == [
        "2", "0.25", "0.001", "0",
    ]  # fmt: skip
    assert [format_memory_mib(12288), format_memory_mib(46068), format_memory_mib(0)] == [
        "12GiB", "46068MiB", "0MiB",
    ]  # fmt: skip
    assert [format_duration_ms(5_400_000), format_duration_ms(0)] == ["1h30m", "0s"]
    assert [format_cpu_milli(4000), format_cpu_milli(1500)] == ["4", "1.5"]


@given(st.text(max_size=30))
def test_no_text_makes_a_parser_fail_otherwise(text: str) -> None:
    parsers: tuple[Callable[[str], object], ...] = (
        parse_gpus,
        parse_memory_mib,
        parse_duration_ms,
        parse_cpu_milli,
        check_name,
        check_display_name,
        lambda each: parse_int(each, "n"),
        lambda each: parse_array(each, 1000),
        lambda each: check_text(each, max_bytes=100),
        lambda each: check_env_name(each),
    )
    refusals: list[str] = []
    for parser in parsers:
        try:
            parser(text)
        except TextError as err:
            refusals.append(str(err))
    assert all(message.isascii() and message.isprintable() for message in refusals)


@pytest.mark.parametrize("name", ["a", "0", "vision", "a-b", "x" * 63, "2024-run"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "x" * 64, "x" * 65536, "abc\n", "a/b", "../x", "a\0b", "-a", "a-", "A", "a_b", "a b", "a.b",
     "\u202eabc", "a\u200bb", "\u0430dmin", "caf\u00e9", "cafe\u0301", "\ud800", "a%", "*"],
)  # fmt: skip
def test_names_refused(name: str) -> None:
    with pytest.raises(TextError, match="1 to 63 of a-z") as caught:
        check_name(name, "tenant")
    assert str(caught.value).startswith("tenant ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["🚀" * 200, "Zoë Müller", "👩‍👩‍👧‍👦 lab", "运行 3", "x" * 256])
def test_display_names_pass_unchanged(text: str) -> None:
    assert check_display_name(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "x" * 257, "abc\n", "a\0b", "a\x1b[31m", "\u202eabc", "a\u2066b", "a\u200bb", "\ufeffa", "a\u2028b",
     "\u200da", "a\u200d", "\ud800", " a", "a\u00a0", "a\u200eb"],
)  # fmt: skip
def test_display_names_refused(text: str) -> None:
    with pytest.raises(TextError, match="display_name"):
        check_display_name(text)


def test_free_text() -> None:
    assert check_text("for i in 1 2; do\n\techo ü\ndone", max_bytes=100, controls=True)
    with pytest.raises(TextError, match=r"U\+000A"):
        check_text("a\nb", max_bytes=100)
    for controls in (True, False):
        with pytest.raises(TextError, match="NUL"):
            check_text("a\0b", max_bytes=100, controls=controls)
        with pytest.raises(TextError, match="UTF-8"):
            check_text(b"\xff".decode(errors="surrogateescape"), max_bytes=100, controls=controls)
        with pytest.raises(TextError, match="4 bytes"):
            check_text("üü", max_bytes=3, controls=controls)


def test_env_names() -> None:
    assert check_env_name("LD_PRELOAD") == "LD_PRELOAD"
    for name in ("A=B", "", "A\nB", "A\n", "1A", "A B", "É"):
        with pytest.raises(TextError, match="env"):
            check_env_name(name)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "GPUSHARE_JOB_ID"):
        assert is_reserved_env(name)
    for name in ("LD_PRELOAD", "CUDA_HOME", "CUDA_VISIBLE_DEVICES_X", "PATH"):
        assert not is_reserved_env(name)


def test_shown_is_inert_and_short() -> None:
    assert shown("a\x1b]52;c;x\a\u202e" + "b" * 9999) == "'a\\x1b]52;c;x\\x07\\u202e" + "b" * 29 + "...'"
