"""Many engines. A `router` picks one for each request; the same class serves on Ray and in the simulation.

- Served: `serve`, `ingress` and `request_router`, on Ray Serve.
- Batches: `batch_run` on one machine, `batch` on many, over files of the OpenAI Batch API (`batch_file`).
- Simulated: `simulation` is one engine without a model; `simulated_fleet` many, with the step times of a GPU (`cost_model`).
"""
