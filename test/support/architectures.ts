// The checkpoints of test/model/architectures, which test/tools/make_architecture_fixtures.py writes.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export const architecturesDirectory = join(__dirname, '..', 'model', 'architectures');

const readJson = (folder: string, name: string) =>
  JSON.parse(readFileSync(join(architecturesDirectory, folder, name), 'utf8'));

/** The fields that a variant of a folder replaces in config.json. */
export function variantFields(folder: string, variant: string): Record<string, unknown> {
  return readJson(folder, 'expected.json').variants.find(({ name }: { name: string }) => name === variant).config;
}

/** Writes the checkpoint of a folder, with other fields of config.json, to a directory that exists. */
export function writeArchitecture(directory: string, folder: string, changes: Record<string, unknown>): string {
  const config = { ...readJson(folder, 'config.json'), ...changes };
  writeFileSync(join(directory, 'config.json'), JSON.stringify(config));
  const weights = readFileSync(join(architecturesDirectory, folder, 'model.safetensors'));
  writeFileSync(join(directory, 'model.safetensors'), weights);
  return directory;
}
