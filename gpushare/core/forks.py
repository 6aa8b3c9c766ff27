"""Copies of single records of a state: what a fork of it takes for its own before it changes anything.

Pure. `ClusterState.fork` shares every job and node with the state that it was made of; whichever of the two is the
first to change one takes a copy first, made here, so that neither ever sees what the other does. A tenant is copied at
once: there are few, and nearly every fact moves one.
"""

from __future__ import annotations

from copy import copy

from gpushare.core.model import Gpu, Job, Node, Person, Tenant


def copy_of_job(job: Job) -> Job:
    made = copy(job)
    made.attempts = [copy(attempt) for attempt in job.attempts]
    return made


def copy_of_node(node: Node) -> Node:
    made = copy(node)
    made.labels, made.attempts = dict(node.labels), set(node.attempts)
    made.gpus = {uuid: _copy_of_gpu(gpu) for uuid, gpu in node.gpus.items()}
    return made


def _copy_of_gpu(gpu: Gpu) -> Gpu:
    made = copy(gpu)
    made.holds = dict(gpu.holds)
    return made


def copy_of_tenant(tenant: Tenant) -> Tenant:
    made = copy(tenant)
    made.usage = {user: copy(usage) for user, usage in tenant.usage.items()}
    made.charge_by_model = dict(tenant.charge_by_model)
    made.account = copy(tenant.account)
    made.people = {user: Person(p.running_jobs, copy(p.account)) for user, p in tenant.people.items()}
    return made
