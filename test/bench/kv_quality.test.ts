// The quality loss of 8-bit caches: the loss of the embedded model on pages that it was not trained
// on. This test uses a part of the text. bench/results/kv_quality.json has the result for all of
// it.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

interface Result {
  setup: { documents: number; tokens: number };
  rows: { kType: string; vType: string; loss: number; bytesPerToken: number }[];
}

/** The increase of the loss in percent relative to the first pair. */
function rises({ rows }: Result): Record<string, number> {
  const base = (rows[0] as Result['rows'][0]).loss;
  return Object.fromEntries(rows.map(({ kType, vType, loss }) => [`${kType} ${vType}`, (loss / base - 1) * 100]));
}

function check(result: Result): void {
  const rise = rises(result);
  for (const vType of ['i8', 'f8e4m3']) {
    expect(rise[`bf16 ${vType}`]).toBeLessThanOrEqual(0.5);
    expect(rise[`i8 ${vType}`]).toBeLessThanOrEqual(1);
  }
}

it('raises the loss by less than 0.5 and 1 percent with K and V in 8 bits', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'diffqkv-quality-'));
  try {
    const json = join(directory, 'quality.json');
    const { status, stderr } = await runNode([
      join(projectRoot, 'dist', 'bench', 'kv_quality.js'),
      join(projectRoot, 'bench', 'data', 'tldr-heldout.txt'),
      '--documents=10',
      '--types=bf16:bf16,bf16:i8,bf16:f8e4m3,i8:i8,i8:f8e4m3',
      `--json=${json}`,
    ]);
    expect([status, stderr]).toEqual([0, expect.stringContaining('10 documents')]);
    const result: Result = JSON.parse(readFileSync(json, 'utf8'));
    check(result);
    const losses = result.rows.map(({ loss }) => loss);
    expect(new Set(losses).size).toBe(losses.length); // each pair had an effect
    for (const loss of losses) expect(Math.abs(loss - 2.4)).toBeLessThan(0.6);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

it('raises the loss as little on all 185 pages, by the committed result', () => {
  const result: Result = JSON.parse(readFileSync(join(projectRoot, 'bench', 'results', 'kv_quality.json'), 'utf8'));
  expect([result.setup.documents, result.rows.length]).toEqual([185, 16]);
  check(result);
});
