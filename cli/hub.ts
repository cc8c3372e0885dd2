import { basename, join } from 'node:path';
import { escapeControls } from '../lib/errors';
import {
  type CachedSnapshot,
  downloadModel,
  hubId,
  hubSettings,
  type Inspection,
  inspectDirectory,
  inspectModel,
  listSnapshots,
  parseModelId,
} from '../lib/hub/index';
import { parseConfig } from './convert_config';
import { CliError } from './errors';
import { kvBytesPerToken as bytesPerToken } from './info';
import { interruptible } from './interrupt';
import { withLoadingBars } from './progress';
import { readSafetensors } from './safetensors';

export interface HubCommand {
  json?: boolean;
}

/** The directory of `source`. Downloads a model of the hub. */
export async function sourceDirectory(source: string, signal: AbortSignal): Promise<string> {
  const id = await hubId(source);
  if (id === null) return source;
  return withLoadingBars(({ onDownload }) => downloadModel(id, { onDownload, signal }));
}

/** Downloads a model, and prints its directory. Resolves to the exit status. */
export function pull(source: string, { json }: HubCommand): Promise<number> {
  return interruptible(async (signal) => {
    const id = parseModelId(source);
    if (id === null) {
      throw new CliError(
        'ERR_INVALID_ARGUMENT',
        `'${source}' is not the id of a model: it must be org/name or org/name@revision`,
      );
    }
    const directory = await withLoadingBars(({ onDownload }) =>
      downloadModel(id, { onDownload, signal }),
    );
    const commit = basename(directory);
    print(json, { ...id, commit, directory }, [directory]);
  });
}

/** Prints the models in the cache. Resolves to the exit status. */
export async function list({ json }: HubCommand): Promise<number> {
  const { cache } = await hubSettings();
  const models: (CachedSnapshot & { problem: Awaited<ReturnType<typeof problemOf>> })[] = [];
  for (const snapshot of await listSnapshots(cache)) {
    models.push({ ...snapshot, problem: await problemOf(snapshot) });
  }
  const lines = models.map(({ name, revisions, commit, bytes, problem }) =>
    [
      name.padEnd(Math.max(...models.map((model) => model.name.length))),
      commit.slice(0, 10),
      gigabytes(bytes).padStart(10),
      problem === null ? 'loads' : `does not load: ${problem.message}`,
      revisions.length > 0 ? `(${revisions.join(', ')})` : '',
    ].join('  '),
  );
  print(json, { cache, models }, lines.length > 0 ? lines : [`no models in ${cache}`]);
  return 0;
}

async function problemOf({ directory, name, complete }: CachedSnapshot) {
  if (!complete) {
    return { code: 'ERR_INVALID_CHECKPOINT', message: 'not all files are downloaded' };
  }
  try {
    return (await inspectDirectory(directory, name)).problem ?? null;
  } catch (error) {
    const { code, message } = error as Error & { code: string };
    return { code, message };
  }
}

/** Prints what is known of a model without its weights. Resolves to the exit status. */
export async function describeModel(source: string, { json }: HubCommand): Promise<number> {
  const inspection = await inspectModel(source);
  const { commit, directory, bytes, problem = null } = inspection;
  const config = parseConfig(`${source}/config.json`, Buffer.from(inspection.config ?? '{}'));
  const [architecture] = [config.architectures, config.model_type].flat().filter(isText);
  const dtype = [config.dtype, config.torch_dtype].find(isText);
  const type = dtype === 'float32' ? 'f32' : 'bf16';
  const parsed = problem === null ? inspection.parsed : undefined;
  const kvBytesPerToken = parsed ? bytesPerToken(parsed, type) : null;
  const numParameters = inspection.numParameters ?? (await countParameters(inspection));
  const model = {
    ...{ source, commit, directory, architecture, dtype },
    ...{ numParameters, bytes, kvBytesPerToken, problem },
  };
  const kv =
    kvBytesPerToken &&
    `${kvBytesPerToken.k + kvBytesPerToken.v} bytes per token: K ${kvBytesPerToken.k}, ` +
      `V ${kvBytesPerToken.v}, as ${type === 'f32' ? 'f32' : '16-bit floats'}`;
  const rows: [string, string | undefined | null][] = [
    ['model', source],
    ['commit', commit],
    ['architecture', architecture ?? 'unknown'],
    ['supported', problem === null ? 'yes' : `no: ${problem.message} (${problem.code})`],
    ['parameters', numParameters === undefined ? null : `${(numParameters / 1e6).toFixed(2)} M`],
    [directory === undefined ? 'download' : 'files', gigabytes(bytes)],
    ['KV cache', kv],
  ];
  const lines = rows.flatMap(([name, value]) => (value ? [`${name.padEnd(13)} ${value}`] : []));
  print(json, model, lines);
  return 0;
}

/** Counts the elements of the tensors in the headers of a directory's weights. */
async function countParameters({ directory, weights }: Inspection): Promise<number | undefined> {
  if (directory === undefined) return undefined;
  const counts = weights.map(async (name) => {
    const { tensors } = await readSafetensors(join(directory, name));
    return tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  });
  return (await Promise.all(counts)).reduce((a, b) => a + b, 0);
}

const isText = (value: unknown): value is string => typeof value === 'string';

function gigabytes(bytes: number): string {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(2)} MB`;
}

function print(json: boolean | undefined, value: object, lines: string[]): void {
  process.stdout.write(
    json
      ? `${JSON.stringify(value)}\n`
      : `${lines.map((line) => escapeControls(line)).join('\n')}\n`,
  );
}
