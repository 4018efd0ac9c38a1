"""What watches an engine: a `recorder` listens to it and writes a `step_record` of each step into a `trace`.

A trace lies in memory or in a `trace_file`; `perfetto` writes it for Perfetto, `profiling` adds what the device did.
"""
