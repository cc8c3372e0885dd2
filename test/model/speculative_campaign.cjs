// Generates with and without speculative decoding and compares: for `npm run test:speculative` and,
// with few prompts, for speculative.test.ts. It uses the models that it is given, so that it runs on
// the built package and on the sources.
'use strict';

const { readFileSync } = require('node:fs');
const { join } = require('node:path');

/** `count` different prompts: help pages, cut after each of their lines. At most about 1,600. */
function prompts(count) {
  const text = readFileSync(join(__dirname, '..', '..', 'bench', 'data', 'tldr-heldout.txt'), 'utf8');
  const all = text
    .trim()
    .split(/\n\n+/)
    .flatMap((page) => {
      const lines = page.split('\n');
      return lines.map((_, i) => `${lines.slice(0, i + 1).join('\n')}\n`);
    });
  if (count > all.length) throw new Error(`there are ${all.length} prompts`);
  // From all places of the text.
  return Array.from({ length: count }, (_, i) => all[Math.floor((i * all.length) / count)]);
}

/** How the tokens of prompt i are drawn. */
function sampling(i) {
  const temperature = i % 2 === 0 ? 0 : 0.8;
  const repetitionPenalty = i % 5 === 0 ? 1.1 : 1;
  return { temperature, repetitionPenalty, topP: i % 3 === 0 ? 0.95 : 1, seed: i };
}

/**
 * Generates prompts `first` to first + count of `total`, `together` at once, without and with each of `speculative`, which are
 * options by name. Returns, for each name, greedy and drawn: the number of prompts, of those with
 * another result, of tokens after the first, the sums of the counts, and how many times as fast each
 * prompt was decoded as without.
 */
async function compare(model, options) {
  const { first: begin = 0, count, total = count, together, maxTokens, speculative, onProgress = () => {} } = options;
  const list = prompts(total);
  const end = begin + count;
  const rows = [];
  const rowOf = (name, i) => {
    const drawn = sampling(i).temperature > 0 ? 'drawn' : 'greedy';
    let row = rows.find((one) => one.name === name && one.drawn === drawn);
    if (row === undefined) {
      row = { name, drawn, prompts: 0, different: 0, tokens: 0, steps: 0, proposed: 0, accepted: 0, speedups: [] };
      rows.push(row);
    }
    return row;
  };
  const run = (first, options) =>
    Promise.all(
      list
        .slice(first, Math.min(first + together, end))
        .map((prompt, j) => model.generate(prompt, { maxTokens, ...sampling(first + j), ...options }).result),
    );
  const outcome = ({ text, tokens, finishReason }) => JSON.stringify({ text, tokens, finishReason });
  for (let first = begin; first < end; first += together) {
    const expected = await run(first, {});
    for (const [name, options] of Object.entries(speculative)) {
      const results = await run(first, { speculative: options });
      results.forEach((result, j) => {
        const row = rowOf(name, first + j);
        row.prompts++;
        row.different += outcome(result) === outcome(expected[j]) ? 0 : 1;
        row.tokens += result.tokens.length - 1;
        row.steps += result.speculative.steps;
        row.proposed += result.speculative.proposedTokens;
        row.accepted += result.speculative.acceptedTokens;
        if (result.tokens.length > 1) row.speedups.push(expected[j].timings.decodeMs / result.timings.decodeMs);
      });
    }
    onProgress(Math.min(first + together, end) - begin);
  }
  return rows;
}

module.exports = { compare, prompts };
