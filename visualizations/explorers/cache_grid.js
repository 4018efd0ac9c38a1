// Where the blocks of a cache lie on a canvas. A large cache is mostly free: long stretches of blocks that nothing uses in
// the whole run are folded into one cell that says how many they are. Nothing here draws but `drawFolded`.
import { clamp, font } from "./shared.js";

const LARGEST_SQUARE = 36, SMALLEST_SQUARE = 9, FOLDED_WIDE = 104, SHOWN_WHOLE = 256, BESIDE_USED = 8;

// The stretches of a run's blocks, in order: {from, to (exclusive), folded}. Caches of at most SHOWN_WHOLE blocks are shown whole.
export function blockStretches(records) {
  const num = records[0]?.blocks.length ?? 1;
  if (num <= SHOWN_WHOLE) return [{ from: 0, to: num, folded: false }];
  const used = new Uint8Array(num);
  for (const { blocks } of records) for (let block = 0; block < blocks.length; block++) if (blocks[block] !== "f") used[block] = 1;
  const found = [];
  const add = (from, to, folded) => {
    const last = found.at(-1);
    if (last && !last.folded && !folded) last.to = to; // a stretch too short to fold joins what is before it
    else if (to > from) found.push({ from, to, folded });
  };
  for (let from = 0, to; from < num; from = to) {
    for (to = from + 1; to < num && used[to] === used[from]; to++);
    const folded = !used[from] && to - from >= 6 * BESIDE_USED, shown = folded && from ? BESIDE_USED : 0;
    add(from, from + shown, false);
    add(from + shown, to, folded);
  }
  return found;
}

// The largest squares with which all of it is at most `tallest` pixels high: {pitch, height, cells: [{x, y, wide, from, to, folded}]}.
export function cacheGrid(records, width, tallest) {
  const parts = blockStretches(records);
  for (let pitch = LARGEST_SQUARE; ; pitch -= 1) {
    const grid = laidOut(parts, pitch, Math.max(1, Math.floor(width / pitch)));
    if (grid.height <= tallest || pitch === SMALLEST_SQUARE) return grid;
  }
}

function laidOut(parts, pitch, columns) {
  const cells = [];
  let at = 0;
  for (const { from, to, folded } of parts) {
    const span = folded ? Math.min(columns, Math.ceil(FOLDED_WIDE / pitch)) : 1;
    for (let block = from; block < to; block += folded ? to - from : 1) {
      if (at % columns + span > columns) at += columns - at % columns; // a folded stretch breaks no line
      cells.push({ x: (at % columns) * pitch, y: Math.floor(at / columns) * pitch, wide: span * pitch, from: block, to: folded ? to : block + 1, folded });
      at += span;
    }
  }
  return { pitch, height: Math.ceil(at / columns) * pitch, cells };
}

// The cell under a point; undefined between cells.
export const cellAt = ({ pitch, cells }, x, y) => cells.find((cell) => x >= cell.x && x < cell.x + cell.wide && y >= cell.y && y < cell.y + pitch);

export const aboutFolded = ({ from, to }) => `Blocks ${from.toLocaleString("en")} to ${(to - 1).toLocaleString("en")} stay free and empty in this run.`;

// A folded stretch: its outline dashed, and how many blocks it stands for.
export function drawFolded(draw, cell, pitch, colours) {
  const { x, y, wide, from, to } = cell, high = pitch - 4;
  draw.fillStyle = colours.free;
  draw.beginPath();
  draw.roundRect(x + 2, y + 2, wide - 4, high, clamp(high / 4, 2, 6));
  draw.fill();
  draw.setLineDash([3, 3]);
  draw.strokeStyle = colours.muted;
  draw.lineWidth = 1;
  draw.stroke();
  draw.setLineDash([]);
  draw.fillStyle = colours.ink;
  draw.textAlign = "center";
  draw.font = font(clamp(high * 0.42, 8, 11));
  draw.fillText(`… ${(to - from).toLocaleString("en")} free …`, x + wide / 2, y + 2 + high / 2 + 0.5);
}
