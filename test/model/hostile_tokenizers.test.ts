// Hostile tokenizers are rejected with a code, hold no event loop and leave no memory behind.

import { mkdirSync } from 'node:fs';
import { temporaryDirectories } from '../support/checkpoints';
import { runScript } from '../support/children';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

// Valid, and so large that they would hold the event loop.
const VALID = ['a vocabulary of 45 MB', 'a text of 1 MB'];
const DEADLINE_MS = 60_000;

interface Result {
  code: string | null;
  ms: number;
  heldMs: number;
}

function measure(thread: string, names: string[]): Promise<{ cases: Record<string, Result>; growthMb: number }> {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  const options = { nodeOptions: ['--expose-gc'], timeoutMs: 300_000 };
  return runScript('model/hostile_tokenizers.cjs', [directory, thread, ...names], options);
}

it.each(['main', 'thread'])(
  'in the %s thread',
  async (thread) => {
    const { cases, growthMb } = await measure(thread, []);
    const names = (isWanted: (result: Result) => boolean) =>
      Object.entries(cases).flatMap(([name, result]) => (isWanted(result) ? [name] : []));
    expect(Object.keys(cases).length).toBeGreaterThan(30);
    expect(names(({ code }) => code === null).sort()).toEqual([...VALID].sort());
    expect(names(({ code }) => code !== null && !/^ERR_(INVALID_CHECKPOINT|UNSUPPORTED_MODEL)$/.test(code))).toEqual(
      [],
    );
    expect(names(({ ms }) => ms > DEADLINE_MS)).toEqual([]);
    // Each case must keep the limit once in three runs: another process can delay any event loop.
    let slow = names(({ heldMs }) => heldMs >= 25);
    for (let run = 2; run <= 3 && slow.length > 0; run++) {
      const again = (await measure(thread, slow)).cases;
      slow = slow.filter((name) => (again[name] as Result).heldMs >= 25);
    }
    expect(slow).toEqual([]);
    expect(growthMb).toBeLessThan(30);
  },
  600_000,
);
