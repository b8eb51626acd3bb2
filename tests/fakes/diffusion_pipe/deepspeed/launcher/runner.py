"""A stand-in for DeepSpeed's runner on one machine: starts `launch` and waits; no handler of signals, as the real one."""

import subprocess
import sys


def main():
    arguments = sys.argv[1:]
    assert arguments[0].startswith(("--num_gpus=", "--include")), arguments
    rest = arguments[2:] if arguments[0] == "--include" else arguments[1:]
    print("[2026-08-21 10:00:00,000] [INFO] [runner.py:610:main] cmd = " + " ".join(rest), flush=True)
    process = subprocess.Popen([sys.executable, "-u", "-m", "deepspeed.launcher.launch", *rest])
    process.wait()
    sys.exit(process.returncode if process.returncode > 0 else 0)  # the real one gives 0 where launch was killed


if __name__ == "__main__":
    main()
