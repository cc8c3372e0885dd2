// Runs `diffqkv convert` on checkpoints of a test.

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { writeCheckpoint } from './checkpoints';
import { builtCli, runNode } from './children';
import type { Checkpoint } from './reference_model';

/** Writes the checkpoint to `parent`, converts it, and returns both directories and the report. */
export async function convertIn(
  parent: string,
  checkpoint: Checkpoint,
  args: string[],
  numShards = 1,
): Promise<{ from: string; to: string; stdout: string }> {
  const [from, to] = [join(parent, 'in'), join(parent, 'out')];
  writeCheckpoint(from, checkpoint, numShards);
  const { status, stdout, stderr } = await runNode([builtCli, 'convert', from, to, ...args]);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  expect(readdirSync(parent).sort()).toEqual(['in', 'out']);
  return { from, to, stdout };
}
