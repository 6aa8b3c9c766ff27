"""Which nodes have a job's directory: what their agents publish as shared with others, and what follows for placing.

Pure, on texts alone: no file system is asked. A directory under a path that some node publishes is taken to be on the
nodes that publish a path around it, and on no other; one under no published path is not known, and may be anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from posixpath import normpath

import msgspec

from gpushare.core.kinds import JobState
from gpushare.core.model import Job, Node, TaskRequest


def published(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Every path that any of the nodes publishes, the longest first."""
    return tuple(sorted({path for node in nodes for path in node.shared_paths}, key=lambda path: (-len(path), path)))


def covers(path: str, directory: str) -> bool:
    """Whether `directory` is `path` or lies under it."""
    return directory == path or directory.startswith(path.rstrip("/") + "/")


def path_around(directory: str, paths: tuple[str, ...]) -> str:
    """The longest of the published `paths` that `directory` lies under; "" for none. `paths`: the longest first."""
    if not paths:
        return ""
    plain = normpath(directory)
    return next((path for path in paths if covers(path, plain)), "")


def shares(request: TaskRequest, node_paths: Iterable[str]) -> bool:
    """Whether a node that publishes `node_paths` has what the request's directory lies under, or that is not known."""
    return not request.shared_path or any(covers(path, request.shared_path) for path in node_paths)


def placed_request(job: Job) -> TaskRequest:
    """What placing goes by: the job's request, and where its directory must be. A suspended job is on its node already,
    whatever the nodes say by now.
    """
    request = job.spec.resources
    if not job.shared_path or job.state is JobState.SUSPENDED:
        return request
    return msgspec.structs.replace(request, shared_path=job.shared_path)
