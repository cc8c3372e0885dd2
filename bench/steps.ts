// Prompts, and the times of a session's calls by the wall clock of the caller, with the logits.
import type { Session } from '../lib/index';

/** Tokens without a pattern; another `salt` gives others. */
export const promptTokens = (count: number, vocabSize: number, salt = 0): number[] =>
  Array.from({ length: count }, (_, i) => (i * 7919 + salt * 104729 + 17) % vocabSize);

/** Milliseconds of each of `count` decode steps after the first `kvLen` tokens. */
export async function timeDecode(session: Session, kvLen: number, count: number, vocabSize: number): Promise<number[]> {
  await session.truncate(kvLen);
  const samples: number[] = [];
  for (const token of promptTokens(count, vocabSize)) {
    const start = performance.now();
    await session.decode(token);
    samples.push(performance.now() - start);
  }
  return samples;
}

/** Milliseconds of the prefill of an empty session. */
export async function timePrefill(session: Session, tokens: number[]): Promise<number> {
  await session.truncate(0);
  const start = performance.now();
  await session.prefill(tokens);
  return performance.now() - start;
}
