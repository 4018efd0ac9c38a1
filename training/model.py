"""Qwen3 and Qwen3-MoE for training: whole sequences, no cache. Parameter names are those of the Hugging Face checkpoint."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes. experts: feed-forward networks per layer, each of size `intermediate`, of which a token uses `active`; 0: one."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 64
    vocab: int = 2560
    positions: int = 2048
    theta: float = 1e6
    eps: float = 1e-6
    experts: int = 0
    active: int = 0


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.q_norm = nn.RMSNorm(s.head_dim, s.eps)
        self.k_norm = nn.RMSNorm(s.head_dim, s.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = [p(x).unflatten(-1, (-1, self.s.head_dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]
        q, k = (rotate(norm(h.float()), cos, sin).to(heads[2].dtype)
                for norm, h in zip((self.q_norm, self.k_norm), heads))
        y = F.scaled_dot_product_attention(q, k, heads[2], is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.down_proj = nn.Linear(s.intermediate, s.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """A router and experts. All of them compute all tokens, which at this size is quicker than to sort the tokens out."""

    def __init__(self, s: Shape):
        super().__init__()
        self.active = s.active
        self.gate = nn.Linear(s.hidden, s.experts, bias=False)
        self.experts = nn.ModuleList(MLP(s) for _ in range(s.experts))
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        likely = self.gate(x).float().softmax(-1)
        weights, chosen = likely.topk(self.active, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        weight_of = torch.zeros_like(likely).scatter(-1, chosen, weights)
        # As in the Switch Transformer (Fedus et al. 2021): 1 when all experts are used alike, more when some are not.
        used = (weight_of > 0).float().flatten(0, -2).mean(0) / self.active
        self.balance = len(self.experts) * (used * likely.flatten(0, -2).mean(0)).sum()
        gate = F.linear(x, torch.cat([expert.gate_proj.weight for expert in self.experts]))
        up = F.linear(x, torch.cat([expert.up_proj.weight for expert in self.experts]))
        inner = (F.silu(gate) * up).unflatten(-1, (len(self.experts), -1)) * weight_of.to(gate.dtype)[..., None]
        return F.linear(inner.flatten(-2), torch.cat([expert.down_proj.weight for expert in self.experts], 1))


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.self_attn, self.mlp = Attention(s), MoE(s) if s.experts else MLP(s)
        self.input_layernorm = nn.RMSNorm(s.hidden, s.eps)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, s.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden, s.eps)


class Qwen3(nn.Module):
    """The training twin of nanovllm.models.qwen3 and qwen3_moe, tied embeddings included.

    A test compares its logits with transformers'.
    """

    def __init__(self, s: Shape):
        super().__init__()
        self.s, self.model = s, Body(s)
        frequencies = 1.0 / s.theta ** (torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        angles = torch.arange(s.positions).float()[:, None] * frequencies
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * s.layers) ** 0.5 if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [batch, length] -> logits [batch, length, vocab]."""
        x = self.model.embed_tokens(tokens)
        cos, sin = self.cos[:tokens.shape[1]], self.sin[:tokens.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def loss(self, rows: Tensor) -> Tensor:
        """rows: [batch, length + 1]; mean next-token cross-entropy in nats; while training, with what balances the experts."""
        loss = F.cross_entropy(self(rows[:, :-1]).float().flatten(0, 1), rows[:, 1:].flatten())
        if self.s.experts and torch.is_grad_enabled():
            loss = loss + 0.01 * sum(layer.mlp.balance for layer in self.model.layers) / len(self.model.layers)
        return loss


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
