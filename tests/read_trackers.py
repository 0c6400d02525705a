"""Run with `.venv-trackers` before `.venv`: what wandb, MLflow and trackio have stored, as JSON, by their own readers.

wandb has none for the file of an offline run but its uploader, so records are taken out of it here (LevelDB's log
format) and read by wandb's own messages.
"""

import json
import sys
from pathlib import Path

import mlflow
import trackio
from trackio.sqlite_storage import SQLiteStorage
from wandb.proto.wandb_internal_pb2 import Record

_HEADER, _BLOCK = 7, 32768


def wandb_records(path):
    content, at, parts = path.read_bytes(), _HEADER, b""
    assert content[:4] == b":W&B"
    while at + _HEADER <= len(content):
        if (left := _BLOCK - at % _BLOCK) < _HEADER:
            at += left
            continue
        end = at + _HEADER + int.from_bytes(content[at + 4 : at + 6], "little")
        parts += content[at + _HEADER : end]
        if content[at + 6] in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""
        at = end


def wandb_run(path):
    found = {"history": [], "status": None, "git": False}
    for record in wandb_records(path):
        match record.WhichOneof("record_type"):
            case "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                found |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
                found["config"] = config
            case "history":
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                found["history"].append({k: v for k, v in row.items() if k == "_step" or "/" in k})
            case "environment":
                found["git"] |= record.environment.HasField("git")
            case "exit":
                found["status"] = record.exit.exit_code
    return found


def mlflow_runs():
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [
        {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {
                name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
        }
        for run in client.search_runs(experiments, order_by=["start_time"])
    ]


def trackio_runs():
    return [
        {"name": run.name, "config": run.config, "rows": SQLiteStorage.get_logs("sctd_jax", run.name, run_id=run.id)}
        for run in trackio.Api().runs("sctd_jax")
    ]


def delete():
    """All runs of the two stores."""
    for found in mlflow_runs():
        mlflow.MlflowClient().delete_run(found["id"])
    for run in trackio.Api().runs("sctd_jax"):
        assert run.delete()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {
        "wandb": [wandb_run(path) for path in sorted(folder.glob("*/wandb/offline-run-*/*.wandb"))],
        "mlflow": mlflow_runs(),
        "trackio": trackio_runs(),
    }
    print(json.dumps(found))
    if sys.argv[2:] == ["--delete"]:
        delete()
