// A user's program as an ES module: generates text with the embedded model and calls kernels
// directly. Prints one line of JSON; `libraries` are the native files that the process has mapped.
import { readFileSync } from 'node:fs';
import { defaultModelDirectory, kernels, Model, openDevice } from 'diffqkv';

const device = await openDevice('cpu');
const random = (count) => Float32Array.from({ length: count }, (_, i) => Math.sin(i * 12.9898) / 10);
const q = device.tensor('f32', [1, 8, 64], random(8 * 64));
const k = device.tensor('f32', [1, 100, 2, 64], random(100 * 2 * 64));
const v = device.tensor('f32', [1, 100, 4, 64], new Float32Array(100 * 4 * 64).fill(1));
const attention = await (await kernels.attentionDecode({ q, k, v })).read();
// More tokens than the streaming product handles, so that oneDNN is called.
const x = device.tensor('f32', [64, 32], new Float32Array(64 * 32).fill(0.5));
const weight = device.tensor('f32', [16, 32], new Float32Array(16 * 32).fill(2));
const product = await (await kernels.matmul({ x, weight })).read();
device.dispose();

const model = await Model.load(defaultModelDirectory, { device: 'cpu' });
const generation = model.generate('# tar\n> Archiving utility.\n', { maxTokens: 40 });
let text = '';
for await (const piece of generation) text += piece.text;
model.dispose();

const maps = readFileSync('/proc/self/maps', 'utf8').split('\n');
const files = maps.map((line) => line.split(/\s+/)[5] ?? '').filter((path) => /\.(node|so)(\.\d+)*$/.test(path));
console.log(
  JSON.stringify({
    text,
    attention: [...new Set(attention)],
    product: [...new Set(product)],
    libraries: [...new Set(files)],
  }),
);
