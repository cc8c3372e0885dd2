// A random sample of the mutants of Stryker. Stryker knows no samples, but skips what a checker
// rejects, so this checker rejects the mutants that are not in the sample.

import { createHash } from 'node:crypto';
import { declareClassPlugin, PluginKind } from '@stryker-mutator/api/plugin';

/** The share of mutants in the sample, at most 1, and which sample. */
export const share = Number(process.env.STRYKER_SHARE ?? 1);
export const seed = process.env.STRYKER_SEED ?? '1';

/** Whether a mutant is in the sample. Stryker numbers the mutants of unchanged files alike. */
export function isInSample({ id }) {
  const hash = createHash('sha256').update(`${seed} ${process.env.STRYKER_PART} ${id}`).digest();
  return hash.readUInt32LE() < share * 2 ** 32;
}

class Sample {
  async init() {}

  async check(mutants) {
    return Object.fromEntries(
      mutants.map((mutant) => [
        mutant.id,
        isInSample(mutant) ? { status: 'passed' } : { status: 'compileError', reason: 'not in the sample' },
      ]),
    );
  }

  group(mutants) {
    return [mutants.map(({ id }) => id)];
  }
}

export const strykerPlugins = [declareClassPlugin(PluginKind.Checker, 'sample', Sample)];
