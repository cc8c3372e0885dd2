import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { addon } from '../addon';
import { awaitNative, DiffqkvError } from '../errors';
import { explain } from '../explain';

/** The files that are checked, for which no weights are needed. */
export const configNames = ['config.json', 'generation_config.json'];

/**
 * Rejects with the loader's error if it does not accept these contents of config.json and
 * generation_config.json. `name` is the model's in the message.
 */
export async function checkConfig(
  contents: ReadonlyMap<string, Uint8Array>,
  name: string,
): Promise<void> {
  // The loader reads the configs first. In a directory without weights it stops after them.
  const directory = await mkdtemp(join(tmpdir(), 'diffqkv-config-'));
  try {
    for (const [file, bytes] of contents) await writeFile(join(directory, file), bytes);
    const device = await awaitNative(() => addon().openDevice({ id: 'cpu' }));
    try {
      await awaitNative(() => device.loadModel({ directory }));
    } catch (error) {
      const { message } = error as Error;
      if (!configNames.some((file) => message.startsWith(join(directory, file)))) return;
      const explained = await explain(directory, error);
      if (!(explained instanceof DiffqkvError)) throw explained;
      throw new DiffqkvError(explained.code, explained.message.replaceAll(directory, name));
    } finally {
      device.dispose();
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
