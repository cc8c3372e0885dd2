// node examples/http-server/main.mjs [--model DIR] [--port N | --socket PATH] [--max-concurrent N] ...: see docs/guides/http.md

import { basename } from 'node:path';
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
    ...Object.fromEntries(Object.keys(defaults).map((name) => [kebab(name), { type: 'string' }])),
  },
});
const number = (name) => {
  const value = values[name] === undefined ? undefined : Number(values[name]);
  if (value !== undefined && !(Number.isSafeInteger(value) && value >= 0)) {
    throw new Error(`--${name} must be a whole number, not ${values[name]}`);
  }
  return value;
};
const limits = Object.fromEntries(
  Object.entries(defaults).map(([name, value]) => [name, number(kebab(name)) ?? value]),
);

const model = await Model.load(values.model, {
  device: values.device,
  kvCacheBytes: number('kv-cache-bytes'),
  prefixCacheBytes: number('prefix-cache-bytes'),
});
if (model.tokenizer === null) throw new Error(`${values.model} has no tokenizer.json`);
const name = values.name ?? basename(values.model);
const { server, close } = createApp(model, name, limits);

const where = values.socket === undefined ? { host: values.host, port: number('port') } : { path: values.socket };
server.listen(where, () => {
  const address = server.address();
  console.log(`${name} at ${typeof address === 'string' ? address : `http://${values.host}:${address.port}/v1`}`);
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
