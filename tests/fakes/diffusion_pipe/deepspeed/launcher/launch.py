"""A stand-in for DeepSpeed's launch: starts a rank, hands on its status, ends its tree on SIGINT and SIGTERM and exits 1."""

import contextlib
import signal
import subprocess
import sys
import time

import psutil

process = None


def on_signal(number, frame):
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.Error):
            each.terminate()
    sys.exit(1)


def main():
    global process
    process = subprocess.Popen([sys.executable, "-u", sys.argv[1], "--local_rank=0", *sys.argv[2:]])
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    while process.poll() is None:
        time.sleep(0.02)
    code = process.returncode
    if code != 0:
        print(f"[ERROR] [launch.py:325:sigkill_handler] {sys.argv[1:]} exits with return code = {code}", flush=True)
        sys.exit(code % 256 if code > 0 else 256 + code)
    print("[INFO] [launch.py:351:main] Process exits successfully.", flush=True)


if __name__ == "__main__":
    main()
