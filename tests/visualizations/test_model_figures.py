"""What the pictures of a model and its checkpoint say, against the model itself."""

import json

import matplotlib
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from safetensors.torch import save_file
from transformers import Qwen3Config

import visualizations as v
from nanovllm.layers.attention import select_backend
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import Context
from tests.checkpoints import TINY
from tests.visualizations.test_figures import artists, texts
from tests.visualizations.test_more_figures import caption
from visualizations.figures.shape_flow import HEIGHT, Stop


@pytest.fixture(scope="module")
def flow():
    """The second layer of a tiny model, five tokens."""
    config = Qwen3Config(**TINY)
    backend = select_backend("torch", device="cpu", dtype=torch.float32, head_dim=config.head_dim, block_size=4)
    model = Qwen3ForCausalLM(config, backend, device="cpu", dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    context = Context(torch.tensor([0, 5], dtype=torch.int32), torch.tensor([5], dtype=torch.int32),
                      torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([4, 5, 6, 7, 0]), 5, 5, 0, torch.tensor([4]))
    cache = torch.zeros(2, 2, 2, 4, 2, 32)
    layer = model.model.layers[1]
    with torch.inference_mode():
        stops = v.record_flow(layer, lambda: model(torch.arange(5), torch.arange(5), cache, context))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    return stops


def test_a_flow_is_the_order_of_calls_with_the_shapes_that_came_out(flow):
    assert [(s.name, dict(s.parts), s.reads) for s in flow] == [
        ("input_layernorm", {"": (5, 64)}, True),
        ("qkv_proj", {"q": (5, 128), "k": (5, 64), "v": (5, 64)}, False),
        ("q_norm, k_norm", {"q": (5, 4, 32), "k": (5, 2, 32)}, False),
        ("rotary", {"q": (5, 4, 32), "k": (5, 2, 32)}, False),
        ("attn", {"": (5, 128)}, False),
        ("o_proj", {"": (5, 64)}, False),
        ("post_attention_layernorm", {"": (5, 64)}, True),
        ("gate_up_proj", {"gate": (5, 96), "up": (5, 96)}, False),
        ("act_fn", {"": (5, 96)}, False),
        ("down_proj", {"": (5, 64)}, False),
    ]


def test_a_bar_is_as_high_as_a_token_is_wide(flow):
    fig = v.plot_shape_flow(flow)
    widths = [{part: torch.Size(shape[1:]).numel() for part, shape in stop.parts.items()} for stop in flow]
    for i, parts in enumerate(widths):
        bars = {bar.get_gid().split("-")[2]: bar.get_height() * 256 / HEIGHT for bar in artists(fig, Rectangle, f"bar-{i}-")}
        assert bars == pytest.approx(parts)
    assert len(artists(fig, plt.Line2D, "plus")) == 2 and len(artists(fig, plt.Line2D, "detour-")) == 1
    assert artists(fig, plt.Line2D, "detour-")[0].get_gid() == "detour-v"
    assert {"[5, 256]", "[5, 2, 32]\n[5, 4, 32]", "[5, 96]"} <= set(texts(fig))
    assert "64 channels in the stream, up to 256" in caption(fig)


def test_a_flow_without_a_beginning_is_refused():
    with pytest.raises(ValueError, match="record_flow"):
        v.plot_shape_flow([Stop("attn", {"": (5, 64)})])
    with pytest.raises(ValueError, match="calls the layer"):
        v.record_flow(torch.nn.Linear(2, 2), lambda: None)


@pytest.fixture(scope="module")
def model():
    return Qwen3ForCausalLM(Qwen3Config(**TINY | {"attention_bias": True}), None, device="meta", dtype=torch.float32)


def test_a_name_map_finds_the_rows_that_the_loader_fills(model):
    prefix = "model.layers.1."
    parts = {"self_attn.v_proj.weight": (64, 64), "self_attn.q_proj.bias": (128,), "mlp.up_proj.weight": (96, 64),
             "self_attn.o_proj.weight": (64, 128), "input_layernorm.weight": (64,)}
    places = v.name_map(model, [(prefix + name, shape) for name, shape in parts.items()])
    assert [(p.parameter.removeprefix(prefix), p.start, p.stop, p.rows) for p in places] == [
        ("self_attn.qkv_proj.weight", 192, 256, 256), ("self_attn.qkv_proj.bias", 0, 128, 256),
        ("mlp.gate_up_proj.weight", 96, 192, 192), ("self_attn.o_proj.weight", 0, 64, 64),
        ("input_layernorm.weight", 0, 64, 64)]
    (embedding,) = v.name_map(model, [("model.embed_tokens.weight", (96, 64))])
    assert (embedding.start, embedding.stop, embedding.rows) == (0, 96, 96)
    with pytest.raises(AttributeError, match="rotary_proj"):
        v.name_map(model, [("model.layers.0.self_attn.rotary_proj.weight", (1,))])


def test_the_lines_of_a_name_map_end_in_the_middle_of_their_rows(model):
    names = [(f"model.layers.0.self_attn.{part}_proj.weight", (64, 64)) for part in "kqvo"]
    fig = v.plot_name_map(v.name_map(model, names), prefix="model.layers.0.self_attn.")
    for name, _ in names:
        (rows,), (line,) = artists(fig, Rectangle, f"rows-{name}"), artists(fig, plt.Line2D, f"line-{name}")
        assert line.get_ydata()[-1] == pytest.approx(rows.get_y() + rows.get_height() / 2)
    heights = {name: artists(fig, Rectangle, f"rows-{name}")[0].get_height() for name, _ in names}
    assert heights[names[1][0]] == pytest.approx(2 * heights[names[0][0]])  # 128 rows of q to 64 of k
    assert {"rows 0 to 127", "rows 128 to 191", "qkv_proj.weight", "k_proj.weight  [64, 64]"} <= set(texts(fig))
    assert "4 tensors fill 2 parameters; 1 of these is packed" in caption(fig)
    with pytest.raises(ValueError, match="at least one"):
        v.plot_name_map([])


def test_tensors_that_did_not_arrive_leave_dotted_rows(model):
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    fig = v.plot_name_map(v.name_map(model, [(name, (64, 64)) for name in names]), lost=[names[1], "another.layer"])
    assert [rows.get_gid() for rows in artists(fig, Rectangle, "rows-") if rows.get_hatch()] == [f"rows-{names[1]}"]
    assert "1 of 3 tensors did not arrive" in caption(fig)


def test_a_checkpoint_file_is_drawn_to_scale_and_its_layer_enlarged(tmp_path):
    tensors = {"model.embed_tokens.weight": torch.zeros(96, 64), "model.layers.0.mlp.up_proj.weight": torch.zeros(96, 64),
               "model.layers.0.input_layernorm.weight": torch.zeros(64), "model.norm.weight": torch.zeros(64),
               "model.layers.1.mlp.up_proj.weight": torch.zeros(96, 64)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    fig = v.plot_checkpoint_file(json.loads(raw[8:length]), length)
    below = {bar.get_gid().removeprefix("bytes-"): bar for bar in artists(fig, Rectangle, "bytes-") if bar.get_y() == 0}
    assert list(below) == ["header", "embed_tokens", "layer 0", "layer 1", "norm"]
    assert sum(bar.get_width() for bar in below.values()) == pytest.approx(len(raw) / 1e6)
    assert below["layer 0"].get_width() == pytest.approx((96 * 64 + 64) * 4 / 1e6)
    above = {bar.get_gid(): bar.get_width() for bar in artists(fig, Rectangle, "bytes-") if bar.get_y() > 0}
    assert sum(above.values()) == pytest.approx(len(raw) / 1e6)
    assert above["bytes-up_proj"] == pytest.approx(96 * above["bytes-input_layernorm"])
    assert "5 tensors" in caption(fig) and f"{128 / (3 * 96 * 64 + 128):.2%}" in caption(fig)
    with pytest.raises(ValueError, match="zoom=2"):
        v.plot_checkpoint_file(json.loads(raw[8:length]), length, zoom=2)


def test_one_query_shows_softmax_of_its_scores_and_hides_what_comes_later():
    scores, words = [0.5, -1.0, 2.0], ["Once", " upon", " a", " time"]
    fig = v.plot_one_query(scores, words)
    shares = torch.tensor(scores, dtype=torch.float64).softmax(-1)
    tall = [bar.get_height() for bar in artists(fig, Rectangle, "share-")]
    assert torch.allclose(torch.tensor(tall, dtype=torch.float64) / max(tall), shares / shares.max())
    assert {t for t in texts(fig) if t.endswith("%")} == {f"{share:.0%}" for share in shares}
    below = [bar.get_height() for bar in artists(fig, Rectangle, "score-")]
    assert below[1] < 0 < below[0] < below[2] and len(artists(fig, Rectangle, "hidden-3")) == 2
    assert "that of “a”" in caption(fig) and "Dotted" in caption(fig)
    assert "Dotted" not in caption(v.plot_one_query([1.0], ["a"]))
    for given, match in (([], "scores="), ([float("-inf")], "finite"), ([0.0] * 5, r"len\(tokens\)=4")):
        with pytest.raises(ValueError, match=match):
            v.plot_one_query(given, words)


def test_a_quantized_block_shows_its_levels_and_how_far_each_weight_moved():
    fig = v.plot_quantized_block([0.31, -0.2], [0.3, -0.2], scale=0.1, least=-0.2, bits=3)
    levels = [line.get_ydata()[0] for line in artists(fig, plt.Line2D, "level-")]
    assert levels == pytest.approx([-0.2 + 0.1 * i for i in range(8)])
    assert list(artists(fig, plt.Line2D, "was")[0].get_ydata()) == [0.31, -0.2]
    assert "Furthest off: 0.10 of" in caption(fig)
    for changed, match in (({"becomes": [0.3]}, r"len\(becomes\)"), ({"scale": 0.0}, "scale=0.0")):
        with pytest.raises(ValueError, match=match):
            v.plot_quantized_block(**{"was": [0.31, -0.2], "becomes": [0.3, -0.2], "scale": 0.1, "least": -0.2} | changed)


def test_a_heat_map_with_a_key_says_which_shade_is_how_much():
    words = dict(xlabel="key", ylabel="query", title="Shares", caption="The stronger, the larger.")
    plain = v.plot_heat_maps({"": [[1.0, float("nan")], [0.3, 0.7]]}, **words)
    with_key = v.plot_heat_maps({"": [[1.0, float("nan")], [0.3, 0.7]]}, key="share", **words)
    assert len(plain.axes) == 1 and [ax.get_ylabel() for ax in with_key.axes] == ["query", "share"]
    assert with_key.axes[1].get_ylim() == (0, 1)
