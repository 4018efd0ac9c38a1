"""What a finished request hands back."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestOutput:
    """One finished request. Answers both `out.text` and `out["text"]`, as scripts written for nano-vllm expect.

    text: the generated text, special tokens skipped. token_ids: the generated tokens, with the one that stopped it.
    finish_reason: "stop" (end of sequence or a stop token), "length" (max_tokens or max_model_len) or "abort".
    num_cached_tokens: prompt tokens found in the prefix cache. num_preemptions: times it was thrown out and recomputed.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int] = field(repr=False)
    text: str
    token_ids: list[int]
    finish_reason: str
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    def __getitem__(self, key: str):
        try:
            return getattr(self, key)
        except (AttributeError, TypeError):
            raise KeyError(f"{key!r}: a RequestOutput has {', '.join(self.__slots__)}") from None

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return (f"RequestOutput({self.request_id}, {text!r}, {len(self.prompt_token_ids)} prompt + "
                f"{len(self.token_ids)} tokens, finish_reason={self.finish_reason!r})")
