// Draws the pictures of decode-kernel.md: `node docs/guides/pictures.mjs [FOLDER]` writes them, by default beside this file;
// test/api/docs.test.ts compares. What they show is arithmetic; nothing in them was measured.

import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const INK = '#1f2933';
const GRAY = '#c9d1d9';
const PALE = '#eef1f4';
const [Q, K, V] = ['#2f6fb2', '#c4572a', '#3c8d5a'];
const [PALE_Q, PALE_K, PALE_V] = ['#d6e4f2', '#f6ddd2', '#d7eadd'];

const escaped = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;');
const rect = (x, y, w, h, fill, stroke = INK) =>
  `<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="${fill}" stroke="${stroke}"/>`;
const text = (x, y, words, { size = 13, anchor = 'start', fill = INK, weight = 400 } = {}) =>
  `<text x="${x}" y="${y}" font-size="${size}" text-anchor="${anchor}" fill="${fill}" font-weight="${weight}">${escaped(words)}</text>`;
const middle = (x, y, words, options) => text(x, y, words, { anchor: 'middle', ...options });
const line = (x1, y1, x2, y2, { stroke = INK, width = 1.2, dash = '', arrow = false } = {}) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="${stroke}" stroke-width="${width}"${dash && ` stroke-dasharray="${dash}"`}${arrow ? ' marker-end="url(#arrow)"' : ''}/>`;
const arrow = (x1, y1, x2, y2, options) => line(x1, y1, x2, y2, { arrow: true, ...options });

function picture(width, height, title, parts) {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="Helvetica, Arial, sans-serif" role="img">
<title>${escaped(title)}</title>
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="${INK}"/></marker></defs>
<rect width="${width}" height="${height}" rx="6" fill="#ffffff"/>
${parts.flat(9).join('\n')}
</svg>
`;
}

const count = (n, make) => Array.from({ length: n }, (_, i) => make(i));
const round = (x) => Math.round(x * 10) / 10;

/** FLOPs per byte of attention; every byte of K and V is read once, and a multiply-add is two FLOPs. */
function intensity([numQHeads, numKHeads, numVHeads], size, rowBytes) {
  return (2 * numQHeads * 2 * size) / ((numKHeads + numVHeads) * rowBytes);
}

function roofline() {
  const [left, top, right, bottom] = [50, 40, 710, 300];
  const x = (flopsPerByte) => round(left + ((right - left) * (1 + Math.log2(flopsPerByte))) / 11); // 1/2 to 1024
  const ridge = 7.2; // where it stands on a card is that card's matter
  const roof = (log) => round(top + 30 + (bottom - top - 30) * Math.max(0, (ridge - log) / (ridge + 1)));
  const length = 2048;
  const prefill = (2 * 32 * (64 + 64) * ((length + 1) / 2)) / (2 * (32 * 64 + 4 * 64 + 16 * 64 + 32 * 64));
  const points = [
    [intensity([32, 16, 16], 64, 128), '32/16/16', GRAY, [-8, -8, 'end']],
    [intensity([32, 4, 16], 64, 128), '32/4/16', K, [-8, -8, 'end']],
    [intensity([32, 4, 16], 64, 66), '32/4/16 in 8 bits', V, [-8, -8, 'end']],
    [prefill, `prefill of ${length}`, Q, [-8, 20, 'end']],
  ];
  return picture(760, 360, 'Roofline: what decode attention can reach is its FLOPs per byte times the bandwidth', [
    line(left, bottom, right, bottom),
    line(left, bottom, left, top),
    text(left, 348, 'FLOPs per byte of global memory'),
    text(left - 10, 28, 'FLOP/s that can be reached (both axes logarithmic)'),
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024].map((value) => middle(x(value), bottom + 18, value, { size: 11 })),
    line(left, roof(-1), x(2 ** ridge), roof(ridge), { width: 2.5 }),
    line(x(2 ** ridge), roof(ridge), right, roof(ridge), { width: 2.5 }),
    text(x(2 ** 4.6) - 8, roof(4.6) - 10, 'B, the bandwidth, x FLOPs per byte', { size: 12, anchor: 'end' }),
    middle((x(2 ** ridge) + right) / 2, roof(ridge) - 10, 'F, the tensor cores', { size: 12 }),
    line(x(2 ** ridge), roof(ridge), x(2 ** ridge), bottom, { dash: '3 4', stroke: GRAY }),
    middle(x(2 ** ridge), bottom + 36, 'F / B of the card', { size: 12 }),
    points.map(([at, name, color, [dx, dy, anchor]]) => {
      const [px, py] = [x(at), roof(Math.log2(at))];
      return [
        line(px, bottom, px, py, { stroke: color, dash: '4 3', width: 1.5 }),
        `<circle cx="${px}" cy="${py}" r="5" fill="${color}" stroke="${INK}"/>`,
        text(px + dx, py + dy, `${name}: ${at < 100 ? at.toFixed(1) : Math.round(at)}`, { size: 12, anchor }),
      ];
    }),
  ]);
}

