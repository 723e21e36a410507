"""A stand-in for the backend of W&B, on this machine: as much of it as the real client needs to run, resume and sweep.

It keeps what it was told, hands out a grid's combinations one after the other, and knows nothing of W&B's searches.
"""

import gzip
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import yaml

ENTITY = {"id": "entity", "name": "someone"}


@dataclass
class Run:
    """What was told of a run.

    Args:
        config: its settings, by their names.
        about: group, job type, sweep and the like, as the client sent them.
        history: every row that was logged.
        summary: the latest one.
        files: uploaded, by name.
        artifacts: name -> type, of those that were committed.
        exits: exit codes, one for each time that it ended.
        preempting: whether it said that it would be started again.
    """

    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    exits: list[int] = field(default_factory=list)
    preempting: bool = False


class Standin:
    """Serves while it is entered.

    Args:
        failing: how it fails from now on: ``500``, ``401``, ``hang``, ``close``, ``slow``; None if it does not.
    """

    def __init__(self) -> None:
        self.failing: str | None = None
        self.closing = threading.Event()
        self.runs: dict[str, Run] = {}
        self.sweep = ""  # the sweep's YAML
        self.waiting: list[dict[str, Any]] = []  # its combinations that no agent has got yet
        self.strange: list[str] = []  # operations that are not known here
        self._artifacts: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"standin": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """To a request, as JSON."""
        with self._lock:
            if path == "/graphql":
                asked = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                answer = getattr(self, f"_{operation[1]}", None) if operation else None
                if answer is None:
                    self.strange.append(operation[1] if operation else asked["query"])
                    return {"data": {}, "errors": [{"message": "not known to the stand-in"}]}
                return {"data": answer(asked.get("variables") or {})}
            if path.endswith("/file_stream"):
                self._stream(self._run(path.split("/")[-2]), json.loads(body))
                return {"exitcode": None, "limits": {}}
            if path.startswith("/upload/"):
                _, _, run, name = path.split("/", 3)
                self._run(run).files[name] = body
            return {}  # telemetry

    def _run(self, name: str) -> Run:
        return self.runs.setdefault(name, Run())

    def _stream(self, run: Run, told: dict[str, Any]) -> None:
        files = told.get("files") or {}
        if "wandb-history.jsonl" in files:
            rows = files["wandb-history.jsonl"]
            run.history[rows["offset"] :] = map(json.loads, rows["content"])
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run.summary = json.loads(line)
        run.preempting = run.preempting or bool(told.get("preempting"))
        if told.get("complete"):
            run.exits.append(told["exitcode"])

    def _project(self, name: str | None) -> dict[str, Any]:
        return {"id": "project", "name": name or "see_lightning", "entity": ENTITY}

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        team = {"edges": [{"node": ENTITY}]}
        return {"viewer": {**ENTITY, "entity": ENTITY["name"], "username": ENTITY["name"], "email": "", "flags": "{}",
                           "admin": False, "teams": team}}  # fmt: skip

    def _UpsertBucket(self, told: dict[str, Any]) -> dict[str, Any]:
        new = told["name"] not in self.runs
        run = self._run(told["name"])
        if told.get("config"):
            run.config = {key: item.get("value") for key, item in json.loads(told["config"]).items()}
        run.about |= {key: value for key, value in told.items() if value is not None}
        bucket = {"id": told["name"], "name": told["name"], "displayName": told.get("displayName"), "description": "",
                  "config": "{}", "sweepName": told.get("sweep"), "historyLineCount": len(run.history),
                  "project": self._project(told.get("project"))}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": None}
        config = json.dumps({key: {"value": value} for key, value in run.config.items()})
        bucket = {"id": asked["name"], "name": asked["name"], "summaryMetrics": json.dumps(run.summary),
                  "displayName": run.about.get("displayName"), "logLineCount": 0, "eventsLineCount": 0,
                  "historyLineCount": len(run.history), "historyTail": json.dumps([json.dumps(r) for r in run.history[-1:]]),
                  "eventsTail": "[]", "config": config, "tags": [], "notes": "", "wandbConfig": "{}"}  # fmt: skip
        return {"model": {**self._project(asked.get("project")), "bucket": bucket}}

    def _CreateRunFiles(self, told: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{told['run']}/{name}"} for name in told["files"]]
        return {"createRunFiles": {"runID": told["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, told: dict[str, Any]) -> dict[str, Any]:
        told = told["input"]
        name = f"artifact-{len(self._artifacts)}"
        self._artifacts[name] = {
            "run": told["runName"],
            "name": told["artifactCollectionName"],
            "type": told["artifactTypeName"],
        }
        sequence = {"id": f"{name}-sequence", "latestArtifact": None}
        artifact = {"id": name, "digest": told["digest"], "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, told: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/upload/{told['runName']}/manifest-{told['artifactID']}"
        file = {"id": "manifest", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"{told['artifactID']}-manifest", "file": file}}}

    def _CreateArtifactFiles(self, told: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for wanted in told["input"]["artifactFiles"]:
            artifact = self._artifacts[wanted["artifactID"]]
            url = f"{self.url}/upload/{artifact['run']}/{artifact['name']}/{wanted['name']}"
            nodes.append({"storagePath": wanted["name"], "uploadUrl": url, "uploadHeaders": [],
                          "uploadMultipartUrls": None, "artifact": {"id": wanted["artifactID"]}})  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, told: dict[str, Any]) -> dict[str, Any]:
        artifact = self._artifacts[told["artifactID"]]
        self._run(artifact["run"]).artifacts[artifact["name"]] = artifact["type"]
        return {"commitArtifact": {"artifact": {"id": told["artifactID"], "digest": "any"}}}

    def _UpsertSweep(self, told: dict[str, Any]) -> dict[str, Any]:
        self.sweep = told["config"]
        parameters = yaml.safe_load(self.sweep)["parameters"]
        choices = [item.get("values", [item.get("value")]) for item in parameters.values()]
        self.waiting = [dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices)]
        sweep = {"id": "sweep", "name": "abcdefgh", "displayName": "", "state": "RUNNING",
                 "project": self._project(told.get("projectName"))}  # fmt: skip
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _SweepWithRuns(self, _: dict[str, Any]) -> dict[str, Any]:
        when = "2020-01-01T00:00:00"
        return {"project": {"sweep": {"id": "sweep", "name": "abcdefgh", "method": "grid", "state": "RUNNING",
                "description": "", "config": self.sweep, "createdAt": when, "heartbeatAt": when, "updatedAt": when,
                "earlyStopJobRunning": False, "bestLoss": None, "controller": None, "scheduler": None,
                "runs": {"edges": []}}}}  # fmt: skip

    def _CreateAgent(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _Heartbeat(self, told: dict[str, Any]) -> dict[str, Any]:
        commands: list[dict[str, Any]] = []
        if not any(json.loads(told["runState"]).values()):  # run id -> whether it is still running
            if self.waiting:
                arguments = {key: {"value": value} for key, value in self.waiting.pop(0).items()}
                commands = [{"type": "run", "run_id": f"swept{len(self.waiting)}", "logs": [], "args": arguments,
                             "program": yaml.safe_load(self.sweep)["program"]}]  # fmt: skip
            else:
                commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


class _Server(ThreadingHTTPServer):
    """Threads, of which one may lose its client at any time."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that is gone expects no answer."""


class _Handler(BaseHTTPRequestHandler):
    """HTTP around a stand-in."""

    standin: Standin
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        match self.standin.failing:
            case "hang":
                self.standin.closing.wait()
                self.close_connection = True
                return
            case "close":
                self.close_connection = True
                return
            case "500" | "401" as code:
                self.send_response(int(code))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            case "slow":
                self.standin.closing.wait(2)
        answer = json.dumps(self.standin.answer(self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""
