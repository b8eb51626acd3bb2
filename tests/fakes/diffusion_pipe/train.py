"""A stand-in for diffusion-pipe's train.py: behaves like the real one at process level, without a model.

It reads the real configuration, caches into the data folders, prints what the real one prints to the same streams, writes
TensorBoard scalars, LoRA files and checkpoints as DeepSpeed lays them out, heeds `save_quit`, resumes, and fails in the ways
that $FAKE_DP names (several apart by commas; `=N` is the step). $FAKE_DP_SECONDS is the time of a step.
"""

import argparse
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--local_rank", type=int)
parser.add_argument("--deepspeed", action="store_true")
parser.add_argument("--resume_from_checkpoint", nargs="?", const=True, default=None)
parser.add_argument("--cache_only", action="store_true")
parser.add_argument("--master_port", type=int, default=29500)
args = parser.parse_args()

given = [part.partition("=") for part in os.environ.get("FAKE_DP", "").split(",") if part]
modes = {name: value for name, _, value in given}
pause = float(os.environ.get("FAKE_DP_SECONDS", "0.01"))
stage = "cache" if args.cache_only else "train"


def bar(done, total):
    sys.stderr.write(f"\r {100 * done // total}%|###   | {done}/{total} [00:01<00:02,  5.0it/s]")
    sys.stderr.flush()


def fail_if(name, step=None):
    """Fails as `name` says, in the stage or at the step that it says."""
    if name not in modes or modes[name] not in ("", stage, str(step)):
        return False
    return step is None or modes[name] == str(step)


def misbehave(step=None):
    if fail_if("oom", step):
        import importlib

        error = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})
        assert importlib
        raise error("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB")
    if fail_if("kill", step):
        os.kill(os.getpid(), signal.SIGKILL)
    if fail_if("segv", step):
        os.kill(os.getpid(), signal.SIGSEGV)
    if fail_if("disk", step):
        raise OSError(28, "No space left on device")
    if fail_if("crash", step):
        raise ValueError("something that nobody has seen before")
    if fail_if("empty", step):
        raise RuntimeError("Processed dataset was empty. Probably caused by rounding down for each size bucket.")
    if fail_if("hang", step):
        sys.stderr.write(
            'Process Process-3:\nTraceback (most recent call last):\n  File "/x/dataset.py", line 673\n'
            "AssertionError: Directory /x had no images/videos!\n"
        )
        sys.stderr.flush()
        subprocess.Popen(["sleep", "600"], start_new_session=True)  # as a pool worker that nobody ends
        time.sleep(600)
    if fail_if("quiet", step):
        print("done nothing", flush=True)
        sys.exit(0)
    if fail_if("stubborn", step):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


config = tomllib.loads(Path(args.config).read_text())
assert any(key in config for key in ("save_every_n_epochs", "save_every_n_steps"))
assert "alpha" not in config["adapter"]
dataset = tomllib.loads(Path(config["dataset"]).read_text())
assert dataset["resolutions"] and dataset["min_ar"]
if "slow" in modes:
    time.sleep(float(modes["slow"]))
sys.stderr.write("\xff a line of a library in no encoding \xfe\n")

examples = 0
for directory in dataset["directory"]:
    folder = Path(directory["path"])
    media = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix not in (".txt", ".json")]
    assert media, f"Directory {folder} had no images/videos!"
    print(f"caching latents: {folder}", flush=True)
    (folder / "cache/fake").mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(media, start=1):
        if not file.with_suffix(".txt").exists():
            print(f"WARNING Cound not find caption for {file}. Skipping image.", flush=True)
            continue
        file.read_bytes()
        (folder / "cache/fake" / f"{file.stem}.bin").write_bytes(b"latents")
        examples += len(directory["resolutions"]) * directory["num_repeats"]
        bar(number, len(media))
    sys.stderr.write("\n")
misbehave()
if args.cache_only:
    sys.exit(0)

