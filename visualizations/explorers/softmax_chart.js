// Scores above, weights relative to the highest so far below: the online softmax after a tile, drawn on a canvas.
import { decodeColour, font, promptColour } from "./shared.js";

const LEFT = 58, TOP = 20, BETWEEN = 34, BOTTOM = 26;

// chart: a surface. keys: in the order in which they come; all, step: what `states` found, and how many tiles are in.
// seqId: whose hue the bars have. unread: whether the scores of keys that are still to come are drawn, in grey. gap: pixels left
// free before each tile. name(key): what stands below a bar, "" for nothing.
export function drawSoftmax(chart, colours, { scores, keys, all, step, tile, seqId = 0, unread = true, gap = 0, name }) {
  const draw = chart.begin(), now = all[step], before = all[step - 1], end = chart.width - 8;
  const low = Math.min(0, ...scores), span = Math.max(...scores) - low || 1;
  const high = (chart.height - TOP - BETWEEN - BOTTOM) / 2, second = TOP + high + BETWEEN;
  const wide = (end - LEFT - gap * (Math.ceil(keys.length / tile) - 1)) / keys.length;
  const left = (at) => LEFT + at * wide + gap * Math.floor(at / tile);
  draw.textAlign = "left";
  draw.font = font(11.5, 600);
  draw.fillStyle = colours.ink;
  draw.fillText("scores, as the keys come in", LEFT, TOP - 11);
  draw.fillText("weights: e^(score − highest so far)", LEFT, second - 12);

  function bars(top, heightOf, axis) {
    draw.fillStyle = colours.line;
    draw.fillRect(LEFT, top + high, end - LEFT, 1);
    keys.forEach((key, at) => {
      const share = heightOf(key, at);
      if (share === null) return;
      draw.fillStyle = at >= now.to ? colours.free : at >= now.from ? promptColour(seqId) : decodeColour(seqId);
      const tall = Math.max(1, share * high);
      draw.fillRect(left(at) + wide * 0.12, top + high - tall, wide * 0.76, tall);
    });
    draw.fillStyle = colours.muted;
    draw.font = font(11);
    draw.textAlign = "right";
    axis.forEach(([text, share]) => draw.fillText(text, LEFT - 6, top + high - share * high));
  }

  bars(TOP, (key, at) => (unread || at < now.to ? (scores[key] - low) / span : null), [[(low + span).toFixed(1), 1], [low.toFixed(1), 0.02]]);
  bars(second, (key, at) => (at < now.to ? Math.exp(scores[key] - now.highest) : null), [["1", 1], ["0", 0.02]]);
  if (now.to) {
    const y = TOP + high - (now.highest - low) / span * high;
    draw.strokeStyle = colours.ink;
    draw.lineWidth = 1.2;
    draw.setLineDash([5, 4]);
    draw.beginPath();
    draw.moveTo(LEFT, y);
    draw.lineTo(left(now.to - 1) + wide, y);
    draw.stroke();
    draw.setLineDash([]);
  }
  // What the light bars were before this tile, as outlines: the distance is the rescaling.
  if (before?.to && now.rescale < 1) {
    draw.strokeStyle = colours.muted;
    draw.lineWidth = 1;
    keys.slice(0, now.from).forEach((key, at) => {
      const tall = Math.exp(scores[key] - before.highest) * high;
      draw.strokeRect(left(at) + wide * 0.12, second + high - tall, wide * 0.76, tall);
    });
  }
  draw.fillStyle = colours.muted;
  draw.textAlign = "center";
  draw.font = font(10.5);
  keys.forEach((key, at) => draw.fillText(name(key, at, wide), left(at) + wide / 2, second + high + 12));
  draw.textAlign = "right";
  draw.fillText("key", LEFT - 6, second + high + 12);
}
