"""Requests that must be refused, as data: what is sent through each door, and what has to come back.

A `Row` has a number (rows with the same number are variants of one abuse), a request for the API or words for the
command line or both, and the answer: status, reason and field there; exit code, reason and what the one line must name
here. Quantities are integers on the wire, so texts like NaN exist for the command line alone and their integer
relatives for the API.
"""

from __future__ import annotations

import unicodedata
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from gpushare.client import messages as m

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)
USAGE, REFUSED = 2, 1
IA, FP, PD, RE = "INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"


class Row(NamedTuple):
    number: int
    what: str
    # The API's side: an RPC and its request; a request id is filled in where it has none.
    request: Message | bytes | None = None
    rpc: str = "JobService/CreateJob"
    status: str = IA
    field: str = ""
    # The command line's side.
    words: tuple[str, ...] | None = None
    code: int = USAGE
    says: str = ""
    # Both sides.
    reason: str = "INVALID_FIELD"
    who: str = "ann"

    @property
    def name(self) -> str:
        return f"{self.number}: {self.what}"


def job(resources: m.Resources | None = None, **fields: Any) -> m.CreateJobRequest:
    """A request that is good but for `fields` and `resources`."""
    good: dict[str, Any] = {"argv": ["/bin/true"], "working_directory": "/"}
    spec = m.JobSpec(**{**good, **fields}, resources=resources or m.Resources(gpu_milli=100))
    return m.CreateJobRequest(parent="tenants/team", job=spec)


def asks(**resources: Any) -> m.CreateJobRequest:
    return job(m.Resources(**resources))


def submit(*options: str) -> tuple[str, ...]:
    """The same on the command line."""
    share = () if {"--gpus", "--gpu-memory"} & set(options) else ("--gpus", "0.1")
    return ("submit", *share, "--export", "none", *options, "--", "/bin/true")


EARLY = m.EarlySignal(signal="USR1", before=Duration(seconds=60))


def early(signal: str, before_s: int, target: int = 0) -> m.CreateJobRequest:
    """A job of an hour that wants a signal before its end."""
    made = m.EarlySignal(signal=signal, before=Duration(seconds=before_s))
    made.target = target  # type: ignore[assignment]
    return job(max_run_duration=Duration(seconds=3600), early_signal=made)


def raw(field: int, data: bytes) -> bytes:
    """One length-delimited field below 128 bytes, whatever it holds."""
    assert len(data) < 128
    return bytes([field << 3 | 2, len(data)]) + data


def share(number: int, text: str, says: str = "--gpus") -> Row:
    """A text that is no share; only the command line can be sent it."""
    return Row(number, f"--gpus {ascii(text)[1:-1]}", words=submit("--gpus", text), says=says)


def milli(number: int, value: int) -> Row:
    return Row(number, f"gpu_milli {value}", asks(gpu_milli=value), field="resources.gpu_milli")


def name(number: int, what: str, text: str) -> list[Row]:
    """As the name of a job, of a tenant and of a user, who are all called by the same rule."""
    token = m.CreateTokenRequest(user=text, role=m.Role.ROLE_USER, tenant="team")
    return [
        Row(
            number, f"job {what}", job(name=text), field="name", words=submit("--name", text), code=REFUSED, says="name"
        ),
        Row(
            number,
            f"tenant {what}",
            m.CreateTenantRequest(tenant_id=text),
            "TenantService/CreateTenant",
            field="tenant_id",
            words=("tenant", "create", "--", text),
            code=REFUSED,
            says="tenant_id",
            who="root",
        ),
        Row(
            number,
            f"user {what}",
            token,
            "TenantService/CreateToken",
            field="user",
            words=("token", "create", "--tenant", "team", "--", text),
            code=REFUSED,
            says="user",
            who="root",
        ),
    ]


def env(number: int, what: str, variables: dict[str, str], reason: str = "INVALID_FIELD", *, typed: bool = True) -> Row:
    words = submit(*(word for key, value in variables.items() for word in ("--env", f"{key}={value}")))
    request = job(env=variables)
    return Row(
        number, what, request, field="env", words=words if typed else None, code=REFUSED, says="env", reason=reason
    )


