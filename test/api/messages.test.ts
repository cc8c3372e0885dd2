// Whole messages about wrong arguments, and the values at the limits. They do not depend on the device.

import { addressSpaceLeft } from '../../lib/address_space';
import {
  callNative,
  checkBoolean,
  checkCallback,
  checkGroupSize,
  checkInteger,
  checkNotNull,
  checkObject,
  DiffqkvError,
  escapeControls,
  invalid,
  invalidCheckpoint,
  translate,
  unsupportedModel,
} from '../../lib/errors';
import { type Device, kernels, openDevice } from '../../lib/index';
import { checkSeed, resolveSampling, type SamplingOptions } from '../../lib/sampling';
import { errorOf } from '../support/devices';
import type { Anything } from '../support/misuse';

const argument = 'ERR_INVALID_ARGUMENT';

async function expectMessage(work: () => unknown, message: string): Promise<void> {
  const error = await errorOf(work);
  expect([error.code, error.message]).toEqual([argument, message]);
}

describe('kernels', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice('cpu');
  });
  afterAll(() => device.dispose());
  const f32 = (...shape: number[]) => device.tensor('f32', shape);
  const i32 = (...shape: number[]) => device.tensor('i32', shape);

  const calls: Record<string, () => Anything> = {
    attentionPrefill: () => ({ q: f32(1, 3, 4, 8), k: f32(1, 5, 2, 8), v: f32(1, 5, 4, 16) }),
    attentionDecode: () => ({ q: f32(2, 4, 8), k: f32(2, 5, 2, 8), v: f32(2, 5, 4, 16) }),
    quantize: () => ({ x: f32(2, 8), dtype: 'i8' }),
    quantizeWeight: () => ({ weight: f32(2, 32), type: 'i8' }),
    augmentedQ: () => ({ x: f32(2, 8), gate: f32(6, 8), up: f32(6, 8), down: f32(8, 6) }),
    matmul: () => ({ x: f32(2, 8), weight: f32(3, 8) }),
    rmsNorm: () => ({ x: f32(2, 8), weight: f32(8), eps: 1e-5 }),
    rope: () => ({ x: f32(2, 1, 8), positions: i32(2), theta: 1e4 }),
    addBias: () => ({ x: f32(2, 8), bias: f32(8) }),
    gatedActivation: () => ({ gate: f32(2, 8), up: f32(2, 8) }),
    softcap: () => ({ x: f32(2, 8), cap: 30 }),
    embed: () => ({ table: f32(4, 8), tokens: i32(2) }),
  };
  const call = (name: string, over: object) => (kernels as Anything)[name]({ ...calls[name]?.(), ...over });

  const tensors: Record<string, string[]> = {
    attentionPrefill: ['q', 'k', 'v', 'kScales', 'vScales', 'lse', 'kvLens', 'out'],
    attentionDecode: ['q', 'k', 'v', 'kScales', 'vScales', 'lse', 'kvLens', 'out'],
    quantize: ['x', 'out', 'scales'],
    quantizeWeight: ['weight'],
    augmentedQ: ['x', 'gate', 'gateScales', 'up', 'upScales', 'down', 'downScales', 'out'],
    matmul: ['x', 'weight', 'weightScales', 'out'],
    rmsNorm: ['x', 'weight', 'residual', 'out'],
    rope: ['x', 'positions', 'out'],
    addBias: ['x', 'bias', 'out'],
    gatedActivation: ['gate', 'up', 'out'],
    softcap: ['x', 'out'],
    embed: ['table', 'tokens', 'out'],
  };
  it.each(Object.entries(tensors))('%s names what is no tensor', async (name, names) => {
    for (const one of names)
      for (const value of [7, null, {}])
        await expectMessage(
          () => call(name, { [one]: value }),
          `${one} must be a tensor, not ${value === 7 ? 7 : value === null ? 'null' : 'object Object'}`,
        );
  });

  it.each([
    ['attentionPrefill', 'q'],
    ['attentionDecode', 'v'],
    ['quantize', 'x'],
    ['quantizeWeight', 'weight'],
    ['augmentedQ', 'x'],
    ['matmul', 'weight'],
    ['rmsNorm', 'x'],
    ['rope', 'x'],
    ['addBias', 'x'],
    ['gatedActivation', 'up'],
    ['softcap', 'x'],
    ['embed', 'table'],
  ])('%s names %s if it is missing', (name, one) =>
    expectMessage(() => call(name, { [one]: undefined }), `${one} must be a tensor, not undefined`),
  );

  it.each(Object.keys(calls))('%s requires an object', async (name) => {
    await expectMessage(() => (kernels as Anything)[name](), 'arguments must be an object, not undefined');
    await expectMessage(() => (kernels as Anything)[name]([1]), 'arguments must be an object, not an array of 1');
  });

  const ranks: [string, string, number][] = [
    ['attentionPrefill', 'q', 4],
    ['attentionPrefill', 'v', 4],
    ['attentionDecode', 'q', 3],
    ['attentionDecode', 'v', 4],
    ['quantizeWeight', 'weight', 2],
    ['augmentedQ', 'x', 2],
    ['augmentedQ', 'down', 2],
    ['matmul', 'x', 2],
    ['matmul', 'weight', 2],
    ['embed', 'tokens', 1],
    ['embed', 'table', 2],
  ];
  it.each(ranks)('%s: the rank of %s', (name, one, rank) =>
    expectMessage(
      () => call(name, { [one]: f32(...Array<number>(rank + 1).fill(2)) }),
      `the shape of ${one} must be of ${rank} axes, not [${Array(rank + 1)
        .fill(2)
        .join(', ')}]`,
    ),
  );

  it.each<[string, object, string]>([
    ['attentionPrefill', { smScale: null }, 'smScale must be a number, not null'],
    ['attentionDecode', { selectiveV: 1 }, 'selectiveV must be an object, not 1'],
    ['attentionDecode', { selectiveV: { topK: 0 } }, 'selectiveV.topK must be an integer of at least 1, not 0'],
    ['attentionDecode', { selectiveV: { topK: 1, renormalize: 1 } }, 'selectiveV.renormalize must be a boolean, not 1'],
    ['quantize', { dtype: 'i4' }, `dtype must be 'i8' or 'f8e4m3', not "i4"`],
    ['quantizeWeight', { type: 'f8' }, `type must be 'i8' or 'i4', not "f8"`],
    ['quantizeWeight', { groupSize: 16 }, 'groupSize must be 32, 64 or 128, not 16'],
    ['augmentedQ', { groupSize: '32' }, 'groupSize must be 32, 64 or 128, not "32"'],
    ['matmul', { groupSize: 0 }, 'groupSize must be 32, 64 or 128, not 0'],
    ['rmsNorm', { accumulate: true }, 'out must be a tensor if accumulate is true, not undefined'],
    ['rmsNorm', { accumulate: 'no' }, 'accumulate must be a boolean, not "no"'],
  ])('%s: %j', (name, over, message) => expectMessage(() => call(name, over), message));

  it('quantize: the type of out', () =>
    expectMessage(() => call('quantize', { out: f32(2, 8) }), 'the type of out must be i8, as dtype, not "f32"'));

  it('tensors and devices', async () => {
    await expectMessage(() => device.tensor('f32', 3 as Anything), 'shape must be an array of integers, not 3');
    await expectMessage(() => device.tensor('f32', [1], null as Anything), 'data must be a typed array, not null');
    await expectMessage(() => device.time(3 as Anything), 'work must be a function, not 3');
    await expectMessage(() => openDevice(3 as Anything), "device id must be 'auto', 'cpu', 'cuda' or 'cuda:N', not 3");
    await expectMessage(() => openDevice('cpu', 3 as Anything), 'options must be an object, not 3');
    for (const threads of [0, 1025, 1.5])
      await expectMessage(
        () => openDevice('cpu', { threads }),
        `threads must be an integer from 1 to 1024, not ${threads}`,
      );
  });

  it('a Float16Array is the typed array of f16 only', async () => {
    const half = (bits: number[]) =>
      Object.defineProperty(Uint16Array.from(bits), Symbol.toStringTag, { value: 'Float16Array' });
    const tensor = device.tensor('f16', [2], half([0x3c00, 0xc000]));
    expect(Array.from(await tensor.read())).toEqual([1, -2]);
    const into = half([0, 0]);
    await tensor.readInto(into);
    expect(Array.from(into)).toEqual([0x3c00, 0xc000]);
    await expectMessage(
      () => device.tensor('bf16', [2], half([0, 0])),
      'the array must be the typed array of bf16, not object Float16Array',
    );
  });
});

