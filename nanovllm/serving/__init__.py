"""From text to token ids and back: everything about a request that the engine need not know.

A `request` owns the engine's sequences for its samples. `run_requests` steps the engine in the caller's thread, `engine_thread`
in one of its own; both take steps through `stepping`, where a request that makes a step fail ends alone. Around them:
tokenizers and `detokenizer`, `chat` and `chat_template`, `stop_strings`, `grammars`, and what an `answer` consists of.
"""