def limit(what: str, text: str | None, says: str = "--limit", **settings: Any) -> Row:
    """A tenant's limits; the admin asks, so that only the value can be wrong."""
    request = m.UpdateTenantRequest(name="tenants/nlp", settings=m.TenantSettings(**settings)) if settings else None
    option = "--max-queued" if says == "--max-queued" else "--limit"
    words = ("tenant", "set", f"{option}={text}", "nlp") if text is not None else None
    field = next(iter(settings), "")
    return Row(49, what, request, "TenantService/UpdateTenant", field=field, words=words, says=says, who="root")


SHARES = [
    share(1, "nan"),
    share(1, "NaN"),
    share(2, "inf"),
    share(2, "+Inf"),
    share(2, "-inf"),
    share(3, "0.0"),
    share(3, "-0.0"),
    share(3, "0%"),
    milli(3, 0),
    share(4, "-0.25"),
    milli(4, -1),
    milli(4, INT64_MIN),
    share(5, "1.0000001"),
    share(5, "100.1%"),
    milli(5, 1001),
    milli(5, 2**31),
    milli(5, INT64_MAX),
    share(6, "1e-300"),
    share(6, "0.0009", says="below 0.001"),
    share(6, "0." + "0" * 300 + "1"),
    share(8, "0.3333", says="not a multiple of 0.001"),
    share(15, "٠.٥", says="outside ASCII"),
    share(15, "infinity"),
    share(15, "1_0e-1"),
    share(15, "1_0", says="underscore"),
    share(15, "١٢", says="outside ASCII"),
    share(15, "１２", says="outside ASCII"),
    share(15, " 7 ", says="space"),
    share(15, "+1"),
    share(15, "007"),
    share(15, "0x1"),
    share(15, ".5"),
    share(15, "1."),
    share(15, ""),
    Row(15, "--tasks ١٢", words=submit("--tasks", "١٢"), says="--tasks"),
    Row(15, "--priority 1_0", words=submit("--priority", "1_0"), says="--priority"),
    Row(15, "--cpus nan", words=submit("--cpus", "nan"), says="--cpus"),
    Row(15, "--time ' 1h'", words=submit("--time", " 1h"), says="--time"),
]

CARDS = [
    Row(
        9,
        "gpus 0 and a share",
        asks(gpus=0, gpu_milli=250),
        field="resources.gpus",
        words=submit("--gpus", "0", "--gpu-memory", "12G"),
        code=REFUSED,
        says="gpus",
    ),
    Row(
        10,
        "gpus 2 and a share",
        asks(gpus=2, gpu_milli=500),
        field="resources.gpus",
        words=submit("--gpus", "2", "--gpu-memory", "12G"),
        code=REFUSED,
        says="several tasks",
    ),
    share(10, "2.5", says="one task per share"),
    *(Row(11, f"gpus {value}", asks(gpus=value), field="resources.gpus") for value in (2**31, INT64_MAX, -1)),
    *(share(11, text) for text in ("2147483648", "9223372036854775807", "-1")),
    *(
        Row(12, f"gpu_memory_mib {value}", asks(gpu_memory_mib=value), field="resources.gpu_memory_mib")
        for value in (0, -1, 2**31, INT64_MAX)
    ),
    *(
        Row(12, f"--gpu-memory {text}", words=submit("--gpu-memory", text), says="--gpu-memory")
        for text in ("0", "0M", "-1M", "18446744073709551615M", "12", "12GB", "1e3M", "nanG", "0.0001M")
    ),
    Row(
        13,
        "200 GiB where the largest card has 80",
        asks(gpu_memory_mib=204_800),
        status=FP,
        field="resources",
        words=submit("--gpu-memory", "200G"),
        code=REFUSED,
        says="largest",
        reason="NEVER_FITS",
    ),
    Row(
        13,
        "16 cards where no node has more than 8",
        asks(gpus=16),
        status=FP,
        field="resources",
        words=submit("--gpus", "16"),
        code=REFUSED,
        says="8",
        reason="NEVER_FITS",
    ),
]

