// node examples/http-server/main.mjs [--model DIR] [--port N | --socket PATH] [--max-concurrent N] ...: see docs/guides/http.md

import { basename, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultModelDirectory, Model } from 'diffqkv';
import { createApp, defaults } from './server.mjs';

const kebab = (name) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
const { values } = parseArgs({
  options: {
    model: { type: 'string', default: defaultModelDirectory },
    name: { type: 'string' },
    device: { type: 'string' },
    'kv-cache-bytes': { type: 'string' },
    'prefix-cache-bytes': { type: 'string' },
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string', default: '8080' },
    socket: { type: 'string' },
    'allowed-hosts': { type: 'string', default: '' },
    ...Object.fromEntries(Object.keys(defaults).map((name) => [kebab(name), { type: 'string' }])),
  },
});
const number = (name, least = 0) => {
  if (values[name] === undefined) return undefined;
  const value = Number(values[name]);
  const most = name.endsWith('-ms') ? 2 ** 31 - 1 : Number.MAX_SAFE_INTEGER; // timers hold no more
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  console.error(`--${name} must be a whole number from ${least} to ${most}, not ${values[name]}`);
  process.exit(1);
};
const mayBeZero = ['maxQueue', 'graceMs'];
const limits = Object.fromEntries(
  Object.entries(defaults).map(([name, value]) => [
    name,
    number(kebab(name), mayBeZero.includes(name) ? 0 : 1) ?? value,
  ]),
);

const directory = resolve(values.model);
const model = await Model.load(directory, {
  device: values.device,
  kvCacheBytes: number('kv-cache-bytes'),
  prefixCacheBytes: number('prefix-cache-bytes'),
});
if (model.tokenizer === null) throw new Error(`${values.model} has no tokenizer.json`);
const name = values.name ?? basename(directory);
const host = values.host.includes(':') ? `[${values.host}]` : values.host;
const allowedHosts = [host, ...values['allowed-hosts'].split(',')].filter((one) => one !== '');
const { server, close } = createApp(model, name, { ...limits, allowedHosts, directory });

const where = values.socket === undefined ? { host: values.host, port: number('port') } : { path: values.socket };
server.listen(where, () => {
  const address = server.address();
  console.log(`${name} at ${typeof address === 'string' ? address : `http://${host}:${address.port}/v1`}`);
});
server.on('error', (error) => {
  console.error(error.message);
  process.exit(1);
});

let signals = 0;
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, async () => {
    if (signals++ > 0) process.exit(1); // a second one does not wait
    await close();
    model.dispose();
  });
}
