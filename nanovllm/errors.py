"""The errors that this package raises. Imports nothing.

    NanoVLLMError
    ├── InvalidArgument (ValueError)     a setting or an argument that cannot be served
    │   └── InvalidRequest               ... of one request: its prompt, its sampling parameters, its priority
    ├── CheckpointError (ValueError)     a model's folder or file: something is missing, unreadable or not implemented
    └── EngineError (RuntimeError)       the engine could not do what it was rightly asked for
        ├── QueueFull                    as many requests wait as may; ask again later
        └── RequestFailed                a request that was accepted could not be served to its end
            └── NotFinite                ... because the model's scores for its next token are not numbers

Each is a ValueError or a RuntimeError as well, and says the value, the limit and the remedy. What can only be a bug, such as
a block with two owners, is a plain RuntimeError.
"""


class NanoVLLMError(Exception):
    """What this package raises on purpose. Anything else that comes out of it is a bug."""


class InvalidArgument(NanoVLLMError, ValueError):
    """A setting or an argument that cannot be served. Nothing was changed."""


class InvalidRequest(InvalidArgument):
    """A request that could not be served to its end. Nothing was queued."""


class CheckpointError(NanoVLLMError, ValueError):
    """A model's folder or file that lacks something, cannot be read, or asks for what is not implemented."""


class EngineError(NanoVLLMError, RuntimeError):
    """The engine could not do what it was rightly asked for: it was closed, one of its processes died, memory ran out."""


class QueueFull(EngineError):
    """As many requests wait as may; ask again later."""


class RequestFailed(EngineError):
    """A request that was accepted could not be served: a step failed (see `__cause__`), or the engine was closed."""


class NotFinite(RequestFailed):
    """The scores for a request's next token hold a NaN or an infinity, or every token is forbidden."""