TIMES = [
    *(
        Row(16, f"max_run_duration {seconds} s", job(max_run_duration=Duration(seconds=seconds)), field=field)
        for seconds, field in ((-1, "max_run_duration"), (0, "max_run_duration"), (10**18, "max_run_duration"))
    ),
    Row(16, "a duration that is none", job(max_run_duration=Duration(seconds=1, nanos=-1)), field="max_run_duration"),
    *(
        Row(16, f"--time={text}", words=submit(f"--time={text}"), says="--time")
        for text in ("-1s", "0s", "1000000000000000000s", "1e18s", "60", "nan")
    ),
    *(
        Row(16, f"early signal {signal} {before} s before", early(signal, before), field="early_signal")
        for signal, before in (("KILL", 60), ("USR1", 0), ("USR1", 3600), ("usr1", 60), ("", 60), ("USR1\0", 60))
    ),
    Row(16, "an early signal without a limit", job(early_signal=EARLY), field="early_signal"),
    Row(
        16,
        "an early signal for nobody",
        early("USR1", 60, target=7),
        field="early_signal.target",
    ),
    *(
        Row(16, f"--signal={text}", words=submit("--time", "1h", f"--signal={text}"), says="--signal")
        for text in ("USR1", "@10m", "USR1@", "USR1@10", "USR1@10m:me", "USR1@10m:", "USR1@-1s")
    ),
    Row(
        16,
        "--signal with a signal that is none",
        words=submit("--time", "1h", "--signal", "KILL@10m"),
        code=REFUSED,
        says="USR1, USR2",
    ),
    *(
        Row(16, f"requeue exit codes {codes}", job(requeue_exit_codes=codes), field="requeue_exit_codes")
        for codes in ([0], [256], [-1], [85, 85], list(range(1, 18)))
    ),
    *(
        Row(16, f"--requeue-exit-code={text}", words=submit(f"--requeue-exit-code={text}"), says="--requeue-exit-code")
        for text in ("0", "256", "x", "85,", "8_5")
    ),
    *(
        Row(
            16,
            f"extend {text}",
            words=("extend", "1", text),
            says="TIME",
        )
        for text in ("6h", "+", "=", "+0s", "+6", "+-1h", "+1e3h")
    ),
    Row(
        16,
        "a default time above the cap",
        m.UpdateTenantRequest(
            name="tenants/nlp",
            settings=m.TenantSettings(default_run=Duration(seconds=2), max_run=Duration(seconds=1)),
        ),
        "TenantService/UpdateTenant",
        field="default_run",
        words=("tenant", "set", "--default-time", "2s", "--max-time", "1s", "nlp"),
        code=REFUSED,
        says="--default-time",
        who="root",
    ),
    *(Row(17, f"priority {value}", job(priority=value), field="priority") for value in (INT64_MAX, INT64_MIN)),
    Row(17, "--priority 2^63", words=submit("--priority", str(2**63)), says="--priority"),
    Row(
        18,
        "a priority above the role's",
        job(priority=101),
        status=PD,
        field="priority",
        words=submit("--priority", "101"),
        code=REFUSED,
        says="highest for users",
        reason="PRIORITY_ABOVE_ROLE",
    ),
]

NAMES = [
    *name(19, "empty", ""),
    *name(20, "64 KiB", "a" * 65536),
    *name(21, "with a newline", "abc\n"),
    *name(22, "with a slash", "a/b"),
    *name(22, "of a parent", "../x"),
    *name(22, "with NUL", "a\0b"),
    *name(23, "with RTL override", "abc\u202e"),
    *name(23, "with zero width", "a\u200bb"),
    *name(23, "with a lookalike", "\u0430dmin"),
    *name(26, "not ASCII, NFC", unicodedata.normalize("NFC", "mu\u0308nchen")),
    *name(26, "not ASCII, NFD", unicodedata.normalize("NFD", "m\u00fcnchen")),
    Row(23, "display name with RTL override", job(display_name="a\u202eb"), field="display_name"),
    Row(24, "bytes that are no UTF-8 in argv", raw(2, raw(3, b"\xff\xfe")), field="request"),
    Row(24, "half a surrogate pair in a name", raw(2, raw(1, b"\xed\xa0\x80")), field="request"),
    Row(24, "bytes that are no UTF-8 in parent", raw(1, b"tenants/\xff"), field="request"),
    Row(24, "argument", words=("submit", "--gpus", "0.1", "--", "\udcff"), says="UTF-8"),
    Row(24, "name", words=submit("--name", "\udcff"), says="UTF-8"),
    Row(24, "variable", words=submit("--env", "A=\udcff"), says="UTF-8"),
    Row(24, "reference", words=("job", "\udcff"), says="is no job"),
    Row(25, "display name of 201 characters", job(display_name="x" * 201), field="display_name"),
]

