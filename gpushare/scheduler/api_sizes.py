"""How many entries the fields of a submission may have, looked at before anything is made of them.

Imports the wire's messages and errors. What is made of an entry costs many times its bytes: a megabyte of empty jobs
would keep the scheduler from everybody for half a minute. What passes here is judged again, by its content, by
admission.
"""

from __future__ import annotations

from gpushare.core.commands import CoreSettings
from gpushare.errors import invalid_field
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2

# An exec takes no more arguments than some ten thousands, and no job has so many exit codes.
ARGS_MAX = 65_536
EXIT_CODES_MAX = 256
AFTER_MAX = 1024
# Of what a shell has, names that are ours are left out: so many more may come.
OWN_NAMES_MAX = 256


def check_spec(spec: job_pb2.JobSpec, settings: CoreSettings, at: str = "") -> None:
    """Raises INVALID_FIELD or ARRAY_TOO_LARGE. `at` comes before the field's name."""
    indexes = len(spec.array_indexes)
    if indexes > settings.array_max:
        told = f"has {indexes} indexes; accepted: {settings.array_max} (split it into several arrays)"
        raise invalid_field(f"{at}array_indexes", told, Reason.ARRAY_TOO_LARGE)
    for field, what, count, most in (
        ("argv", "arguments", len(spec.argv), ARGS_MAX),
        ("env", "variables", len(spec.env), settings.env_max_vars),
        ("captured_env", "variables", len(spec.captured_env), settings.env_max_vars + OWN_NAMES_MAX),
        ("labels", "labels", len(spec.labels), settings.labels_max),
        ("resources.node_labels", "labels", len(spec.resources.node_labels), settings.labels_max),
        ("after", "jobs", len(spec.after), AFTER_MAX),
        ("requeue_exit_codes", "codes", len(spec.requeue_exit_codes), EXIT_CODES_MAX),
    ):
        if count > most:
            raise invalid_field(f"{at}{field}", f"has {count} {what}; accepted: {most}")


def check_batch(request: job_pb2.BatchCreateJobsRequest, settings: CoreSettings) -> None:
    """Raises the same."""
    if len(request.jobs) > settings.batch_max:
        raise invalid_field("jobs", f"a batch holds 1 to {settings.batch_max} jobs, not {len(request.jobs)}")
    for place, spec in enumerate(request.jobs):
        check_spec(spec, settings, f"jobs[{place}].")
