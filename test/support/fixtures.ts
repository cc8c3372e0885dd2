// The checkpoints with exact results in the test fixtures: see fixtures/README.md.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Session } from '../../lib/index';
import { argmax, logitError } from './compare';
import type { FloatType } from './numbers';

export interface ExpectedCase {
  tokens: number[];
  last_logits: number[];
  all_positions_logsumexp: number[];
  greedy: number[];
  greedy_margin: number[];
  final_logits_after_greedy: number[];
  prompt?: string;
  text?: string;
}

export interface Fixture {
  name: string;
  directory: string;
  type: FloatType;
  selectiveV?: { topK: number };
  cases: ExpectedCase[];
}

export const projectRoot = join(__dirname, '..', '..');
export const fixturesDirectory = join(projectRoot, 'test', 'fixtures');
export const tldrDirectory = join(projectRoot, 'models', 'sigma-tldr');

function fixture(name: string, type: FloatType, directory = join(fixturesDirectory, name)): Fixture {
  const expected = JSON.parse(readFileSync(join(fixturesDirectory, name, 'expected.json'), 'utf8'));
  const topK = expected.selective_v_top_k as number | null;
  return { name, directory, type, selectiveV: topK === null ? undefined : { topK }, cases: expected.cases };
}

export const fixtures: Fixture[] = [
  fixture('sigma-8-1-4', 'bf16'),
  fixture('sigma-4-4-2-sharded-f16', 'f16'),
  fixture('llama-gqa-f32', 'f32'),
  fixture('sigma-8-2-4-top5', 'f32'),
  fixture('sigma-tldr', 'bf16', tldrDirectory),
];

export const tldr = fixtures[4] as Fixture;

/**
 * Expects the logits after prefill, the greedy tokens with the cache, and the logits after them.
 * `tolerance` is a share of the largest logit. Feeds the expected tokens, so that one close decision
 * does not affect the later ones.
 */
export async function expectAnswers(
  session: Session,
  expected: Omit<ExpectedCase, 'all_positions_logsumexp'>,
  tolerance: number,
): Promise<void> {
  const largest = Math.max(...expected.last_logits.map(Math.abs));
  let logits = await session.prefill(expected.tokens);
  expect(logitError(logits, expected.last_logits)).toBeLessThanOrEqual(tolerance);
  for (const [i, token] of expected.greedy.entries()) {
    if ((expected.greedy_margin[i] as number) > 2 * tolerance * largest) expect(argmax(logits)).toBe(token);
    logits = await session.decode(token);
  }
  expect(logitError(logits, expected.final_logits_after_greedy)).toBeLessThanOrEqual(tolerance);
}