batch = config["micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
steps_per_epoch = examples // batch
if not steps_per_epoch:
    raise RuntimeError("Processed dataset was empty. Probably caused by rounding down for each size bucket.")
output = Path(config["output_dir"])
step, epoch = 1, 1
if args.resume_from_checkpoint:
    run = output / args.resume_from_checkpoint
    tag = (run / "latest").read_text() if (run / "latest").exists() else None
    if tag is None:
        print(
            f"Unable to find latest file at {run}/latest, if trying to load latest checkpoint please ensure this file exists"
        )
    load_path = tag
    assert load_path is not None
    step = int(tag.removeprefix("global_step")) + 1
    epoch = (step - 1) // steps_per_epoch + 1
    print(f"Resuming training from checkpoint. Resuming at epoch: {epoch}, step: {step}", flush=True)
else:
    run = output / datetime.now(UTC).strftime("%Y%m%d_%H-%M-%S")
    run.mkdir(parents=True)
    shutil.copy(args.config, run)
    shutil.copy(config["dataset"], run)
print(f"Global batch size = {batch}", flush=True)
tensorboard = (run / f"events.out.tfevents.{int(time.time())}.host").open("ab")


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def scalar(tag, value, at):
    inner = b"\x0a" + varint(len(tag)) + tag.encode() + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + varint(len(inner)) + inner
    message = b"\x09" + struct.pack("<d", time.time()) + b"\x10" + varint(at)
    message += b"\x2a" + varint(len(summary)) + summary
    tensorboard.write(struct.pack("<QI", len(message), 0) + message + struct.pack("<I", 0))
    tensorboard.flush()


def save_model(name):
    print(f"Saving model to directory {name}", flush=True)
    place = run / name
    (place / "tmp").mkdir(parents=True)
    rank = config["adapter"]["rank"]
    rng = np.random.default_rng(step)
    tensors = {}
    for block in range(2):
        for module in ("self_attn.q", "cross_attn.k", "ffn.0"):
            key = f"diffusion_model.blocks.{block}.{module}"
            tensors[f"{key}.lora_A.weight"] = rng.normal(size=(rank, 16)).astype(np.float16)
            tensors[f"{key}.lora_B.weight"] = rng.normal(size=(16, rank)).astype(np.float16)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copy(args.config, place)
    time.sleep(pause)
    shutil.rmtree(place / "tmp")


def save_checkpoint():
    place = run / f"global_step{step}"
    place.mkdir(exist_ok=True)
    (place / "mp_rank_00_model_states.pt").write_bytes(b"state")
    (run / "latest").write_text(f"global_step{step}")


def evaluate(at):
    if config.get("eval_datasets"):
        print("Running eval", flush=True)
        bar(9, 9)
        scalar(f"{config['eval_datasets'][0]['name']}/loss_quantile_0.10", 0.5, at)
        scalar(f"{config['eval_datasets'][0]['name']}/loss", 0.25 + 1 / (at + 2), at)


if not args.resume_from_checkpoint:
    evaluate(0)
while True:
    time.sleep(pause)
    misbehave(step)
    rate = config["optimizer"]["lr"]
    print(f"[2026-08-21 10:00:00,000] [INFO] [Rank 0] step={step}, skipped=0, lr=[{rate}], mom=[[0.9]]")
    loss = float("nan") if fail_if("nan", step) else 0.5 / step
    print(f"steps: {step} loss: {loss:0.4f} iter time (s): {pause:0.3f} samples/sec: 1.000", flush=True)
    scalar("train/loss", loss, step)
    saved = checkpointed = False
    if step % steps_per_epoch == 0:
        if epoch % config["checkpoint_every_n_epochs"] == 0:
            save_checkpoint()
            checkpointed = True
        if "save_every_n_epochs" in config and epoch % config["save_every_n_epochs"] == 0:
            save_model(f"epoch{epoch}")
            saved = True
        epoch += 1
        if epoch > config["epochs"]:
            final = f"epoch{epoch - 1}"
            break
        print(f"Started new epoch: {epoch}", flush=True)
    if "eval_every_n_steps" in config and step % config["eval_every_n_steps"] == 0:
        evaluate(step)
    quits = (run / "save_quit").is_file() and "deaf" not in modes
    if quits:
        (run / "save_quit").unlink()
    if "save_every_n_steps" in config and step % config["save_every_n_steps"] == 0:
        save_model(f"step{step}")
        saved = True
    if quits:
        save_checkpoint()
        print("Manually quitting", flush=True)
        sys.exit()
    if "max_steps" in config and step >= config["max_steps"]:
        final = f"step{step}"
        break
    step += 1
if not checkpointed:
    save_checkpoint()
if not saved:
    save_model(final)
print("TRAINING COMPLETE!", flush=True)
