// Loads the package by require. It must be the same implementation as by import, in a worker thread
// too.
'use strict';
const { Worker, isMainThread, parentPort } = require('node:worker_threads');
const { DiffqkvError, kernels, Model, openDevice } = require('diffqkv');

async function main() {
  const device = await openDevice('cpu');
  const gate = device.tensor('f32', [1, 2], new Float32Array([0, 0]));
  const up = device.tensor('f32', [1, 2], new Float32Array([1, 2]));
  const zeros = [...(await (await kernels.gatedActivation({ gate, up })).read())];
  device.dispose();
  if (!isMainThread) return parentPort.postMessage({ zeros });

  const error = await Model.load('/nowhere').catch((reason) => reason);
  const worker = new Worker(__filename);
  const [message] = await require('node:events').once(worker, 'message');
  const esm = await import('diffqkv');
  console.log(
    JSON.stringify({
      zeros,
      worker: message.zeros,
      same: esm.Model === Model,
      error: error instanceof DiffqkvError && error.code,
    }),
  );
}
main();
