"""`python -m benchmarks`: measure this machine. Today that is the engine on the CPU; benchmarks/attention.py needs a GPU."""

from benchmarks.cpu_throughput import main

if __name__ == "__main__":
    main()
