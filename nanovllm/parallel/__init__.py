"""One model over several processes: a runner that the engine cannot tell from one in its own process.

`parallel_runner` sends each step (`step_message`, over a `channel`) to the workers of a `worker_group`; `heartbeat` and
`processes` tell whether they live. What of a layer a process holds is said in `layers/tensor_parallel.py`.
"""