COMMANDS = [
    Row(27, "no command", job(argv=[]), field="argv", words=("submit", "--gpus", "0.1", "--"), says="nothing to run"),
    Row(
        27, "an empty command", job(argv=[""]), field="argv", words=("submit", "--gpus", "0.1", "--", ""), code=REFUSED
    ),
    Row(28, "NUL", job(argv=["\0"]), field="argv", words=("submit", "--gpus", "0.1", "--", "\0"), code=REFUSED),
    Row(
        29,
        "argv of 2 MiB",
        job(argv=["echo", "y" * (2 << 20)]),
        field="argv",
        words=("submit", "--gpus", "0.1", "--", "echo", "y" * (2 << 20)),
        code=REFUSED,
        says="argv",
    ),
    Row(30, "100,000 variables", job(env={f"V{number}": "" for number in range(100_000)}), field="env"),
    Row(30, "64 KiB of variables", job(env={"A": "x" * 65536}), field="env"),
    env(32, "CUDA_VISIBLE_DEVICES", {"CUDA_VISIBLE_DEVICES": "0"}, "RESERVED_ENV"),
    env(32, "CUDA_MPS_PIPE_DIRECTORY", {"CUDA_MPS_PIPE_DIRECTORY": "/x"}, "RESERVED_ENV"),
    env(32, "GPUSHARE_JOB_ID", {"GPUSHARE_JOB_ID": "1"}, "RESERVED_ENV"),
    env(33, "a name with =", {"A=B": "x"}, typed=False),
    env(33, "no name", {"": "x"}),
    env(33, "a name with a newline", {"A\nB": "x"}),
    Row(33, "a variable without =", words=submit("--env", "A"), says="--env"),
    Row(33, "a variable twice", words=submit("--env", "A=1", "--env", "A=2"), says="twice"),
]

REQUEST_IDS = [
    Row(42, "request id of 1 MiB", m.CreateJobRequest(parent="tenants/team", request_id="k" * (1 << 20))),
    Row(42, "request id with NUL", m.CreateJobRequest(parent="tenants/team", request_id="a\0b")),
]

QUOTAS = [
    limit("limit -1", "-1", limit_milli=-1),
    limit("limit 2^63-1", str(INT64_MAX), limit_milli=INT64_MAX),
    limit("limit 2^63", str(2**63)),
    limit("limit nan", "nan"),
    limit("limit with four decimals", "0.0001"),
    limit("queue cap -1", "-1", "--max-queued", max_queued_jobs=-1),
    limit("queue cap 2^63-1", str(INT64_MAX), "--max-queued", max_queued_jobs=INT64_MAX),
    limit("priority cap 2^63-1", None, max_priority=INT64_MAX),
]

SHAPES = [
    Row(
        51,
        "an array over the cap",
        job(array_indexes=range(1001)),
        field="array_indexes",
        words=submit("--array", "0-1000"),
        code=REFUSED,
        says="1000",
        reason="ARRAY_TOO_LARGE",
    ),
    Row(51, "an array of 10^7", words=submit("--array", "0-9999999"), says="--array", reason="ARRAY_TOO_LARGE"),
    Row(80, "on_disconnect 999", job(on_disconnect=999), field="on_disconnect"),
    Row(80, "fence 999", asks(gpu_milli=1, min_enforcement=999), field="resources.min_enforcement"),
    Row(80, "--fence strong", words=submit("--fence", "strong"), says="--fence"),
    Row(
        80,
        "role 999",
        m.CreateTokenRequest(user="x", role=999, tenant="team"),  # type: ignore[arg-type]
        "TenantService/CreateToken",
        field="role",
        who="root",
    ),
    Row(
        78,
        "a message of 5 MiB",
        job(script=bytes(5 << 20)),
        status=RE,
        reason="MESSAGE_TOO_LARGE",
    ),
]

ROWS = [*SHARES, *CARDS, *TIMES, *NAMES, *COMMANDS, *REQUEST_IDS, *QUOTAS, *SHAPES]

# What the command line says in a process of its own is what it says in ours; these few show it.
IN_A_PROCESS = (
    "1: --gpus nan",
    "13: 200 GiB where the largest card has 80",
    "22: job with a slash",
    "32: GPUSHARE_JOB_ID",
)
