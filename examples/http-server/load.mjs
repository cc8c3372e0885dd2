// Load: many clients that stream at once from a server of their own, some of which leave in the midst. Every text is
// compared with what the server said when it was alone. Ends with 1 where anything was wrong.
//   node examples/http-server/load.mjs [--clients 64] [--seconds 120] [--json FILE] [-- SERVER ARGUMENTS]

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import OpenAI from 'openai';

const { values, positionals } = parseArgs({
  options: {
    clients: { type: 'string', default: '64' },
    seconds: { type: 'string', default: '120' },
    json: { type: 'string' },
  },
  allowPositionals: true,
});
const count = Number(values.clients);
const seconds = Number(values.seconds);

const main = fileURLToPath(new URL('main.mjs', import.meta.url));
const server = spawn(process.execPath, [main, '--port', '0', '--max-concurrent', String(count), ...positionals], {
  stdio: ['ignore', 'pipe', 'inherit'],
});
const [line] = await once(createInterface(server.stdout), 'line');
const [model, baseURL] = line.split(' at ');
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const health = async () => (await fetch(new URL('/health', baseURL))).json();

// Prompts of 5 to some 700 tokens, greedy and drawn, of 16 to 100 tokens each.
const commands = ['tar', 'git log', 'ls', 'docker run', 'curl', 'find', 'grep', 'ssh'];
const requests = Array.from({ length: 32 }, (_, i) => ({
  model,
  prompt: `# ${commands[i % 8]}\n`.repeat(i % 16 === 0 ? 120 : 1 + i),
  max_tokens: 16 + ((i * 37) % 85),
  temperature: i % 2 === 0 ? 0 : 0.8,
  seed: i,
}));
const alone = [];
for (const request of requests) alone.push((await client.completions.create(request)).choices[0].text);

const errors = [];
const clients = Array.from({ length: count }, () => ({ tokens: 0, requests: 0, aborted: 0, firstMs: [], gapMs: [] }));
const end = performance.now() + seconds * 1000;

async function runClient(self, index) {
  // Each goes round all the requests, from a place of its own, and leaves every tenth of them after some tokens.
  while (performance.now() < end) {
    const which = (self.requests * 13 + index * 7) % requests.length;
    const leaveAfter = (self.requests + index) % 10 === 9 ? 1 + (which % 12) : Number.POSITIVE_INFINITY;
    let text = '';
    let tokens = 0;
    let finish = null;
    try {
      let last = performance.now();
      for await (const { choices } of await client.completions.create({ ...requests[which], stream: true })) {
        const now = performance.now();
        (tokens++ === 0 ? self.firstMs : self.gapMs).push(now - last);
        last = now;
        text += choices[0].text;
        finish = choices[0].finish_reason;
        if (tokens === leaveAfter) break;
      }
      const whole = finish !== null;
      if (whole ? text !== alone[which] : !alone[which].startsWith(text))
        throw new Error(`request ${which}: another text`);
      if (!whole && tokens !== leaveAfter) throw new Error(`request ${which}: the stream broke off`);
      self.aborted += whole ? 0 : 1;
    } catch (error) {
      errors.push(`client ${index}: ${error.message}`);
    }
    self.tokens += tokens;
    self.requests++;
  }
}

const samples = [];
const sampling = (async () => {
  while (performance.now() < end) {
    samples.push(await health());
    await sleep(500);
  }
})();
await Promise.all([...clients.map(runClient), sampling]);
await sleep(500);
const idle = await health();
server.kill('SIGTERM');
const [status] = await once(server, 'exit');

const sorted = (list) => [...list].sort((a, b) => a - b);
const quantile = (list, q) => sorted(list)[Math.min(list.length - 1, Math.floor(q * list.length))];
const sum = (list) => list.reduce((total, one) => total + one, 0);
const MB = (bytes) => Math.round(bytes / 1e5) / 10;
// Memory: the highest of the second and of the last quarter of the time; of the heap the lowest, which is what a collection left.
const quarter = (i) => samples.slice((i * samples.length) / 4, ((i + 1) * samples.length) / 4);
const spread = (list) => ({
  min: Math.min(...list),
  median: quantile(list, 0.5),
  max: Math.max(...list),
  maxToMedian: Math.max(...list) / quantile(list, 0.5),
  minToMedian: Math.min(...list) / quantile(list, 0.5),
});
const tokens = clients.map((one) => one.tokens);
const times = (list) => ({
  median: quantile(list, 0.5),
  p95: quantile(list, 0.95),
  p99: quantile(list, 0.99),
  max: sorted(list).at(-1),
});
const mean = (list) => sum(list) / list.length;
const figures = {
  clients: count,
  seconds,
  requests: sum(clients.map((one) => one.requests)),
  aborted: sum(clients.map((one) => one.aborted)),
  errors: errors.length,
  chunks: sum(tokens),
  chunksPerSecond: Math.round(sum(tokens) / seconds),
  chunksPerClient: spread(tokens),
  msToFirst: times(clients.flatMap((one) => one.firstMs)),
  meanMsToFirstPerClient: spread(clients.map((one) => mean(one.firstMs))),
  msBetween: times(clients.flatMap((one) => one.gapMs)),
  meanMsBetweenPerClient: spread(clients.map((one) => mean(one.gapMs))),
  running: { max: Math.max(...samples.map((one) => one.running)), after: idle.running },
  open: { after: idle.open },
  kvPages: { max: Math.max(...samples.map(({ kvCache }) => kvCache.pages)), after: idle.kvCache.pages },
  rssMB: { second: MB(Math.max(...quarter(1).map((s) => s.rss))), last: MB(Math.max(...quarter(3).map((s) => s.rss))) },
  heapMB: {
    second: MB(Math.min(...quarter(1).map((s) => s.heapUsed))),
    last: MB(Math.min(...quarter(3).map((s) => s.heapUsed))),
  },
  exitStatus: status,
};
console.log(
  JSON.stringify(figures, (_, value) => (typeof value === 'number' ? Math.round(value * 1000) / 1000 : value), 2),
);
if (values.json) writeFileSync(values.json, JSON.stringify({ ...figures, samples }));

const wrong = errors.slice(0, 10);
if (idle.kvCache.pages + idle.running + idle.queued + idle.open !== 0) wrong.push('requests or pages are left over');
if (status !== 0) wrong.push(`the server ended with ${status}`);
// Short runs are still growing into their memory, and their few requests differ.
if (seconds >= 60) {
  if (figures.rssMB.last > figures.rssMB.second * 1.05) wrong.push('the memory of the server grows');
  if (figures.heapMB.last > figures.heapMB.second * 1.1) wrong.push('the heap of the server grows');
  if (figures.chunksPerClient.minToMedian < 0.8) wrong.push('a client got less than 0.8 of the median');
}
for (const what of wrong) console.error(what);
process.exitCode = wrong.length > 0 ? 1 : 0;
