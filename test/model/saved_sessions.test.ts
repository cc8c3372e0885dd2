// Sessions on disk: a session that was saved and loaded continues with the bits of the one that was
// saved, and a file that is not right is rejected.

import { execFileSync } from 'node:child_process';
import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { Model, type Session, type SessionOptions } from '../../lib/index';
import { architecturesDirectory, variantFields, writeArchitecture } from '../support/architectures';
import { type CheckpointSpec, randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { runScript } from '../support/children';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, long, onEveryDevice, reduced } from '../support/devices';
import { type Anything, expectCode, invalid } from '../support/misuse';
import { Random } from '../support/numbers';
import { readSessionFile, type SessionFileParts, writeSessionFile } from '../support/session_file';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const sessionFile = 'ERR_SESSION_FILE';
const tokens = new Random(3).tokens(300, 64);
const checkpoint = (spec: CheckpointSpec = {}): string => {
  const directory = directories.make();
  writeCheckpoint(directory, randomCheckpoint({ heads: [4, 1, 2], headDim: 16, vocabSize: 64, ...spec }));
  return directory;
};
const plain = checkpoint();
const architecture = (name: string, variant: string | null, fields = {}) =>
  writeArchitecture(directories.make(), name, variant === null ? fields : variantFields(name, variant));

