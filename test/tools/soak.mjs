// npm run test:soak [-- --minutes N] [--workers N] [--seed N] [--device ID] [--memory any]: runs
// worker threads on the built package that load, generate, abort, fork, truncate, save, dispose and
// drop references at random (test/tools/soak/worker.mjs). The workers are terminated at random. Every
// operation that is not cut off must return the same bits as when it runs by itself. No worker may
// crash, hang or fail in another way. Native memory (resident memory minus V8's heaps) must not
// grow. It is sampled every 15 s after all workers have released everything. The median of the last
// third of the run may be at most 24 MB above that of the first third. The first 30 s do not count.
// A run under two and a half minutes has too few samples, so its memory is not checked.

import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { root } from './run.mjs';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '5' },
    workers: { type: 'string', default: '8' },
    seed: { type: 'string', default: '1' },
    device: { type: 'string', default: 'cpu' },
    // `any` is for sanitizers, which use memory of their own.
    memory: { type: 'string', default: 'flat' },
  },
});
const boundMB = 24;
const calmEvery = 15_000;
const mb = (bytes) => Math.round((bytes / 2 ** 20) * 10) / 10;

// Idle OpenMP threads, two for each of many devices, must not take time from the working ones.
process.env.OMP_WAIT_POLICY ??= 'passive';
const { expectations } = await import('./soak/worker.mjs');
const { defaultModelDirectory } = createRequire(import.meta.url)('../../dist/lib/index.js');
const fixtures = join(root, 'test', 'fixtures');
const directories = readdirSync(fixtures, { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && entry.name !== 'sigma-tldr')
  .map(({ name }) => join(fixtures, name));
const expected = await expectations([defaultModelDirectory, ...directories], values.device);

const folder = mkdtempSync(join(tmpdir(), 'diffqkv-soak-')); // of saved sessions
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

const counts = {};
const calms = []; // { at, native, resident }
let state = Number(values.seed);
const random = (limit) => {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return (state >>> 8) % limit;
};
let terminated = 0;
let lastWord = Date.now();

function stop(text) {
  console.error(`soak: ${text}`);
  process.exit(1);
}

function start() {
  const worker = new Worker(join(root, 'test', 'tools', 'soak', 'worker.mjs'), {
    workerData: { ...expected, seed: random(2 ** 24), folder },
  });
  worker.on('message', ({ done, failed }) => {
    lastWord = Date.now();
    if (failed) stop(`a worker failed: ${failed}`);
    if (done) counts[done] = (counts[done] ?? 0) + 1;
  });
  worker.on('error', (error) => stop(`a worker threw: ${error.stack}`));
  return worker;
}

/** Asks all workers to release everything, samples the memory, and lets the workers go on. */
async function calm(workers) {
  const heaps = await Promise.all(
    workers.map((worker) => {
      const answer = new Promise((resolve) => {
        const listen = ({ calm: heap }) => {
          if (heap === undefined) return;
          worker.off('message', listen);
          resolve(heap);
        };
        worker.on('message', listen);
      });
      worker.postMessage('calm');
      return answer;
    }),
  );
  await sleep(50); // so that the executors' threads can end
  const memory = process.memoryUsage();
  const native = memory.rss - memory.heapTotal - heaps.reduce((sum, heap) => sum + heap, 0);
  calms.push({ at: Date.now() - begun, native, resident: memory.rss });
  for (const worker of workers) worker.postMessage('go on');
}

const begun = Date.now();
const end = begun + Number(values.minutes) * 60_000;
const watch = setInterval(() => {
  if (Date.now() - lastWord > 60_000) stop('no action finished for a minute: the run hangs');
}, 5000);
const workers = Array.from({ length: Number(values.workers) }, start);
let nextCalm = begun + Math.min(calmEvery, (end - begun) / 6);
while (Date.now() < end) {
  await sleep(200 + random(1200));
  const index = random(workers.length);
  await workers[index].terminate();
  terminated++;
  workers[index] = start();
  if (Date.now() < nextCalm) continue;
  await calm(workers);
  nextCalm = Date.now() + Math.min(calmEvery, (end - begun) / 6);
}
await calm(workers);
clearInterval(watch);
await Promise.all(workers.map((worker) => worker.terminate()));

const done = Object.values(counts).reduce((sum, count) => sum + count, 0);
const list = Object.entries(counts)
  .map(([name, count]) => `${name} ${count}`)
  .join(', ');
console.log(
  `${Math.round((Date.now() - begun) / 1000)} s, ${workers.length} workers: ${done} actions (${list}), ${terminated} workers terminated`,
);
const counted = calms.filter(({ at }) => at >= Math.min(30_000, (end - begun) / 3));
const third = Math.max(1, Math.floor(counted.length / 3));
const median = (list) => list.map(({ native }) => native).sort((a, b) => a - b)[list.length >> 1];
const [first, last] = [median(counted.slice(0, third)), median(counted.slice(-third))];
console.log(`native memory in ${calms.length} samples, MB: ${calms.map(({ native }) => mb(native)).join(' ')}`);
console.log(
  `native memory: ${mb(first)} MB in the first third, ${mb(last)} MB in the last, ${mb(last - first)} MB more (at most ${boundMB}); resident at most ${mb(Math.max(...calms.map(({ resident }) => resident)))} MB at rest`,
);
const missing = ['load', 'generate', 'generateMany', 'fork', 'truncate', 'disposeModel', 'disposeDevice'].filter(
  (name) => !counts[name],
);
if (missing.length > 0) stop(`the run is too short: it never ran ${missing.join(', ')}`);
// One or two samples per third show only what glibc happens to keep.
if (end - begun < 150_000) console.log('the run is too short to check whether native memory grows');
else if (values.memory === 'flat' && mb(last - first) > boundMB) stop('native memory grows');
process.exit(0);