function heads() {
  const [left, width] = [116, 624];
  const row = (y, n, name, fill, pale) => [
    text(20, y + 19, name, { weight: 700 }),
    count(n, (i) => [
      rect(left + (i * width) / n, y, width / n, 28, i < n / 4 ? fill : pale),
      middle(left + ((i + 0.5) * width) / n, y + 19, i, { size: n > 20 ? 10 : 12, fill: i < n / 4 ? '#ffffff' : INK }),
    ]),
  ];
  const reads = (n, from, to) =>
    count(n, (i) => line(left + ((i + 0.5) * width) / n, from, left + ((i + 0.5) * width) / n, to, { stroke: GRAY }));
  return picture(760, 250, 'Heads of 32/4/16: 8 query heads share a K head, and 2 share a V head', [
    middle(left + width / 8, 24, 'one unit', { weight: 700 }),
    `<rect x="${left - 5}" y="34" width="${width / 4 + 10}" height="196" rx="6" fill="none" stroke="${INK}" stroke-width="2" stroke-dasharray="6 4"/>`,
    reads(32, 70, 122),
    reads(32, 150, 192),
    row(42, 4, '4 K heads', K, PALE_K),
    row(122, 32, '32 Q heads', Q, PALE_Q),
    row(192, 16, '16 V heads', V, PALE_V),
  ]);
}

function work() {
  const [left, keyWidth] = [60, 20];
  const tile = (i) => left + i * keyWidth;
  const colors = ['#2f6fb2', '#7aa5d2', '#a9c6e3', '#d6e4f2'];
  const slots = ['K', 'V 0', 'V 1', 'V 2', 'V 3'];
  return picture(760, 356, 'From the grid to one ring: splits, warps, slots', [
    text(left, 28, 'The keys of one sequence, for one unit: 3 splits, a block each', { weight: 700 }),
    count(3, (split) => [
      rect(tile(0) + split * 214, 42, 204, 30, split === 1 ? PALE_Q : PALE),
      middle(tile(0) + split * 214 + 102, 62, `split ${split}`),
    ]),
    line(tile(0) + 214, 72, tile(0), 104, { stroke: GRAY }),
    line(tile(0) + 418, 72, tile(32), 104, { stroke: GRAY }),
    text(left, 100, 'A block: tiles of 32 keys, every fourth one to the same warp', { weight: 700, size: 13 }),
    count(32, (i) => [
      rect(tile(i), 110, keyWidth, 30, colors[i % 4], '#ffffff'),
      middle(tile(i) + keyWidth / 2, 130, i % 4, { size: 11, fill: i % 4 === 0 ? '#ffffff' : INK }),
    ]),
    text(left, 160, '0, 1, 2, 3: the warps', { size: 12 }),
    line(tile(4), 140, left, 196, { stroke: GRAY }),
    line(tile(5), 140, left + 460, 196, { stroke: GRAY }),
    text(left + 200, 186, "A warp's ring: 5 slots of 4 KiB", { weight: 700 }),
    slots.map((name, i) => [
      rect(left + i * 92, 196, 92, 44, i === 0 ? K : PALE_V),
      middle(left + i * 92 + 46, 223, name, { fill: i === 0 ? '#ffffff' : INK }),
    ]),
    text(left + 474, 214, '32 keys x 64 dims x 2 bytes', { size: 12 }),
    text(left + 474, 232, 'of one head in each', { size: 12 }),
    arrow(left + 46, 268, left + 46, 244),
    text(left, 284, 'multiplied now', { size: 12 }),
    line(left + 96, 252, left + 456, 252, { width: 2 }),
    middle(left + 276, 270, 'the others are on their way: 16 KiB a warp, 64 KiB a block', { size: 12 }),
    text(
      left,
      316,
      'take(): wait until the oldest copy has landed, hand out its slot, and start the next copy into the slot handed out before, or, if copies are bulk copies, start it first.',
      { size: 12 },
    ),
    text(left, 336, 'A warp waits for its own copies alone: the loop over the keys has no barrier of the block.', {
      size: 12,
    }),
  ]);
}

