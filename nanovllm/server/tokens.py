"""The endpoints around the tokenizer: /tokenize, /detokenize and /tokenizer_info, as in vLLM."""

import asyncio

from fastapi import APIRouter

from nanovllm.server.chat_protocol import DetokenizeRequest, TokenizeRequest
from nanovllm.server.errors import REFUSALS
from nanovllm.server.schemas import DetokenizeBody, TokenizeBody, TokenizerInfoBody
from nanovllm.server.state import State
from nanovllm.utils.checks import check

router = APIRouter(responses=REFUSALS)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, state: State) -> TokenizeBody:
    """The tokens of a text, or of the prompt that the chat template makes of a conversation."""
    state.require_model(body.model)
    check((body.prompt is None) != (body.messages is None), "prompt", body.prompt, "there, or messages, and not both",
          "send one of them")

    def encode() -> list[int]:
        if body.messages is not None:
            text, special = state.encoder.render(body, body.messages), bool(body.add_special_tokens)
        else:
            text, special = body.prompt or "", body.add_special_tokens is not False
        return state.encoder.encode(text, special)

    token_ids = await asyncio.to_thread(encode)
    strings = state.encoder.token_strings(token_ids) if body.return_token_strs else None
    return {"count": len(token_ids), "max_model_len": state.engine.config.max_model_len, "tokens": token_ids,
            "token_strs": strings}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, state: State) -> DetokenizeBody:
    """The text of tokens."""
    state.require_model(body.model)
    return {"prompt": await asyncio.to_thread(state.encoder.decode, body.tokens)}


@router.get("/tokenizer_info")
async def tokenizer_info(state: State) -> TokenizerInfoBody:
    """What programs that tokenise through this server have to know: special tokens and the chat template."""
    return state.encoder.tokenizer_info()
