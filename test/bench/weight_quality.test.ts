// The quality loss of quantized weights: the loss of the embedded model on pages that it was not
// trained on. This test uses a part of the text. bench/results/weight_quality.json has the result for
// all of it.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

interface Result {
  setup: { documents: number; tokens: number };
  rows: { weightType: string; groupSize: number | null; lmHead: boolean; loss: number; weightBytes: number }[];
}

/** Fails unless the loss rises by at most these percents. */
function check({ rows }: Result, limits: Record<string, number>): void {
  const base = rows[0] as Result['rows'][0];
  expect(base.weightType).toBe('bf16');
  expect(rows.map(({ weightType }) => weightType)).toEqual(['bf16', 'i8', 'i8', 'i8', 'i4', 'i4', 'i4', 'i4']);
  for (const { weightType, loss, weightBytes } of rows.slice(1)) {
    expect((loss / base.loss - 1) * 100).toBeLessThanOrEqual(limits[weightType] as number);
    expect(weightBytes).toBeLessThan(base.weightBytes);
  }
  expect(new Set(rows.map(({ loss }) => loss)).size).toBe(rows.length); // each had an effect
}

it('raises the loss on a few pages little', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'diffqkv-quality-'));
  try {
    const json = join(directory, 'quality.json');
    const { status, stderr } = await runNode([
      join(projectRoot, 'dist', 'bench', 'weight_quality.js'),
      join(projectRoot, 'bench', 'data', 'tldr-heldout.txt'),
      '--documents=4',
      `--json=${json}`,
    ]);
    expect([status, stderr]).toEqual([0, expect.stringContaining('bf16')]);
    check(JSON.parse(readFileSync(json, 'utf8')), { i8: 0.3, i4: 2 });
  } finally {
    rmSync(directory, { recursive: true });
  }
});

it('raises the loss by at most 0.1 percent in i8 and 2 percent in i4 on all 185 pages, by the committed result', () => {
  const result: Result = JSON.parse(readFileSync(join(projectRoot, 'bench', 'results', 'weight_quality.json'), 'utf8'));
  expect([result.setup.documents, result.rows.length]).toEqual([185, 8]);
  check(result, { i8: 0.1, i4: 2 });
});