describe('sampling', () => {
  const ranges: Record<string, { expected: string; good: unknown[]; bad: unknown[] }> = {
    temperature: {
      expected: 'a number from 0 (greedy) to 1000000',
      good: [0, 1e-9, 1e6],
      bad: [-1e-9, 1e6 + 1, Number.NaN, Infinity, '1', null],
    },
    topK: {
      expected: 'an integer from 0 (all tokens) to 2147483647',
      good: [0, 1, 2 ** 31 - 1],
      bad: [-1, 2 ** 31, 0.5, Number.NaN, 1n, null],
    },
    topP: { expected: 'a number above 0 and at most 1 (off)', good: [1e-9, 1], bad: [0, 1.001, -1, Number.NaN, null] },
    minP: { expected: 'a number from 0 (off) to 1', good: [0, 1], bad: [-0.001, 1.001, Number.NaN, true] },
    repetitionPenalty: {
      expected: 'a number from 0.000001 to 1000000 (1: off)',
      good: [1e-6, 1e6],
      bad: [0.9e-6, 1e6 + 1, 0, Number.NaN, {}],
    },
  };
  it.each(Object.entries(ranges))('%s', async (name, { expected, good, bad }) => {
    for (const value of good)
      expect(resolveSampling({ [name]: value } as SamplingOptions)).toMatchObject({ [name]: value });
    for (const value of bad) {
      const shown = typeof value === 'bigint' ? `${value}n` : typeof value === 'string' ? `"${value}"` : String(value);
      await expectMessage(
        () => resolveSampling({ [name]: value } as SamplingOptions),
        `${name} must be ${expected}, not ${shown.replace(/[[\]]/g, '')}`,
      );
    }
  });

  it('has defaults, and random seeds', () => {
    const { seed, ...rest } = resolveSampling({});
    expect(rest).toEqual({ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 });
    expect(typeof seed).toBe('bigint');
    const seeds = Array.from({ length: 1000 }, () => resolveSampling({}).seed);
    expect(new Set(seeds).size).toBe(1000);
    expect(seeds.some((one) => one > 2n ** 32n)).toBe(true);
    expect(resolveSampling({ seed: 5 }).seed).toBe(5n);
  });

  it('seeds have 64 bits', async () => {
    for (const seed of [0, 2 ** 53 - 1, 0n, 2n ** 64n - 1n]) expect(checkSeed(seed)).toBe(BigInt(seed));
    const message = 'seed must be an integer from 0 to 2^64 - 1 (a bigint above 2^53 - 1), not ';
    for (const seed of [-1, 0.5, 2 ** 53, Number.NaN]) await expectMessage(() => checkSeed(seed), message + seed);
    for (const seed of [-1n, 2n ** 64n]) await expectMessage(() => checkSeed(seed), `${message}${seed}n`);
    await expectMessage(() => checkSeed('1' as Anything), `${message}"1"`);
  });
});