/** One mma: A of 16 x 16, B of 16 x 8, C of 16 x 8. `bright`: which of the 8 columns of B and C count. */
function product(y, [a, b, c], [colorA, colorB, colorC, paleB], bright) {
  const cell = 9;
  const grid = (x, columns, fill) => [
    count(columns, (i) => rect(x + i * cell, y, cell, 16 * cell, fill(i), 'none')),
    count(17, (r) => line(x, y + r * cell, x + columns * cell, y + r * cell, { stroke: '#ffffff', width: 0.8 })),
    count(columns + 1, (i) => line(x + i * cell, y, x + i * cell, y + 16 * cell, { stroke: '#ffffff', width: 0.8 })),
  ];
  const under = (x, columns, words) => middle(x + (columns * cell) / 2, y + 16 * cell + 18, words, { size: 12 });
  const [left, center, right, mid] = [50, 300, 520, y + 8 * cell + 6];
  return [
    grid(left, 16, () => colorA),
    grid(center, 8, (i) => (bright(i) ? colorB : paleB)),
    grid(right, 8, (i) => (bright(i) ? colorC : PALE)),
    [under(left, 16, a), under(center, 8, b), under(right, 8, c)],
    [
      middle((left + 144 + center) / 2, mid, 'x', { size: 18 }),
      middle((center + 72 + right) / 2, mid, '=', { size: 18 }),
    ],
  ];
}

function tile() {
  const own = 1; // the V head that is shown
  const columns = `columns ${2 * own} and ${2 * own + 1}`;
  const weights = '#7b5ea7';
  return picture(760, 460, 'The products of one tile: S^T = K Q^T, then O^T += V^T P^T for one V head', [
    text(20, 26, 'Scores: the 8 columns are the 8 query heads of the K head, and all of them count', { weight: 700 }),
    product(
      44,
      ['K: 16 keys x 16 dims', 'Q^T: 16 dims x 8 heads', 'S^T: 16 keys x 8 heads'],
      [K, Q, weights, PALE],
      () => true,
    ),
    text(622, 110, '4 of these', { size: 12 }),
    text(622, 126, 'for 64 dims', { size: 12 }),
    text(
      20,
      246,
      `Values of the unit's V head ${own}: ${columns} are its query heads; the others are formed and dropped`,
      { weight: 700 },
    ),
    product(
      264,
      ['V^T: 16 dims x 16 keys', 'P^T: 16 keys x 8 heads', 'O^T: 16 dims x 8 heads'],
      [V, weights, INK, '#e2daee'],
      (i) => Math.floor(i / 2) === own,
    ),
    text(622, 330, 'one accumulator', { size: 12 }),
    text(622, 346, 'for all 4 V heads', { size: 12 }),
  ]);
}

function splits() {
  return picture(760, 262, 'Splits leave partial sums; the last block to arrive merges them', [
    count(3, (i) => [
      rect(30, 40 + i * 66, 150, 44, i === 1 ? PALE_Q : PALE),
      middle(105, 67 + i * 66, `block of split ${i}`),
      arrow(180, 62 + i * 66, 252, 62 + i * 66),
      rect(256, 46 + i * 66, 160, 32, PALE_V),
      middle(336, 67 + i * 66, 'O, m, d  (f32)'),
      arrow(416, 62 + i * 66, 506, 128, { stroke: GRAY }),
    ]),
    middle(336, 28, 'scratch memory', { weight: 700 }),
    middle(105, 28, 'grid', { weight: 700 }),
    rect(510, 106, 92, 44, PALE),
    middle(556, 124, 'arrived', { size: 12 }),
    middle(556, 141, 'atomic + 1', { size: 12 }),
    arrow(602, 128, 640, 128),
    rect(644, 98, 96, 60, PALE_Q),
    middle(692, 118, 'the last one', { size: 12 }),
    middle(692, 134, 'merges, writes', { size: 12 }),
    middle(692, 150, 'out and lse', { size: 12 }),
    text(30, 248, 'm = max of all m_i;  d = sum of d_i 2^(m_i - m);  out = sum of O_i 2^(m_i - m) / d', { size: 13 }),
  ]);
}

const pictures = {
  'roofline.svg': roofline(),
  'heads.svg': heads(),
  'work.svg': work(),
  'tile.svg': tile(),
  'splits.svg': splits(),
};
const folder = process.argv[2] ?? dirname(fileURLToPath(import.meta.url));
for (const [name, svg] of Object.entries(pictures)) writeFileSync(join(folder, name), svg);
