"""A stand-in stage: prints events as the engine does and behaves as MODE says."""

from __future__ import annotations

import os
import signal
import sys
import time

from lorapod.events import PREFIX, event, to_line

mode = sys.argv[1]
stopping = False


def on_signal(number, frame):
    global stopping
    if stopping:
        os._exit(130)
    stopping = mode != "stubborn"


def say(type, **fields):
    sys.stdout.write(PREFIX + to_line(event(type, **fields)) + "\n")
    sys.stdout.flush()


signal.signal(signal.SIGINT, on_signal)
signal.signal(signal.SIGTERM, on_signal if mode != "stubborn" else signal.SIG_DFL)
say("stage", name="train", index=1, count=1, total=5)
if mode == "noise":
    sys.stdout.buffer.write(
        b"10%\r50%\r100%\nbroken \xff\xfe utf-8 token sk-secret-value-1234\n" + b"x" * 3_000_000 + b"\n"
    )
    sys.stdout.flush()
if mode == "bar":
    sys.stdout.write("loading shards:  50%\rloading shards: 100%")  # as tqdm does: no line end before the next event
if mode == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("step", step=1, total=5, epoch=1, loss=1.0, lr=1e-4, seconds=0.01)
    os.close(1)
    os.close(2)
    time.sleep(60)
if mode == "fail":
    say("error", message="The loss became nan at step 3", hint="Lower the learning rate.")
    sys.exit(1)
if mode == "crash":
    sys.stdout.write("Traceback: something unheard of\n")
    sys.exit(3)
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
for step in range(1, 6 if mode in ("done", "noise", "bar") else 10_000):
    say("step", step=step, total=5, epoch=1, loss=1.0 / step, lr=1e-4, seconds=0.01)
    if stopping and mode == "slow":
        time.sleep(1.5)  # the rest of a long step
    if stopping:
        say("checkpoint", step=step, path=f"checkpoints/step-{step}.safetensors")
        sys.exit(130)
    time.sleep(0.02)
say("lora", step=5, path="lora/x.safetensors", format="comfyui", base_model="demo")