onEveryDevice((device) => {
  let folder: string;
  let file: string;
  beforeEach(() => {
    folder = directories.make();
    file = join(folder, 'session');
  });
  const load = (directory: string, options = {}) => Model.load(directory, { device: device(), ...options });
  const withModel = async (
    directory: string,
    work: (model: Model) => Promise<void>,
    options: object = {},
  ): Promise<void> => {
    const model = await load(directory, options);
    try {
      await work(model);
    } finally {
      model.dispose();
    }
  };
  const prefilled = async (model: Model, length: number, options: SessionOptions = {}): Promise<Session> => {
    const session = await model.createSession(options);
    if (length > 0) await session.prefill(tokens.slice(0, length));
    return session;
  };

  /** A loaded session saves the file that it was loaded from. */
  async function expectSameFile(loaded: Session): Promise<void> {
    const again = join(folder, 'again');
    await loaded.save(again);
    expect(readFileSync(again).equals(readFileSync(file))).toBe(true);
  }

  /** Both continue in the same way: alone, in a batch, and after changes. */
  async function expectEqual(model: Model, saved: Session, loaded: Session): Promise<void> {
    expect([loaded.kvLen, loaded.maxKvLen, loaded.kvCacheBytes]).toEqual([
      saved.kvLen,
      saved.maxKvLen,
      saved.kvCacheBytes,
    ]);
    const both = async (work: (session: Session) => Promise<Float32Array>): Promise<void> => {
      expect(firstBitDifference(await work(loaded), await work(saved))).toBe(-1);
    };
    const fork = await loaded.fork();
    const other = await saved.fork();
    await both((session) => session.decode(7));
    await both((session) => session.prefill([1, 2, 3]));
    const options = { maxTokens: 4, temperature: 1, seed: 5 };
    const generations = [saved, loaded].map((session) => model.generate([9], { session, ...options }).result);
    const [first, second] = await Promise.all(generations);
    expect(second?.tokens).toEqual(first?.tokens);
    expect(firstBitDifference(await fork.decode(7), await other.decode(7))).toBe(-1);
    await Promise.all([saved, loaded].map((session) => session.truncate(session.kvLen - 5)));
    await both((session) => session.decode(4));
    for (const session of [saved, loaded, fork, other]) session.dispose();
  }

  const types = ['f32', 'bf16', 'i8', 'f8e4m3'] as const;
  const pairs = types.flatMap((kType) => types.map((vType) => [kType, vType] as const));
  it.each(reduced ? pairs.filter((_, i) => i % 5 === 1) : pairs)(
    'loads what was saved with K in %s and V in %s',
    async (kType, vType) => {
      await withModel(plain, async (model) => {
        const session = await prefilled(model, 70, { kType, vType });
        await session.save(file);
        const loaded = await model.loadSession(file);
        await expectSameFile(loaded);
        expect(readdirSync(folder).sort()).toEqual(['again', 'session']);
        await expectEqual(model, session, loaded);
        await device().synchronize();
        expect(model.kvCache.pages).toBe(0);
      });
    },
  );

  it.each([
    ['no tokens', 0, {}],
    ['one token', 1, {}],
    ['a whole page', 64, {}],
    ['selective V', 100, { selectiveV: { topK: 9, renormalize: true } }],
    ['its own length', 100, { maxKvLen: 130 }],
  ] as const)('loads a session with %s', (_, length, options) =>
    withModel(plain, async (model) => {
      const session = await prefilled(model, length, options);
      await session.save(file);
      const loaded = await model.loadSession(file);
      if (length > 0) return expectEqual(model, session, loaded);
      expect(loaded.kvLen).toBe(0);
      const logits = await loaded.prefill([1, 2]);
      expect(firstBitDifference(logits, await session.prefill([1, 2]))).toBe(-1);
    }),
  );

  const models: [string, () => string, number, number][] = [
    ['a window', () => architecture('mistral', null, { sliding_window: 40, max_position_embeddings: 512 }), 290, 50],
    ['LongRoPE, short', () => architecture('phi3', 'longrope'), 30, 30],
    ['LongRoPE, long', () => architecture('phi3', 'longrope'), 40, 40],
    ['dynamic RoPE, short', () => architecture('llama-rope', 'dynamic'), 20, 20],
    ['dynamic RoPE, a long prompt', () => architecture('llama-rope', 'dynamic'), 30, 30],
    ['dynamic RoPE, tokens after a prompt', () => architecture('llama-rope', 'dynamic'), 30, 22],
    [
      'a linear half K dim',
      () => checkpoint({ keyHeadDim: 8, keyLift: { kind: 'linear', position: 'after_rope' } }),
      70,
      70,
    ],
    [
      'a half K dim with SwiGLU',
      () => checkpoint({ keyHeadDim: 8, keyLift: { kind: 'swiglu', position: 'before_rope', intermediate_size: 24 } }),
      ...([70, 70] as const),
    ],
    ['V that is K', () => join(architecturesDirectory, 'youtu'), 40, 40],
  ];
  it.each(models)('loads a session of a model with %s', (_, directory, length, chunk) =>
    withModel(
      directory(),
      async (model) => {
        const session = await model.createSession({ maxKvLen: 400 });
        for (let t = 0; t < length; ) {
          const size = t === 0 ? chunk : Math.min(chunk === 22 ? 1 : chunk, length - t);
          await session.prefill(tokens.slice(t, t + size));
          t += size;
        }
        await session.save(file);
        const loaded = await model.loadSession(file);
        await expectSameFile(loaded);
        await expectEqual(model, session, loaded);
      },
      { dtype: 'f32' },
    ),
  );

  it.each(['i8', 'i4'] as const)('loads in a model of %s weights that is loaded again', async (weightType) => {
    // Its matrices of few rows have room between values and scales.
    const directory = join(architecturesDirectory, 'youtu');
    for (let load = 0; load < 3; load++) {
      // Memory that is used again and that is not 0.
      for (let size = 1; size <= 50; size++) Buffer.allocUnsafeSlow(1000 * size).fill(37 * load + size);
      await withModel(
        directory,
        async (model) => {
          if (load === 0) await (await prefilled(model, 5)).save(file);
          else expect((await model.loadSession(file)).kvLen).toBe(5);
        },
        { weightType },
      );
    }
  });

  long('loads in a model that is loaded again, with another length, and what a fork saved', async () => {
    let next = 0;
    const bits: Float32Array[] = [];
    await withModel(plain, async (model) => {
      const session = await prefilled(model, 80);
      const fork = await session.fork();
      next = (await fork.decode(7)).indexOf(0);
      await fork.save(file);
      bits.push(await fork.decode(8));
      session.dispose();
    });
    expect(next).toBe(-1);
    await withModel(plain, async (model) => {
      const loaded = await model.loadSession(file, { maxKvLen: 82 });
      expect([loaded.kvLen, loaded.maxKvLen]).toEqual([81, 82]);
      expect(firstBitDifference(await loaded.decode(8), bits[0] as Float32Array)).toBe(-1);
      await expectCode(() => loaded.decode(8), 'ERR_KV_CACHE_FULL');
      await expectCode(() => model.loadSession(file, { maxKvLen: 80 }), invalid, 'maxKvLen must be at least 81');
    });
  });

  it('saves the rows of its own tokens only', async () => {
    await withModel(plain, async (model) => {
      const other = await prefilled(model, 64);
      other.dispose();
      const session = await prefilled(model, 1);
      await session.save(file);
      const { body } = readSessionFile(file);
      // 2 layers, 1 K head and 2 V heads of 16, f32, of one token.
      expect(body.subarray(4).filter((byte) => byte !== 0).length).toBeLessThanOrEqual(2 * 3 * 16 * 4);
    });
  });

  long('keeps pages of a file out of the prefix cache', async () => {
    await withModel(
      plain,
      async (model) => {
        const session = await prefilled(model, 130);
        await session.save(file);
        const parts = readSessionFile(file);
        parts.body.fill(0x40, 4 * 130);
        writeSessionFile(file, parts);
        session.dispose();
        const logits = async (): Promise<Float32Array> => {
          const fresh = await model.createSession();
          const result = await fresh.prefill(tokens.slice(0, 130));
          fresh.dispose();
          return result;
        };
        const expected = await logits();
        await (await prefilled(model, 0)).prefill(new Random(9).tokens(290, 64)); // the pages are dropped
        const forged = await model.loadSession(file);
        await forged.decode(7);
        await (await forged.fork()).prefill(tokens.slice(0, 70));
        expect(logitError(await logits(), expected)).toBeLessThanOrEqual(modelTolerances.f32);
        expect(logitError(await forged.decode(7), expected)).toBeGreaterThan(0.1);
      },
      { prefixCacheBytes: 1 << 16 },
    );
  });

  it('saves the state at its turn, behind a generation and before later calls', async () => {
    await withModel(plain, async (model) => {
      const kept = await model.createSession();
      const { result } = model.generate(tokens.slice(0, 70), { session: kept, maxTokens: 3 });
      const calls = [kept.save(file), kept.prefill([1, 2, 3])];
      await Promise.all([result, ...calls]);
      const loaded = await model.loadSession(file);
      expect(loaded.kvLen).toBe(73);
      expect(kept.kvLen).toBe(76);
      await kept.truncate(73);
      await expectEqual(model, kept, loaded);
    });
  });

  it('rejects the file of another model', async () => {
    const message = /was saved by another model/;
    await withModel(plain, async (model) => (await prefilled(model, 70)).save(file));
    // One weight differs, the last of its matrix.
    const tensors = randomCheckpoint({ heads: [4, 1, 2], headDim: 16, vocabSize: 64 });
    const weight = tensors.tensors.get('model.layers.1.mlp.down_proj.weight');
    if (!weight) throw new Error('the checkpoint has no such tensor');
    (weight.data as Anything)[weight.data.length - 1] += 1;
    const changed = directories.make();
    writeCheckpoint(changed, tensors);
    const others: [string, object, RegExp][] = [
      [changed, {}, /its weights or settings differ/],
      [checkpoint({ seed: 2 }), {}, message],
      [checkpoint({ ropeTheta: 5e5 }), {}, /its weights or settings differ/],
      [checkpoint({ numLayers: 1 }), {}, /sigma with 2 layers in f32, matrices in f32, not sigma with 1 layers/],
      [plain, { dtype: 'bf16' }, message],
      [plain, { weightType: 'i8' }, /matrices in f32, not .* matrices in i8/],
    ];
    for (const [directory, options, expected] of others) {
      await withModel(
        directory,
        async (model) => {
          await expectCode(() => model.loadSession(file), sessionFile, expected);
          expect(model.kvCache.pages).toBe(0);
        },
        options,
      );
    }
  });

  it('rejects forged files, and crashes on none', async () => {
    await withModel(plain, async (model) => {
      const session = await prefilled(model, 70);
      await session.save(file);
      session.dispose();
      const good = readSessionFile(file);
      const forge = (change: (parts: SessionFileParts) => void): void => {
        const parts = { ...good, header: structuredClone(good.header), body: Buffer.from(good.body) };
        change(parts);
        writeSessionFile(file, parts);
      };
      const set = (fields: object) => (parts: SessionFileParts) => {
        Object.assign(parts.header, fields);
      };
      const forged: [(parts: SessionFileParts) => void, RegExp][] = [
        [(parts) => Object.assign(parts, { version: 2 }), /has version 2; this release reads version 1/],
        [set({ pageLayout: 'columns' }), /another kind of device: its pages are "columns"/],
        [set({ kType: 'bf16' }), /pageBytes/],
        [set({ kType: 'i32' }), /kType/],
        [set({ vType: 7 }), /vType/],
        [set({ kvLen: 71 }), /truncated or changed/],
        [set({ kvLen: 2 ** 30, maxKvLen: 2 ** 30 }), /pageBytes/],
        [set({ kvLen: 2 ** 31 - 64, maxKvLen: 2 ** 31 - 64, first: 2 ** 31 - 64, pageBytes: 0 }), /maxKvLen/],
        [set({ kvLen: 2 ** 29, maxKvLen: 2 ** 29, first: 2 ** 29, pageBytes: 0 }), /first must be .* from 0 to 0/],
        [set({ kvLen: -1 }), /kvLen/],
        [set({ maxKvLen: 60 }), /kvLen/],
        [set({ maxKvLen: 2 ** 31 - 1 }), /maxKvLen of the header/],
        [set({ pageBytes: 0 }), /pageBytes/],
        [set({ first: 64, pageBytes: (good.header.pageBytes as number) / 2 }), /first must be .* not 64/],
        [set({ first: 1 }), /first must be a multiple of 64 from 0 to 0, not 1/],
        [set({ ropeLength: 5 }), /selects RoPE is 5/],
        [set({ promptLength: 5 }), /selects RoPE is 5/],
        [set({ selectiveV: {} }), /selectiveV/],
        [set({ model: null }), /not an object/],
        [(parts) => parts.body.writeInt32LE(64, 0), /tokens\[0\] is 64/],
        [(parts) => parts.body.writeInt32LE(-1, 4), /tokens\[1\] is -1/],
        [
          (parts) => Object.assign(parts, { body: Buffer.concat([parts.body, Buffer.alloc(1)]) }),
          /truncated or changed/,
        ],
      ];
      for (const [change, message] of forged) {
        forge(change);
        await expectCode(() => model.loadSession(file), sessionFile, message);
      }
      // Right hashes, and K and V that no model computes.
      for (const value of [0xff, 0x7f, 0]) {
        forge(({ body }) => body.fill(value, 4 * 70));
        const loaded = await model.loadSession(file);
        await loaded.decode(1).catch(() => {});
        loaded.dispose();
      }
      await device().synchronize();
      expect(model.kvCache.pages).toBe(0);
    });
  });

  describe('of a model whose layers all have a window', () => {
    const window = () => architecture('mistral', null, { sliding_window: 40, max_position_embeddings: 512 });

    it('loads a session that a truncate has left without rows', async () => {
      await withModel(window(), async (model) => {
        // The rows of the first 192 tokens are forgotten.
        for (const kvLen of [192, 130]) {
          const session = await prefilled(model, 290);
          await session.truncate(kvLen);
          await session.save(file);
          expect(readSessionFile(file).header).toMatchObject({ kvLen, pageBytes: 0 });
          const loaded = await model.loadSession(file);
          await expectSameFile(loaded);
          expect(firstBitDifference(await loaded.decode(7), await session.decode(7))).toBe(-1);
          session.dispose();
          loaded.dispose();
        }
      });
    });

    it('rejects a first row that is none of the session', async () => {
      await withModel(window(), async (model) => {
        using session = await prefilled(model, 290);
        await session.save(file);
        const parts = readSessionFile(file);
        expect(parts.header.first).toBe(192);
        for (const first of [1, 193, 384]) {
          writeSessionFile(file, { ...parts, header: { ...parts.header, first } });
          const expected = `first must be a multiple of 64 from 0 to 320, not ${first}`;
          await expectCode(() => model.loadSession(file), sessionFile, expected);
        }
      });
    });

    it('reads many tokens in pieces', async () => {
      await withModel(window(), async (model) => {
        using session = await prefilled(model, 64);
        await session.save(file);
        const { header, version } = readSessionFile(file);
        const kvLen = 2 ** 26;
        const changes = { kvLen, maxKvLen: kvLen, first: kvLen, pageBytes: 0 };
        writeSessionFile(file, { version, header: { ...header, ...changes }, body: Buffer.alloc(0) });
        const { size } = statSync(file);
        truncateSync(file, size - 32);
        truncateSync(file, size + 4 * kvLen); // zeros
        const controller = new AbortController();
        const running = model.loadSession(file, { signal: controller.signal });
        setTimeout(() => controller.abort(), 10);
        await expectCode(() => running, 'ABORT_ERR', 'while the session was loaded');
      });
    });
  });

  it('rejects a file that was cut or changed, and frees its pages', async () => {
    await withModel(plain, async (model) => {
      const session = await prefilled(model, 70);
      await session.save(file);
      session.dispose();
      const good = readFileSync(file);
      const bodyStart = 16 + good.readUInt32LE(12) + 32;
      const rejects = async (bytes: Uint8Array, message: RegExp): Promise<void> => {
        writeFileSync(file, bytes);
        await expectCode(() => model.loadSession(file), sessionFile, message);
      };
      for (const at of [16, bodyStart - 1, bodyStart, good.length - 100, good.length - 33, good.length - 1]) {
        const bytes = Buffer.from(good);
        bytes[at] = (bytes[at] as number) ^ 1;
        await rejects(bytes, /was changed: its contents do not have the hash/);
      }
      for (const length of [bodyStart, bodyStart + 10, good.length - 32, good.length - 1]) {
        await rejects(good.subarray(0, length), /truncated or changed/);
      }
      for (const length of [17, bodyStart - 1]) {
        await rejects(good.subarray(0, length), /its header has \d+ bytes: it was truncated or changed/);
      }
      await rejects(good.subarray(0, 15), /not a saved session/);
      await device().synchronize();
      expect(model.kvCache.pages).toBe(0);
      writeFileSync(file, good);
      (await model.loadSession(file)).dispose();
    });
  });

  it('rejects what is no saved session, and files that cannot be read', async () => {
    await withModel(plain, async (model) => {
      const rejects = (path: string, message: RegExp) =>
        expectCode(() => model.loadSession(path), sessionFile, path, message);
      await rejects(file, /cannot be read: ENOENT/);
      await rejects(folder, /not a regular file/);
      for (const contents of ['', 'short', 'x'.repeat(1000), `DQKVSESS\x01\0\0\0\xff\xff\xff\xff${'x'.repeat(99)}`]) {
        writeFileSync(file, contents, 'latin1');
        await rejects(file, /not a saved session|its header has 4294967295 bytes/);
      }
      if (process.platform !== 'win32') {
        execFileSync('mkfifo', [join(folder, 'fifo')]);
        await rejects(join(folder, 'fifo'), /not a regular file/);
      }
      for (const value of [undefined, null, 5, '', 'a\0b', {}] as Anything[]) {
        await expectCode(() => model.loadSession(value), invalid, 'file must be the path of a file');
      }
      for (const options of [null, 5, { maxKvLen: 0 }, { maxKvLen: 1.5 }, { signal: {} }] as Anything[]) {
        await expectCode(() => model.loadSession(file, options), invalid);
      }
      using session = await model.createSession();
      await expectCode(() => session.save(5 as Anything), invalid, 'file must be the path of a file, not 5');
      await expectCode(() => session.save(file, { signal: 5 } as Anything), invalid, 'signal');
    });
  });

  long('obeys kvCacheBytes', async () => {
    let pageBytes = 0;
    await withModel(plain, async (model) => {
      const session = await prefilled(model, 130);
      await session.save(file);
      pageBytes = model.kvCache.bytes / 3;
    });
    await withModel(
      plain,
      async (model) => {
        const session = await prefilled(model, 64);
        await expectCode(() => model.loadSession(file), 'ERR_KV_CACHE_FULL');
        expect([session.kvLen, model.kvCache.pages]).toEqual([64, 1]);
        session.dispose();
        (await model.loadSession(file)).dispose();
        await device().synchronize();
        expect(model.kvCache.pages).toBe(0);
      },
      { kvCacheBytes: 3 * pageBytes },
    );
  });

  it('leaves the old file and no other if it cannot write', async () => {
    await withModel(plain, async (model) => {
      const session = await prefilled(model, 70);
      const missing = `cannot be written: the directory ${join(folder, 'no')} does not exist: create it`;
      await expectCode(() => session.save(join(folder, 'no', 'such')), sessionFile, missing);
      mkdirSync(file);
      const target = join(folder, 'kept');
      await session.save(target);
      if (process.platform !== 'win32') expect(statSync(target).mode & 0o777).toBe(0o600);
      const kept = readFileSync(target);
      const handle = await open(target);
      const prototype = Object.getPrototypeOf(handle) as { write: unknown; sync: unknown };
      await handle.close();
      const full = () => Promise.reject(Object.assign(new Error('ENOSPC: no space left'), { syscall: 'write' }));
      for (const method of ['write', 'sync'] as const) {
        const spy = jest.spyOn(prototype as Anything, method).mockImplementation(full);
        const error = await errorOf(() => session.save(target));
        spy.mockRestore();
        expect([error.code, error.message]).toEqual([
          sessionFile,
          `${target}: cannot be written: ENOSPC: no space left`,
        ]);
        expect(readFileSync(target).equals(kept)).toBe(true);
        expect(readdirSync(folder).sort()).toEqual(['kept', 'session']);
      }
      await session.save(target);
    });
  });

  it('replaces only a regular file', async () => {
    await withModel(plain, async (model) => {
      const session = await prefilled(model, 10);
      const rejects = async (path: string, message: RegExp) => {
        const names = readdirSync(folder);
        const { mode, ino } = lstatSync(path);
        await expectCode(() => session.save(path), sessionFile, path, message);
        expect([lstatSync(path).mode, lstatSync(path).ino]).toEqual([mode, ino]);
        expect(readdirSync(folder)).toEqual(names);
      };
      const notRegular = /not a regular file.*save to the path of a new or a regular file/;
      await rejects(folder, notRegular);
      if (process.platform === 'win32') return;
      const fifo = join(folder, 'fifo');
      execFileSync('mkfifo', [fifo]);
      await rejects(fifo, notRegular);
      symlinkSync('fifo', join(folder, 'to-fifo'));
      await rejects(join(folder, 'to-fifo'), notRegular);
      symlinkSync('nothing', join(folder, 'dangling'));
      await rejects(join(folder, 'dangling'), /a symbolic link to a file that does not exist: remove the link/);
      symlinkSync('dangling', join(folder, 'to-dangling'));
      await rejects(join(folder, 'to-dangling'), /a symbolic link to a file that does not exist/);
      writeFileSync(file, 'old');
      await expectCode(() => session.save(join(file, 'below')), sessionFile, 'cannot be written: ENOTDIR');
      expect(readFileSync(file, 'utf8')).toBe('old');
    });
  });

  it('follows a symbolic link and replaces its target', async () => {
    if (process.platform === 'win32') return;
    await withModel(plain, async (model) => {
      const other = directories.make();
      const target = join(other, 'target');
      writeFileSync(target, 'old');
      symlinkSync(target, file);
      const session = await prefilled(model, 10);
      await session.save(file);
      expect(lstatSync(file).isSymbolicLink()).toBe(true);
      expect([readdirSync(folder), readdirSync(other)]).toEqual([['session'], ['target']]);
      using loaded = await model.loadSession(target);
      expect(loaded.kvLen).toBe(10);
    });
  });

  long('writes whole files if several calls save to one', async () => {
    await withModel(plain, async (model) => {
      const lengths = [10, 70, 140, 200];
      const sessions = await Promise.all(lengths.map((length) => prefilled(model, length)));
      await Promise.all(sessions.map((session) => session.save(file)));
      const loaded = await model.loadSession(file);
      expect(lengths).toContain(loaded.kvLen);
      expect(readdirSync(folder)).toEqual(['session']);
    });
  });

  it('ends with ABORT_ERR if the signal is aborted', async () => {
    await withModel(plain, async (model) => {
      const session = await prefilled(model, 70);
      await session.save(file);
      const target = join(folder, 'target');
      const calls: ((options: { signal: AbortSignal }) => Promise<unknown>)[] = [
        (options) => session.save(target, options),
        (options) => model.loadSession(file, options),
      ];
      for (const call of calls) {
        await expectCode(() => call({ signal: AbortSignal.abort() }), 'ABORT_ERR');
        const controller = new AbortController();
        const running = call({ signal: controller.signal });
        controller.abort();
        await expectCode(() => running, 'ABORT_ERR');
      }
      // While it waits.
      const generation = model.generate([1], { session, maxTokens: 5 });
      const controller = new AbortController();
      const waiting = session.save(target, { signal: controller.signal });
      controller.abort();
      await expectCode(() => waiting, 'ABORT_ERR', 'before the call began');
      await generation.result;
      session.dispose();
      await device().synchronize();
      expect(model.kvCache.pages).toBe(0);
      expect(readdirSync(folder)).toEqual(['session']);
    });
  });

  it('ends with ERR_DISPOSED if the model is disposed of, and saves if the session is', async () => {
    const target = join(folder, 'target');
    for (let turns = 0; turns < 12; turns += reduced ? 8 : 3) {
      const model = await load(plain);
      const session = await prefilled(model, 70);
      await session.save(file);
      const saved = session.save(target);
      session.dispose();
      await saved;
      expect(readFileSync(target).equals(readFileSync(file))).toBe(true);
      const next = await model.loadSession(file);
      const calls = Promise.allSettled([next.save(target), model.loadSession(file)]);
      for (let turn = 0; turn < turns; turn++) await setImmediate();
      model.dispose();
      for (const call of await calls) {
        expect(['done', 'ERR_DISPOSED']).toContain(call.status === 'rejected' ? call.reason.code : 'done');
      }
      expect(readdirSync(folder).sort()).toEqual(['session', 'target']);
      await expectCode(() => model.loadSession(file), 'ERR_DISPOSED');
      await expectCode(() => next.save(target), 'ERR_DISPOSED');
    }
  });
});

it('rejects cuts and flipped bits, and survives all of them (a sample of npm run test:sessions)', async () => {
  const outcome = await runScript<{ damaged: number; forged: number }>('tools/damage-sessions.mjs', ['--count', '24']);
  expect(outcome).toMatchObject({ damaged: 24, forged: 24 });
});
