// The two sides of the comparison with llama.cpp: one model, from tokens to the next greedy token.
import type { Session } from '../../lib/index';
import { agreement } from './run';
import type { Worker } from './worker';

function argmax(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; ++i) if ((logits[i] as number) > (logits[best] as number)) best = i;
  return best;
}

/** Greedy tokens after `tokens`, the milliseconds to the first and between successive ones, as the peer measures them. */
export async function generate(session: Session, tokens: number[], count: number) {
  session.truncate(0);
  const [drawn, ms]: [number[], number[]] = [[], []];
  let since = performance.now();
  let logits = await session.prefill(tokens);
  for (;;) {
    const token = argmax(logits);
    const now = performance.now();
    ms.push(now - since);
    since = now;
    drawn.push(token);
    if (drawn.length === count) return { tokens: drawn, ms };
    logits = await session.decode(token);
  }
}

type Generated = Awaited<ReturnType<typeof generate>>;
export type Generate = (tokens: number[], count: number) => Promise<Generated>;

/** Tokens that are not special tokens. */
export const promptOf = (length: number, vocabSize: number) =>
  Array.from({ length }, (_, i) => 300 + ((i * 7919) % (vocabSize - 300)));

type Pairs = [token: number, logProbability: number][];

function logitsAgree(logits: Float32Array, pairs: Pairs) {
  const known = pairs.filter(([, value]) => Number.isFinite(value));
  const same = agreement(
    known.map(([token]) => logits[token] as number),
    known.map(([, value]) => value),
  );
  return { logits: known.length, ...same };
}

/** Compares the distributions of the next token after a prompt and after decode steps, and counts equal greedy tokens. */
export async function compare(
  session: Session,
  peer: Worker,
  generateByPeer: Generate,
  prompt: number[],
  steps: number[],
) {
  session.truncate(0);
  const afterPrompt = await session.prefill(prompt);
  let afterSteps = afterPrompt;
  for (const token of steps) afterSteps = await session.decode(token);
  const pairs = await peer.call<{ prompt: Pairs; decoded: Pairs }>('logProbabilities', { tokens: prompt, steps });
  const theirs = await generateByPeer(prompt, 32);
  const ours = await generate(session, prompt, theirs.tokens.length);
  const firstDifference = ours.tokens.findIndex((token, i) => token !== theirs.tokens[i]);
  return {
    prompt: logitsAgree(afterPrompt, pairs.prompt),
    decode: { steps: steps.length, ...logitsAgree(afterSteps, pairs.decoded) },
    sameGreedyTokens: firstDifference < 0 ? ours.tokens.length : firstDifference,
  };
}