describe('errors', () => {
  it('escape control characters', () => {
    expect(escapeControls('a\n\x1b\x00\x9f b')).toBe('a\\x0a\\x1b\\x00\\x9f b');
    expect(new DiffqkvError('ERR_INTERNAL', '\x1b[1m\n\t\r').message).toBe('\\x1b[1m\n\t\\x0d');
    expect(new DiffqkvError('ERR_INTERNAL', '').name).toBe('DiffqkvError');
    expect(new DiffqkvError('ABORT_ERR', '').name).toBe('AbortError');
    expect(invalidCheckpoint('p', 'q')).toMatchObject({ code: 'ERR_INVALID_CHECKPOINT', message: 'p: q' });
    expect(unsupportedModel('p', 'q')).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', message: 'p: q' });
  });

  it('show a value', () => {
    const throwing = new Proxy(
      {},
      {
        get() {
          throw new Error('mine');
        },
      },
    );
    const { proxy, revoke } = Proxy.revocable([], {});
    revoke();
    const shown: [unknown, string][] = [
      ['x', '"x"'],
      ['y'.repeat(60), `"${'y'.repeat(60)}"`],
      ['y'.repeat(61), `"${'y'.repeat(60)}..."`],
      ['a"\n', '"a\\"\\n"'],
      [() => 1, 'a function'],
      [12n, '12n'],
      [null, 'null'],
      [undefined, 'undefined'],
      [true, 'true'],
      [Symbol('s'), 'Symbol(s)'],
      [-0.5, '-0.5'],
      [[1, 2], 'an array of 2'],
      [{}, 'object Object'],
      [new Map(), 'object Map'],
      [throwing, 'an object'],
      [proxy, 'an object'],
    ];
    for (const [value, text] of shown) expect(invalid('x', 'y', value).message).toBe(`x must be y, not ${text}`);
  });

  it('of the addon are translated by their code', () => {
    const codes = [
      ...['ERR_INVALID_ARGUMENT', 'ERR_DEVICE_UNAVAILABLE', 'ERR_OUT_OF_MEMORY', 'ERR_INVALID_CHECKPOINT'],
      ...['ERR_UNSUPPORTED_MODEL', 'ERR_KV_CACHE_FULL', 'ERR_DISPOSED', 'ABORT_ERR', 'ERR_INTERNAL'],
    ];
    for (const code of codes) {
      const error = translate({ code, message: 'm' });
      expect(error).toBeInstanceOf(DiffqkvError);
      expect(error).toMatchObject({ code, message: 'm' });
    }
    const others = [null, undefined, 'x', 7, new Error('x'), { code: 'ENOENT' }, { code: 3 }, { code: 'ERR_NETWORK' }];
    for (const other of [...others, { code: 'X', message: 'std::bad_alloc' }]) expect(translate(other)).toBe(other);
    const known = new DiffqkvError('ERR_NETWORK', 'x');
    expect(translate(known)).toBe(known);
    expect(() =>
      callNative(() => {
        throw new Error('std::bad_alloc');
      }),
    ).toThrow(
      expect.objectContaining({
        code: 'ERR_OUT_OF_MEMORY',
        message: 'the process is out of host memory: dispose of objects that are not needed',
      }),
    );
  });

  it('of checks', async () => {
    for (const value of [null, undefined, [], () => 1, 'x'])
      await expectMessage(() => checkObject('x', value), invalid('x', 'an object', value).message);
    checkObject('x', {});
    checkNotNull('x', 'y', undefined);
    await expectMessage(() => checkNotNull('x', 'y', null), 'x must be y, not null');
    for (const value of [true, false]) checkBoolean('x', value);
    await expectMessage(() => checkBoolean('x', undefined), 'x must be a boolean, not undefined');
    for (const value of [32, 64, 128]) checkGroupSize('x', value);
    await expectMessage(() => checkGroupSize('x', 256), 'x must be 32, 64 or 128, not 256');
    checkCallback('x', undefined);
    checkCallback('x', () => 1);
    await expectMessage(() => checkCallback('x', null), 'x must be a function, not null');
    for (const value of [2, 3, 5]) checkInteger('x', value, 2, 5);
    checkInteger('x', Number.MAX_SAFE_INTEGER, 1);
    for (const value of [1, 6, 2.5, '3'])
      await expectMessage(
        () => checkInteger('x', value, 2, 5),
        `x must be an integer from 2 to 5, not ${JSON.stringify(value)}`,
      );
    await expectMessage(() => checkInteger('x', 0, 1), 'x must be an integer of at least 1, not 0');
    await expectMessage(() => checkInteger('x', 2 ** 53, 1), `x must be an integer of at least 1, not ${2 ** 53}`);
  });
});

describe('the address space that is left', () => {
  const files: Record<string, string> = {};
  const left = () => {
    let result = Number.NaN;
    jest.isolateModules(() => {
      jest.doMock('node:fs', () => ({
        readFileSync: (path: string) => {
          if (files[path] === undefined) throw new Error('ENOENT');
          return files[path];
        },
      }));
      result = require('../../lib/address_space').addressSpaceLeft();
      jest.dontMock('node:fs');
    });
    return result;
  };

  it('is the limit without what is used', () => {
    files['/proc/self/limits'] =
      'Limit      Soft Limit  Hard Limit  Units\nMax cpu time    unlimited  unlimited  seconds\n' +
      'Max address space         8192000  unlimited  bytes\n';
    files['/proc/self/statm'] = '100 20 30\n';
    expect(left()).toBe(8192000 - 100 * 4096);
  });

  it('is unlimited without a limit or without /proc', () => {
    files['/proc/self/limits'] = 'Max address space         unlimited  unlimited  bytes\n';
    expect(left()).toBe(Infinity);
    delete files['/proc/self/limits'];
    expect(left()).toBe(Infinity);
    expect(addressSpaceLeft()).toBeGreaterThan(0);
  });
});
