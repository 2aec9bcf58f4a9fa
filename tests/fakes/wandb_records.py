"""What the W&B server of the tests records of runs, answers for them, and refuses."""

import json
from typing import Any

ENTITY = "team"
CREATED = "2026-01-01T00:00:00Z"


class RecordedRun:
    """A run as it arrived; `history` has its lines at the offsets that the client gave."""

    def __init__(self, name: str, project: str):
        self.name, self.project = name, project
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.meta: dict[str, Any] = {"tags": []}
        self.state, self.preempting = "running", False
        self.files: dict[str, bytes] = {}

    @property
    def steps(self) -> list[int]:
        """Return the steps in the order of their lines."""
        return [row["_step"] for row in self.history]

    def make_node(self) -> dict[str, Any]:
        """Make the run as a query answers with it."""
        lines = [json.dumps(json.dumps(row)) for row in self.history[-1:]]
        return {
            "__typename": "Run",
            "id": f"R:{self.name}",
            "name": self.name,
            "displayName": self.meta.get("displayName", self.name),
            "description": None,
            "sweepName": None,
            "tags": self.meta["tags"],
            "config": json.dumps({key: {"value": value} for key, value in self.config.items()}),
            "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(self.history),
            "historyTail": f"[{','.join(lines)}]",
            "eventsLineCount": len(self.events),
            "eventsTail": "[]",
            "logLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}),
            "state": self.state,
            "stopped": False,
            "project": make_project_node(self.project),
        }


def make_project_node(name: str) -> dict[str, Any]:
    """Make a project as a query answers with it."""
    entity = {"id": "E", "name": ENTITY}
    none = {"edges": []}
    user = {"id": "U", "username": "user", "name": "user", "email": "", "entity": ENTITY, "admin": False}
    user |= {"__typename": "User", "flags": "{}", "deletedAt": None, "apiKeys": none, "teams": none}
    more = {"entityName": ENTITY, "createdAt": CREATED, "isBenchmark": False, "user": user}
    return {
        "__typename": "Project",
        "id": f"P:{name}",
        "internalId": "1",
        "name": name,
        "entity": entity,
        **more,
    }


def make_sweep_node(method: str, config: str, project: str) -> dict[str, Any]:
    """Make a sweep as a query answers with it."""
    page = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
    absent = ("displayName", "description", "bestLoss", "runCountExpected", "controller", "scheduler")
    times = dict.fromkeys(("createdAt", "heartbeatAt", "updatedAt"), CREATED)
    node: dict[str, Any] = {
        "__typename": "Sweep",
        "id": "S",
        "name": "sweep1",
        "state": "RUNNING",
        "runCount": 0,
    }
    node |= {"method": method, "config": config, "project": make_project_node(project), **times}
    return node | dict.fromkeys(absent) | {"priorRuns": page, "runs": page, "agents": page}


class Refused(Exception):
    """A request that the server refuses with a message."""


# The limits of W&B's own server, which it applies when a run arrives. Its words for a tag are known
# ("invalid tag '…'. must be between 1 and 64 characters"); those of the others are like them.
LIMITS = {"name": 128, "displayName": 128, "groupName": 128, "jobType": 64, "project": 128}


def refuse_too_long(values: dict[str, Any]) -> None:
    """Refuse a run of which a name is too long.

    Raises:
        Refused: for the first of them.
    """
    for key, limit in LIMITS.items():
        if len(values.get(key) or "") > limit:
            raise Refused(f"invalid {key} '{values[key]}'. must be at most {limit} characters")
    for tag in values.get("tags") or ():
        if not 1 <= len(tag) <= 64:
            raise Refused(f"invalid tag '{tag}'. must be between 1 and 64 characters")
