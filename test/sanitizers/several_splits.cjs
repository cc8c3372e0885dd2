// Decode attention in several splits, which synchronize at a barrier. test/tools/test-sanitized.mjs
// runs it with and without the barrier.
const { openDevice, kernels } = require('../../dist/lib/index.js');

(async () => {
  const device = await openDevice('cpu');
  const tensor = (shape) =>
    device.tensor('f32', shape, Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => Math.sin(i)));
  const arguments_ = { q: tensor([1, 8, 64]), k: tensor([1, 4000, 2, 64]), v: tensor([1, 4000, 4, 64]), numSplits: 8 };
  for (let i = 0; i < 5; i++) (await kernels.attentionDecode(arguments_)).dispose();
  await device.synchronize();
})();
