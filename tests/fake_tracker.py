"""The part of wandb that `WandB` calls, for tests: copied to `wandb.py`, it records what it is told and fails as asked.

`FAKE_DOES` is empty or names a place and what happens there: `start raises`, `log hangs`, `finish exits`.
"""

import atexit
import json
import os
import sys
import time
from types import SimpleNamespace

FROM = 4  # step from which `log` does it


def act(where):
    place, does = os.environ.get("FAKE_DOES", " ").split(" ")
    if place != where:
        return
    if does == "raises":
        raise RuntimeError(f"no route to http://me:{os.environ['WANDB_API_KEY']}@host/?api_key=x1\nand more")
    time.sleep(1000) if does == "hangs" else os._exit(3)


def record(**said):
    with open(os.environ["FAKE_RECORD"], "a") as file:
        file.write(json.dumps(said) + "\n")


class Settings:
    def __init__(self, **settings):
        pass


class Run:
    url, resumed, settings = None, False, SimpleNamespace(mode="fake", sync_dir="nowhere")

    def log(self, values, step):
        if step >= FROM:
            act("log")
        record(step=step, values=values)

    def mark_preempting(self):
        pass

    def finish(self, exit_code):
        act("finish")
        record(status=exit_code)


def init(settings, **arguments):
    assert sys.stdin.read() == ""  # no library takes what is for the tracker
    print("a library's own words\n" * 10_000)
    print("its last ones", file=sys.stderr)
    sys.excepthook = None
    atexit.register(time.sleep, 1000)
    act("start")
    record(**arguments)
    return Run()


def teardown():
    pass
