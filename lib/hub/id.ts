import { stat } from 'node:fs/promises';

/** A model on a hub: `org/name@revision`. */
export interface ModelId {
  /** `org/name`. */
  name: string;
  /** A branch, a tag or a commit. */
  revision: string;
}

const MAX_NAME = 96;
const part = '[A-Za-z0-9_](?:[\\w.-]*\\w)?';
const form = new RegExp(`^(${part}/${part})(?:@(\\w[\\w./-]*))?$`);

/** Parses `org/name` or `org/name@revision`, by default revision main. Null if it is neither. */
export function parseModelId(source: string): ModelId | null {
  const [, name, revision = 'main'] = form.exec(source) ?? [];
  // As huggingface_hub: a folder of the cache separates org and name by --.
  if (name === undefined || name.length > MAX_NAME || /--|\.\.|\.git$/.test(name)) return null;
  if (/\.\.|\/\/|\/$/.test(revision)) return null;
  return { name, revision };
}

/** Like {@link parseModelId}. Resolves to null also if `source` is an existing path. */
export async function hubId(source: string): Promise<ModelId | null> {
  const id = parseModelId(source);
  if (id === null) return null;
  const exists = await stat(source).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT' && error.code !== 'ENOTDIR',
  );
  return exists ? null : id;
}

/** The text of an id, as a user writes it. */
export function idText({ name, revision }: ModelId): string {
  return revision === 'main' ? name : `${name}@${revision}`;
}
