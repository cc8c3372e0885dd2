// Methods and properties that are called on another `this`.

import { defaultModelDirectory, Model, Tokenizer } from '../../lib/index';
import { randomCheckpoint } from '../support/checkpoints';
import { errorOf } from '../support/devices';

it('rejects a foreign `this` with ERR_INVALID_ARGUMENT in every method and accessor', async () => {
  const model = await Model.random(randomCheckpoint({}).config, { device: 'cpu' });
  const { device } = model;
  const session = await model.createSession();
  const tensor = device.tensor('f32', [2]);
  const generation = model.generate([1], { maxTokens: 1 });
  const tokenizer = (await Tokenizer.fromDirectory(defaultModelDirectory)) as Tokenizer;
  const names: string[] = [];
  for (const [name, object] of Object.entries({ model, device, session, tensor, generation, tokenizer })) {
    const prototype = Object.getPrototypeOf(object);
    for (const key of Reflect.ownKeys(prototype)) {
      if (key === 'constructor') continue;
      const { get, value } = Object.getOwnPropertyDescriptor(prototype, key) as PropertyDescriptor;
      const method = get ?? value;
      names.push(`${name}.${String(key)}`);
      for (const foreign of [undefined, null, 5, {}, prototype, Object.create(object), new Proxy(object, {})]) {
        let result: unknown;
        const error = await errorOf(() => {
          result = method.call(foreign, 1);
          return result;
        });
        expect([names.at(-1), error.code, error.message]).toEqual([
          names.at(-1),
          'ERR_INVALID_ARGUMENT',
          expect.stringContaining(`this must be a ${name}`),
        ]);
        // Methods that return promises reject instead of throwing.
        const returnsPromise =
          /\.(createSession|prefill|truncate|fork|read|readInto|write|synchronize|time|encodeAsync|encodeChat|score|embed)$|session\.decode$/;
        expect([names.at(-1), result instanceof Promise]).toEqual([
          names.at(-1),
          returnsPromise.test(`${name}.${String(key)}`),
        ]);
      }
    }
  }
  expect(names).toEqual(expect.arrayContaining(['model.generate', 'session.kvLen', 'tensor.dispose', 'device.time']));
  expect(names.length).toBeGreaterThan(25);
  expect(session.prefill.name).toBe('prefill');
  expect((await generation.result).tokens.length).toBe(1);
  model.dispose();
});
