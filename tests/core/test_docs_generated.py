"""The generated pages say what the code says, and the table of who sees what knows every field."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from gpushare.v1 import job_pb2, node_pb2, tenant_pb2, usage_pb2

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.PAGES)
def test_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == generate.PAGES[name](), "run `python docs/generate.py`"


# What listings, watches and single answers consist of.
SHOWN = (
    job_pb2.Job,
    job_pb2.JobExplanation,
    node_pb2.Node,
    node_pb2.Reservation,
    tenant_pb2.Tenant,
    tenant_pb2.Token,
    usage_pb2.UsageRow,
    usage_pb2.AuditEvent,
)


def fields_of(root: str, descriptor: Descriptor) -> Iterator[str]:
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None and inner.file.package == "gpushare.v1" and not inner.GetOptions().map_entry:
            yield from fields_of(f"{root}.{field.name}", inner)
        else:
            yield f"{root}.{field.name}"


def test_the_table_of_who_sees_what_has_every_field() -> None:
    there = {path for each in SHOWN for path in fields_of(each.DESCRIPTOR.name, each.DESCRIPTOR)}
    table = set(generate.visibility_table())
    missing, gone = sorted(there - table), sorted(table - there)
    assert not missing, (
        f"say in docs/visibility.txt who sees {missing}, run `python docs/generate.py`, and then "
        "tests/e2e/test_visibility_table.py"
    )
    assert not gone, f"docs/visibility.txt has rows of fields that are no more: {gone}"
